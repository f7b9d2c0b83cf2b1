"""One protocol for every run that can be configured: train, save, load, evaluate; and what is refused, by field."""

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from config_combinations import KINDS, NETWORK_FIELDS, OBJECTIVES, SUPPORTED, covering, likelihoods_of
from helpers import OF_MIXTURES, idx
from own_files import MIXED, write_table

import pyrovae as pv
from pyrovae.data.columns import KINDS as KINDS_OF_COLUMNS
from pyrovae.data.pixels import BINARIZE
from pyrovae.models.networks import NETWORKS
from pyrovae.models.posteriors import POSTERIORS
from pyrovae.models.priors import PRIORS
from pyrovae.objectives.registry import OBJECTIVES as EVERY_OBJECTIVE
from pyrovae.runs import build_vae, measure, results_table, train_run, with_usual_settings
from pyrovae.runs.build import LIKELIHOOD_MAKERS, load_data
from pyrovae.runs.column_families import FAMILIES
from pyrovae.runs.usual_settings import LIKELIHOODS_BY_KIND
from pyrovae.training.beta_schedules import BETA_SCHEDULES

FILES = {
    "train-images-idx3-ubyte": (50, 6, 5),
    "train-labels-idx1-ubyte": (50,),
    "t10k-images-idx3-ubyte": (6, 6, 5),
    "t10k-labels-idx1-ubyte": (6,),
}
NUM_TRAIN, NUM_VALIDATION = 40, 10


@pytest.fixture(scope="module", autouse=True)
def data_root(tmp_path_factory):
    """Makes a folder of tiny images in MNIST's format, with few of them held out for validation."""
    root = tmp_path_factory.mktemp("images")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, shape in FILES.items():
        array = generator.integers(0, 256 if len(shape) == 3 else 10, size=shape, dtype=np.uint8)
        (raw / name).write_bytes(idx(array))
    write_table(root / "people.csv", MIXED, num=NUM_TRAIN + NUM_VALIDATION)
    write_table(root / "counts.csv", {"a": "count", "b": "count"}, num=NUM_TRAIN + NUM_VALIDATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pv.data.named_sets, "NUM_VALIDATION_IMAGES", NUM_VALIDATION)
        # The evaluation only has to run here, so that few draws do.
        for module in (pv.runs.measures, pv.evaluation.evaluation):
            patch.setattr(module, "ELBO_DRAWS", 3)
        for module in (pv.runs.measures, pv.runs.tables):
            patch.setattr(module, "IWAE_PARTICLES", 2)
        patch.setattr(pv.evaluation.evaluation, "IWAE_REPEATS", 2)
        yield root


def config_of(fields: dict, data_root, **changes) -> pv.RunConfig:
    defaults = {"latent_dim": 2, "epochs": 1, "batch_size": NUM_TRAIN, "scale": 0.2, "data_root": str(data_root)}
    values = {**defaults, **fields, **changes}
    if values["dataset"].endswith(".csv"):
        values["dataset"] = str(data_root / values["dataset"])
    return pv.RunConfig(**values)


def log_densities(vae, args, z):
    """Returns log p(x|z, y) and log q(z|x, y), each `(batch,)`; for an autoencoder the code in place of the second."""
    x, *y = args
    with torch.no_grad():
        q = vae.encode(x, *y)
        return vae.decode(z, *y).log_prob(x), q.log_prob(z) if vae.posterior_family.has_density else q.mean


def test_every_supported_combination_is_a_config_that_has_a_vae(data_root):
    sets, built = {}, set()
    for fields in SUPPORTED.values():
        config = config_of(fields, data_root)
        key = config.dataset, config.binarize
        if key not in sets:
            sets[key] = load_data(config)
        config = with_usual_settings(config, sets[key])
        parts = (*key, config.network, config.likelihood, config.posterior, config.conditional)
        if parts in built:  # an objective is no part of a VAE
            continue
        built.add(parts)
        vae = build_vae(config, sets[key].event_shape, sets[key])
        made = pv.Columns if config.likelihood == "columns" else type(LIKELIHOOD_MAKERS[config.likelihood](config))
        assert type(vae.likelihood) is made


