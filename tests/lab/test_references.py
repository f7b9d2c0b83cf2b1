"""The bias of an estimator is measured against the plain estimator of the same bound, with the same settings."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from compared_pairs import FEW, plain_guide, plain_model, poorly_guided
from helpers import draw, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO

import pyrovae as pv
from pyrovae.lab import comparing
from pyrovae.lab.comparing import compare
from pyrovae.lab.repeats import reference_of
from pyrovae.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    VIMCO,
    AnalyticKLELBO,
    Coefficients,
    DifferentiableELBO,
    DReG,
    Renyi,
    ScoreFunction,
)

LEAVE_ONE_OUT = "score_function(baseline=leave_one_out)"


@pytest.fixture(autouse=True)
def _rough_log_px(monkeypatch):
    """These tests are of gradients alone."""
    monkeypatch.setattr(comparing, "LOG_PX_SAMPLES", 50)


def test_the_bias_is_above_its_floor_only_for_a_biased_estimator():
    class Naive(IWAE):
        reference = IWAE

        def coefficients(self, log_weights, beta):
            weights = log_weights.softmax(0)
            return Coefficients(weights, path=weights)

    vae = poorly_guided()
    x = draw(vae, 2).repeat(600, 1)  # many data for few repeats, each of which costs more
    found = compare(vae.model, vae.guide, x, objectives=["dreg", Naive], num_particles=[4], repeats=8, compile=False)
    dreg, naive = found["dreg", 4], found["Naive", 4]
    assert dreg.reference == naive.reference == "IWAE"
    assert dreg.guide.bias < 2 * dreg.guide.bias_floor
    assert naive.guide.bias > 5 * naive.guide.bias_floor
    assert naive.model.bias < 2 * naive.model.bias_floor


def twice_dreg(number):
    return DReG(2 * number)


@dataclass(frozen=True)
class NaiveMIWAE(MIWAE):
    reference = MIWAE


@dataclass(frozen=True)
class NaiveRenyi(Renyi):
    reference = Renyi


@dataclass(frozen=True)
class BesidePyro(DReG):
    reference = Trace_ELBO


@dataclass(frozen=True)
class BesidePyrosRenyi(NaiveRenyi):
    reference = RenyiELBO


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DReG(8, chunk_size=2), IWAE(8)),
        (VIMCO(8), IWAE(8)),
        (ScoreFunction(8, baseline="leave_one_out"), ELBO(8)),
        (AnalyticKLELBO(8), ELBO(8)),
        (NaiveMIWAE(8, num_batches=3), MIWAE(8, num_batches=3)),
        (NaiveRenyi(8, alpha=2.0), Renyi(8, alpha=2.0)),
    ],
)
def test_the_reference_has_the_settings_that_it_shares_with_the_objective(objective, expected):
    assert reference_of(objective) == expected


def test_a_reference_of_pyro_has_the_shared_settings_too():
    for objective in (BesidePyro(8), BesidePyrosRenyi(8, alpha=2.0)):
        assert reference_of(objective).num_particles == 8
    assert reference_of(BesidePyrosRenyi(8, alpha=2.0)).alpha == 2
    assert reference_of(AnalyticKLELBO(free_bits=0.1)) is reference_of(IWAE(8)) is None
    vae = poorly_guided()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[BesidePyro], num_particles=[2], **FEW)
    assert found["BesidePyro", 2].reference == "Trace_ELBO"
    assert found["BesidePyro", 2].guide.bias > 0


def test_the_reference_has_as_many_draws_as_the_objective():
    vae = poorly_guided()
    with torch.no_grad():
        vae.guide_log_scale.add_(1.0)  # the weights now vary, so that the gradient depends on K
    x = draw(vae, 2).repeat(400, 1)
    settings = {"num_particles": [2], "repeats": 8, "compile": False}
    found = compare(vae.model, vae.guide, x, objectives=[twice_dreg, "dreg", "iwae"], **settings)
    row = found["twice_dreg", 2]
    assert row.num_particles == 2
    assert row.num_draws == 4
    assert row.reference == "IWAE"
    assert row.guide.bias < 2 * row.guide.bias_floor
    apart = (row.guide.mean - found["iwae", 2].guide.mean).norm()
    assert apart > 4 * row.guide.bias_floor  # this distance was once shown as the bias
    assert found["dreg", 2].num_draws == 2


@dataclass
class Unhashable(DifferentiableELBO):
    num_particles: int = 1

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return ELBO(self.num_particles).differentiable_loss(model, guide, *args, **kwargs)


def test_a_users_objective_need_not_be_hashable():
    vae = poorly_guided()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[Unhashable, "dreg"], num_particles=[2], **FEW)
    assert [row.reference for row in found.rows] == [None, "IWAE"]


def test_a_discrete_pair_has_references_too_and_no_row_where_an_objective_or_its_baseline_needs_more_particles():
    x = torch.randn(6, 3).repeat(250, 1)
    settings = {"num_particles": [1, 3], "repeats": 8, "compile": False}
    found = compare(plain_model, plain_guide, x, objectives=["score_function", "vimco", LEAVE_ONE_OUT], **settings)
    keys = [(row.objective, row.num_particles, row.reference) for row in found.rows]
    assert keys == [
        ("score_function", 1, "ELBO"),
        ("score_function", 3, "ELBO"),
        ("vimco", 3, "IWAE"),
        (LEAVE_ONE_OUT, 3, "ELBO"),
    ]
    assert all(row.guide.bias < 3 * row.guide.bias_floor for row in found.rows)
    assert not pyro.get_param_store().keys()


def mixture(x):
    """Draws c and eight dimensions of z given c; only the distribution of z has parameters."""
    loc = pyro.param("loc", x.new_tensor([-0.5, 0.8, 0.2]))
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(x.new_tensor([0.3, 0.3, 0.4])))
        pyro.sample("z", dist.Normal(loc[c].unsqueeze(-1), 0.9).expand((*c.shape, 8)).to_event(1))


def mixture_model(x):
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Categorical(x.new_ones(3) / 3))
        z = pyro.sample("z", dist.Normal(c.unsqueeze(-1) - 1.0, 1.0).expand((*c.shape, 8)).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_in_a_mixed_guide_a_path_has_a_better_signal_than_a_score_function():
    x = torch.full((120, 8), 0.4)
    settings = {"num_particles": [8], "repeats": 32, "compile": False}
    names = ["elbo", "score_function(baseline=leave_one_out)", "iwae", "dreg", "vimco"]
    found = compare(mixture_model, mixture, x, objectives=names, **settings)
    elbo, score_function, iwae, dreg, vimco = (found[name, 8].guide for name in names)
    assert elbo.snr > 1.3 * score_function.snr
    assert dreg.snr > iwae.snr > 1.2 * vimco.snr
    assert [found[name, 8].reference for name in names] == [None, "ELBO", None, "IWAE", "IWAE"]
    assert all(g.bias < 3 * g.bias_floor for g in (score_function, dreg, vimco))


def test_an_estimator_whose_reference_is_refused_has_none():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Exponential(x.new_tensor(1.0))), 1.0), obs=x)

    def guide(x):  # also below 0, where the weight is 0
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    found = compare(model, guide, torch.ones(4), objectives=["vimco"], num_particles=[3], **FEW)
    assert found["vimco", 3].reference is None


def test_a_straight_through_gradient_is_never_a_reference():
    parts = {"posterior": pv.posteriors.Bernoulli(2, 0.5)}
    vae = small_vae(**parts)
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo", "score_function"], num_particles=[2], repeats=6,
        compile=False,
    )  # fmt: skip
    assert all(row.reference is None and row.guide.bias is None for row in found.rows)
