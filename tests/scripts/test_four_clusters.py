"""The tutorial's four clusters: its loss is ours at a variance of 1/2, and what the best linear VAE does there."""

import sys

import pytest
import torch
from pyro import poutine
from running_scripts import FOLDER

import pyrovae as pv


@pytest.fixture
def clusters(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "papers"))
    module = __import__("tutorials_clusters")
    yield module
    for name in ("tutorials_clusters", "tutorials_published"):
        sys.modules.pop(name, None)


def test_a_mean_of_squares_and_a_mean_of_kls_is_half_the_loss_at_a_variance_of_a_half():
    torch.manual_seed(0)
    vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5**0.5))
    x = torch.randn(50, 2)
    guide = poutine.trace(vae.guide).get_trace(x)
    z = guide.nodes["z"]["value"]
    terms = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    terms.compute_log_prob()
    normaliser = torch.tensor(torch.pi).log()  # of two coordinates of variance 1/2
    kl = pv.diagnostics.kl_per_dimension(vae, x)
    ours = -terms.nodes["x"]["log_prob"] - normaliser + kl.sum(1)
    published = (x - vae.decode(z).mean).square().mean() + kl.mean()
    torch.testing.assert_close(published, ours.mean() / 2)


def test_the_best_linear_vae_is_that_of_probabilistic_pca(clusters):
    """Its bound is tight, so that its loss is -log N(x; 0, W W' + sigma^2 I) of PPCA, from the data themselves."""
    torch.manual_seed(1)
    x = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64)
    x = x - x.mean(0)
    eigenvalues, axes = torch.linalg.eigh(x.T @ x / len(x))
    variance = 0.5
    best = clusters.linear_optimum(eigenvalues, variance)
    fitted = axes @ torch.diag(eigenvalues.clamp(min=variance)) @ axes.T
    log_px = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), fitted).log_prob(x).mean()
    normaliser = 1.5 * torch.tensor(2 * torch.pi * variance).log().item()
    assert best["loss"] == pytest.approx(-log_px.item() - normaliser)
    assert best["active"] == int((eigenvalues > variance).sum()) == 2
    assert best["no_latent"] == pytest.approx(x.square().sum(1).mean().item() / (2 * variance))


def test_the_report_has_the_published_row_and_each_seed_in_the_tutorials_unit(clusters):
    run = {"loss": 1.06, "reconstruction": 1.0, "kl": 0.06, "active_units": 1}
    text = clusters.clusters_report({clusters.CLUSTERS[1]: [run, run], "ring": []}, (0, 1), "simple")
    published, *ours = [line.split() for line in text.splitlines() if line.startswith("0.5 ")]
    assert published == ["0.5", "published", "0.526", "0.506", "0.020", "1"]
    assert [line[1] for line in ours] == ["0", "1"]
    assert ours[0][5:9] == ["0.530", "0.500", "0.030", "1"]
    assert clusters.clusters_report({"ring": []}, (0, 1), "simple") == ""
