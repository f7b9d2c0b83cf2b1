import dataclasses
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrovae import InputError, RunConfig

POINTS, IMAGES = ("ring", "four_clusters", "pinwheel"), ("mnist", "fashion_mnist", "kmnist")
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


def assert_names(field: str, message: str) -> None:
    assert re.search(rf"\b{field}\b", message), f"{field} is not in: {message}"


@pytest.mark.parametrize("dataset", POINTS)
def test_points_have_their_usual_architecture_and_likelihood(dataset):
    config = RunConfig(dataset=dataset)
    found = (config.binarize, config.hidden, config.latent_dim, config.likelihood)
    assert found == (None, (128, 128), 2, "gaussian_learned")


@pytest.mark.parametrize("dataset", IMAGES)
@pytest.mark.parametrize(
    ("binarize", "meant", "likelihood"),
    [
        (None, "dynamic", "bernoulli"),
        ("dynamic", "dynamic", "bernoulli"),
        ("static", "static", "bernoulli"),
        ("none", "none", "bernoulli_grey"),
    ],
)
def test_images_have_their_usual_architecture_and_likelihood(dataset, binarize, meant, likelihood):
    config = RunConfig(dataset=dataset, binarize=binarize)
    found = (config.binarize, config.hidden, config.latent_dim, config.likelihood)
    assert found == (meant, (400,), 20, likelihood)


def test_the_other_defaults_are_a_plain_run_on_the_ring():
    assert dataclasses.asdict(RunConfig()) == {
        "dataset": "ring",
        "data_root": None,
        "binarize": None,
        "hidden": (128, 128),
        "activation": "relu",
        "latent_dim": 2,
        "network": "mlp",
        "posterior": "diagonal",
        "conditional": False,
        "likelihood": "gaussian_learned",
        "scale": 0.3,
        "objective": "elbo",
        "num_particles": 1,
        "alpha": None,
        "num_batches": None,
        "beta": 1.0,
        "beta_schedule": "constant",
        "free_bits": None,
        "epochs": 10,
        "batch_size": 128,
        "lr": 1e-3,
        "schedule": "constant",
        "max_grad_norm": None,
        "patience": None,
        "nonfinite": "stop",
        "seed": 0,
        "device": "auto",
    }


ACCEPTED = [
    {"hidden": ()},
    {"hidden": (1,)},
    {"hidden": [64, 32], "activation": "leaky_relu", "latent_dim": 7},
    {"likelihood": "gaussian", "scale": 2},
    {"objective": "elbo_analytic_kl", "beta": 4.0, "num_particles": 3},
    {"objective": "iwae", "num_particles": 50},
    {"objective": "iwae", "beta": 1},
    {"objective": "renyi", "alpha": 0.5, "num_particles": 5},
    {"objective": "renyi", "alpha": 0},
    {"objective": "renyi", "alpha": -2.0},
    {"objective": "renyi", "alpha": 2},
    {"objective": "miwae", "num_batches": 4, "num_particles": 2},
    {"schedule": "cosine", "lr": 1, "epochs": 1, "batch_size": 1, "seed": 0},
    {"max_grad_norm": 0.5, "patience": 1, "nonfinite": "skip", "seed": 2**31, "device": "cuda:1"},
    {"dataset": "mnist", "binarize": "dequantise", "likelihood": "gaussian", "data_root": "/somewhere"},
    {"dataset": "mnist", "binarize": "dequantise", "likelihood": "gaussian_predicted"},
    {"dataset": "mnist", "binarize": "none", "likelihood": "categorical", "network": "conv"},
    {"dataset": "mnist", "conditional": True, "network": "conv", "hidden": (8,)},
    {"posterior": "delta"},
    {"beta_schedule": "cyclical", "objective": "elbo_analytic_kl"},
    {"objective": "elbo_analytic_kl", "free_bits": 0.1},
    {"dataset": "kmnist", "binarize": "none", "likelihood": "bernoulli_grey"},
    {"dataset": "fashion_mnist", "binarize": "static", "likelihood": "bernoulli", "hidden": (500, 250)},
]


@pytest.mark.parametrize("values", ACCEPTED, ids=str)
def test_a_good_config_keeps_what_it_is_given(values):
    config = RunConfig(**values)
    for name, value in values.items():
        assert getattr(config, name) == (tuple(value) if name == "hidden" else value)
    assert isinstance(config.hidden, tuple)


@pytest.mark.parametrize("values", [{}, {"dataset": "mnist"}, *ACCEPTED], ids=str)
def test_a_config_comes_back_from_its_file_as_it_was(tmp_path, values):
    config = RunConfig(**values)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    assert sorted(json.loads((tmp_path / "config.json").read_text())) == sorted(FIELDS)
    assert RunConfig.from_dict(vars(config)) == config


