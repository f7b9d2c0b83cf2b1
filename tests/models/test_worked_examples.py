"""Numbers that tutorials work out by hand."""

import pytest
import torch
from pyro import poutine

import pyrovae as pv
from pyrovae.objectives.registry import from_name


@pytest.mark.parametrize(
    ("mean", "nll"),
    [((1, -0.5, 0.7), 0.6774), ((0.8, -0.4, 0.9), 0.8574), ((0, 0, 0), 4.1574), ((2, -1, 1.4), 4.1574)],
)
def test_the_worked_gaussian_negative_log_likelihoods(mean, nll):
    x, outputs = (torch.tensor(values, dtype=torch.float64) for values in ((1.0, -0.5, 0.7), mean))
    assert -pv.Gaussian(0.5)(outputs, event_dim=1).log_prob(x).item() == pytest.approx(nll, abs=5e-5)


def test_the_worked_bernoulli_example_has_the_published_reconstruction_kl_and_total(monkeypatch):
    vae = pv.VAE((4,), latent_dim=2, hidden=(), likelihood=pv.Bernoulli()).double()
    mu, log_variance, z, b = (
        torch.tensor(values, dtype=torch.float64)
        for values in ((0.5, -0.3), (-0.2, 0.4), (-0.80355319, 0.88486174), (0.1, -0.2, 0.0, 0.3))
    )
    w = torch.tensor([[1.2, -0.7, 0.5, 1.0], [-0.4, 0.8, 1.1, -0.6]], dtype=torch.float64)
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.set_output_bias(torch.stack((mu, log_variance)))
        vae.decoder.output.weight.copy_(w.T)
        vae.decoder.set_output_bias(b)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    model = poutine.trace(poutine.condition(vae.model, {"z": z[None]})).get_trace(x)
    model.compute_log_prob()
    assert -model.nodes["x"]["log_prob"].item() == pytest.approx(4.62873, abs=5e-6)
    assert pv.diagnostics.kl_per_dimension(vae, x).sum().item() == pytest.approx(0.225278, abs=5e-7)
    noise = (z - mu) / (0.5 * log_variance).exp()
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: noise.expand(shape))
    assert from_name("elbo_analytic_kl").loss(vae.model, vae.guide, x) == pytest.approx(4.854008, abs=1e-6)
