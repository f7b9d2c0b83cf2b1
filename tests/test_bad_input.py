"""Every kind of bad input, in one table: each is refused in one line that names what it is and the value found, and
nothing is written. The line is compared whole, so that a changed word is seen."""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import broken_files as files
import numpy as np
import pyro
import pytest
import torch
import torchvision
from broken_pairs import ON_PAIRS, PAIRS
from helpers import (
    IMAGE_FILES,
    LABEL_FILES,
    NUM_TRAIN,
    discrete_pair,
    load_fake,
    parameters_of,
    refusal,
    small_vae,
    tree,
)

import pyrovae as pv
from pyrovae import RunConfig
from pyrovae.objectives.registry import ABOUT_MANY, from_text
from pyrovae.runs import build_vae, train_run
from pyrovae.training.checkpoints import Checkpoints

SCRIPTS = Path(__file__).parent.parent / "scripts"
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


class Case(NamedTuple):
    name: str
    said: str
    """The whole line, as a regular expression."""
    call: Callable[[], object]
    """What is tried, in an empty folder."""
    given: Callable[[], object]
    """What is in the folder before."""


CASES: list[Case] = []


def add(name: str, said: str, call: Callable, *args, given: Callable = lambda: None, **kwargs) -> None:
    CASES.append(Case(name, said, partial(call, *args, **kwargs), given))


def script(name: str, *flags: str) -> None:
    """Runs a script in this process, and raises what it says as it exits with 2; tyro's box without its line breaks."""
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", [name, *flags])
        with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    said = error.getvalue()
    assert stopped.value.code == 2, said
    assert "Traceback" not in said
    assert said.count("\n") == 1 or not said.startswith("error: "), said
    raise pv.InputError(" ".join(said.split()))


def fit(vae, data, **settings) -> None:
    """`pv.fit`, which is to refuse before it has trained anything."""
    before = parameters_of(vae)
    try:
        pv.fit(vae, data, **{"epochs": 1, "progress": False, **settings})
    finally:
        assert torch.equal(parameters_of(vae), before)


# Every function that takes a batch `x, *y`.
ON_BATCHES = {
    "fit": lambda vae, *batch: fit(vae, [batch]),
    "log_marginal": lambda vae, *batch: pv.log_marginal(vae.model, vae.guide, *batch, num_samples=5),
    "evaluate": lambda vae, *batch: pv.evaluate(vae.model, vae.guide, *batch, methods=["elbo"]),
}


load_ring = partial(pv.load, "ring", num_train=20, num_validation=5, num_test=5)


# Configs: each field with what is wrong by type, by value, and in a combination ---------------------------------------

