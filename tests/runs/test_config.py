import dataclasses
import json
import re
import tempfile
from pathlib import Path

import pytest
from helpers import refusal
from hypothesis import given, settings, strategies as st

from pyrovae import InputError, RunConfig
from pyrovae.runs import fit_settings

POINTS, IMAGES = ("ring", "four_clusters", "pinwheel"), ("mnist", "fashion_mnist", "kmnist")
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


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
        "columns": (),
        "exclude": (),
        "label_column": None,
        "split_column": None,
        "header": None,
        "kinds": (),
        "missing": None,
        "standardise": True,
        "image_size": None,
        "hidden": (128, 128),
        "activation": "relu",
        "latent_dim": 2,
        "network": "mlp",
        "posterior": "diagonal",
        "posterior_components": None,
        "temperature": None,
        "prior": "standard",
        "num_components": None,
        "layers": (),
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
        "guide_lr": None,
        "schedule": "constant",
        "max_grad_norm": None,
        "guide_max_grad_norm": None,
        "guide_steps": 1,
        "train": "both",
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
    {"objective": "iwae", "beta": 1, "num_particles": 1},
    {"objective": "renyi", "alpha": 0.5, "num_particles": 5},
    {"objective": "renyi", "alpha": 0, "num_particles": 2},
    {"objective": "renyi", "alpha": -2.0, "num_particles": 2},
    {"objective": "renyi", "alpha": 2, "num_particles": 2},
    {"objective": "elbo", "num_particles": 1},
    {"objective": "miwae", "num_batches": 4, "num_particles": 2},
    {"schedule": "cosine", "lr": 1, "epochs": 1, "batch_size": 1, "seed": 0},
    {"max_grad_norm": 0.5, "patience": 1, "nonfinite": "skip", "seed": 2**31, "device": "cuda:1"},
    {"dataset": "mnist", "binarize": "dequantise", "likelihood": "gaussian", "data_root": "/somewhere"},
    {"dataset": "mnist", "binarize": "dequantise", "likelihood": "gaussian_predicted"},
    {"dataset": "mnist", "binarize": "none", "likelihood": "categorical", "network": "conv"},
    {"dataset": "mnist", "conditional": True, "network": "conv", "hidden": (8,)},
    {"posterior": "delta"},
    {"posterior": "full_covariance", "prior": "mixture", "num_components": 3},
    {"posterior": "flow", "prior": "vamp"},
    {"posterior": "mixture", "posterior_components": 3, "objective": "siwae"},
    {"posterior": "bernoulli", "objective": "vimco", "num_particles": 2},
    {"posterior": "bernoulli", "temperature": 0.5},
    {"posterior": "bernoulli", "objective": "elbo_enumerated"},
    {"posterior": "relaxed_bernoulli", "temperature": 0.3, "objective": "vimco", "num_particles": 4},
    {"prior": "flow", "conditional": True},
    {"layers": [4, 2], "conditional": True},
    {"beta_schedule": "cyclical", "objective": "elbo_analytic_kl"},
    {"objective": "elbo_analytic_kl", "free_bits": 0.1},
    {"dataset": "kmnist", "binarize": "none", "likelihood": "bernoulli_grey"},
    {"dataset": "fashion_mnist", "binarize": "static", "likelihood": "bernoulli", "hidden": (500, 250)},
    {"dataset": "/data/people.csv", "columns": ["age", "a=b"], "label_column": "group", "missing": "mask"},
    {
        "dataset": "/data/people.csv",
        "kinds": ["age=count", "a=b=category"],
        "standardise": False,
        "split_column": "part",
    },
    {"dataset": "/data/counts.npz", "kinds": ["count"], "likelihood": "poisson", "latent_dim": 3, "conditional": True},
    {"dataset": "/data/photos", "image_size": 32, "network": "conv", "binarize": "dequantise"},
    {"dataset": "my.module:function", "likelihood": "columns"},
]


