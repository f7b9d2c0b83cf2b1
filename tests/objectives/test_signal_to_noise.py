"""The signal-to-noise ratio of gradients as particles or batches grow (Rainforth et al. 2018)."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed

from pyrovae.objectives import IWAE, MIWAE, OVIS, VIMCO, DReG


class RainforthPair:
    """Is their model, D = 20: z ~ N(mu, I), x|z ~ N(z, I), q = N(A x + b, (2/3) I), parameters near the optimum.

    mu and b are one per datum, so that one backward pass gives as many independent gradients as there are data.
    """

    def __init__(self, num_draws):
        torch.manual_seed(suite_seed(0))
        self.x = torch.randn(1, 20, dtype=torch.float64) * 2**0.5
        mu, b = 0.01 * torch.randn(2, 20, dtype=torch.float64)
        self.slope = 0.5 * torch.eye(20, dtype=torch.float64) + 0.01 * torch.randn(20, 20, dtype=torch.float64)
        self.mu, self.b = (p.expand(num_draws, 20).clone().requires_grad_() for p in (mu, b))
        self.data = self.x.expand(num_draws, 20)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ self.slope.T + self.b, (2 / 3) ** 0.5).to_event(1))

    def gradients(self, objective, seed):
        torch.manual_seed(suite_seed(seed))
        self.mu.grad = self.b.grad = None
        objective.loss_and_grads(self.model, self.guide, self.data)
        return self.mu.grad.clone(), self.b.grad.clone()


def signal_to_noise(mean_by, deviation_by, num_draws=500, repeats=2):
    """Returns the SNR of model and guide over coordinates: the mean is of one estimator, the deviation of another."""
    pair = RainforthPair(num_draws)
    means = [torch.cat(p) for p in zip(*(pair.gradients(mean_by, s) for s in range(repeats)), strict=True)]
    noise = [torch.cat(p) for p in zip(*(pair.gradients(deviation_by, 100 + s) for s in range(repeats)), strict=True)]
    return [(m.mean(0).norm() / n.std(0).norm()).item() for m, n in zip(means, noise, strict=True)]


def slope(sizes, values):
    logs = torch.tensor([sizes, values], dtype=torch.float64).log()
    centred = logs - logs.mean(1, keepdim=True)
    return ((centred[0] * centred[1]).sum() / centred[0].square().sum()).item()


def test_the_guides_signal_to_noise_falls_as_the_root_of_k_and_the_models_rises():
    """A raw SNR estimate has a floor of sqrt(2 / (pi T)): the mean is DReG's, the deviation IWAE's."""
    sizes = (4, 16, 64)
    model, guide = zip(*(signal_to_noise(DReG(k), IWAE(k)) for k in sizes), strict=True)
    assert slope(sizes, guide) == pytest.approx(-0.5, abs=0.07), guide
    assert slope(sizes, model) == pytest.approx(0.5, abs=0.07), model


def test_the_signal_to_noise_of_ovis_rises_as_the_root_of_k_where_vimcos_falls():
    """Both are score functions. OVIS leaves out the noise of draws of little weight, as Lievin et al. (2020) prove."""
    sizes = (4, 16, 64)
    for objective, expected in ((OVIS, 0.5), (VIMCO, -0.5)):
        _, guide = zip(*(signal_to_noise(DReG(k), objective(k)) for k in sizes), strict=True)
        assert slope(sizes, guide) == pytest.approx(expected, abs=0.15), (objective, guide)


def test_with_more_batches_both_signals_rise_as_the_root_of_m():
    sizes = (1, 4, 16)
    pairs = [signal_to_noise(DReG(10), MIWAE(10, num_batches=m)) for m in sizes]
    model, guide = zip(*pairs, strict=True)
    assert slope(sizes, guide) == pytest.approx(0.5, abs=0.05), guide
    assert slope(sizes, model) == pytest.approx(0.5, abs=0.05), model