def test_a_saved_config_keeps_every_digit(tmp_path):
    config = RunConfig(lr=0.1 + 0.2, beta=1 / 3, scale=1e-300, seed=2**63 - 1)
    config.save(tmp_path / "config.json")
    loaded = RunConfig.load(tmp_path / "config.json")
    assert (loaded.lr, loaded.beta, loaded.scale, loaded.seed) == (0.1 + 0.2, 1 / 3, 1e-300, 2**63 - 1)


def test_a_config_does_not_change():
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config == RunConfig()
    assert config != RunConfig(lr=1.0)


# Bad values, one field at a time ------------------------------------------------------------------------------------

COUNT = [0, -1, 1.5, 2.0, True, "3", math.nan, math.inf, [1]]
POSITIVE = [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, "1", True, [1.0]]
CHOICE = ["nope", "", 3, 1.5, True, ["elbo"], {}]
BAD_POINTS = {
    "dataset": [*CHOICE, None, "Ring", "MNIST"],
    "data_root": [5, 1.5, True, ["data"], {}],
    "binarize": ["none", "static", "dynamic", "nope", 3, True],
    "hidden": ["128", 128, 1.5, True, {}, [0], [-1], [1.5], [True], [None], ["a"], [[3]], [4, math.nan]],
    "activation": [*CHOICE, None, "ReLU"],
    "latent_dim": COUNT,
    "network": [*CHOICE, None, "conv"],
    "posterior": [*CHOICE, None, "flow"],
    "conditional": [None, 0, 1, "yes"],
    "likelihood": [*CHOICE, "normal"],
    "scale": [*POSITIVE, None],
    "objective": [*CHOICE, None, "vae"],
    "num_particles": [*COUNT, None],
    "alpha": [0.5, 0, 1, "0.5", math.nan, True],
    "num_batches": [1, 0, 1.5, "2"],
    "beta": [*POSITIVE, None],
    "beta_schedule": [*CHOICE, None],
    "free_bits": [0.5, 1, "1"],
    "epochs": [*COUNT, None],
    "batch_size": [*COUNT, None],
    "lr": [*POSITIVE, None],
    "schedule": [*CHOICE, None, "linear"],
    "max_grad_norm": POSITIVE,
    "patience": COUNT,
    "nonfinite": [*CHOICE, None, "ignore"],
    "seed": [-1, 0.5, 1.0, True, "0", None, math.nan, [0]],
    "device": [0, 1.5, True, None, ["cpu"]],
}
BAD_FIELDS = [(name, value, {}) for name, values in BAD_POINTS.items() for value in values]
BAD_FIELDS += [("binarize", value, {"dataset": "mnist"}) for value in CHOICE]
BAD_FIELDS += [("hidden", value, {"dataset": "mnist"}) for value in ("400", [0], 400)]
BAD_FIELDS += [("latent_dim", value, {"dataset": "mnist"}) for value in COUNT]
BAD_FIELDS += [("alpha", value, {"objective": "renyi"}) for value in (math.nan, math.inf, -math.inf, "0.5", True, [])]


def test_the_table_of_bad_values_has_every_field():
    assert list(BAD_POINTS) == FIELDS


@pytest.mark.parametrize(("name", "value", "others"), BAD_FIELDS, ids=str)
def test_a_bad_value_is_refused_in_one_line_that_names_field_and_value(name, value, others):
    message = refusal(RunConfig, **{name: value}, **others)
    assert_names(name, message)
    found = value[-1] if name == "hidden" and isinstance(value, list) else value
    assert str(found) in message
    assert refusal(RunConfig.from_dict, {name: value, **others}) == message


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"objective": "elbo", "alpha": 0.5}, ["alpha", "0.5", "elbo"]),
        ({"objective": "iwae", "alpha": 0.0}, ["alpha", "0.0", "iwae"]),
        ({"objective": "vimco"}, ["num_particles", "1"]),
        *[
            ({"dataset": dataset, "likelihood": likelihood}, ["likelihood", likelihood, "gaussian"])
            for dataset in POINTS
            for likelihood in ("bernoulli", "bernoulli_grey")
        ],
        *[({"dataset": dataset, "binarize": "static"}, ["binarize", dataset, "static"]) for dataset in POINTS],
        ({"dataset": "mnist", "binarize": "none", "likelihood": "bernoulli"}, ["likelihood", "bernoulli_grey"]),
        *[
            ({"dataset": "mnist", "binarize": binarize, "likelihood": likelihood}, ["likelihood", likelihood])
            for binarize in ("static", "dynamic", None)
            for likelihood in ("gaussian", "gaussian_learned", "bernoulli_grey")
        ],
    ],
    ids=str,
)
def test_a_forbidden_combination_is_refused_in_one_line_that_names_the_field(values, named):
    message = refusal(RunConfig, **values)
    for part in named:
        assert_names(re.escape(part), message)


