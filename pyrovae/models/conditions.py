"""Conditions y of a conditional VAE, from their values to the features that its networks take beside x or z."""

from collections.abc import Sequence
from typing import cast

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyrovae.common import (
    InputError,
    as_dtype,
    as_tensor,
    counted,
    require,
    require_finite,
    require_plain,
    require_shape,
    require_size,
    shown,
)
from pyrovae.models.likelihoods import Likelihood
from pyrovae.models.networks import MLP
from pyrovae.models.param_store import Module


class Condition(Module):
    """The base class of conditions: a subclass defines `forward`, from values y to features, and `check`.

    Example:
        >>> class Angle(pv.Condition):
        ...     num_features = 2
        ...     def forward(self, y):
        ...         return torch.stack((y.cos(), y.sin()), -1)
        ...     def check(self, y, num_data):
        ...         if y.shape != (num_data,):
        ...             raise pv.InputError(f"y must have shape ({num_data},), got {tuple(y.shape)}")
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), condition=Angle())
        >>> vae.sample(5, torch.zeros(5)).shape
        torch.Size([5, 3])
    """

    num_features: int
    """The length of the features, `(..., num_features)`."""

    def forward(self, y: Tensor) -> Tensor:
        """Returns the features of the values, `(..., num_features)`."""
        raise InputError(f"condition {type(self).__name__} must define forward(y)")

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns y as `check` and `forward` take it, if that loses nothing; by default real numbers in `dtype`.

        `dtype` is that of the VAE's parameters.
        """
        return as_dtype("y", y, dtype) if isinstance(y, Tensor) and y.is_floating_point() else y

    def check(self, y: Tensor, num_data: int) -> None:
        """Raises `InputError` unless `y` has a value of the right kind and shape for each of `num_data` data."""
        raise InputError(f"condition {type(self).__name__} must define check(y, num_data)")


class OneHot(Condition):
    """A condition on labels 0 ... num_classes - 1, integers `(batch,)`, as one-hot vectors.

    Args:
        num_classes: The number of labels, which is also the number of features.

    Raises:
        InputError: If `num_classes` is not a whole number >= 2.

    Example:
        >>> pv.OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((4,), **settings, condition=pv.OneHot(3))
        >>> vae.sample(5, y=torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 4])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        require_size("num_classes", num_classes, 2)
        self.num_features = num_classes

    def forward(self, y: Tensor) -> Tensor:
        return nn.functional.one_hot(y.long(), self.num_features).to(torch.get_default_dtype())

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        if isinstance(y, Tensor):
            require_plain("y", y)
        is_other = isinstance(y, Tensor) and (y.is_floating_point() or y.dtype == torch.bool)
        return y.long() if is_other and torch.equal(y, y.long().to(y.dtype)) else y

    def check(self, y: Tensor, num_data: int) -> None:
        is_whole = isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
        require(is_whole, f"y must be a tensor of integer labels, got {getattr(y, 'dtype', type(y).__name__)}")
        require(y.shape == (num_data,), f"y must have shape ({num_data},), a label per datum, got {tuple(y.shape)}")
        bad = (y < 0) | (y >= self.num_features)
        if bad.any():
            index = int(bad.nonzero()[0].item())
            raise InputError(f"y must lie in 0 ... {self.num_features - 1}, got {y[index].item()} at index {index}")


