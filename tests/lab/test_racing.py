"""race: objectives start alike, are trained by fit and measured by log_marginal; bad input is refused."""

import functools
import math

import pyro
import pytest
import torch
from helpers import parameters_of, refusal, ring, small_vae
from small_races import OBJECTIVES, SETTINGS, make, run

import pyrovae as pv
from pyrovae.common.rng import derived_seed, local_seed
from pyrovae.evaluation.diagnostics import latent_use
from pyrovae.lab import racing


def test_a_run_is_trained_by_fit_from_its_seed_and_measured_by_log_marginal(finished_race):
    race, _ = finished_race
    with local_seed(derived_seed(1, "initial parameters")):
        vae = make()
    data = ring()
    fit = {name: SETTINGS[name] for name in ("epochs", "batch_size", "lr", "progress")}
    pv.fit(vae, data, objective=OBJECTIVES["IWAE"], seed=1, **fit)
    one = race["IWAE"][1]
    other = make()
    one.restore(other)
    assert torch.equal(parameters_of(other), parameters_of(vae))
    with local_seed(derived_seed(1, "evaluation")):
        exact = pv.log_marginal(vae.model, vae.guide, data.test_x, num_samples=20)
    assert torch.equal(one.log_px.value, exact.value)
    assert torch.equal(one.log_px.standard_error, exact.standard_error)
    assert one.active_units == latent_use(vae, data.test_x).num_active
    with local_seed(derived_seed(1, "curve")):
        last = pv.log_marginal(vae.model, vae.guide, data.test_x, num_samples=100)
    assert [point[0] for point in one.curve] == [1, 2]
    assert one.curve[-1][2] == last.mean
    assert one.curve[-1][1] == pytest.approx(one.seconds)


def test_a_run_is_not_restored_to_another_model(finished_race):
    other = small_vae(hidden=(5,))
    before = parameters_of(other)
    message = refusal(finished_race[0]["IWAE"][1].restore, other)
    assert "does not fit vae: decoder.layers.0.bias must have shape (5,), got " in message
    assert torch.equal(parameters_of(other), before)


@pytest.mark.usefixtures("entrants_unchecked")
def test_objectives_start_from_the_same_parameters_and_seeds_from_different_ones(finished_race, monkeypatch):
    starts = {}
    real = racing.fit

    @functools.wraps(real)
    def fit(vae, *args, **kwargs):
        starts.setdefault(kwargs["seed"], []).append(parameters_of(vae))
        return real(vae, *args, **kwargs)

    monkeypatch.setattr(racing, "fit", fit)
    run(epochs=1, num_samples=2)
    assert all(torch.equal(one, two) for one, two in starts.values())
    assert not torch.equal(starts[0][0], starts[1][0])


def test_a_race_leaves_the_param_store_and_the_generators_as_they_were():
    pyro.param("mine", torch.tensor(2.0))
    state = torch.get_rng_state()
    run(objectives=["elbo"], seeds=(0,))
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("entrants_unchecked")
@pytest.mark.parametrize("budget", ["epochs", "decoder_calls"])
def test_a_loader_s_own_generator_follows_the_seed(budget):
    """`fit` goes on with it as it is, which would give each run another order of the data, and move the caller's."""
    generator = torch.Generator().manual_seed(5)
    state, rows = generator.get_state(), torch.utils.data.TensorDataset(ring().train_x[:50])
    loader = torch.utils.data.DataLoader(rows, batch_size=10, shuffle=True, generator=generator)
    settings = {"held_out": ring().test_x[:5], "epochs": 1, "num_samples": 5, "progress": False}
    raced = pv.race(make, loader, {"one": "elbo", "other": "elbo"}, (0, 1), budget=budget, **settings)
    values = [r.log_px.value for r in raced.runs]
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], values[3])
    assert torch.equal(generator.get_state(), state)


def test_pairs_that_share_a_parameter_are_refused():
    one = make()
    assert "must create new parameters at each call" in refusal(pv.race, lambda: one, ring(), OBJECTIVES, **SETTINGS)
    net = torch.nn.Linear(2, 2)

    def sharing():
        vae = make()
        vae.decoder.layers[0] = net
        return vae

    assert "must create new parameters at each call" in refusal(pv.race, sharing, ring(), OBJECTIVES, **SETTINGS)


def test_models_can_be_raced_like_objectives(finished_race):
    race, _ = finished_race
    makers = {"same": make, "wider": lambda: small_vae(hidden=(16,), seed=None)}
    models = pv.race(makers, ring(), ["elbo"], (0,), **SETTINGS)
    assert models.objectives == ["same", "wider"]
    for ours, theirs in zip(models["same"], race["ELBO"][:1], strict=True):
        assert torch.equal(ours.log_px.value, theirs.log_px.value)
    assert models.difference("wider")["value"] != 0
    both = refusal(pv.race, makers, ring(), ["elbo", "iwae"], **SETTINGS)
    assert both == "objectives must hold one if make_vae is a dict, got elbo, iwae"
    assert "make_vae must be a function without arguments, or a dict of them" in refusal(
        pv.race, {}, ring(), ["elbo"], **SETTINGS
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": []}, "objectives must hold at least one"),
        ({"objectives": "elbo"}, "objectives must be a list or a tuple of objectives, or a dict of them, got 'elbo'"),
        ({"objectives": ["elbo", "elbo"]}, "objectives must differ, got elbo, elbo"),
        ({"objectives": ["vae"]}, "objective must be one of elbo, "),
        ({"objectives": {"a b": "elbo", "a/b": "iwae"}}, "objectives' names must differ as names of folders"),
        ({"objectives": {"later": {2: "elbo"}}}, "objective must have one from epoch 1 on"),
        ({"objectives": {"a": {1: "elbo", 2: "iwae"}}}, "num_particles must be given with objective iwae"),
        ({"objectives": ["elbo", "iwae"]}, "num_particles must be given with objective iwae: with one it is the elbo"),
        (
            {"objectives": {"a": {1: "elbo", 2: "vimco"}}, "budget": "seconds"},
            "budget seconds needs objectives that stay the same",
        ),
        ({"seeds": ()}, "seeds must hold at least one, got none"),
        ({"seeds": (1, 1)}, "seeds must differ, got (1, 1)"),
        ({"seeds": (-1,)}, "seed must be a whole number >= 0, got -1"),
        ({"budget": "nats"}, "budget must be one of epochs, seconds, decoder_calls; got 'nats'"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"num_data": 31}, "num_data must be <= 30, the number of held-out data; got 31"),
        ({"num_samples": 1}, "num_samples must be a whole number >= 2, got 1"),
        ({"held_out": torch.zeros(1, 2)}, "held_out must hold at least 2 data, got 1"),
        ({"lr": -1.0}, "lr must be a finite number > 0, got -1.0"),
        ({"patience": 3}, "patience must be a keyword of fit that is not the race's own"),
        ({"objective": "elbo"}, "objective must be a keyword of fit that is not the race's own"),
        ({"data": torch.randn(9, 2)}, "held_out must be given unless data is a Dataset, got a Tensor"),
        ({"data": torch.randn(9, 3), "held_out": torch.randn(9, 3)}, "x must have shape (batch, 2)"),
        ({"held_out": torch.randn(9, 3)}, "x must have shape (batch, 2)"),
        ({"held_out": torch.tensor([[math.nan, 0.0]])}, "x must be finite, got nan at index (0, 0)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(settings, message, tmp_path):
    assert message in refusal(run, tmp_path / "race", **settings)
    assert not any(path.is_dir() for path in (tmp_path / "race").glob("*"))
