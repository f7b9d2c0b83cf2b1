"""What several test files need: random closed-form models, and claims in standard errors."""

import math

import torch
from torch import Tensor

import pyrovae as pv


def linear_gaussian(seed: int, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7) -> pv.LinearGaussianVAE:
    """A random `LinearGaussianVAE` in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(data_dim, generator=generator, dtype=torch.float64)
    prior_mean = torch.randn(latent_dim, generator=generator, dtype=torch.float64)
    return pv.LinearGaussianVAE(weight, bias, scale, prior_mean)


def draw(vae: pv.LinearGaussianVAE, num: int) -> Tensor:
    """x ~ p(x), `(num, D)`."""
    with torch.no_grad():
        return vae.decode(vae.prior.sample((num,))).sample()


def assert_within_standard_errors(estimate, truth, standard_error, most: float = 5.0, note: str = "") -> None:
    """|estimate - truth| <= most * standard_error, elementwise; the message has all three of the worst element."""
    estimate, truth, error = (
        torch.as_tensor(v, dtype=torch.float64).detach() for v in (estimate, truth, standard_error)
    )
    z = ((estimate - truth) / error).abs()
    worst = z.flatten().argmax()
    values = [t.expand_as(z).flatten()[worst].item() for t in (estimate, truth, error)]
    message = (
        f"estimate {values[0]:.6g}, truth {values[1]:.6g}, standard error {values[2]:.3g}: "
        f"{z.max().item():.1f} standard errors apart. {note}"
    )
    assert z.max() <= most, message  # false for nan, too


def mean_and_error(draws: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Mean of independent draws along `dim` and its standard error."""
    return draws.mean(dim), draws.std(dim) / math.sqrt(draws.shape[dim])