@pytest.mark.parametrize("name", covering())
def test_every_supported_run_trains_saves_loads_and_evaluates(name, data_root, tmp_path):
    trained = train_run(config_of(SUPPORTED[name], data_root), tmp_path / "run")
    config, vae, data = trained.config, trained.vae, trained.data
    assert isinstance(vae.encoder, NETWORKS[config.network][0])
    assert isinstance(vae.decoder, NETWORKS[config.network][1])
    if config.likelihood == "columns":
        assert vae.likelihood.names == tuple(column.name for column in data.columns)
    else:
        likelihood = LIKELIHOOD_MAKERS[config.likelihood](config)
        assert vae.likelihood.state_dict().keys() == likelihood.state_dict().keys()
        assert type(vae.likelihood) is type(likelihood)
    assert type(vae.posterior_family) is POSTERIORS[config.posterior]
    assert vae.num_conditions == int(config.conditional)
    assert vae.beta.item() == config.beta
    assert all(map(math.isfinite, [*trained.history.loss, *trained.history.elbo]))
    untrained = build_vae(config, data.event_shape, data).state_dict()
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, untrained[name])]

    loaded = pv.load_run(tmp_path / "run")
    assert loaded.config == config
    assert loaded.history == trained.history
    state = loaded.vae.state_dict()
    assert state.keys() == vae.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in vae.state_dict().items())
    args = tuple(arg[:3] for arg in data.arguments("test")[: 1 + config.conditional])
    z = torch.randn(3, config.latent_dim)
    for ours, theirs in zip(*(log_densities(one, args, z) for one in (loaded.vae, vae)), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()

    result = measure(loaded.vae, data, num_samples=4, num_data=3)
    assert math.isfinite(result["elbo"])
    density = config.posterior == "diagonal" and config.likelihood != "bernoulli_grey"
    usual = "ELBO" if density else "cross-entropy bound"
    assert result["measure"] == ("reconstruction" if config.posterior == "delta" else usual)
    assert (result["log_px"] is not None) == (result["iwae_2"] is not None) == density
    assert not density or (math.isfinite(result["log_px"]) and math.isfinite(result["iwae_2"]))
    if not (config.conditional and config.dataset == "ring"):  # with labels the mass may lie beyond the grid
        assert (result["log_px_quadrature"] is not None) == (density and config.dataset == "ring")
    assert (result["active_units"] is not None) == (config.posterior == "diagonal")
    assert result["measure"].split()[0] in results_table({"run": result})
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_back_with_its_data(kind, data_root, tmp_path):
    trained = train_run(config_of(KINDS[kind], data_root, hidden=(3,), conditional=True), tmp_path / "run")
    loaded = pv.load_run(tmp_path / "run")
    for split in ("train", "validation", "test"):
        for ours, theirs in zip(loaded.data.arguments(split), trained.data.arguments(split), strict=True):
            assert torch.equal(ours, theirs)
    assert loaded.data.kind == trained.data.kind
    assert len(trained.data.train_x) == (2_000 if kind == "points" else NUM_TRAIN)


def test_the_protocol_leaves_out_no_name_that_a_config_knows():
    fields = list(SUPPORTED.values())
    fitting = {name for names in LIKELIHOODS_BY_KIND.values() for name in names}
    assert {f["likelihood"] for f in fields} == {*LIKELIHOOD_MAKERS, "columns"} == {*fitting, "columns"}
    assert set(FAMILIES) == set(KINDS_OF_COLUMNS)
    assert {f["network"] for f in fields} == set(NETWORKS)
    parts = [*fields, *PARTS.values()]
    assert {f.get("posterior", "diagonal") for f in parts} == set(POSTERIORS)
    assert {f.get("prior", "standard") for f in parts} == set(PRIORS)
    assert {f["beta_schedule"] for f in fields if "beta_schedule" in f} <= set(BETA_SCHEDULES)
    assert {f.get("binarize") for f in fields} == {None, *BINARIZE}
    assert {f["objective"] for f in parts if "objective" in f} | set(OTHER_OBJECTIVES) == set(EVERY_OBJECTIVE)


# The objectives that are not combined with everything: by name alone, on points, images and labels.
CROSSED = {o["objective"] for o in OBJECTIVES.values()}
OTHER_OBJECTIVES = [name for name in EVERY_OBJECTIVE if name not in (*CROSSED, "elbo_enumerated", *OF_MIXTURES)]
SOME = {
    "points": {**KINDS["points"], **NETWORK_FIELDS["mlp"]},
    "images": {**KINDS["dynamic"], **NETWORK_FIELDS["conv"], "network": "conv", "conditional": True},
}


# Parts as a config names them; test_combinations.py tests which go together.
PARTS = {
    "full covariance, mixture": {"posterior": "full_covariance", "prior": "mixture", "num_components": 3},
    "flow, vamp": {"posterior": "flow", "prior": "vamp", "num_components": 4},
    "flow prior": {"prior": "flow", "conditional": True},
    "layers": {"layers": (3,), "conditional": True},
    "mixture": {"posterior": "mixture", "posterior_components": 2, "objective": "siwae"},
    "mixture, miselbo": {"posterior": "mixture", "posterior_components": 2, "objective": "miselbo", "num_particles": 4},
    "bits": {"posterior": "bernoulli", "objective": "vimco", "num_particles": 2},
    "bits, enumerated": {"posterior": "bernoulli", "objective": "elbo_enumerated"},
    "straight through": {"posterior": "bernoulli", "temperature": 0.5},
    "relaxed": {"posterior": "relaxed_bernoulli", "objective": "dreg", "num_particles": 2},
}


def by_turns(names) -> list[tuple[str, str]]:
    """Returns each name with one of the kinds of `SOME`, by turns: neither parts nor objectives look at the kind."""
    return list(zip(names, itertools.cycle(SOME)))


@pytest.mark.parametrize(("name", "kind"), by_turns(PARTS))
def test_every_part_trains_saves_loads_and_evaluates(name, kind, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(pv.runs.measures, "quadrature_log_marginal", partial(pv.quadrature_log_marginal, num_points=41))
    fields = {**SOME[kind], "conditional": False, **PARTS[name], "latent_dim": 2, "epochs": 3}
    config = config_of(fields, data_root)
    trained = train_run(config, tmp_path / "run")
    loaded = pv.load_run(tmp_path / "run")
    state = trained.vae.state_dict()
    assert loaded.vae.state_dict().keys() == state.keys()
    assert all(torch.equal(loaded.vae.state_dict()[key], value) for key, value in state.items())
    untrained = build_vae(config, trained.data.event_shape, trained.data).state_dict()
    assert not [key for key, p in trained.vae.named_parameters() if torch.equal(p, untrained[key])]
    result = measure(loaded.vae, trained.data, num_samples=4, num_data=3)
    assert result["measure"] == "ELBO"
    assert math.isfinite(result["log_px"])
    assert isinstance(result["active_units"], int)
    assert (result["log_px_enumeration"] is not None) == (config.posterior == "bernoulli")
    if config.posterior == "bernoulli":
        args = trained.data.arguments("test")[0][:3]
        expected = pv.enumerated_log_marginal(loaded.vae.model, args).mean().item()
        assert result["log_px_enumeration"] == pytest.approx(expected)
        assert "log p(x), enumeration" in results_table({"run": result})


@pytest.mark.parametrize(("objective", "kind"), by_turns(OTHER_OBJECTIVES))
def test_every_other_objective_trains_saves_and_loads(objective, kind, data_root, tmp_path):
    config = config_of(SOME[kind], data_root, objective=objective, num_particles=2)
    trained = train_run(config, tmp_path / "run")
    assert all(map(math.isfinite, [*trained.history.loss, *trained.history.elbo]))
    untrained = build_vae(config, trained.data.event_shape, trained.data).state_dict()
    assert not [name for name, p in trained.vae.named_parameters() if torch.equal(p, untrained[name])]
    loaded = pv.load_run(tmp_path / "run")
    assert loaded.config == config
    assert all(torch.equal(loaded.vae.state_dict()[key], value) for key, value in trained.vae.state_dict().items())


# What is not supported ----------------------------------------------------------------------------------------------


def unsupported() -> dict[str, tuple[dict, str]]:
    """Returns by name the fields, and the start of the line that refuses them."""
    found = {}
    for kind in KINDS:
        if kind in ("count", "mixed"):  # known when the file is read; see tests/cli
            continue
        for likelihood in sorted({*LIKELIHOOD_MAKERS, "columns"} - set(likelihoods_of(kind))):
            for network in NETWORK_FIELDS if kind != "points" else ("mlp",):
                fields = {**KINDS[kind], "network": network, "likelihood": likelihood}
                found[f"{kind} | {network} | {likelihood}"] = fields, "likelihood must be one of"
    for binarize in ("none", "static", "dynamic", "dequantise"):
        fields = {**KINDS["points"], "binarize": binarize}
        found[f"points | {binarize}"] = fields, f"binarize {binarize!r} is for image sets, and ring holds points"
    for posterior, conditional in itertools.product(POSTERIORS, (False, True)):
        fields = {**KINDS["points"], "network": "conv", "posterior": posterior, "conditional": conditional}
        found[f"points | conv | {posterior} | {conditional}"] = fields, "network 'conv' is for image sets"
    for kind, name in itertools.product(("points", "dynamic"), EVERY_OBJECTIVE):
        usual_latents = {"posterior": "bernoulli", "latent_dim": 2}
        particles = usual_latents if name == "elbo_enumerated" else {"num_particles": 2}
        particles |= {"posterior": "mixture"} if name in OF_MIXTURES else {}
        usual = {"objective": name, **particles}
        settings = {**usual, **next((o for o in OBJECTIVES.values() if o["objective"] == name), {})}
        if name != "elbo":
            fields = {**KINDS[kind], **settings, "posterior": "delta"}
            found[f"{kind} | delta | {name}"] = fields, "posterior delta (an autoencoder) needs objective elbo"
        if name != "elbo_analytic_kl":
            fields = {**KINDS[kind], **settings, "free_bits": 0.1}
            found[f"{kind} | free_bits | {name}"] = fields, "free_bits must "
        if name != "renyi":
            fields = {**KINDS[kind], **settings, "alpha": 0.5}
            found[f"{kind} | alpha | {name}"] = fields, "alpha must "
    for field, known in {
        "network": "mlp, conv, resnet",
        "posterior": "diagonal, full_covariance, flow, mixture, bernoulli, relaxed_bernoulli, delta",
        "prior": "standard, mixture, vamp, flow",
        "beta_schedule": "constant, linear, cyclical, sigmoid",
        "objective": "elbo, elbo_analytic_kl",
    }.items():
        fields = {**KINDS["dynamic"], field: "other"}
        found[f"{field} | other"] = fields, f"{field} must be one of {known}"
    fields = {**KINDS["static"], "binarize": "other"}
    found["binarize | other"] = fields, "binarize must be one of none, static, dynamic, dequantise"
    found["conditional | labels"] = {**KINDS["static"], "conditional": "labels"}, "conditional must be true or false"
    return found


UNSUPPORTED = unsupported()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_every_other_combination_is_refused_by_the_field_in_one_line(name, data_root):
    fields, message = UNSUPPORTED[name]
    with pytest.raises(pv.InputError) as caught:
        config_of(fields, data_root)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ((2, 2, 2), "hidden must have at most 2 layers for images of 6 x 5, got 3"),
        ((), "hidden must have at least one number of channels for a convolutional decoder, got none"),
    ],
)
def test_what_only_the_data_show_is_refused_before_anything_is_written(hidden, message, data_root, tmp_path):
    config = config_of({**KINDS["dynamic"], "network": "conv"}, data_root, hidden=hidden)
    with pytest.raises(pv.InputError) as caught:
        train_run(config, tmp_path / "run")
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()
