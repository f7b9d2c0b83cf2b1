"""The figures of the pages on concepts show what is so: their closed forms agree with others; all four are drawn."""

import re

import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from running_scripts import names_of, run_here
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pyrovae as pv

SCRIPT = "papers/concepts.py"


@pytest.fixture(scope="module")
def concepts():
    return names_of(SCRIPT)


def test_the_four_figures_are_drawn_and_what_they_show_is_printed(tmp_path):
    result = run_here(SCRIPT, "--repeats", 2, "--epochs", 1, "--seed", suite_seed(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("pair", "beta", "masks", "globals"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000  # of empty axes it is below 3,000
    assert float(re.search(r"largest difference (\S+) nats", result.stdout)[1]) < 1e-4
    assert 0.7 < float(re.search(r"root mean square (\S+)", result.stdout)[1]) < 1.4
    refused = run_here(SCRIPT, "--out", "nowhere", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "error: out must be a folder that exists, got nowhere\n")


def test_rate_and_distortion_are_those_of_the_best_linear_vae(concepts):
    """At beta = 1 their sum is minus the ELBO of probabilistic PCA, and at every beta the slope is -beta."""
    variances, noise = concepts["VARIANCES"], concepts["NOISE"]
    rate, distortion = concepts["rate_and_distortion"](torch.ones(1))
    weight = (variances - noise**2).clamp(min=0).sqrt().diag()
    vae = pv.LinearGaussianVAE(weight, torch.zeros(3), noise)
    x = torch.cat((torch.eye(3), -torch.eye(3))) * (3 * variances).sqrt()  # of these variances, exactly
    assert (rate + distortion).item() == pytest.approx(-vae.elbo(x).mean().item(), abs=1e-5)
    beta = torch.tensor([0.3, 1.5, 6.0], requires_grad=True)
    for one, slope in zip(concepts["rate_and_distortion"](beta), (-0.5, 0.5), strict=True):
        (gradient,) = torch.autograd.grad(one.sum(), beta, retain_graph=True)
        in_use = (variances / noise**2 > beta.detach()[:, None]).sum(1)
        assert torch.allclose(gradient, slope * in_use / (beta.detach() if slope < 0 else 1))


def test_the_density_of_the_observed_cells_is_a_marginal_of_that_of_all(concepts):
    vae = pv.LinearGaussianVAE(concepts["WEIGHT"], torch.zeros(6), 0.5)
    x = torch.randn(3, 6)
    assert torch.allclose(concepts["exact_log_px"](x), vae.log_px(x), atol=1e-5)
    x[:, 2:] = torch.nan
    pair = pv.LinearGaussianVAE(concepts["WEIGHT"][:2], torch.zeros(2), 0.5)
    assert torch.allclose(concepts["exact_log_px"](x), pair.log_px(x[:, :2]), atol=1e-5)


def test_the_evidence_and_the_line_of_the_last_figure_are_exact(concepts):
    x = 0.5 + torch.randn(5)
    found = pv.log_marginal(concepts["model_of_means"], concepts["guide_of_means"], x, num_samples=4_000)
    evidence = MultivariateNormal(torch.zeros(5), torch.ones(5, 5) + 1.25 * torch.eye(5)).log_prob(x)
    assert_within_standard_errors(found.log_px.mean(), evidence.double(), found.standard_error.mean())
    wider, scale = concepts["WIDER"], (1 + 5 / 1.25) ** -0.5
    exact = kl_divergence(Normal(0.0, wider * scale), Normal(0.0, scale)).item()
    assert 0.5 * (wider**2 - 1) - torch.tensor(wider).log().item() == pytest.approx(exact)
