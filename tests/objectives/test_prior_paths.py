"""Draws at held noise: values that move with a prior's parameters as its own draws would."""

import pyro.distributions as dist
import pytest
import torch
from helpers import perturbed, suite_seed
from scalar_pairs import double
from torch.distributions import transforms

import pyrovae as pv
from pyrovae.objectives.prior_paths import draw_at_held_noise

LOC, SCALE = double(0.3, -0.2).requires_grad_(), double(0.7, 1.4).requires_grad_()
TRIL = torch.diag_embed(SCALE) + double([[0.0, 0.0], [0.4, 0.0]]) * LOC
WHERE = {
    "Normal": lambda: dist.Normal(LOC, SCALE),
    "to_event and mask": lambda: dist.Normal(LOC, SCALE).mask(torch.tensor([True, False])).to_event(1),
    "expand": lambda: dist.Normal(LOC, SCALE).expand((3, 2)),
    "Laplace": lambda: dist.Laplace(LOC, SCALE),
    "Cauchy": lambda: dist.Cauchy(LOC, SCALE),
    "Gumbel": lambda: dist.Gumbel(LOC, SCALE),
    "Logistic": lambda: dist.Logistic(LOC, SCALE),
    "MultivariateNormal": lambda: dist.MultivariateNormal(LOC, scale_tril=TRIL),
    "LogNormal": lambda: dist.LogNormal(LOC, SCALE),
    "flow": lambda: dist.TransformedDistribution(
        dist.Normal(LOC, SCALE).to_event(1),
        [
            transforms.ComposeTransform([transforms.AffineTransform(LOC, SCALE, event_dim=1)]),
            transforms.IndependentTransform(transforms.TanhTransform(), 1),
        ],
    ),
}


@pytest.mark.parametrize("family", WHERE)
def test_a_draw_at_held_noise_moves_with_the_parameters_as_the_draw_itself(family):
    fn = WHERE[family]()
    torch.manual_seed(suite_seed(4))
    drawn = fn.rsample()
    found = draw_at_held_noise(fn, drawn.detach())
    torch.testing.assert_close(found, drawn, atol=1e-9, rtol=1e-9)
    weights = torch.randn(drawn.shape, dtype=torch.float64)
    for one, other in zip(
        *(torch.autograd.grad((weights * z).sum(), (LOC, SCALE), retain_graph=True) for z in (found, drawn)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_families_without_that_form_and_supports_that_move_are_left_as_they_are():
    shifted = [transforms.ExpTransform(), transforms.AffineTransform(LOC, 1.0)]
    for fn in (
        dist.Gamma(SCALE, 1.0),
        dist.Uniform(LOC, LOC + 1),
        dist.TransformedDistribution(dist.Normal(LOC, SCALE), shifted),
        dist.TransformedDistribution(dist.Normal(LOC, SCALE), [transforms.AbsTransform()]),
        dist.TransformedDistribution(dist.Exponential(SCALE), [transforms.ExpTransform()]),
    ):
        assert draw_at_held_noise(fn, double(0.5, 0.6)) is None


def test_a_flow_moves_with_the_parameters_of_its_networks():
    torch.manual_seed(suite_seed(5))
    prior = perturbed(pv.priors.Flow(2).double())
    drawn = prior(lambda x: None).rsample((4,))
    found = draw_at_held_noise(prior(lambda x: None), drawn.detach())
    weights = torch.randn(drawn.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((weights * z).sum(), [*prior.parameters()]) for z in (found, drawn))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)
        assert other.any()