class Embedding(Condition):
    """A condition on continuous values, floats `(batch, *shape)`, through an `MLP`, by default one of 1-16-16 units.

    The encoder and the decoder of a VAE each have a copy with its own parameters.

    Args:
        shape: The shape of one value; that of an image is `(1, 28, 28)`, for example.
        hidden: The units of each hidden layer.
        num_features: The number of features.
        activation: As in `MLP`.

    Raises:
        InputError: If a size is not a whole number >= 1, or `activation` is unknown.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((4,), **settings, condition=pv.Embedding())
        >>> vae.sample(5, y=torch.linspace(-1, 1, 5)[:, None]).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        shape: Sequence[int] = (1,),
        hidden: Sequence[int] = (16,),
        num_features: int = 16,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        require_shape("shape", shape)
        require_size("num_features", num_features)
        self.shape, self.num_features = tuple(shape), num_features
        self.network = MLP(self.shape, (num_features,), hidden, activation)

    def forward(self, y: Tensor) -> Tensor:
        return self.network(y)

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return as_dtype("y", y, dtype)

    def check(self, y: Tensor, num_data: int) -> None:
        is_float = isinstance(y, Tensor) and y.is_floating_point()
        require(is_float, f"y must be a floating-point tensor, got {getattr(y, 'dtype', type(y).__name__)}")
        dtype = next(self.parameters()).dtype
        require(y.dtype == dtype, f"y must be of {dtype}, as the parameters are, got {y.dtype}")
        expected = (num_data, *self.shape)
        require(y.shape == expected, f"y must have shape {expected}, a value per datum, got {tuple(y.shape)}")
        require_finite("y", y)


class SizeFactor(Condition):
    """A condition on how much of each datum was counted: positive floats `(batch,)` that multiply the means of counts.

        E[x|z, y] = y exp(outputs)    for example with y = x.sum(-1) / x.sum(-1).mean()

    It goes with the likelihoods of counts, which it reaches directly; encoder and decoder do not see it.

    Example:
        >>> counts = torch.poisson(torch.full((20, 3), 5.0))
        >>> size = counts.sum(-1) / counts.sum(-1).mean()
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.NegativeBinomial()}
        >>> vae = pv.VAE((3,), **settings, condition=pv.SizeFactor())
        >>> history = pv.fit(vae, [(counts, size)], epochs=2)
        >>> vae.reconstruct(counts, size).shape
        torch.Size([20, 3])
    """

    num_features = 0

    def forward(self, y: Tensor) -> Tensor:
        return torch.zeros(*y.shape, 0, dtype=torch.get_default_dtype(), device=y.device)

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return as_dtype("y", y, dtype)

    def check(self, y: Tensor, num_data: int) -> None:
        is_float = isinstance(y, Tensor) and y.is_floating_point()
        require(is_float, f"y must be a floating-point tensor, got {getattr(y, 'dtype', type(y).__name__)}")
        require(y.shape == (num_data,), f"y must have shape ({num_data},), a size per datum, got {tuple(y.shape)}")
        require_finite("y", y)
        bad = (y <= 0).nonzero()
        if len(bad):
            raise InputError(f"y must be > 0, got {y[bad[0]].item():g} at index {int(bad[0])}")


class Features(Module):
    """Joins the features of several conditions: maps `(y_1, y_2, ...)` to `(..., num_features)`, or () to None."""

    conditions: Sequence[Condition]  # a ModuleList

    def __init__(self, conditions: Sequence[Condition]) -> None:
        super().__init__()
        self.conditions = cast(Sequence[Condition], nn.ModuleList(conditions))
        self.num_features = sum(condition.num_features for condition in conditions)

    def forward(self, y: Sequence[Tensor]) -> Tensor | None:
        if not self.conditions:
            return None
        return torch.cat([condition(value) for condition, value in zip(self.conditions, y, strict=True)], -1)

    def convert(self, y: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns the values as the conditions take them, and as they are those for which there is no condition."""
        converted = (condition.convert(value, dtype) for condition, value in zip(self.conditions, y, strict=False))
        return *converted, *y[len(self.conditions) :]

    def given(self, y: Tensor | Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns one value or a sequence of several as the conditions take them; within a program as they are."""
        values = tuple(y) if isinstance(y, list | tuple) else (cast(Tensor, y),)
        return values if am_i_wrapped() else self.convert([as_tensor("y", value) for value in values], dtype)

    def check_number(self, y: Sequence[Tensor]) -> None:
        """Raises `InputError` unless there is a value for each condition."""
        number = len(self.conditions)
        hint = "" if y else f": give y, as in (x, {', '.join(['y'] * number)})"
        require(len(y) == number, f"y must hold {counted(number, 'condition')}, got {len(y)}{hint}")

    def check(self, y: Sequence[Tensor], num_data: int) -> None:
        """Raises `InputError` unless there are values for each condition, which it takes for `num_data` data."""
        self.check_number(y)
        if is_validation_enabled():  # a traced step cannot read values, and was validated before it was traced
            for condition, value in zip(self.conditions, y, strict=True):
                condition.check(value, num_data)


def conditions_of(condition: Condition | Sequence[Condition]) -> list[Condition]:
    """Returns one condition or several as a list. Raises `InputError` if one of them is something else."""
    conditions = cast(list[Condition], list(condition) if isinstance(condition, list | tuple) else [condition])
    for one in conditions:
        require(
            isinstance(one, Condition), f"condition must be a condition of pyrovae or a list of them, got {shown(one)}"
        )
    return conditions


def check_size_factors(conditions: Sequence[Condition], likelihood: Likelihood) -> None:
    """Raises `InputError` if there are several size factors, or there is one that the likelihood does not take."""
    number = sum(isinstance(one, SizeFactor) for one in conditions)
    require(number <= 1, f"condition must hold at most one SizeFactor, got {number}")
    rule = f"condition SizeFactor needs a likelihood of counts, got {type(likelihood).__name__}"
    require(number == 0 or likelihood.takes_size_factor, rule)
