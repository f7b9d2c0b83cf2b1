"""Configs that are refused: each field by type, by value, and in a combination; and files that hold no config."""

import dataclasses
import itertools
import math
import re
from functools import partial
from pathlib import Path

import pytest
from refusals import A_CHOICE, A_COUNT, A_POSITIVE, IMAGES_ONLY, NO_CONFIG, Table, check_refusal

from pyrovae import RunConfig

FIELDS = [field.name for field in dataclasses.fields(RunConfig)]
CASES = Table()
add = CASES.add

CHOICE = ("nope", "", "ReLU", "MNIST", "a\nb", 3, 1.5, True, ["elbo"], {})
COUNT = (0, -1, 1.5, 2.0, True, "3", "a\nb", math.nan, math.inf, [1])
POSITIVE = (0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, "1", "a\nb", True, [1.0])
OF_OTHERS = "one of num_particles, chunk_size, joint, plate, vectorize_particles with objective elbo"
# Fields, what each must be, and wrong values of it in the config of a run on points.
OWN_ONLY = "is for data of your own, and ring is built in"
BAD_FIELDS = (
    ("dataset activation posterior prior objective beta_schedule schedule nonfinite train", A_CHOICE, (*CHOICE, None)),
    ("network", A_CHOICE, CHOICE),
    ("columns exclude kinds", OWN_ONLY, ("age", 3, True, ["age"], {})),
    ("label_column split_column missing", OWN_ONLY, ("age", 3, True, [])),
    ("header", OWN_ONLY, (True, False, 0, "no")),
    ("standardise", OWN_ONLY, (False, None, 2, "yes")),
    ("image_size", OWN_ONLY, (32, 0, "32")),
    ("likelihood", "one of .+ for points data", (*CHOICE, "normal", "bernoulli", "bernoulli_grey")),
    ("epochs batch_size guide_steps", A_COUNT, (*COUNT, None)),
    ("num_particles latent_dim patience", A_COUNT, COUNT),
    ("scale beta lr", A_POSITIVE, (*POSITIVE, None)),
    ("max_grad_norm temperature guide_lr guide_max_grad_norm", A_POSITIVE, POSITIVE),
    ("num_components posterior_components", A_COUNT, COUNT),
    ("layers", "whole numbers >= 1", ("128", "a\nb", 128, 1.5, True, {}, None)),
    ("seed", "a whole number >= 0", (-1, 0.5, 1.0, True, "0", "a\nb", None, math.nan, [0])),
    ("hidden", "whole numbers >= 1", ("128", "a\nb", 128, 1.5, True, {})),
    ("conditional", "true or false", (None, 0, 1, "yes", "a\nb")),
    ("data_root", "a string", (5, 1.5, True, ["data"], {})),
    ("device", "a string", (5, 1.5, True, ["data"], {}, None)),
    ("binarize", IMAGES_ONLY, ("none", "static", "dynamic", "nope", "a\nb", 3, True)),
    ("alpha num_batches free_bits", OF_OTHERS, (0.5, 0, 1, 1.5, "0.5", "a\nb", math.nan, True)),
)


def add_field(field: str, rule: str, value: object, named: object = None, **others) -> None:
    """Adds a field with a wrong value; `named` is the part of it that the line names, if not all of it."""
    found = re.escape(repr(value if named is None else named))
    said = f"{field} must be {rule}[,;] got {found}"
    if rule in (IMAGES_ONLY, OWN_ONLY):
        said = f"{field} {found} {rule}" if rule == IMAGES_ONLY else f"{field} {rule}; got {found}"
    where = "".join(f", {name} {other}" for name, other in others.items())
    name = f"config: {field} {str(value)[:20]!r} ({type(value).__name__}){where}"
    add(name, said, RunConfig, **{field: value}, **others)


for names, rule, values in BAD_FIELDS:
    for field, value in itertools.product(names.split(), values):
        add_field(field, rule, value)
for value in ([0], [-1], [1.5], [True], ["a"], [[3]], [4, math.nan]):
    add_field("hidden", A_COUNT, value, value[-1])
