"""Splines and flows: their slopes, inverses and densities, against autograd."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import (
    perturbed,
    suite_seed,
)

from pyrovae.models import posteriors
from pyrovae.models.flows import FLOWS
from pyrovae.models.splines import rational_quadratic

DIMS = {"coupling": (1, 2, 3, 5), "autoregressive": (2, 3, 5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spline_rises_and_meets_the_identity_and_its_inverse_and_slope_are_right(dtype):
    generator = torch.Generator().manual_seed(suite_seed(0))
    parameters = 4 * torch.randn(200, 1, 11, generator=generator, dtype=dtype)  # some are steep
    x = torch.linspace(-4, 4, 401, dtype=dtype).expand(200, -1).requires_grad_()
    y, log_slope = rational_quadratic(x, parameters, 3.0)
    assert (y.diff(dim=-1) > (-1e-6 if dtype is torch.float32 else 0)).all()
    beyond = x.abs() >= 3
    assert torch.equal(y[beyond], x[beyond])
    assert (log_slope[beyond] == 0).all()
    slope = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-3 if dtype is torch.float32 else 1e-8, atol=1e-6)
    back, back_slope = rational_quadratic(y, parameters, 3.0, inverse=True)
    assert ((back - x).abs() * slope.clamp(max=1)).max() < (1e-3 if dtype is torch.float32 else 1e-10)
    if dtype is torch.float64:
        torch.testing.assert_close(back_slope, -log_slope, rtol=1e-6, atol=1e-6)
    parameters.requires_grad_()
    (rational_quadratic(5 * x, parameters, 3.0, inverse=True)[1].sum()).backward()
    assert parameters.grad.isfinite().all()  # also at points beyond the box


def test_an_inverse_spline_is_finite_where_rounding_puts_it_beyond_its_bin():
    generator = torch.Generator().manual_seed(suite_seed(0))
    parameters = 8 * torch.randn(2_000, 1, 23, generator=generator)
    y = 4 * (2 * torch.rand(2_000, 400, generator=generator) - 1)
    x, log_slope = rational_quadratic(y, parameters, 4.0, inverse=True)
    assert x.isfinite().all()
    assert log_slope.isfinite().all()


@pytest.mark.parametrize(("kind", "dim"), [(kind, dim) for kind, dims in DIMS.items() for dim in dims])
def test_a_flow_starts_as_the_identity_and_its_jacobian_is_that_of_autograd(kind, dim, float64):
    flow = FLOWS[kind](dim, 3, 3, (8,))
    features, x = torch.randn(3), 1.5 * torch.randn(2, dim)
    z = x
    for transform in flow(features):
        z = transform(z)
    same = (z, x) if kind == "coupling" else (z.sort(-1).values, x.sort(-1).values)  # its layers reverse the order
    torch.testing.assert_close(*same, atol=1e-12, rtol=0)

    perturbed(flow)

    def through(x):
        for transform in flow(features):
            x = transform(x)
        return x

    q = dist.TransformedDistribution(dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1), flow(features))
    for one in x:
        slope = torch.autograd.functional.jacobian(through, one)
        exact = dist.Normal(0.0, 1.0).log_prob(one).sum() - slope.det().abs().log()
        assert not torch.allclose(slope.abs().sum(0), torch.ones(dim), atol=0.01)
        torch.testing.assert_close(q.log_prob(through(one)), exact)  # of any point, by the inverse
    with pyro.plate("data", 4):
        draws = q.expand((4,)).rsample()
    drawn = q.expand((4,))
    z = drawn.rsample()
    known = drawn.log_prob(z)  # of a draw, by the remembered value
    torch.testing.assert_close(known, drawn.log_prob(z.clone()))
    assert draws.shape == (4, dim)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_the_density_at_a_sample_has_the_gradient_of_the_density_there(kind):
    posterior = perturbed(posteriors.Flow(2, 2, (8,), 3, kind))
    outputs = torch.randn(5, *posterior.output_shape, requires_grad=True)
    q = posterior(outputs)
    z = q.sample()
    (known,) = torch.autograd.grad(q.log_prob(z).sum(), outputs, retain_graph=True)
    (fresh,) = torch.autograd.grad(posterior(outputs).log_prob(z.clone()).sum(), outputs)
    torch.testing.assert_close(known, fresh)
