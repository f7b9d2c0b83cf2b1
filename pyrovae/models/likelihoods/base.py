"""The base class of likelihoods p(x|z), from a decoder's output to a Pyro distribution over events."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyrovae.common import InputError
from pyrovae.models.param_store import Module


class Likelihood(Module):
    """The base class of likelihoods: a subclass defines `forward`, from the decoder's output to p(x|z).

    `likelihood(outputs, event_dim)` returns a distribution whose `event_dim` rightmost dimensions are an event. A VAE
    started from the mean of the data also needs `output_bias`.

    Example:
        >>> class Laplace(pv.Likelihood):
        ...     def forward(self, outputs, event_dim):
        ...         return pyro.distributions.Laplace(outputs, 0.5).to_event(event_dim)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=Laplace())
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the decoder's output for one event of shape `event_shape`."""
        return tuple(event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        """Returns the decoder's output, `output_shape`, for which p(x|z) has the mean `mean`, `event_shape`."""
        raise NotImplementedError

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raises `InputError` unless this family can be trained on every element of `x`; all of them are finite."""

    def has_density(self, x: Tensor) -> bool:
        """Returns whether p(x|z) is a density or a mass at this `x`; if it is neither, there is no log p(x)."""
        return True


def require_all(good: Tensor, x: Tensor, rule: str, hint: str = "") -> None:
    """Raises `InputError` with the first element of `x` that is not `good`, and its index."""
    if not good.all():
        index = tuple((~good).nonzero()[0].tolist())
        raise InputError(f"{rule}, got {x[index].item():g} at index {index}{hint}")
