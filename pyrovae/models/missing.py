"""Missing cells of x, which are NaN: what the encoder sees of them, and a density that leaves them out."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.models.likelihoods import Likelihood


def with_mask(seen: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """Returns what the encoder sees of x with 0 where it is NaN, and beside it 1 for observed cells and 0 for others.

    The two are joined along the first dimension of an event, that of the channels of an image.
    """
    filled = torch.where(seen.isnan(), 0.0, seen)
    return torch.cat((filled, (~x.isnan()).to(filled.dtype)), -event_dim)


def without_missing(
    x_given_z: dist.TorchDistribution, x: Tensor, filler: float | Tensor
) -> tuple[dist.TorchDistribution, Tensor]:
    """Returns p(x|z) without its missing cells, and x with `filler` in their place.

    Each cell's own log-density is masked before the sum over an event. The filler lies inside the support: at NaN, or
    outside, the gradient of what the mask leaves out would be NaN and not 0.
    """
    observed = ~x.isnan()
    return _cells(x_given_z).mask(observed).to_event(x_given_z.event_dim), filled(x, filler)


def filled(x: Tensor, filler: float | Tensor) -> Tensor:
    """Returns x with the filler in place of its missing cells."""
    return torch.where(x.isnan(), filler, x)


def check_cells(likelihood: Likelihood, event_shape: Sequence[int]) -> None:
    """Raises `InputError` unless cells can be left out of the likelihood: they have densities of their own."""
    name, shape = type(likelihood).__name__, tuple(event_shape)
    require(len(shape) > 0, "missing needs an event_shape of at least one dimension, got ()")
    with pyro.validation_enabled(False), torch.enable_grad():
        # Not 0, which makes a Gamma of shape 1: of all Gammas that one has a density at a filler of 0.
        outputs = torch.full((1, *likelihood.output_shape(shape)), 0.5, requires_grad=True)
        cells = _cells(likelihood(outputs, len(shape)))
        alone = not cells.event_shape and tuple(cells.batch_shape) == (1, *shape)
        require(alone, f"missing needs a likelihood in which each cell has its own density given z, got {name}")
        value = filled(torch.full(shape, torch.nan), likelihood.filler)
        inside = cells.support.check(value)  # type: ignore[union-attr]
        require(bool(inside.all()), f"{name}.filler must lie in the support of p(x|z), got {likelihood.filler}")
        log_prob = cells.log_prob(value)
        found = [log_prob]
        if log_prob.requires_grad:
            found += torch.autograd.grad(log_prob.sum(), outputs, allow_unused=True)
    is_finite = all(bool(one.isfinite().all()) for one in found if one is not None)
    require(is_finite, f"{name}.filler must have a finite log-density and gradient, got {likelihood.filler}")


def _cells(x_given_z: dist.TorchDistribution) -> dist.TorchDistribution:
    """Returns p(x|z) with the dimensions of an event as dimensions of the batch."""
    while isinstance(x_given_z, dist.Independent):
        x_given_z = x_given_z.base_dist
    return x_given_z
