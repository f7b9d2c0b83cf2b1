"""The sleep phase of reweighted wake-sleep, at draws of the model's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_checks import GUIDE, loss_and_gradients
from helpers import assert_within_standard_errors, draw, mean_and_error, suite_seed
from scalar_pairs import double, gradients

import pyrovae as pv
from pyrovae.objectives import ReweightedWakeSleep


def two_sites(model_scale: float = 0.7):
    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)
            pyro.sample("y", dist.Normal(-z, 0.5), obs=y)

    def guide(x, y):
        a, b = pyro.param("a", double(0.2)), pyro.param("b", double(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x + b * y, 0.6))

    return model, guide


def test_wake_sleep_dreams_every_observed_site():
    """With the real y beside the dreamed x the gradient is (-1.69, 0.50)."""
    num = 4_000
    x, y = torch.full((num,), 1.5, dtype=torch.float64), torch.full((num,), -2.0, dtype=torch.float64)
    found = gradients(ReweightedWakeSleep(2, sleep_weight=1.0), two_sites(), x, y, num=20) / num
    # By hand: E over (z, x, y) of the model of -d log q(z | x, y) = -(z - a x - b y) / 0.36 (x, y).
    a, b = 0.2, 0.1
    xx, yy, xy, zx, zy = 1 + 0.49, 1 + 0.25, -1.0, 1.0, -1.0
    expected = -double([zx - a * xx - b * xy, zy - a * xy - b * yy]) / 0.36
    mean, error = mean_and_error(found)
    assert_within_standard_errors(mean, expected, error)


def test_a_dream_takes_the_place_of_keyword_arguments_and_is_refused_where_it_has_none():
    model, guide = two_sites()
    x = torch.ones(50, dtype=torch.float64)
    sleep = ReweightedWakeSleep(2, sleep_weight=1.0)
    torch.manual_seed(1)
    expected = gradients_of_keywords(sleep, model, guide, x, y=x)
    torch.manual_seed(1)
    assert torch.equal(expected, gradients_of_keywords(sleep, model, guide, x, x))

    def shifted(x, y):
        model(x, y + 1)

    with pytest.raises(pv.InputError, match='site "y" must observe one of the arguments as it is'):
        sleep.loss_and_grads(shifted, guide, x, x)


def gradients_of_keywords(objective, model, guide, *args, **kwargs) -> torch.Tensor:
    for _, value in pyro.get_param_store().items():
        value.unconstrained().grad = None
    objective.loss_and_grads(model, guide, *args, **kwargs)
    return torch.stack([value.unconstrained().grad.clone() for _, value in sorted(pyro.get_param_store().items())])


def test_sleep_phi_is_the_guides_log_density_at_the_models_own_draws(vae):
    x = draw(vae, 250)
    objective = ReweightedWakeSleep(2, sleep_weight=1.0)
    num, draws = 40, []
    for seed in range(num):
        _, gradients = loss_and_gradients(objective, vae, x, seed)
        draws.append(torch.cat([gradients[name].flatten() for name in GUIDE]))
    draws = torch.stack(draws)
    # The mean over (x, z) ~ p of -d log q(z|x), in closed form by many draws of the joint.
    torch.manual_seed(suite_seed(0))
    with torch.no_grad():
        z = vae.prior.sample((200_000,))
        dream = vae.decode(z).sample()
    loss = -vae.encode(dream).log_prob(z).mean() * len(x)
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [getattr(vae, n) for n in GUIDE])])
    error = draws.std(0) * math.sqrt(1 / num + len(x) / 200_000)
    assert_within_standard_errors(draws.mean(0), truth, error)
