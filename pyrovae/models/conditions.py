"""What a conditional VAE is conditioned on: from the values y to the features that its networks take beside x or z."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.common import InputError, require, require_count, require_finite
from pyrovae.models.networks import MLP
from pyrovae.models.param_store import Module


class Condition(Module):
    """One condition y. `condition(y)` are its features, `(..., num_features)`."""

    num_features: int

    def forward(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, y: Tensor, num_data: int) -> None:
        """Raises `InputError` unless `y` has a value, of the right kind and shape, for each of `num_data` data."""
        raise NotImplementedError


class OneHot(Condition):
    """Labels 0 ... num_classes - 1, `(batch,)` integers, as one-hot vectors."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        require_count("num_classes", num_classes, 2)
        self.num_features = num_classes

    def forward(self, y: Tensor) -> Tensor:
        return nn.functional.one_hot(y.long(), self.num_features).to(torch.get_default_dtype())

    def check(self, y: Tensor, num_data: int) -> None:
        whole = isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
        require(whole, f"y must be a tensor of integer labels, got {getattr(y, 'dtype', type(y).__name__)}")
        require(y.shape == (num_data,), f"y must have shape ({num_data},), a label per datum, got {tuple(y.shape)}")
        bad = (y < 0) | (y >= self.num_features)
        if bad.any():
            index = bad.nonzero()[0].item()
            raise InputError(f"y must lie in 0 ... {self.num_features - 1}, got {y[index].item()} at index {index}")


class Embedding(Condition):
    """Continuous values of `shape`, `(batch, *shape)` floats, through a network of their own (by default 1-16-16).

    Encoder and decoder each have a copy with parameters of its own. An image is a condition of shape (1, 28, 28).
    """

    def __init__(
        self,
        shape: Sequence[int] = (1,),
        hidden: Sequence[int] = (16,),
        num_features: int = 16,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        for size in shape:
            require_count("shape", size)
        require_count("num_features", num_features)
        self.shape, self.num_features = tuple(shape), num_features
        self.network = MLP(self.shape, (num_features,), hidden, activation)

    def forward(self, y: Tensor) -> Tensor:
        return self.network(y)

    def check(self, y: Tensor, num_data: int) -> None:
        floats = isinstance(y, Tensor) and y.is_floating_point()
        require(floats, f"y must be a floating-point tensor, got {getattr(y, 'dtype', type(y).__name__)}")
        dtype = next(self.parameters()).dtype
        require(y.dtype == dtype, f"y must be of {dtype}, as the parameters are, got {y.dtype}")
        expected = (num_data, *self.shape)
        require(y.shape == expected, f"y must have shape {expected}, a value per datum, got {tuple(y.shape)}")
        require_finite("y", y)


class Features(Module):
    """Several conditions side by side: `(y_1, y_2, ...)` to `(..., num_features)`, their features joined."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        super().__init__()
        self.conditions = nn.ModuleList(conditions)
        self.num_features = sum(condition.num_features for condition in conditions)

    def forward(self, y: Sequence[Tensor]) -> Tensor | None:
        if not self.conditions:
            return None
        return torch.cat([condition(value) for condition, value in zip(self.conditions, y, strict=True)], -1)