@pytest.mark.parametrize("name", ["scale", "beta", "lr", "max_grad_norm", "alpha"])
def test_a_whole_number_too_large_for_a_float_is_refused(name):
    """JSON has no bound on them."""
    objective = "renyi" if name == "alpha" else "elbo"
    assert_names(name, refusal(RunConfig, **{name: 10**400, "objective": objective}))


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("data_root", "device")])
def test_a_line_break_in_a_value_does_not_break_the_message_in_two(name):
    assert_names(name, refusal(RunConfig, **{name: "a\nb"}))


# Whole tables and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learning_rate", "Lr", "lr ", "", "hidden_dim", 3, None, "a\nb"])
def test_an_unknown_field_is_refused_with_the_known_ones(name):
    message = refusal(RunConfig.from_dict, {"dataset": "ring", name: 1})
    assert repr(name) in message
    for known in FIELDS:
        assert_names(known, message)


@pytest.mark.parametrize("values", [None, 3, "ring", [], [["lr", 1]], True])
def test_what_is_not_a_table_is_refused(values):
    assert type(values).__name__ in refusal(RunConfig.from_dict, values)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"lr": 1,}', b"lr: 1", b"\xff\xfe\x00", b'{"lr": 1} {}'],
    ids=["empty", "cut off", "comma", "yaml", "not text", "two tables"],
)
def test_a_file_that_is_not_json_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert str(path) in refusal(RunConfig.load, path)


def test_a_missing_file_or_a_folder_is_refused_by_its_name(tmp_path):
    assert str(tmp_path / "config.json") in refusal(RunConfig.load, tmp_path / "config.json")
    assert str(tmp_path) in refusal(RunConfig.load, tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"lr": NaN}', "lr"),
        ('{"lr": 1e999}', "lr"),
        ('{"epochs": 10.0}', "epochs"),
        ('{"hidden": "400"}', "hidden"),
        ('{"epoch": 10}', "epoch"),
        ("[1, 2]", "list"),
        ("null", "NoneType"),
    ],
)
def test_a_file_with_a_bad_value_is_refused(tmp_path, content, named):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert_names(named, refusal(RunConfig.load, path))


GOOD = {
    "dataset": [*POINTS, *IMAGES],
    "data_root": [None, "data"],
    "binarize": [None, "none", "static", "dynamic", "dequantise"],
    "hidden": [None, [], [8], [8, 4]],
    "activation": ["relu", "tanh"],
    "latent_dim": [None, 1, 20],
    "network": ["mlp", "conv"],
    "posterior": ["diagonal", "delta"],
    "conditional": [False, True],
    "likelihood": [None, "bernoulli", "bernoulli_grey", "gaussian", "gaussian_learned"],
    "scale": [0.3, 1],
    "objective": ["elbo", "elbo_analytic_kl", "iwae", "renyi", "piwae"],
    "num_particles": [1, 5],
    "alpha": [None, 0, 0.5, 2],
    "num_batches": [None, 3],
    "beta": [1.0, 1, 4.0],
    "beta_schedule": ["constant", "linear", "sigmoid"],
    "free_bits": [None, 0.5],
    "epochs": [1, 10],
    "batch_size": [1, 128],
    "lr": [1e-3, 1],
    "schedule": ["constant", "cosine"],
    "max_grad_norm": [None, 1.0],
    "patience": [None, 3],
    "nonfinite": ["stop", "skip"],
    "seed": [0, 7],
    "device": ["auto", "cpu"],
}
GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.none(), st.booleans(), st.floats(), st.text(max_size=3)), max_size=3),
)
# Mostly good, so that what comes late in the checks is reached too.
TABLES = st.tuples(
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in GOOD.items()}),
    st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)), GARBAGE, max_size=2),
).map(lambda parts: {**parts[0], **parts[1]})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TABLES)
def test_any_table_gives_a_config_that_can_be_saved_or_one_line(values):
    try:
        config = RunConfig.from_dict(values)
    except InputError as error:
        assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017
    else:
        assert RunConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_the_table_of_good_values_has_every_field():
    assert list(GOOD) == FIELDS
