"""The coefficients that say what an estimator's gradient is; see `estimator`."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """Holds the factor of each gradient term for each particle: `(num_particles, batch)`, no gradient, None for 0.

    With `is_total` they are those of plain autograd through sum_k model_k log w_k, so that one run is enough.

    Args:
        model: Multiplies the gradient of log p(x, z_k) in the model's parameters.
        path: Multiplies the gradient of log w_k through the draw.
        score: Multiplies the gradient of log q(z_k|x) through the density.
        is_total: Set by `total`.

    Example:
        >>> weights = torch.full((2, 3), 0.5)
        >>> pv.objectives.Coefficients.total(weights, beta=1.0).score
        tensor([[-0.5000, -0.5000, -0.5000],
                [-0.5000, -0.5000, -0.5000]])
    """

    model: Tensor
    path: Tensor | None = None
    score: Tensor | None = None
    is_total: bool = False

    @classmethod
    def total(cls, weights: Tensor, beta: Tensor | float) -> "Coefficients":
        """Returns the coefficients of sum_k weights_k log w_k, differentiated through everything by plain autograd."""
        return cls(weights, weights, -beta * weights, is_total=True)

    def finite(self) -> "Coefficients":
        """Returns the coefficients with 0 in place of what is not finite, which log-weights of -inf can give."""
        model = _zero_where_infinite(self.model)
        path, score = (part if part is None else _zero_where_infinite(part) for part in (self.path, self.score))
        return Coefficients(model, path, score, self.is_total)

    def rows(self, start: int, stop: int) -> "Coefficients":
        """Returns the coefficients of the particles from `start` to before `stop`."""
        path, score = (None if part is None else part[start:stop] for part in (self.path, self.score))
        return Coefficients(self.model[start:stop], path, score, self.is_total)


def _zero_where_infinite(coefficient: Tensor) -> Tensor:
    return torch.where(coefficient.isfinite(), coefficient, 0.0)
