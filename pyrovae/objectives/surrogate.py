"""Makes the sum whose gradient is the terms of an estimator; see `estimator`."""

import math

import torch
from torch import Tensor

from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import Pair


def surrogate_sum(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
    """Returns a sum whose gradient is the three terms of the estimator.

    A global draw theta is a parameter of the model in log p and of the guide in q(z|x, theta), whatever the path term
    does with z: its slope is taken at held z, and goes on through theta's own draw.
    """
    model, path, score = coefficients.model, coefficients.path, coefficients.score
    if coefficients.is_total:
        return _weighted_sum(model, terms.log_weights)  # the total derivative: the graph of the one run has it all
    draws = pair.draws()
    shared = {name for name, z in draws.items() if not pair.is_local(pair.guide_sites[name])}
    leaves = {
        name: z.detach().requires_grad_(z.requires_grad if name in shared else path is not None)
        for name, z in draws.items()
    }
    at = weighted_terms(call.run_at(leaves, pair))
    surrogate = _weighted_sum(model, at.log_p)
    if score is not None:
        surrogate = surrogate + _weighted_sum(score, at.score)
    sums = []
    local = [name for name in draws if name not in shared]
    if path is not None and local:
        sums.append((_weighted_sum(path, at.log_weights), local))
    if any(leaves[name].requires_grad for name in shared):
        of_globals = _weighted_sum(model, at.log_p)
        outer = score if coefficients.outer_score is None else coefficients.outer_score
        if outer is not None:
            of_globals = of_globals + _weighted_sum(outer, at.score)
        sums.append((of_globals, [name for name in shared if leaves[name].requires_grad]))
    for total, names in sums:
        if not (names and total.requires_grad):  # nothing is drawn, or every latent is masked by False
            continue
        through = [leaves[name] for name in names]
        slopes = torch.autograd.grad(total, through, retain_graph=True, allow_unused=True)
        for slope, name in zip(slopes, names, strict=True):
            if slope is not None:
                surrogate = surrogate + (slope * draws[name]).sum()
    return surrogate


def _weighted_sum(coefficients: Tensor, terms: Tensor) -> Tensor:
    """Returns sum_kn c_kn t_kn, in which terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, coefficients * terms).sum()
