"""The coefficients that say what an estimator's gradient is; see `estimator`."""

import math
from collections.abc import Callable
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
        without_rsample: Multiplies, beside the others, the gradient of log q(c_k|upstream) of the sites c without
            `rsample` in all that it depends on, reparameterised draws upstream included. None if the guide has no such
            site, or if the other terms are enough for any.
        outer_score: Takes the place of `score` in the gradient of global draws theta, which q(z|x, theta) depends on,
            where `score` is not that of the bound.
        prior_path: Makes the model's gradient of the priors one through the draws, as if they were the priors' own,
            and multiplies there, beside what `model` does, the gradient of log w_k in a site's draw; see `prior_paths`.
            None leaves it as `model` has it.

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
    outer_score: Tensor | None = None
    without_rsample: Tensor | None = None
    prior_path: Tensor | None = None

    @classmethod
    def total(cls, weights: Tensor, beta: Tensor | float) -> "Coefficients":
        """Returns the coefficients of sum_k weights_k log w_k, differentiated through everything by plain autograd."""
        return cls(weights, weights, -beta * weights, is_total=True)

    def finite(self) -> "Coefficients":
        """Returns the coefficients with 0 in place of what is not finite, which log-weights of -inf can give."""
        return self._each(lambda part: torch.where(part.isfinite(), part, 0.0))

    def times(self, scale: Tensor) -> "Coefficients":
        """Returns the coefficients multiplied by a number for each datum."""
        return self._each(lambda part: part * scale)

    def rows(self, start: int, stop: int) -> "Coefficients":
        """Returns the coefficients of the particles from `start` to before `stop`."""
        return self._each(lambda part: part[start:stop])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Coefficients":
        model = change(self.model)
        path = model if self.path is self.model else _changed(self.path, change)
        others = self.outer_score, self.without_rsample, self.prior_path
        return Coefficients(
            model, path, _changed(self.score, change), self.is_total, *(_changed(part, change) for part in others)
        )


def _changed(part: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if part is None else change(part)


def weighted_sum(factors: Tensor, terms: Tensor) -> Tensor:
    """Returns sum_kn factor_kn term_kn, in which terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, factors * terms).sum()
