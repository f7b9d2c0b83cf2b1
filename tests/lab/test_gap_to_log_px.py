"""A gap to log p(x) is shown for a bound on log p(x), and for nothing else."""

import json
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison_report import draw_comparison, write_comparison
from pyrovae.lab.gap_to_log_px import is_bound
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MISELBO,
    MIWAE,
    OVIS,
    PIWAE,
    SIWAE,
    VIMCO,
    AnalyticKLELBO,
    DifferentiableELBO,
    DReG,
    EnumeratedELBO,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.objectives.registry import OBJECTIVES

SETTINGS = {"repeats": 4, "compile": False, "progress": False}


class Shifted(IWAE):
    """An objective of a user that lies above log p(x)."""

    def bound(self, log_weights):
        return super().bound(log_weights) + 1


@dataclass(frozen=True)
class Unknown(DifferentiableELBO):
    num_particles: int = 1

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return ELBO(self.num_particles).differentiable_loss(model, guide, *args, **kwargs)


BOUNDS = [
    ELBO(3), StickingTheLanding(3), IWAE(8), IWAE(8, chunk_size=2), DReG(8), GDReG(8), MIWAE(4, num_batches=2),
    PIWAE(4, num_batches=2), CIWAE(8), VIMCO(8), OVIS(8), ScoreFunction(8), ReweightedWakeSleep(8),
    SIWAE(8), MISELBO(8),
    ThermodynamicVO(8, num_partitions=5), EnumeratedELBO(), AnalyticKLELBO(2),
    *(Renyi(8, alpha=alpha) for alpha in (0.0, 0.5, 1 - 1e-6, 1.0, 3.0)), Renyi(1, alpha=-1.0),
    Trace_ELBO(num_particles=3), TraceGraph_ELBO(), TraceEnum_ELBO(), TraceMeanField_ELBO(), RenyiELBO(0.5, 8),
]  # fmt: skip
NO_BOUNDS = [
    Renyi(8, alpha=-0.5), AnalyticKLELBO(free_bits=0.1), RenyiELBO(-0.5, 8), Shifted(8), Unknown(8),
    TraceTMC_ELBO(),
]  # fmt: skip


@pytest.mark.parametrize("objective", BOUNDS, ids=lambda o: f"{type(o).__name__}")
def test_bounds_on_log_px_are_recognised(objective):
    assert is_bound(objective)


@pytest.mark.parametrize("objective", NO_BOUNDS, ids=lambda o: f"{type(o).__name__}")
def test_other_objectives_are_not_taken_for_bounds_on_log_px(objective):
    assert not is_bound(objective)


def test_every_named_objective_is_among_the_cases():
    assert {type(objective) for objective in BOUNDS} >= set(OBJECTIVES.values())


def free_bits(num_particles):
    return AnalyticKLELBO(num_particles, free_bits=0.5)


def upper(num_particles):
    return Renyi(num_particles, alpha=-1.0)


def test_a_row_without_a_bound_has_no_gap_and_the_others_have_theirs(tmp_path):
    vae = small_vae()
    objectives = ["iwae", free_bits, upper]
    found = compare(vae.model, vae.guide, torch.randn(6, 2), objectives=objectives, num_particles=[4], **SETTINGS)
    gaps = {row.objective: row.gap for row in found.rows}
    assert gaps.pop("iwae") == pytest.approx(found.log_px.mean - found["iwae", 4].bound)
    assert gaps == {"free_bits": None, "upper": None}
    assert found.no_gap is None
    assert [row["gap"] for row in found.to_dict()] == [found["iwae", 4].gap, None, None]
    lines = found.to_markdown().splitlines()
    columns = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert [line[columns[0].index("gap")] for line in columns] == ["gap", f"{gaps_of(found)['iwae']:.3f}", "", ""]
    (axes,) = draw_comparison(found)["bounds"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["log p(x)", "iwae"]
    write_comparison(tmp_path, found, "a & b", {"epoch": 3})
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][1]["gap"] is None


def gaps_of(found):
    return {row.objective: row.gap for row in found.rows}


def renyi_of_pyro(num_particles):
    return RenyiELBO(0.5, num_particles, vectorize_particles=True, max_plate_nesting=1)


def elbo_of_pyro(num_particles):
    return Trace_ELBO(num_particles)


