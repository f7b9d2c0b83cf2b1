"""Turns a bound and three coefficients per particle into a loss with an estimator's gradient.

Every estimator here is a bound L(log w_1 ... log w_K) per datum, and three coefficients per particle, functions of the
log-weights alone, that say what its gradient is:

    sum_k  model_k  d/dtheta log p(x, z_k)         the model's parameters, z held
         + path_k   d log w_k / dz_k  dz_k/dphi    through the draw, the density's own parameters held
         + score_k  d/dphi log q(z_k|x)            through the density, z held

IWAE is (w~, w~, -w~) with the normalised weights w~, DReG (w~, w~^2, 0), reweighted wake-sleep (w~, 0, w~). The path
term is generic: the pair is run again with the draws as leaves, autograd gives d log w / dz there, and its product with
the draw z(phi) of the first run has the wanted gradient, for any guide with `rsample` (modules, flows, sites that
depend on each other: the slope in a draw holds all others, and the draw moves with those that it was made from). A
parameter that model and guide share gets the sum of its terms. Sites of the guide without `rsample` have no path;
`surrogate` says what takes its place.

A draw of weight 0 (log w = -inf) has no part in the model's and the path's terms. If all weights of a datum are 0 its
bound is -inf, and its gradient is 0.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrovae.common import kept_generators
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.objectives.surrogate import coefficients_for, surrogate_sum
from pyrovae.programs import Pair, is_traced, restore_generators, saved_generators


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

    def outer_score(self, log_weights: Tensor) -> Tensor | None: ...

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor | None: ...

    def __hash__(self) -> int: ...


@functools.lru_cache(maxsize=64)
def coefficients_at_equal_weights(estimator: Estimator) -> Coefficients:
    """Returns coefficients that show which terms the estimator's gradient has."""
    return estimator.coefficients(torch.zeros(estimator.num_draws, 1), torch.ones(()))


def loss_in_one_run(estimator: Estimator, call: PairCall) -> Tensor:
    """Returns the loss, 0-dim, with the estimator's gradient, from all particles at once."""
    pair = call.run(estimator.num_draws, once=coefficients_at_equal_weights(estimator).is_total)
    terms = weighted_terms(pair)
    terms.keep()
    if not estimator.takes_beta and not is_traced():
        terms.require_no_beta(estimator)
    log_weights = terms.log_weights
    value = _value(estimator, terms, log_weights.detach())
    if not estimator.takes_beta and is_traced():  # where no value can be looked at
        value = torch.where(terms.beta == 1, value, math.nan)
    if not torch.is_grad_enabled():
        return value
    coefficients = _coefficients(estimator, pair, terms, log_weights.detach())
    surrogate = _with_globals(_surrogate(call, pair, terms, coefficients), pair, terms, value)
    return value + surrogate - surrogate.detach()


def _value(estimator: Estimator, terms: WeightedTerms, log_weights: Tensor) -> Tensor:
    """Returns minus the bound of all data and, if there are global sites, minus log p(theta) - log q(theta)."""
    bound = estimator.bound(log_weights)
    value = -terms.scale * bound.sum() if terms.scale.dim() == 0 else -(terms.scale * bound).sum()
    return value if terms.log_ratio is None else value - terms.log_ratio.detach()


@torch.no_grad()
def _coefficients(estimator: Estimator, pair: Pair, terms: WeightedTerms, log_weights: Tensor) -> Coefficients:
    coefficients = coefficients_for(estimator, pair, log_weights, terms.beta)
    if terms.log_ratio is not None:
        coefficients = replace(coefficients, outer_score=estimator.outer_score(log_weights))
    return coefficients.finite()


def _surrogate(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns minus the sum whose gradient is the estimator's, under the scale of the data."""
    if terms.scale.dim() == 0:
        return -terms.scale * surrogate_sum(call, pair, terms, coefficients)
    return -surrogate_sum(call, pair, terms, coefficients.times(terms.scale))


def _with_globals(surrogate: Tensor, pair: Pair, terms: WeightedTerms, value: Tensor) -> Tensor:
    """Adds what global sites do: their own log-densities, and a score-function term for draws without a path.

    `value` is the whole loss, whose mean over theta ~ q that term differentiates.
    """
    if terms.log_ratio is None:
        return surrogate
    of_globals, score = -terms.log_ratio, pair.global_score()
    return surrogate + (of_globals if score is None else of_globals + value.detach() * score)


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
                pair = call.run(size)
            terms = weighted_terms(pair)
            terms.keep()
            parts.append(terms.log_weights)
        if not estimator.takes_beta:
            terms.require_no_beta(estimator)
        end = saved_generators()
        log_weights = torch.cat(parts)
        value = _value(estimator, terms, log_weights)
        coefficients = _coefficients(estimator, pair, terms, log_weights)
    whole = value
    if not torch.is_grad_enabled():
        return value

    def chunk(start: tuple, size: int, coefficients: Coefficients, is_first: bool) -> Tensor:
        with kept_generators(), call.kept_statistics():  # it is run again as gradients are taken
            restore_generators(start)
            pair = call.run(size)
            terms = weighted_terms(pair)
            surrogate = _surrogate(call, pair, terms, coefficients)
            return _with_globals(surrogate, pair, terms, whole) if is_first else surrogate

    first = 0
    for size, start in zip(sizes, starts, strict=True):
        own = coefficients.rows(first, first + size)
        surrogate = checkpoint(chunk, start, size, own, first == 0, use_reentrant=False)
        value = value + surrogate - surrogate.detach()
        first += size
    restore_generators(end)
    return value