TABLE = {"dataset": "people.csv"}
IMAGES, OF = {"dataset": "mnist"}, "one of [a-z_, ]+ for {} data"
NOT_BINARY = ("gaussian", "gaussian_learned", "bernoulli_grey")
for field, rule, values, others in (
    ("network", IMAGES_ONLY, ("conv",), {}),
    ("columns", "a list of texts", ("age", 3, [3], {}), TABLE),
    ("exclude", "a list of texts", ("age", 3, [3], {}), TABLE),
    ("kinds", "a list of texts", ("count", 3, [True], None), TABLE),
    ("label_column", "a string", (3, True, ["age"]), TABLE),
    ("split_column", "a string", (3, True, ["age"]), TABLE),
    ("missing", "mask", ("mean", "", 3, True), TABLE),
    ("header", "true or false", (0, "no", []), TABLE),
    ("standardise", "true or false", (None, 0, "yes"), TABLE),
    ("image_size", A_COUNT, COUNT, TABLE),
    ("network", A_CHOICE, CHOICE, TABLE),
    ("likelihood", A_CHOICE, CHOICE, TABLE),
    ("binarize", "one of none, static, dynamic, dequantise", CHOICE, IMAGES),
    ("latent_dim", A_COUNT, COUNT, IMAGES),
    ("hidden", "whole numbers >= 1", ("400", 400), IMAGES),
    ("alpha", "a finite number", (math.nan, math.inf, -math.inf, "0.5", True, []), {"objective": "renyi"}),
    ("free_bits", A_POSITIVE, (0, -0.5, math.nan, "1", True), {"objective": "elbo_analytic_kl"}),
    ("num_batches", A_COUNT, (0, 1.5, "2", True), {"objective": "miwae"}),
    ("num_particles", "a whole number >= 2", (1,), {"objective": "vimco"}),
    ("likelihood", OF.format("points"), ("bernoulli", "bernoulli_grey"), {"dataset": "four_clusters"}),
    ("likelihood", OF.format("points"), ("bernoulli", "bernoulli_grey"), {"dataset": "pinwheel"}),
    ("likelihood", OF.format("grey"), ("bernoulli", "gaussian"), {**IMAGES, "binarize": "none"}),
    ("likelihood", OF.format("binary"), NOT_BINARY, {**IMAGES, "binarize": "static"}),
    ("likelihood", OF.format("binary"), NOT_BINARY, {**IMAGES, "binarize": "dynamic"}),
    ("likelihood", OF.format("dequantised"), ("bernoulli", "categorical"), {**IMAGES, "binarize": "dequantise"}),
):
    for value in values:
        add_field(field, rule, value, **others)
for dataset in ("four_clusters", "pinwheel"):
    said = f"binarize 'static' is for image sets, and {dataset} holds points"
    add(f"config: binarize of {dataset}", said, RunConfig, dataset=dataset, binarize="static")
posterior = r"posterior delta \(an autoencoder\) needs objective elbo, got iwae"
add("config: delta and iwae", posterior, RunConfig, posterior="delta", objective="iwae", num_particles=5)
for wrong, said in (
    ({"posterior": "delta", "prior": "flow"}, r"posterior delta \(an autoencoder\) needs prior standard, got flow"),
    ({"posterior": "bernoulli", "prior": "vamp"}, "posterior bernoulli has a prior of its own, got vamp"),
    (
        {"posterior": "bernoulli", "temperature": 0.5, "objective": "vimco", "num_particles": 2},
        "temperature is for objectives that differentiate draws, and vimco does not",
    ),
    ({"temperature": 0.5}, "temperature is for posterior bernoulli or relaxed_bernoulli, got diagonal"),
    (
        {"posterior": "relaxed_bernoulli", "prior": "mixture"},
        "posterior relaxed_bernoulli has a prior of its own, got mixture",
    ),
    (
        {"posterior": "bernoulli", "objective": "elbo_enumerated", "latent_dim": 17},
        "objective elbo_enumerated needs posterior bernoulli and latent_dim <= 16, got bernoulli and 17",
    ),
    (
        {"objective": "elbo_enumerated"},
        "objective elbo_enumerated needs posterior bernoulli and latent_dim <= 16, got diagonal and 2",
    ),
    (
        {"posterior": "bernoulli", "objective": "elbo_enumerated", "num_particles": 4},
        "num_particles must not be given with objective elbo_enumerated; got 4",
    ),
    ({"layers": [2], "prior": "mixture"}, "layers need posterior diagonal and prior standard, .+ diagonal and mixture"),
    ({"layers": [2, 0]}, "layers must be a whole number >= 1, got 0"),
    ({"prior": "vamp", "conditional": True}, "prior vamp needs a VAE that is not conditional"),
    ({"num_components": 3}, "num_components is for prior mixture or vamp, got standard"),
    ({"posterior_components": 3}, "posterior_components is for posterior mixture, got diagonal"),
    ({"objective": "siwae"}, "objective siwae needs posterior mixture, got diagonal"),
    ({"prior": "flow", "objective": "elbo_analytic_kl"}, "objective elbo_analytic_kl needs a KL in closed form, .+"),
):
    add(f"config: {wrong}", said, RunConfig, **wrong)