@pytest.mark.parametrize(("beta", "log_px"), [(0.1, None), (4.0, pv.Estimate(torch.full((6,), -3.0), torch.zeros(6)))])
def test_under_a_beta_no_objective_has_a_gap_and_the_figure_has_no_log_px(beta, log_px):
    vae = small_vae(beta=beta)
    objectives = ["elbo", "iwae", "elbo_analytic_kl", elbo_of_pyro]
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=objectives, num_particles=[4], log_px=log_px, **SETTINGS
    )
    assert set(gaps_of(found).values()) == {None}
    assert f'no gap: under the scale (beta) {beta:g} at site "z" an objective is no bound on log p(x)' in str(found)
    (axes,) = draw_comparison(found)["bounds"].axes
    assert "log p(x)" not in [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(axes.containers) == 4
    assert log_px is None or "log p(x) -3.000 nats" in str(found)


def plain(scale=None, family=None):
    """Returns a pair whose latent site may have a scale, and whose observed site may be of another family."""

    def model(x):
        weight = pyro.param("weight", torch.ones(2, 3))
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=1.0 if scale is None else scale):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            fn = dist.Normal(z @ weight, 1.0) if family is None else family(z @ weight)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=1.0 if scale is None else scale):
            pyro.sample("z", dist.Normal(loc + x[:, :2], 0.5).to_event(1))

    return model, guide


def test_a_plain_pair_has_a_gap_unless_it_is_scaled():
    x = torch.randn(6, 3)
    settings = {"objectives": [elbo_of_pyro, renyi_of_pyro], "num_particles": [4], **SETTINGS}
    assert None not in gaps_of(compare(*plain(), x, **settings)).values()
    pyro.clear_param_store()
    found = compare(*plain(scale=2.0), x, **{**settings, "objectives": [elbo_of_pyro]})
    assert gaps_of(found) == {"elbo_of_pyro": None}
    scaled = [poutine.scale(program, 2.0) for program in plain()]
    pyro.clear_param_store()
    assert gaps_of(compare(*scaled, x, **{**settings, "objectives": ["elbo"]})) == {"elbo": None}


def grey():
    return small_vae(likelihood=pv.Bernoulli(allow_grey=True)), torch.rand(6, 2)


def autoencoder():
    return small_vae(posterior="delta"), torch.randn(6, 2)


@pytest.mark.parametrize(("make", "why"), [(grey, "cross-entropy"), (autoencoder, "is a point")])
@pytest.mark.parametrize("given", [False, True])
def test_without_log_px_there_is_no_gap_and_the_rest_is_measured(make, why, given, tmp_path):
    vae, x = make()
    log_px = pv.Estimate(torch.zeros(6), torch.zeros(6)) if given else None
    found = compare(vae.model, vae.guide, x, objectives=["elbo"], num_particles=[4], log_px=log_px, **SETTINGS)
    assert found.log_px is log_px
    assert found["elbo", 4].gap is None
    assert found["elbo", 4].guide.norm > 0
    assert "no gap: log p(x) does not exist or cannot be had" in str(found)
    assert why in found.no_gap
    write_comparison(tmp_path, found, "a & b", {"epoch": 3})
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["log_px"] == (0.0 if given else None)
    assert content["no_gap"] == found.no_gap
    assert ("log p(x) 0.000 nats" in (tmp_path / "comparison.md").read_text()) is given


class Modal(nn.Module):
    """A decoder that may differ between training and evaluation mode, like one with dropout."""

    def __init__(self, differs):
        super().__init__()
        self.weight, self.differs = nn.Parameter(torch.ones(2, 3)), differs

    def forward(self, z):
        return z @ self.weight * (0.5 if self.training and self.differs else 1.0)


@pytest.mark.parametrize("differs", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_modules_that_differ_in_training_mode_have_no_gap_in_it(differs, training):
    decoder = Modal(differs).train(training)
    _, guide = plain()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    found = compare(model, guide, torch.randn(6, 3), objectives=["elbo"], num_particles=[4], **SETTINGS)
    assert (found["elbo", 4].gap is None) == (differs and training)
    assert ("training mode" in str(found)) == (differs and training)
    assert decoder.training is training


def test_a_gap_of_infinite_log_px_is_not_written():
    vae = small_vae()
    none = pv.Estimate(torch.full((6,), -math.inf), torch.zeros(6))
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo"], num_particles=[2], log_px=none, **SETTINGS
    )
    assert found.to_dict()[0]["gap"] is None
