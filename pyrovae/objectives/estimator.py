"""Turns a bound and three coefficients per particle into a loss with an estimator's gradient.

Every estimator here is a bound L(log w_1 ... log w_K) per datum, and three coefficients per particle, functions of the
log-weights alone, that say what its gradient is:

    sum_k  model_k  d/dtheta log p(x, z_k)         the model's parameters, z held
         + path_k   d log w_k / dz_k  dz_k/dphi    through the draw, the density's own parameters held
         + score_k  d/dphi log q(z_k|x)            through the density, z held

IWAE is (w~, w~, -w~) with the normalised weights w~, DReG (w~, w~^2, 0), reweighted wake-sleep (w~, 0, w~). The path
term is generic: the pair is run again with the draws as leaves, autograd gives d log w / dz there, and its product with
the draw z(phi) of the first run has the wanted gradient, for any guide with `rsample` (modules, flows, sites that
depend on each other). A parameter that model and guide share gets the sum of its terms.

A draw of weight 0 (log w = -inf) has no part in the model's and the path's terms. If all weights of a datum are 0 its
bound is -inf, and its gradient is 0.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrovae.common import kept_generators
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import Pair, is_traced, restore_generators, saved_generators


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


class Estimator(Protocol):
    """States a bound and its gradient by functions of the log-weights; see `Objective`."""

    @property
    def takes_beta(self) -> bool: ...

    @property
    def chunk_size(self) -> int | None: ...

    @property
    def num_draws(self) -> int: ...

    def bound(self, log_weights: Tensor) -> Tensor: ...

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients: ...

    def __hash__(self) -> int: ...


@functools.lru_cache(maxsize=64)
def coefficients_at_equal_weights(estimator: Estimator) -> Coefficients:
    """Returns coefficients that show which terms the estimator's gradient has."""
    return estimator.coefficients(torch.zeros(estimator.num_draws, 1), torch.ones(()))


def loss_in_one_run(estimator: Estimator, call: PairCall) -> Tensor:
    """Returns the loss, 0-dim, with the estimator's gradient, from all particles at once."""
    pair = call.run(estimator.num_draws, once=coefficients_at_equal_weights(estimator).is_total)
    terms = weighted_terms(pair)
    if not estimator.takes_beta and not is_traced():
        terms.require_no_beta(estimator)
    log_weights = terms.log_weights
    value = -terms.scale * estimator.bound(log_weights.detach()).sum()
    if not estimator.takes_beta and is_traced():  # where no value can be looked at
        value = torch.where(terms.beta == 1, value, math.nan)
    if not torch.is_grad_enabled():
        return value
    with torch.no_grad():
        coefficients = estimator.coefficients(log_weights.detach(), terms.beta).finite()
    surrogate = -terms.scale * _surrogate(call, pair, terms, coefficients)
    return value + surrogate - surrogate.detach()


def loss_in_chunks(estimator: Estimator, call: PairCall) -> Tensor:
    """Returns the loss, 0-dim, with the estimator's gradient, from `chunk_size` particles at a time.

    The chunks are run twice on the same draws: for the weights of all particles, then for the gradients. What a program
    draws for all particles at once is drawn once for all chunks, as in the one run of all particles.
    """
    sizes = [len(part) for part in torch.arange(estimator.num_draws).split(estimator.chunk_size)]
    starts, parts = [], []
    with torch.no_grad():
        call.draw_for_all_chunks()
        for index, size in enumerate(sizes):
            starts.append(call.start_of_chunk())
            with call.kept_statistics() if index else nullcontext():
                terms = weighted_terms(call.run(size))
            parts.append(terms.log_weights)
        if not estimator.takes_beta:
            terms.require_no_beta(estimator)
        end = saved_generators()
        log_weights = torch.cat(parts)
        value = -terms.scale * estimator.bound(log_weights).sum()
        coefficients = estimator.coefficients(log_weights, terms.beta).finite()
    if not torch.is_grad_enabled():
        return value

    def chunk(start: tuple, size: int, coefficients: Coefficients) -> Tensor:
        with kept_generators(), call.kept_statistics():  # it is run again as gradients are taken
            restore_generators(start)
            pair = call.run(size)
            terms = weighted_terms(pair)
            return -terms.scale * _surrogate(call, pair, terms, coefficients)

    first = 0
    for size, start in zip(sizes, starts, strict=True):
        own = coefficients.rows(first, first + size)
        surrogate = checkpoint(chunk, start, size, own, use_reentrant=False)
        value = value + surrogate - surrogate.detach()
        first += size
    restore_generators(end)
    return value


def _surrogate(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns a sum whose gradient is the three terms of the estimator."""
    model, path, score = coefficients.model, coefficients.path, coefficients.score
    if coefficients.is_total:
        return _weighted_sum(model, terms.log_weights)  # the total derivative: the graph of the one run has it all
    draws = {name: site["value"] for name, site in pair.guide_sites.items()}
    leaves = {name: z.detach().requires_grad_(path is not None) for name, z in draws.items()}
    at = weighted_terms(call.run_at(leaves))
    surrogate = _weighted_sum(model, at.log_p)
    if score is not None:
        surrogate = surrogate + _weighted_sum(score, at.score)
    if path is not None:
        through = _weighted_sum(path, at.log_weights)
        if not through.requires_grad:  # every latent is masked by False, and no parameter is left
            return surrogate
        slopes = torch.autograd.grad(through, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for slope, z in zip(slopes, draws.values(), strict=True):
            surrogate = surrogate + (slope * z).sum()
    return surrogate


def _weighted_sum(coefficients: Tensor, terms: Tensor) -> Tensor:
    """Returns sum_kn c_kn t_kn, in which terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, coefficients * terms).sum()
