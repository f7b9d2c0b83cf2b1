"""Gaussians and their mixtures: PyTorch's values and gradients, computed faster."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers import (
    assert_within_standard_errors,
    doubles,
)
from torch.distributions import kl_divergence

from pyrovae.models.gaussian_distributions import IsotropicNormal, mixture_of


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("log_scale", [-6.0, 0.0, 3.0])
def test_isotropic_normal_is_normal_to_rounding(log_scale, dtype, rtol):
    loc, log_scale = torch.randn(4, 3, dtype=dtype), torch.tensor(log_scale, dtype=dtype)
    ours, theirs = IsotropicNormal(loc, log_scale), dist.Normal(loc, log_scale.exp())
    x = torch.randn(5, 4, 3, dtype=dtype)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=rtol, atol=rtol)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=0)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=rtol, atol=0)


def test_the_kl_to_and_from_an_isotropic_normal_is_the_closed_form():
    loc, scale = doubles(5, 3), (0.3 * doubles(5, 3)).exp()
    mean, log_scale = doubles(3), torch.tensor(0.4, dtype=torch.float64)
    p, q = IsotropicNormal(mean, log_scale), dist.Normal(loc, scale)

    def formula(m1, s1, m2, s2):
        return torch.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5

    s = log_scale.exp()
    torch.testing.assert_close(kl_divergence(q, p), formula(loc, scale, mean, s))
    torch.testing.assert_close(kl_divergence(p, q), formula(mean, s, loc, scale))
    wide = p.expand((5, 3)).to_event(1)
    torch.testing.assert_close(kl_divergence(q.to_event(1), wide), formula(loc, scale, mean, s).sum(-1))


def gaussians(*batch, dtype=torch.float64, locs=2.0, narrowest=0.01):
    """Returns weights, locations and scales of seven components, which lie many of their widths apart."""
    weights = dist.Categorical(logits=torch.randn(*batch, 7, dtype=dtype))
    loc, scale = locs * torch.randn(*batch, 7, 5, dtype=dtype), narrowest + torch.rand(*batch, 7, 5, dtype=dtype)
    return weights, loc, scale


@pytest.mark.parametrize("locs", [0.5, 3.0, 300.0])
def test_a_mixture_of_gaussians_by_one_product_is_as_precise_in_float32_as_that_of_pytorch(locs):
    weights, loc, scale = gaussians(locs=locs, dtype=torch.float32)
    z = (loc[:, None] + scale[:, None] * torch.randn(7, 30, 5)).flatten(0, 1)
    exact = dist.MixtureSameFamily(
        dist.Categorical(logits=weights.logits.double()), dist.Normal(loc.double(), scale.double()).to_event(1)
    ).log_prob(z.double())
    components = dist.Normal(loc, scale).to_event(1)
    ours, theirs = mixture_of(weights, components), dist.MixtureSameFamily(weights, components)
    assert type(ours) is not type(theirs)
    errors = [(p.log_prob(z).double() - exact).abs().max() for p in (ours, theirs)]
    assert errors[0] < 2 * errors[1] + 1e-6
    assert ours.log_prob(z).dtype == torch.float32


def test_a_mixture_of_gaussians_has_pytorchs_gradients_shapes_and_draws():
    weights, loc, scale = gaussians(dtype=torch.float32)
    z = (loc[:6] + 0.3 * torch.randn(6, 5)).view(3, 2, 5)
    free = [weights.logits.clone(), loc, scale, z]

    def both(logits, loc, scale, z):
        parts = dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1)
        return [make(*parts).expand((4, 3, 2)).log_prob(z) for make in (mixture_of, dist.MixtureSameFamily)]

    ours, theirs = both(*(one.requires_grad_() for one in free))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.square().sum(), free, retain_graph=True) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)

    p = mixture_of(weights, dist.Normal(loc.detach(), scale.detach()).to_event(1))
    wide = p.expand((3, 1)).expand((3, 2))
    assert wide.log_prob(z[0, 0]).shape == (3, 2)  # broadcasts, as for any distribution
    draws = p.sample((20_000,)).detach()
    assert_within_standard_errors(draws.mean(0), p.mean, draws.std(0) / math.sqrt(len(draws)))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(z.detach() * math.nan)


def test_mixtures_of_anything_else_are_pytorchs():
    weights, loc, scale = gaussians(3, dtype=torch.float32)

    class HalfNormal(dist.Normal):  # with another density
        pass

    for components in (
        dist.Normal(loc, scale).to_event(1),  # a batch of mixtures
        dist.Normal(loc[0].double(), scale[0].double()).to_event(1),  # nothing is gained in float64
        HalfNormal(loc[0], scale[0]).to_event(1),
        dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale)),
        dist.Laplace(loc, scale).to_event(1),
    ):
        of = dist.Categorical(logits=weights.logits[0]) if components.batch_shape == (7,) else weights
        assert type(mixture_of(of, components)) is dist.MixtureSameFamily
