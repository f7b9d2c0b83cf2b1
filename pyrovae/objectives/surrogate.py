"""Makes the sum whose gradient is the terms of an estimator; see `estimator`."""

import math

import torch
from torch import Tensor

from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import Pair


def surrogate_sum(call: PairCall, pair: Pair, terms: WeightedTerms, coefficients: Coefficients) -> Tensor:
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
        slopes = torch.autograd.grad(_weighted_sum(path, at.log_weights), list(leaves.values()), retain_graph=True)
        for slope, z in zip(slopes, draws.values(), strict=True):
            surrogate = surrogate + (slope * z).sum()
    return surrogate


def _weighted_sum(coefficients: Tensor, terms: Tensor) -> Tensor:
    """Returns sum_kn c_kn t_kn, in which terms of -inf have no part."""
    return torch.where(terms == -math.inf, 0.0, coefficients * terms).sum()
