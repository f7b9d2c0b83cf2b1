"""Makes the sum whose gradient is the terms of an estimator; see `estimator`.

A guide may have sites z with `rsample` and sites c without, in any order of dependence. An objective whose gradient
goes through the draws takes the path of each z, and beside it a score-function term of each c. With D the total
derivative, in which every c is held and every z moves with the guide's parameters,

    D E[L]  =  E[ sum_k (L - b_k) D log q(c_k|upstream)  +  sum_k a_k D log w_k ],    a_k = dL/d log w_k

for any b_k that does not depend on draw k; `learning_signal` has ours. The second sum is that of plain autograd. Its
part in log q(c_k|upstream) makes the whole factor of D log q(c_k|upstream) L - b_k - beta a_k. At held draws z the term
would be wrong wherever c comes after z. An objective without a path term has a score-function term of every site.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.objectives.coefficients import Coefficients, weighted_sum
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.prior_paths import prior_path_sum
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import EnumeratedPair, Pair, one_way_site


class GivesCoefficients(Protocol):
    """States its gradient by functions of the log-weights; see `Objective`."""

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients: ...

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor | None: ...


def sites_without_rsample(pair: Pair) -> list[str]:
    """Returns the names of the local sites of the guide that are drawn without `rsample`."""
    summed = pair.sizes if isinstance(pair, EnumeratedPair) else {}
    sites = {name: site for name, site in pair.guide_sites.items() if pair.is_local(site) and name not in summed}
    return [name for name, site in sites.items() if not site["fn"].has_rsample]


def coefficients_for(estimator: GivesCoefficients, pair: Pair, log_weights: Tensor, beta: Tensor) -> Coefficients:
    """Returns the coefficients of an estimator's gradient for the local sites that a pair has."""
    found = estimator.coefficients(log_weights, beta)
    if found.path is not None and sites_without_rsample(pair):
        return replace(found, without_rsample=estimator.without_rsample(log_weights, beta))
    return found


def surrogate_sum(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns a sum whose gradient is that of the estimator.

    A global draw theta is a parameter of the model in log p and of the guide in q(z|x, theta), whatever the path term
    does with z: its slope is taken at held z, and goes on through theta's own draw.
    """
    model, path, score = coefficients.model, coefficients.path, coefficients.score
    if coefficients.is_total:
        # The total derivative: the graph of the one run has it all.
        return _with_rest(weighted_sum(model, terms.log_weights), pair, terms, coefficients)
    held = one_way_site(pair.guide_sites)  # as a guide may take up another transform after the pair was checked
    require(held is None, f"a density is differentiated at held draws, and {held}")
    draws = pair.draws()
    shared = {name for name, z in draws.items() if not pair.is_local(pair.guide_sites[name])}
    local = [name for name in draws if name not in shared and pair.guide_sites[name]["fn"].has_rsample]
    through = local if path is not None else []
    leaves = {
        name: z.detach().requires_grad_(z.requires_grad if name in shared else name in through)
        for name, z in draws.items()
    }
    again = call.run_at(leaves, pair)
    at = weighted_terms(again)
    surrogate = weighted_sum(model, at.log_p)
    if coefficients.prior_path is not None:
        surrogate = surrogate + prior_path_sum(again, at, coefficients, leaves)
    if score is not None:
        surrogate = surrogate + weighted_sum(score, at.score)
    sums = []
    if path is not None and through:
        sums.append((weighted_sum(path, at.log_weights), through))
    if any(leaves[name].requires_grad for name in shared):
        of_globals = weighted_sum(model, at.log_p)
        outer = score if coefficients.outer_score is None else coefficients.outer_score
        if outer is not None:
            of_globals = of_globals + weighted_sum(outer, at.score)
        sums.append((of_globals, [name for name in shared if leaves[name].requires_grad]))
    for total, names in sums:
        if not (names and total.requires_grad):  # nothing is drawn, or every latent is masked by False
            continue
        slopes = torch.autograd.grad(total, [leaves[name] for name in names], retain_graph=True, allow_unused=True)
        for slope, name in zip(slopes, names, strict=True):
            if slope is not None:
                surrogate = surrogate + (slope * draws[name]).sum()
    return _with_rest(surrogate, pair, terms, coefficients)


def _with_rest(surrogate: Tensor, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns the sum with the terms of the sites without `rsample`, if there are any."""
    coefficient = coefficients.without_rsample
    if coefficient is None:
        return surrogate
    names = sites_without_rsample(pair)
    if not isinstance(pair, EnumeratedPair):
        return surrogate + weighted_sum(coefficient, pair.log_q_of_draws(names))
    # Each state has draws of its own. They have a part in the terms of that state, which count by its probability.
    states, chance = pair.states, pair.log_probabilities.detach().exp()
    own = coefficient + coefficients.model * (weighted_terms(states).log_weights - terms.log_weights).detach()
    own = torch.where((chance > 0) & own.isfinite(), chance * own, 0.0)
    return surrogate + weighted_sum(own, states.log_q_of_draws(names))
