"""Makes the sum whose gradient is the terms of an estimator; see `estimator`.

A guide may have sites z with `rsample` and sites c without, in any order of dependence. An objective whose gradient
goes through the draws takes the path of each z, and beside it a score-function term of each c. With D the total
derivative, in which every c is held and every z moves with the guide's parameters,

    D E[L]  =  E[ sum_k (L - b_k) D log q(c_k|upstream)  +  sum_k a_k D log w_k ],    a_k = dL/d log w_k

for any b_k that does not depend on draw k; `learning_signal` has ours. The second sum is that of plain autograd. Its
part in log q(c_k|upstream) makes the whole factor of D log q(c_k|upstream) L - b_k - beta a_k. At held draws z the term
would be wrong wherever c comes after z. An objective without a path term has a score-function term of every site.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import EnumeratedPair, Pair, without_mask


class GivesCoefficients(Protocol):
    """States its gradient by functions of the log-weights; see `Objective`."""

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients: ...

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor | None: ...


def sites_without_rsample(pair: Pair) -> dict[str, dict]:
    """Returns the sites of the guide that are drawn without `rsample`, by name."""
    summed = pair.sizes if isinstance(pair, EnumeratedPair) else {}
    return {name: s for name, s in pair.guide_sites.items() if name not in summed and not s["fn"].has_rsample}


def coefficients_for(estimator: GivesCoefficients, pair: Pair, log_weights: Tensor, beta: Tensor) -> Coefficients:
    """Returns the coefficients of an estimator's gradient for the sites that a pair has, all of them finite."""
    found = estimator.coefficients(log_weights, beta)
    if found.path is not None and sites_without_rsample(pair):
        found = replace(found, without_rsample=estimator.without_rsample(log_weights, beta))
    return found.finite()


def surrogate_sum(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns a sum whose gradient is that of the estimator."""
    model, path, score = coefficients.model, coefficients.path, coefficients.score
    if coefficients.is_total:
        # The total derivative: the graph of the one run has it all.
        return _with_rest(_weighted_sum(model, terms.log_weights), pair, terms, coefficients)
    draws = {name: site["value"] for name, site in pair.guide_sites.items()}
    through = [] if path is None else [name for name, s in pair.guide_sites.items() if s["fn"].has_rsample]
    leaves = {name: z.detach().requires_grad_(name in through) for name, z in draws.items()}
    at = weighted_terms(call.run_at(leaves))
    surrogate = _weighted_sum(model, at.log_p)
    if score is not None:
        surrogate = surrogate + _weighted_sum(score, at.score)
    if path is not None and through:
        moving = [leaves[name] for name in through]
        slopes = torch.autograd.grad(_weighted_sum(path, at.log_weights), moving, retain_graph=True)
        for slope, name in zip(slopes, through, strict=True):
            surrogate = surrogate + (slope * draws[name]).sum()
    return _with_rest(surrogate, pair, terms, coefficients)


def _with_rest(surrogate: Tensor, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns the sum with the terms of the sites without `rsample`, if there are any.

    Their densities are taken without masks: a value is drawn from the same distribution whether a mask hides it or not.
    """
    coefficient = coefficients.without_rsample
    if coefficient is None:
        return surrogate
    sites = {name: without_mask(site) for name, site in sites_without_rsample(pair).items()}
    if not isinstance(pair, EnumeratedPair):
        return surrogate + _weighted_sum(coefficient, pair.total(sites))
    # Each state has draws of its own. They have a part in the terms of that state, which count by its probability.
    log_w, chance = weighted_terms(pair.states).log_weights.detach(), pair.log_probabilities.detach().exp()
    own = coefficient + coefficients.model * (log_w - terms.log_weights.detach())
    own = torch.where((chance > 0) & own.isfinite(), chance * own, 0.0)
    return surrogate + _weighted_sum(own, pair.states.total(sites))


def _weighted_sum(coefficients: Tensor, terms: Tensor) -> Tensor:
    """Returns sum_kn c_kn t_kn, in which terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, coefficients * terms).sum()