@pytest.mark.parametrize("values", ACCEPTED, ids=str)
def test_a_good_config_keeps_what_it_is_given(values):
    config = RunConfig(**values)
    for name, value in values.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    assert config.hidden is None or isinstance(config.hidden, tuple)


@pytest.mark.parametrize("values", [{}, {"dataset": "mnist"}, *ACCEPTED], ids=str)
def test_a_config_comes_back_from_its_file_as_it_was(tmp_path, values):
    config = RunConfig(**values)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    assert sorted(json.loads((tmp_path / "config.json").read_text())) == sorted(["format", *FIELDS])
    assert RunConfig.from_dict(vars(config)) == config


@pytest.mark.parametrize(
    ("dataset", "network", "likelihood"),
    [("cifar10", "resnet", "discretized_logistic"), ("digits", "mlp", "categorical"), ("omniglot", "mlp", "bernoulli")],
)
def test_further_sets_by_name_have_their_usual_settings(dataset, network, likelihood):
    config = RunConfig(dataset=dataset)
    assert (config.network, config.likelihood, config.latent_dim) == (network, likelihood, 20)


def test_a_path_becomes_absolute_and_what_only_the_data_say_stays_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig(dataset="data/wine.csv")
    assert config.dataset == str(tmp_path / "data/wine.csv")
    assert (config.hidden, config.latent_dim, config.likelihood, config.network) == (None,) * 4
    (tmp_path / "photos").mkdir()
    assert RunConfig(dataset="photos").dataset == str(tmp_path / "photos")
    assert RunConfig(dataset="mine:make").dataset == "mine:make"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"dataset": "mnits"},
            r"dataset must be one of ring, .+ or module:function; got 'mnits': did you mean mnist\?",
        ),
        ({"dataset": ""}, "dataset must be one of ring, .+ or module:function; got ''"),
        ({"dataset": "x" * 5_000}, r"dataset must be one of ring, .+; got 'x+\.\.\.x+'"),
        ({"dataset": 3}, "dataset must be one of ring, .+; got 3"),
        ({"missing": "mask"}, "missing is for data of your own, and ring is built in; got 'mask'"),
        ({"standardise": False}, "standardise is for data of your own, and ring is built in; got False"),
        ({"dataset": "a.csv", "missing": "mean"}, "missing must be mask; got 'mean'"),
        ({"dataset": "a.csv", "kinds": ["whole"]}, "kinds must be one of continuous, .+; got 'whole'"),
        ({"dataset": "a.csv", "kinds": ["a=whole"]}, "kinds must be one of continuous, .+; got 'whole'"),
        ({"dataset": "a.csv", "kinds": ["a", "b"]}, "kinds must be column=kind, or one kind for all columns, got 'a'"),
        ({"dataset": "a.csv", "columns": "age"}, "columns must be a list of texts, got 'age'"),
        ({"dataset": "a.csv", "label_column": 1}, "label_column must be a string, got 1"),
        ({"dataset": "a.csv", "likelihood": "normal"}, "likelihood must be one of gaussian, .+, columns; got 'normal'"),
        ({"dataset": "photos/", "image_size": 0}, "image_size must be a whole number >= 1, got 0"),
        ({"network": "conv"}, "network 'conv' is for image sets, and ring holds points"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_fields_of_data_of_ones_own_are_refused_in_one_line(values, message):
    with pytest.raises(InputError) as error:
        RunConfig(**values)
    assert re.fullmatch(message, str(error.value)), str(error.value)


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


# Any table ------------------------------------------------------------------------------------------------------------

GOOD = {
    "dataset": ["ring", "four_clusters", "pinwheel", "mnist", "digits", "cifar10", "/data/a.csv", "module:make"],
    "data_root": [None, "data"],
    "binarize": [None, "none", "static", "dynamic", "dequantise"],
    "columns": [[], ["age", "town"]],
    "exclude": [[], ["id"]],
    "label_column": [None, "group"],
    "split_column": [None, "part"],
    "header": [None, True, False],
    "kinds": [[], ["count"], ["age=count", "town=category"]],
    "missing": [None, "mask"],
    "standardise": [True, False],
    "image_size": [None, 32],
    "hidden": [None, [], [8], [8, 4]],
    "activation": ["relu", "tanh"],
    "latent_dim": [None, 1, 20],
    "network": [None, "mlp", "conv"],
    "posterior": ["diagonal", "full_covariance", "flow", "mixture", "bernoulli", "delta"],
    "posterior_components": [None, 3],
    "temperature": [None, 0.5],
    "prior": ["standard", "mixture", "vamp", "flow"],
    "num_components": [None, 3],
    "layers": [[], [2], [4, 2]],
    "conditional": [False, True],
    "likelihood": [None, "bernoulli", "bernoulli_grey", "gaussian", "gaussian_learned"],
    "scale": [0.3, 1],
    "objective": ["elbo", "elbo_analytic_kl", "iwae", "renyi", "piwae", "siwae"],
    "num_particles": [None, 1, 5],
    "alpha": [None, 0, 0.5, 2],
    "num_batches": [None, 3],
    "beta": [1.0, 1, 4.0],
    "beta_schedule": ["constant", "linear", "sigmoid"],
    "free_bits": [None, 0.5],
    "epochs": [1, 10],
    "batch_size": [1, 128],
    "lr": [1e-3, 1],
    "guide_lr": [None, 3e-3],
    "schedule": ["constant", "cosine"],
    "max_grad_norm": [None, 1.0],
    "guide_max_grad_norm": [None, 5.0],
    "guide_steps": [1, 5],
    "train": ["both", "guide"],
    "patience": [None, 3],
    "nonfinite": ["stop", "skip"],
    "seed": [0, 7],
    "device": ["auto", "cpu"],
}
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**64), 10**400]),
    st.floats(),
    st.text(max_size=5),
)
ANYTHING = st.recursive(
    PLAIN,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=2),
    max_leaves=5,
)
# Mostly good values, so that late checks are reached too.
TABLES = st.tuples(
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in GOOD.items()}),
    st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)), ANYTHING, max_size=2),
).map(lambda parts: {**parts[0], **parts[1]})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TABLES)
def test_any_table_gives_a_config_that_its_file_gives_back_or_one_line(values):
    try:
        found = RunConfig.from_dict(values)
    except InputError as error:
        assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        found.save(path)
        assert RunConfig.load(path) == found
        assert RunConfig.from_dict(json.loads(path.read_text())) == found


