"""What inference gaps say of themselves: a gap that cannot be is marked, and log p(x) is judged."""

from dataclasses import replace

import pytest
import torch
from helpers import draw, linear_gaussian

import pyrovae as pv
from pyrovae.evaluation.inference_gap import InferenceGaps


def gaps_of(log_px):
    """Returns gaps from a log p(x) and ELBOs of -1 and -2 nats, with errors of 0.01 for each datum."""
    ones, error = torch.ones_like(log_px.value), torch.full_like(log_px.value, 0.01)
    elbo, best = pv.Estimate(-2 * ones, error), pv.Estimate(-ones, error)
    gaps = {"total": log_px.minus(elbo), "approximation": log_px.minus(best), "amortisation": best.minus(elbo)}
    return InferenceGaps(log_px, elbo, best, **gaps, loc=ones, scale=ones, converged=True)


@pytest.mark.parametrize(
    ("log_px", "told"),
    [
        (-0.5, []),
        (-1.004, []),  # noise: the mean over 40 data has an error of 0.0022
        (-1.5, ["approximation gap"]),
        (-2.5, ["total gap", "approximation gap"]),
    ],
)
def test_a_gap_that_cannot_be_is_marked(log_px, told):
    known = pv.Estimate(torch.full((40,), log_px, dtype=torch.float64), torch.full((40,), 0.01, dtype=torch.float64))
    lines = repr(gaps_of(known)).splitlines()[7:]
    assert lines == [f"impossible: the {name} is negative, so log p(x) is too low" for name in told]
    found = gaps_of(known)
    swapped = replace(found, amortisation=found.elbo.minus(found.best_elbo))
    assert "impossible: the amortisation gap is negative, so the best Gaussian was not found" in repr(swapped)


def test_gaps_show_what_is_said_of_their_log_px():
    vae = linear_gaussian(3)
    x = draw(vae, 6)
    steps = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, "compile": False}
    sampled = pv.log_marginal(vae.model, vae.guide, x, num_samples=30)
    for log_px in (sampled, pv.annealed_log_marginal(vae.model, vae.guide, x, **steps)):
        assert f"log p(x): {log_px.verdict}" in repr(gaps_of(log_px)).splitlines()


def test_every_gap_is_printed_with_its_error():
    known = pv.Estimate(torch.tensor([-0.5, -0.3, -0.1]).double(), torch.tensor([0.03, 0.02, 0.01]).double())
    gaps = gaps_of(known)
    lines = str(gaps).splitlines()
    terms = (gaps.log_px, gaps.elbo, gaps.best_elbo, gaps.total, gaps.approximation, gaps.amortisation)
    assert len({term.mean for term in terms[:5]}) == 5
    for line, term in zip(lines[1:7], terms, strict=True):
        assert line.split()[-3:] == [f"{term.mean:.4f}", "±", f"{term.monte_carlo_error:.2g}"]