CHOICE = ("nope", "", "ReLU", "MNIST", "a\nb", 3, 1.5, True, ["elbo"], {})
COUNT = (0, -1, 1.5, 2.0, True, "3", "a\nb", math.nan, math.inf, [1])
POSITIVE = (0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, "1", "a\nb", True, [1.0])
A_CHOICE, A_COUNT, A_POSITIVE = "one of .+", "a whole number >= 1", "a finite number > 0"
OF_OTHERS = "one of num_particles, chunk_size with objective elbo"
IMAGES_ONLY = "is for image sets, and ring holds points"
# Fields, what each must be, and what it is instead in the config of a run on points.
BAD_FIELDS = (
    (
        "dataset activation network posterior prior objective beta_schedule schedule nonfinite",
        A_CHOICE,
        (*CHOICE, None),
    ),
    ("likelihood", "one of .+ for points data", (*CHOICE, "normal", "bernoulli", "bernoulli_grey")),
    ("epochs batch_size", A_COUNT, (*COUNT, None)),
    ("num_particles latent_dim patience", A_COUNT, COUNT),
    ("scale beta lr", A_POSITIVE, (*POSITIVE, None)),
    ("max_grad_norm temperature", A_POSITIVE, POSITIVE),
    ("num_components", A_COUNT, COUNT),
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
    """`named` is the part of `value` that the line names, where it is not the whole."""
    found = re.escape(repr(value if named is None else named))
    said = f"{field} {found} {rule}" if rule == IMAGES_ONLY else f"{field} must be {rule}[,;] got {found}"
    where = "".join(f", {name} {other}" for name, other in others.items())
    name = f"config: {field} {str(value)[:20]!r} ({type(value).__name__}){where}"
    add(name, said, RunConfig, **{field: value}, **others)


for names, rule, values in BAD_FIELDS:
    for field, value in itertools.product(names.split(), values):
        add_field(field, rule, value)
for value in ([0], [-1], [1.5], [True], ["a"], [[3]], [4, math.nan]):
    add_field("hidden", A_COUNT, value, value[-1])
IMAGES, OF = {"dataset": "mnist"}, "one of [a-z_, ]+ for {} data"
NOT_BINARY = ("gaussian", "gaussian_learned", "bernoulli_grey")
for field, rule, values, others in (
    ("network", IMAGES_ONLY, ("conv",), {}),
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
    ({"prior": "flow", "objective": "elbo_analytic_kl"}, "objective elbo_analytic_kl needs a KL in closed form, .+"),
):
    add(f"config: {wrong}", said, RunConfig, **wrong)
for field in ("scale", "beta", "lr", "max_grad_norm", "alpha", "free_bits"):  # JSON has no bound on whole numbers
    objective = {"alpha": "renyi", "free_bits": "elbo_analytic_kl"}.get(field, "elbo")
    said = f"{field} must be a finite number( > 0)?, got 1{'0' * 49}"
    add(f"config: {field} beyond the floats", said, RunConfig, **{field: 10**400}, objective=objective)
add("config: seed beyond the generators", f"seed must be < 2\\^63, got {2**63}", RunConfig, seed=2**63)
for field in ("epochs", "seed"):
    said = f"{field} must be .*, got .*"
    add(f"config: {field} of 5,000 digits", said, RunConfig, **{field: -(10**5_000)})
for name in ("learning_rate", "Lr", "lr ", "", "hidden_dim", 3, None, "a\nb"):
    said = f"config has an unknown field {re.escape(repr(name))}; known are {', '.join(FIELDS)}"
    add(f"config: unknown {name!r}", said, RunConfig.from_dict, {name: 1})
for value in (None, 3, "ring", [], [["lr", 1]], True):
    said = f"a config must be a table of fields, got {type(value).__name__}"
    add(f"config: {value!r}", said, RunConfig.from_dict, value)

no_config = r"(\S+/)?config.json is not a readable config \(.+\)"
for name, content, said in (
    ("empty", b"", no_config),
    ("cut off", b"{", no_config),
    ("a comma too many", b'{"lr": 1,}', no_config),
    ("yaml", b"lr: 1", no_config),
    ("not text", b"\xff\xfe\x00", no_config),
    ("two tables", b'{"lr": 1} {}', no_config),
    ("too many digits", b'{"seed": ' + b"9" * 5_000 + b"}", no_config),
    ("nested too deep", b"[" * 100_000, no_config),
    ("nan", b'{"lr": NaN}', "lr must be a finite number > 0, got nan"),
    ("beyond the floats", b'{"lr": 1e999}', "lr must be a finite number > 0, got inf"),
    ("a float", b'{"epochs": 10.0}', "epochs must be a whole number >= 1, got 10.0"),
    ("misspelt", b'{"epoch": 10}', "config has an unknown field 'epoch'; known are .+"),
    ("a list", b"[1, 2]", "a config must be a table of fields, got list"),
    ("null", b"null", "a config must be a table of fields, got NoneType"),
):
    write = partial(Path("config.json").write_bytes, content)
    add(f"config file: {name}", said, RunConfig.load, Path("config.json"), given=write)
add("config file: missing", no_config, RunConfig.load, Path("config.json"))
add("config file: a folder", r"\. is not a readable config \(.+\)", RunConfig.load, Path())


# Objectives by name ---------------------------------------------------------------------------------------------------

for objective in ABOUT_MANY:
    said = f"num_particles must be given with objective {objective}: with one it is the elbo"
    more = {"num_batches": 4} if objective in ("miwae", "piwae") else {}
    settings = "".join(f":{name}={value}" for name, value in more.items())
    for door, call in {
        "config": partial(RunConfig, objective=objective, **more),
        "from_name": partial(pv.objectives.from_name, objective, **more),
        "from_text": partial(from_text, objective + settings),
        "fit": lambda o=objective, m=more: fit(small_vae(), torch.zeros(4, 2), objective=o, **m),
        "fit, later": lambda o=objective: fit(small_vae(), torch.zeros(4, 2), epochs=2, objective={1: "elbo", 2: o}),
        "race": lambda o=objective: pv.race(small_vae, load_ring(), ["elbo", o], epochs=1),
        "race, one of them": lambda o=objective: pv.race(small_vae, load_ring(), {"late": {1: "elbo", 2: o}}, epochs=2),
    }.items():
        add(f"objective alone: {objective}, {door}", said, call)


# Data and labels given as tensors -------------------------------------------------------------------------------------


def add_batch(name: str, batch: tuple, said: str, uses=tuple(ON_BATCHES), **vae) -> None:
    for use in uses:

        def call(use=use):
            ON_BATCHES[use](small_vae(**{"event_shape": (3,), **vae}), *batch)

        add(f"{name}, {use}", said, call)


def pixel(value: float) -> torch.Tensor:
    x = torch.zeros(4, 1, 2, 2)
    x[1, 0, 1, 0] = value
    return x


ESTIMATES = ("log_marginal", "evaluate")
for name in ("int64", "uint8", "bool", "complex64"):
    x = torch.zeros(4, 3, dtype=getattr(torch, name))
    add_batch(f"x: {name}", (x,), f"x must be a floating-point tensor, got torch.{name}")
for name in ("float64", "float16"):
    said = f"x must .*torch.float32.* got torch.{name}"
    add_batch(f"x: {name}", (torch.zeros(4, 3, dtype=getattr(torch, name)),), said)
for shape in ((3,), (4, 1, 3), (4, 2)):
    said = rf"x must have shape \(batch, 3\), got {re.escape(str(shape))}"
    add_batch(f"x: shape {shape}", (torch.zeros(shape),), said)
for value in (math.nan, math.inf, -math.inf):
    x = torch.zeros(4, 3)
    x[2, 1] = value
    add_batch(f"x: {value}", (x,), rf"x must be finite, got {value} at index \(2, 1\)")
add_batch("x: empty", (torch.zeros(0, 3),), r"x must (be a tensor of|hold) at least one datum, got (0|tensor.*)")
add_batch("x: no dimension", (torch.zeros(()),), r"x must .*, got .+")
add_batch("x: sparse", (torch.zeros(4, 3).to_sparse(),), "x must be .*sparse.*")
for value in ([[0.0] * 3], np.zeros((4, 3)), None, "images"):
    name = type(value).__name__
    add_batch(f"x: {name}", (value,), "x must be a tensor.*, got .+")
at = r"at index \(1, 0, 1, 0\).*"
for likelihood, value, rule in (
    (pv.Bernoulli(), 0.5, "be 0 or 1 under Bernoulli"),
    (pv.Bernoulli(allow_grey=True), 1.5, r"lie in \[0, 1\]"),
    (pv.ContinuousBernoulli(), -0.1, r"lie in \[0, 1\]"),
    (pv.Categorical(), 0.3, "be one of the 256 grey levels k / 255"),
    (pv.DiscretizedLogistic(0.3), 2, "be one of the 256 grey levels k / 255"),
):
    more = {"event_shape": (1, 2, 2), "likelihood": likelihood}
    name = f"x: {value} under {likelihood}".split("(")[0]
    add_batch(name, (pixel(value),), f"x must {rule}, got {value} {at}", ["fit"], **more)
    outside = rf'(log p\(x\) does not|the pair does not run).+site "x".+ {value}[\d.]* {at}'
    add_batch(name, (pixel(value),), outside, ESTIMATES, **more)

X, Y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
labels = {"condition": pv.OneHot(3)}
# To fit more labels than conditions are no error: loaders of unconditional models yield them, too.
add_batch("label: too many", (X, Y, Y), "y must hold 1 conditions, got 2", ESTIMATES, **labels)
add_batch("label: missing", (X,), "y must hold 1 conditions, got 0", **labels)
for name, y, said in (
    ("too large", torch.tensor([0, 1, 2, 0, 3]), "y must lie in 0 ... 2, got 3 at index 4"),
    ("negative", torch.tensor([0, -1, 2, 0, 7]), "y must lie in 0 ... 2, got -1 at index 1"),
    ("float", torch.zeros(5), "y must be a tensor of integer labels, got torch.float32"),
    ("bool", Y.bool(), "y must be a tensor of integer labels, got torch.bool"),
    ("complex", Y.cfloat(), "y must be a tensor of integer labels, got torch.complex64"),
    ("column", Y[:, None], "y must have shape (5,), a label per datum, got (5, 1)"),
    ("one-hot", torch.zeros(5, 3, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 3)"),
):
    add_batch(f"label: {name}", (X, y), re.escape(said), **labels)
for num in (4, 1, 0):
    either = (
        rf"y must have shape \(5,\), a label per datum, got \({num},\)",
        rf".+ must have one length, got \[5, {num}\]",
    )
    add_batch(f"label: {num} for 5", (X, Y[:num]), "|".join(either), **labels)
scalar = r"y must have shape \(5,\), a label per datum, got \(\)|y must have a dimension of data, got shape \(\)"
add_batch("label: no dimension", (X, Y[0]), scalar, **labels)
for value in ([0] * 5, None):
    said = f"y must be a tensor( of integer labels)?, got {type(value).__name__}"
    add_batch(f"label: {type(value).__name__}", (X, value), said, **labels)
values = {"condition": pv.Embedding()}
add_batch("value: nan", (X, X[:, :1] + math.nan), r"y must be finite, got nan at .*", **values)
add_batch("value: flat", (X, X[:, 0]), r"y must have shape \(5, 1\), a value per datum, got \(5,\)", **values)
add_batch("value: labels", (X, Y[:, None]), "y must be a floating-point tensor, got torch.int64", **values)
add_batch("value: float64", (X, X[:, :1].double()), "y must .*torch.float32.* got torch.float64", **values)


# What else fit, log_marginal and evaluate are given -------------------------------------------------------------------

GOOD_X = torch.zeros(4, 2)
for name, change, said in (
    ("one-time", {"data": iter([GOOD_X])}, "data must be iterable again at every epoch, got a one-time iterator"),
    ("no batch", {"data": []}, "data must yield at least one batch, got none"),
    ("no data", {"data": 3}, "data must be a Dataset, a tensor or an iterable of batches, got int"),
    ("a tensor", {"data": torch.zeros(4, 3)}, r"x must have shape \(batch, 2\), got \(4, 3\)"),
    ("an empty tensor", {"data": GOOD_X[:0]}, "x must be a tensor of at least one datum, got tensor.*"),
    ("nan", {"data": GOOD_X + math.nan}, r"x must be finite, got nan at index \(0, 0\)"),
    ("validation", {"validation": GOOD_X + math.inf}, r"x must be finite, got inf at index \(0, 0\)"),
    ("validation 3", {"validation": 3}, "validation must be a Dataset, a tensor or an iterable of .*, got int"),
    ("epochs", {"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
    ("batch_size", {"batch_size": -3}, "batch_size must be a whole number >= 1, got -3"),
    ("lr", {"lr": 0.0}, "lr must be a finite number > 0, got 0.0"),
    ("max_grad_norm", {"max_grad_norm": -1}, "max_grad_norm must be a finite number > 0, got -1"),
    ("patience", {"patience": 2}, "patience needs validation data, got none"),
    ("schedule", {"schedule": "linear"}, "schedule must be one of constant, cosine; got 'linear'"),
    ("objective", {"objective": "evidence"}, "objective must be one of .+; got 'evidence'"),
    ("compile", {"compile": "yes"}, "compile must be true, false or auto, got 'yes'"),
    ("device", {"device": "abacus"}, "device must be auto or one that torch can use here, got 'abacus'"),
    ("device None", {"device": None}, "device must be auto or one that torch can use here, got None"),
    ("optimizer", {"optimizer": "adam"}, "optimizer must be .*, got 'adam'"),
    ("checkpoints", {"checkpoints": "folder"}, "checkpoints must be .*, got 'folder'"),
    ("batch_size beyond 64 bits", {"batch_size": 10**30}, f"batch_size must be .*, got {10**30}"),
    *((f"seed {seed}", {"seed": seed}, f"seed must be .*, got {seed!r}") for seed in (-1, 1.5, "a", 2**64)),
):
    add(f"fit: {name}", said, lambda c=change: fit(small_vae(), **{"data": GOOD_X, **c}))
add("fit: no pair", "vae must have .*, got 3", pv.fit, 3, GOOD_X, epochs=1)


def never(x) -> None:
    raise AssertionError("ran")


def unrun(function: Callable, **settings) -> None:
    function(never, never, torch.zeros(3, 5), **settings)


for field, values in {"num_samples": (0, 2.5, "a", None), "chunk_size": (0, 1.5, "a")}.items():
    for value in values:
        said = f"{field} must be {A_COUNT}, got {re.escape(repr(value))}"
        more = {"num_samples": 10, field: value}
        add(f"log_marginal: {field} {value!r}", said, unrun, pv.log_marginal, **more)
one_name = "methods must be elbo, iwae_K, is_S, ais_T or ais_prior_T .+, got "
for methods, said in (
    ([], "methods must name at least one method, got none"),
    ("elbo", "methods must be a sequence of names, got 'elbo'"),
    (3, "methods must be .+, got 3"),
    (["is_0"], "is_0 must be a whole number >= 1, got 0"),
    *(([bad], one_name + re.escape(repr(bad))) for bad in ("vae", "is", "is_", "iwae_x", "ais_-1", "elbo_3", 3)),
    *(([bad], one_name + re.escape(repr(bad))) for bad in ("is_1.5", "ais_prior", "is_prior_3")),
):
    add(f"evaluate: methods {methods!r}", said, unrun, pv.evaluate, methods=methods)
for seed in (-1, 1.5, "a", 2**64):
    said, more = f"seed must be .*, got {seed!r}", {"methods": ["is_5"], "seed": seed}
    add(f"evaluate: seed {seed!r}", said, unrun, pv.evaluate, **more)


# IDX files ------------------------------------------------------------------------------------------------------------

for file in (*IMAGE_FILES, *LABEL_FILES):
    for name, damage in files.CORRUPT.items():
        said = rf"\S+/{file} .+ \(.+\)|\S+/{file} must .+"
        add(f"idx: {file} {name}", said, load_fake, files.IMAGES, given=files.rewritten(file, damage))
    said = f"{file} not found in {files.RAW}, and MNIST could not be downloaded; name the folder .+"
    add(f"idx: no {file}", said, load_fake, files.IMAGES, given=files.without(file))
    add(f"idx: {file}.gz alone", said, load_fake, files.IMAGES, given=files.archived(file))
for num in (NUM_TRAIN - 1, NUM_TRAIN + 1):
    said = rf"\S+/{LABEL_FILES[0]} must hold one label per image of {IMAGE_FILES[0]}, got {num} for {NUM_TRAIN}"
    add(f"idx: {num} labels", said, load_fake, files.IMAGES, given=files.with_labels(num))
for counts, found in (
    ({"num_train": 31}, "31 + 10"),
    ({"num_train": 41, "num_validation": 0}, "41 + 0"),
    ({"num_validation": 40}, "0 + 40"),
    ({"num_validation": 5_000}, "-4960 + 5000"),
    ({"num_train": 20, "num_validation": 21}, "20 + 21"),
):
    said = f"num_train + num_validation must be <= 40 and leave something to train on, got {found}"
    add(f"load: {counts}", re.escape(said), load_fake, files.IMAGES, **counts, given=files.images)
add("load: num_test 13", "num_test must be <= 12, got 13", load_fake, files.IMAGES, num_test=13, given=files.images)
for dataset in ("ring", "pinwheel", "mnist"):
    for field, low in (("num_train", 1), ("num_validation", 0), ("num_test", 1), ("seed", 0)):
        for value in (low - 1, -7, 1.5, 2.0, True, "3", math.nan, [2]):
            said = f"{field} must be a whole number >= {low}, got {re.escape(repr(value))}"
            add(f"load: {dataset}, {field} {value!r}", said, pv.load, dataset, **{field: value})
for value in ("rings", "", "MNIST", "cifar10", None, 3, ["ring"]):
    known = "ring, four_clusters, pinwheel, mnist, fashion_mnist, kmnist"
    add(f"load: {value!r}", f"dataset must be one of {known}; got {re.escape(repr(value))}", pv.load, value)
for value in ("nope", "", "Static", 1, True, ["static"]):
    said = f"binarize must be one of none, static, dynamic, dequantise; got {re.escape(repr(value))}"
    add(f"load: mnist, binarize {value!r}", said, load_fake, files.IMAGES, binarize=value, given=files.images)
for value in ("none", "static", "dynamic", "nope"):
    add(f"load: ring, binarize {value!r}", f"binarize {IMAGES_ONLY}; got {value!r}", pv.load, "ring", binarize=value)


# Runs and their checkpoints -------------------------------------------------------------------------------------------

cannot_read = r"run/checkpoint.pt is not a readable checkpoint \({0}\); run/checkpoint-previous.pt is not a .+ \({0}\)"
unreadable, foreign = cannot_read.format(".+"), cannot_read.format("it is not one that pyrovae wrote")
not_of_a_run = r"the checkpoint in run is not one of a run \(\w+: .+\)"
no_fit = r"the checkpoint in run does not fit config.json: "
own_bias = r"decoder.layers.0.bias must have shape \(9,\), got \(8,\)"
for name, said in {
    "no folder": "run folder run does not exist",
    "a file": "run folder run does not exist",
    "no checkpoint": "run holds no checkpoint",
    "no config": no_config,
    "config cut off": no_config,
    **{f"checkpoint[:{keep}]": unreadable for keep in files.CUTS},
    "code in the checkpoint": unreadable,
    "another thing": foreign,
    "no format": foreign,
    "no history": not_of_a_run,
    "state is a list": not_of_a_run,
    "no epoch done": "the run in run was interrupted before its first epoch ended",
    "not finite": r"decoder.layers.0.bias in the checkpoint in run must be finite, got nan at index \(0,\)",
    "other sizes": no_fit + own_bias,
    "more layers": no_fit + r"decoder.layers.2.bias must have shape \(8,\), got None",
    "bad scale": "scale must be a finite number > 0, got -1",
    "unknown field": "config has an unknown field 'hiden'; known are .+",
}.items():
    add(f"run: {name}", said, pv.load_run, files.RUN, given=files.RUNS[name])


def go_on(hidden=(8,), **changes) -> None:
    """The training of the run, with changes."""
    same = {"epochs": 2, "batch_size": 1_000, "seed": 0, "progress": False}
    vae, kept = build_vae(RunConfig(**{**files.SMALL, "hidden": hidden}), (2,)), Checkpoints(files.RUN)
    pv.fit(vae, pv.load("ring"), checkpoints=kept, **{**same, **changes})


no_fit, other = no_fit.replace("config.json", "the model"), r"the checkpoint in run was written with "
regrouped = {"optimizer": lambda p, lr: torch.optim.Adam([{"params": [q]} for q in p], lr=lr, fused=True)}
for name, change, said in (
    ("sizes", {"hidden": (9,)}, no_fit + own_bias),
    ("layers", {"hidden": (8, 8)}, no_fit + r"decoder.layers.2.bias must have shape \(8,\), got None"),
    ("lr", {"lr": 0.5}, other + "lr 0.001, and lr is now 0.5"),
    ("epochs", {"epochs": 9}, other + "epochs 2, and epochs is now 9"),
    (
        "objective",
        {"objective": "iwae", "num_particles": 5},
        other + r"objective 'ELBO\(.*\)', and objective is now 'IWAE\(.*",
    ),
    ("seed", {"seed": 8}, other + "seed 0, and seed is now 8"),
    ("optimizer settings", {"optimizer": torch.optim.Adam}, "the checkpoint in run is of other optimizer settings: .+"),
    ("optimizer", regrouped, r"the checkpoint in run is not one of this training \(ValueError: .+\)"),
):
    add(f"fit: checkpoint, other {name}", said, go_on, **change, given=files.damaged())
add("fit: checkpoint cut off", unreadable, go_on, given=files.cut(100))
said = r"the run in run was begun with lr 0.001, and lr is now 0.5"
other_lr = RunConfig(**files.SMALL, lr=0.5)
add("run: resumed with another lr", said, train_run, other_lr, files.RUN, resume=True, given=files.damaged())


# Folders --------------------------------------------------------------------------------------------------------------

for name, folder, said in (
    ("not empty", "full", "out must be a new or empty folder, and full holds files"),
    ("a file", "full/notes.txt", "out must be a folder, got the file full/notes.txt"),
    ("below a file", "full/notes.txt/a/b", r"out must be a folder, and \S+/full/notes.txt is a file"),
    ("locked", "locked/run", r"out must be writable, and \S+/locked is not"),
    ("below /proc", "/proc/run", "out must be .*/proc.*"),
    ("name too long", "n" * 300, "out must be .*n{300}.*"),
):
    if name != "locked" or os.geteuid() != 0:  # root writes where it likes
        more = {"progress": False, "given": files.mine}
        add(f"folder: {name}", said, train_run, RunConfig(**files.SMALL), folder, **more)
for name, settings, said in (
    ("minutes", {"minutes": 0}, "minutes must be a finite number > 0, got 0"),
    ("epochs", {"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
    ("a file", {"folder": "full/notes.txt"}, "folder must be a folder, got the file full/notes.txt"),
    ("below a file", {"folder": "full/notes.txt/a"}, r"folder must be a folder, and \S+/notes.txt is a file"),
):
    add(f"checkpoints: {name}", said, Checkpoints, **{"folder": "new", **settings}, given=files.mine)
for name, root in {"missing": "nowhere", "a file": "full/notes.txt", "name too long": "n" * 300}.items():
    said = f"{IMAGE_FILES[0]}, .* not found in {root}/MNIST/raw, and .+|data_root must be a folder, got n+ .+"
    on_images = RunConfig(dataset="mnist", data_root=root)
    add(f"data_root: {name}", said, train_run, on_images, "new", given=files.mine)


# Scripts --------------------------------------------------------------------------------------------------------------


def add_script(command: str, said: str) -> None:
    add(f"script: {command}", f"error: ({said})", script, *command.split(), given=files.corrupt_and_mine)


for low, commands in {
    0: ("demo.py --seed -1", "kill_test.py --seed -1", "semi_supervised.py --warm-up -1"),
    1: (
        *("train.py --num-particles 0", "train.py --checkpoint-epochs 0", "demo.py --epochs 0"),
        "demo.py --epochs 1 --num-samples 0",
        *("reproduce_tutorials.py --epochs 0", "benchmark.py --rounds 0", "benchmark.py --num-samples 0"),
        *("scaling.py --rounds 0", "kill_test.py --kills 0", "kill_test.py --epochs 0"),
        *("race.py --processes 0", "race.py --epochs 0", "reproduce_beyond_gaussian.py --processes 0"),
        *("semi_supervised.py --epochs 0", "semi_supervised.py --batch-size 0"),
    ),
    2: (
        "race.py --num-samples 1",
        *("race.py --num-data 1", "scaling.py --processes 1", "scaling.py --epochs 1"),
        "reproduce_rainforth2018.py --num-data 1",
    ),
    3: ("benchmark.py --num-data 2",),
    4: ("reproduce_rainforth2018.py --repeats 3", "reproduce_rainforth2018.py --max-particles 3"),
}.items():
    for command in commands:
        flag, value = command.split()[-2:]
        field = flag.removeprefix("--checkpoint-").removeprefix("--").replace("-", "_")
        add_script(command, f"{field} must be a whole number >= {low}, got {value}")
for name in ("train.py", "demo.py", "reproduce_tutorials.py", "reproduce_rainforth2018.py", "benchmark.py"):
    add_script(f"{name} --out full", "out must be a new or empty folder, and full holds files")
for name in ("train_vq.py", "train_bits.py", "semi_supervised.py"):
    add_script(f"{name} --out full", "out must be a new or empty folder, and full holds files")
for name in ("train.py", "benchmark.py"):
    add_script(f"{name} --device abacus", "device must be auto or one that torch can use here, got 'abacus'")
for name in (
    "train.py --dataset mnist",
    "reproduce_burda2016.py",
    "reproduce_tutorials.py --images",
    "reproduce_beyond_gaussian.py",
    "semi_supervised.py",
    "train_vq.py",
    "train_bits.py",
):
    add_script(f"{name} --data-root nowhere", f"{IMAGE_FILES[0]}, .* not found in nowhere/MNIST/raw, .+")
for flag in ("latent-dim", "batch-size", "num-particles"):
    add_script(f"train.py --{flag} {10**20}", f"{flag.replace('-', '_')} must be .*, got {10**20}")
for command, said in {
    "train.py --dataset cifar": "dataset must be one of ring, .+; got 'cifar'",
    "train.py --objective vimco --num-particles 1": "num_particles must be a whole number >= 2, got 1",
    "train.py --objective iwae": "num_particles must be given with objective iwae: with one it is the elbo",
    "train.py --lr nan": "lr must be a finite number > 0, got nan",
    "train.py --hidden 8 0": "hidden must be a whole number >= 1, got 0",
    "train.py --beta 1e300": r"beta must be .*, got 1e\+300",
    "train.py --seed 99999999999999999999": r"seed must be < 2\^63, got 99999999999999999999",
    "train.py --dataset mnist --data-root corrupt": r"\S+/t10k-labels-idx1-ubyte is not a readable IDX .+",
    "train.py --out full --resume": "out must be a new or empty folder, and full holds files",
    "train.py --out full/notes.txt/run": r"out must be a folder, and \S+/full/notes.txt is a file",
    "train.py --out /proc/run": "No such file or directory: /proc/run|out must be .+",
    "train.py --config nowhere.json": r"nowhere.json is not a readable config \(.+\)",
    "train.py --config full/notes.txt": r"full/notes.txt is not a readable config \(.+\)",
    "train.py --checkpoint-minutes 0": "minutes must be a finite number > 0, got 0.*",
    "evaluate.py nowhere": "run folder nowhere does not exist",
    "evaluate.py full": r"full/config.json is not a readable config \(.+\)",
    "compare.py nowhere": "run folder nowhere does not exist",
    "compare.py full": r"full/config.json is not a readable config \(.+\)",
    "reproduce_rainforth2018.py --seed -1": "seed must be a whole number >= 0, got -1",
    "demo.py --epochs 1 --num-data 2001": "num_data must be <= 2000, the number of test data; got 2001",
    "race.py --seeds": "seeds must hold at least one, got none",
    "race.py --seeds -1": "seed must be a whole number >= 0, got -1",
    "race.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "race.py --objective dreg": "objective must be said in --objectives, got --objective 'dreg'",
    "race.py --patience 2": "patience must be None in a race, got 2",
    "race.py --objectives": "objectives must hold at least one",
    "race.py --objectives elbo elbo": "objectives must differ, got elbo, elbo",
    "race.py --objectives renyi:alpha": "objective must be name:setting=value,..., got 'renyi:alpha'",
    "race.py --objectives renyi:beta=2": "beta must be one of num_particles, .+ with objective renyi; got 2",
    "race.py --objectives magic": "objective must be one of elbo, .+; got 'magic'",
    "race.py --out full/notes.txt": "folder must be a folder, got the file full/notes.txt",
    "reproduce_burda2016.py --k 2": r"k must be of 1, 5 and 50, got \(2,\)",
    "reproduce_burda2016.py --swap": r"swap needs k of 1 and 50, got \(1, 5\)",
    "reproduce_tutorials.py --seeds -1": "seed must be a whole number >= 0, got -1",
    "reproduce_tutorials.py --seeds": "seeds must .*, got .*",
    "reproduce_tutorials.py --only nothing": "only must be a part of some run's name, got 'nothing'",
    "benchmark.py --only nothing": "only must be in a row's name, got 'nothing'",
    "train_vq.py --seed -1": "seed must be a whole number >= 0, got -1",
    "train_bits.py --num-particles 1": "num_particles must be a whole number >= 2, got 1",
    "train_bits.py --temperature 0": "temperature must be a finite number > 0, got 0.0",
    "train_bits.py --hidden 8 0": "hidden must be a whole number >= 1, got 0",
    "train_bits.py --seeds": "seeds must hold at least one, got none",
    "train_bits.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "semi_supervised.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "reproduce_tutorials.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "train_bits.py --num-bits 0": "num_bits must be a whole number >= 1, got 0",
    "semi_supervised.py --seeds": "seeds must hold at least one, got none",
    "semi_supervised.py --seeds 0 -1": "seed must be a whole number >= 0, got -1",
    "semi_supervised.py --num-labelled 105": "num_labelled must be a multiple of 10, got 105",
    "semi_supervised.py --num-labelled 0": "num_labelled must be a whole number >= 10, got 0",
    "semi_supervised.py --alpha 0": "alpha must be a finite number > 0, got 0.0",
}.items():
    add_script(command, said)
for command, said in {  # what is seen once there are images
    "train_vq.py --num-codes 1": "num_codes must be a whole number >= 2, got 1",
    "train_vq.py --hidden 0": "hidden must be a whole number >= 1, got 0",
    "train_vq.py --commitment 0": "commitment must be a finite number > 0, got 0.0",
    "train_vq.py --num-codes 5000": "x must have a token for each of [0-9]+ unused codes, got [0-9]+ tokens",
    "train_vq.py --epochs 0": "epochs must be a whole number >= 1, got 0",
    "train_bits.py --num-data 1000": "num_data must be <= .+, got 1000",
    "semi_supervised.py --num-labelled 1000": "num_labelled must be <= .+, for .+ of the rarest digit, got 1000",
}.items():
    flags = ["--data-root", str(files.IMAGES), "--num-train", "30"]
    given = partial(files.write_images, files.IMAGES, nums=(5_040, 12))
    add(f"script: {command}", f"error: {said}", script, *command.split(), *flags, given=given)
# What tyro finds, it says in a box of its own.
A_FLAG = {
    "reproduce_burda2016.py": "--num-samples",
    "reproduce_rainforth2018.py": "--repeats",
    "compare.py": "--repeats",
    "evaluate.py": "--num-samples",
    "demo.py": "--seed",
    "benchmark.py": "--rounds",
    "kill_test.py": "--kills",
}
for name in sorted(path.name for path in SCRIPTS.glob("*.py")):
    flag, run = A_FLAG.get(name, "--epochs"), ["full"] if name in ("evaluate.py", "compare.py") else []
    for case, flags, said in (
        ("a wrong type", [flag, "many"], f".*Error parsing {flag}: .*many.*"),
        ("an unknown flag", ["--magic", "3"], ".*Unrecognized options: --magic.*"),
        ("no value", [flag], f".*Missing value for argument '{flag}.*"),
    ):
        add(f"script: {name} {case}", said, script, name, *run, *flags, given=files.mine)


# Pairs that break the contract ----------------------------------------------------------------------------------------

IN_PLATE = (
    r"every sample site must lie in one data plate at dim -1, and in no other; site {} of the model lies in {}: .+"
)
LATENTS = r"model and guide must have the same latent sites, got \['z'\] in the model and \[{}\] in the guide"
SCALES = r"poutine.scale must be the same in model and guide at the latent site \"z\", got {} in the model and {} .+"
NO_DENSITY = r'log p\(x\) does not exist or cannot be had: site "{}" {}'
WEIGHED = ("log_marginal", "importance_bound", "evaluate")
for name, said, uses in (
    ("site outside", IN_PLATE.format('"scale"', "none"), ON_PAIRS),
    ("no plate", IN_PLATE.format('"z"', "none"), ON_PAIRS),
    ("wrong dim", IN_PLATE.format('"z"', '"data" at dim -3'), ON_PAIRS),
    ("nested", IN_PLATE.format('"z"', '"pixels" at dim -2, "data" at dim -1'), ON_PAIRS),
    ("sequential", IN_PLATE.format('"x0"', '"data", sequential'), ON_PAIRS),
    ("two plates", r"all sites must share one data plate .+, got \[\('again', 4\), \('data', 4\)\]", ON_PAIRS),
    ("one name twice", '.*"?data"?.*', ON_PAIRS),
    ("no site", r"all sites must share one data plate \(name, size\), got \[\]", ON_PAIRS),
    ("other latents", LATENTS.format("'u'"), ON_PAIRS),
    ("no latent in the guide", LATENTS.format(""), ON_PAIRS),
    ("scale of the model", SCALES.format(4.0, 1.0), ON_PAIRS),
    ("scale of the guide", SCALES.format(1.0, 4.0), ON_PAIRS),
    ("no parameter", r"model and guide must register a parameter \(.+\), found none", ["fit"]),
    ("delta guide", NO_DENSITY.format("z", "is a point .+"), WEIGHED),
    ("auxiliary", 'the guide\'s auxiliary site "u" must be what all latents are a bijection of, .+', WEIGHED),
    ("factor", LATENTS.format("'f', 'z'") + "|" + NO_DENSITY.format("f", "is a factor.*"), WEIGHED),
    ("nothing observed", "model must observe .*", WEIGHED),
    ("other arguments", "model and guide must take .*", ON_PAIRS),
):
    for use in uses:
        add(f"pair: {name}, {use}", said, ON_PAIRS[use], PAIRS[name])
for objective in (*pv.objectives.OBJECTIVES, pyro.infer.RenyiELBO(alpha=0, num_particles=5)):
    if objective in ("score_function", "vimco", "reweighted_wake_sleep", "thermodynamic", "elbo_enumerated"):
        continue  # which train it
    said = r'.+ needs a reparameterised guide, and site "z" has no rsample: use .+'
    many = {"num_particles": 5} if objective in ABOUT_MANY else {}
    call = partial(pv.fit, discrete_pair(), torch.ones(6, 3), epochs=1, objective=objective, **many)
    add(f"pair: discrete guide, {objective if isinstance(objective, str) else 'RenyiELBO'}", said, call)


# The tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(torchvision.datasets.MNIST, "mirrors", [])  # a download must not be waited for
        case.given()
        before = tree(tmp_path)
        message = refusal(case.call)
        assert re.fullmatch(case.said, message), message
        assert tree(tmp_path) == before
    assert "code was run" not in capsys.readouterr().out


def test_the_table_has_every_field_and_every_script():
    assert sorted(name for names, _, _ in BAD_FIELDS for name in names.split()) == sorted(FIELDS)
    named = {case.name.split()[1] for case in CASES if case.name.startswith("script: ")}
    assert named == {path.name for path in SCRIPTS.glob("*.py")}