def test_the_table_of_good_values_has_every_field():
    assert list(GOOD) == FIELDS


def test_what_is_the_guide_s_own_reaches_fit_by_side():
    config = RunConfig(guide_lr=3e-3, guide_max_grad_norm=5.0, guide_steps=2)
    assert fit_settings(config).items() >= {
        "lr": {"model": 1e-3, "guide": 3e-3}, "max_grad_norm": {"guide": 5.0}, "guide_steps": 2, "train": "both",
    }.items()  # fmt: skip
    assert fit_settings(RunConfig(max_grad_norm=1.0)).items() >= {"lr": 1e-3, "max_grad_norm": 1.0}.items()
    both = fit_settings(RunConfig(max_grad_norm=1.0, guide_max_grad_norm=5.0))["max_grad_norm"]
    assert both == {"model": 1.0, "guide": 5.0}
    said = refusal(RunConfig, guide_lr=1e-3, prior="vamp")
    assert said == "guide_lr needs a prior that shares nothing with the guide, and vamp has its encoder"
    said = refusal(RunConfig, train="guide", guide_steps=2)
    assert said == "guide_steps must be 1 where the guide alone is trained, got 2"
    for name in ("guide_lr", "guide_max_grad_norm"):
        said = refusal(RunConfig, train="model", **{name: 1.0})
        assert said == f"{name} is for a guide that is trained, and the model alone is"
