"""Pairs of differentiable AIS, with parameters that are all different."""

import torch
from helpers import draw, linear_gaussian, suite_seed

import pyrovae as pv


def linear(
    num_transitions: int, step_size: float = 0.3
) -> tuple[pv.LinearGaussianVAE, torch.Tensor, pv.DifferentiableAIS]:
    """A linear Gaussian VAE whose guide is off, three data, and annealing whose parameters are all different."""
    vae = linear_gaussian(1)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.4)
        vae.guide_bias.add_(0.2)
    x = draw(vae, 3)
    return vae, x, moved(pv.DifferentiableAIS(vae, x, num_transitions=num_transitions, step_size=step_size))


def moved(annealed: pv.DifferentiableAIS, seed: int = 5) -> pv.DifferentiableAIS:
    generator = torch.Generator().manual_seed(suite_seed(seed))
    with torch.no_grad():
        for parameter in (*annealed.log_step_sizes, annealed.increments, annealed.angles):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return annealed
