"""The base class of likelihoods p(x|z), from a decoder's output to a Pyro distribution over events."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.common import InputError, first_line, is_asked, is_validation_error, require, shown
from pyrovae.models.param_store import Module

LIMIT = 15.0  # of the logarithm of a positive parameter: from 3e-7 to 3e6


class Likelihood(Module):
    """The base class of likelihoods: a subclass defines `forward`, from the decoder's output to p(x|z).

    `likelihood(outputs, event_dim)` returns a distribution whose `event_dim` rightmost dimensions are an event. All
    else has a default: the decoder's output has the shape of x, the encoder sees x as it is, and any x is taken. A VAE
    started from the mean of the data also needs `output_bias`.

    Example:
        >>> class Gamma(pv.Likelihood):
        ...     filler = 1.0  # 0 has no density
        ...     def output_shape(self, event_shape):
        ...         return (2, *event_shape)
        ...     def encoder_input(self, x, event_dim):
        ...         return x.log()
        ...     def forward(self, outputs, event_dim):
        ...         concentration, rate = outputs.exp().unbind(-event_dim - 1)
        ...         return pyro.distributions.Gamma(concentration, rate).to_event(event_dim)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=Gamma(), missing="mask")
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """

    filler: float | Tensor = 0.0
    """A value inside the support, at which p(x|z) is evaluated where a cell is missing; the result is left out."""

    takes_size_factor = False
    """True if `forward` has a third argument `size_factor`, a positive number for each datum or None."""

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the decoder's output for one event of shape `event_shape`."""
        return tuple(event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        """Returns the decoder's output, `output_shape`, for which p(x|z) has the mean `mean`, `event_shape`."""
        raise InputError(f"data_mean needs a likelihood with an output_bias, and {type(self).__name__} has none")

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        """Returns x, `(..., *event_shape)`, as the encoder sees it: by default as it is.

        It may have another shape, but for the leading dimensions, and must have no parameters. A missing cell is NaN in
        x; what is NaN in the result is set to 0.
        """
        return x

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Returns p(x|z) for the decoder's output, with an event of the `event_dim` rightmost dimensions of x."""
        raise InputError(f"likelihood {type(self).__name__} must define forward(outputs, event_dim)")

    def check(self, x: Tensor) -> None:
        """Raises `InputError` unless this family can be trained on every element of `x`; all of them are finite."""

    def has_density(self, x: Tensor) -> bool:
        """Returns whether p(x|z) is a density or a mass at this `x`; if it is neither, there is no log p(x)."""
        return True


def check_likelihood(likelihood: object) -> None:
    """Raises `InputError` unless this is a likelihood."""
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        own = likelihood.__name__
        raise InputError(f"likelihood must be an instance, as {own}(), got the class {own}")
    is_known = isinstance(likelihood, Likelihood)
    require(is_known, f"likelihood must be a pyrovae likelihood, got {shown(likelihood)}")


def distribution_of(
    likelihood: Likelihood, outputs: Tensor, event_dim: int, *size_factor: Tensor
) -> dist.TorchDistribution:
    """Returns p(x|z), which a likelihood of the user's own may fail to give.

    Raises:
        InputError: it takes another number of outputs than its `output_shape` says, or gives something else than a
            distribution over events of `event_dim` dimensions
    """
    name = f"likelihood {type(likelihood).__name__}"
    try:
        found = likelihood(outputs, event_dim, *size_factor)
    except TypeError as error:
        if f"{type(likelihood).__name__}.forward()" not in str(error):
            raise
        given = ", ".join(("outputs", "event_dim", *("size_factor" for _ in size_factor)))
        raise InputError(f"{name} must have a forward that takes {given}: {first_line(error)}") from error
    except (ValueError, IndexError) as error:
        if is_validation_error(error) and is_asked():
            raise InputError(f"p(x|z) does not exist: {first_line(error)}") from error
        if isinstance(error, InputError) or is_validation_error(error):
            raise
        rule = f"{name} must take the outputs that its output_shape says, here {tuple(outputs.shape)}"
        raise InputError(f"{rule}: {first_line(error)}") from error
    is_one = isinstance(found, TorchDistributionMixin)
    is_torchs = isinstance(found, torch.distributions.Distribution)
    hint = ": import it from pyro.distributions, not torch.distributions" if is_torchs else ""
    require(is_one, f"{name} must return a distribution of Pyro's, got {shown(found)}{hint}")
    found_dim = len(found.event_shape)
    rule = f"{name} must return a distribution over events of {event_dim} dimensions, got {found_dim}"
    require(found_dim == event_dim, f"{rule}: to_event(event_dim) missing?")
    return found


def require_all(good: Tensor, x: Tensor, rule: str, hint: str = "") -> None:
    """Raises `InputError` with the first element of `x` that is not `good`, and its index."""
    if not good.all():
        index = tuple((~good).nonzero()[0].tolist())
        raise InputError(f"{rule}, got {x[index].item():g} at index {index}{hint}")


def bounded_exp(raw: Tensor) -> Tensor:
    """Returns exp(raw) between 3e-7 and 3e6.

    The best value of such a parameter may be infinite, as for counts that vary less than under a Poisson. It would
    drift until its density cannot be computed.
    """
    return raw.clamp(-LIMIT, LIMIT).exp()


def invert(increasing: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Returns the arguments for which an increasing elementwise function has the values `target`, by bisection."""
    low, high = torch.full_like(target, -2_000.0), torch.full_like(target, 2_000.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = increasing(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