for field in ("scale", "beta", "lr", "max_grad_norm", "alpha", "free_bits"):  # JSON has no bound on whole numbers
    objective = {"alpha": "renyi", "free_bits": "elbo_analytic_kl"}.get(field, "elbo")
    said = rf"{field} must be a finite number( > 0)?, got 10+\.\.\.0+"
    add(f"config: {field} beyond the floats", said, RunConfig, **{field: 10**400}, objective=objective)
add("config: seed beyond the generators", f"seed must be < 2\\^63, got {2**63}", RunConfig, seed=2**63)
for field in ("epochs", "seed"):
    said = f"{field} must be .*, got .*"
    add(f"config: {field} of 5,000 digits", said, RunConfig, **{field: -(10**5_000)})
for name in ("learning_rate", "Lr", "lr ", "", "hidden_dim", 3, None, "a\nb"):
    said = f"config has an unknown field {re.escape(repr(name))}; pyrovae train --help names them"
    add(f"config: unknown {name!r}", said, RunConfig.from_dict, {name: 1})
for value in (None, 3, "ring", [], [["lr", 1]], True):
    said = f"a config must be a table of fields, got {type(value).__name__}"
    add(f"config: {value!r}", said, RunConfig.from_dict, value)

for name, content, said in (
    ("empty", b"", NO_CONFIG),
    ("cut off", b"{", NO_CONFIG),
    ("a comma too many", b'{"lr": 1,}', NO_CONFIG),
    ("yaml", b"lr: 1", NO_CONFIG),
    ("not text", b"\xff\xfe\x00", NO_CONFIG),
    ("two tables", b'{"lr": 1} {}', NO_CONFIG),
    ("too many digits", b'{"seed": ' + b"9" * 5_000 + b"}", NO_CONFIG),
    ("nested too deep", b"[" * 100_000, NO_CONFIG),
    ("nan", b'{"lr": NaN}', "lr must be a finite number > 0, got nan"),
    ("beyond the floats", b'{"lr": 1e999}', "lr must be a finite number > 0, got inf"),
    ("a float", b'{"epochs": 10.0}', "epochs must be a whole number >= 1, got 10.0"),
    ("misspelt", b'{"epoch": 10}', "config has an unknown field 'epoch'; pyrovae train --help .+"),
    ("a list", b"[1, 2]", "a config must be a table of fields, got list"),
    ("null", b"null", "a config must be a table of fields, got NoneType"),
):
    write = partial(Path("config.json").write_bytes, content)
    add(f"config file: {name}", said, RunConfig.load, Path("config.json"), given=write)
add("config file: missing", NO_CONFIG, RunConfig.load, Path("config.json"))
add("config file: a folder", r"\. is not a readable config \(.+\)", RunConfig.load, Path())


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)


def test_the_table_has_every_field():
    assert sorted(name for names, _, _ in BAD_FIELDS for name in names.split()) == sorted(FIELDS)
