"""Decides if the distance from a bound to log p(x) is a gap, which depends on the pair and on the objective."""

from collections.abc import Callable, Sequence

import torch
from pyro.infer import ELBO as PyroELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae.common import InputError, local_seed
from pyrovae.objectives import AnalyticKLELBO, EnumeratedELBO, Objective
from pyrovae.programs import NoInverse, Pair, inner_scale, log_mean_exp, pair_at

MODE_TOLERANCE = 1e-3


def no_log_px(pair: Pair) -> str | None:
    """Returns why this pair has no log p(x) that its weights can estimate (grey pixels, a Delta guide), or None."""
    try:
        pair.check_densities(auxiliary=True)
    except InputError as error:
        return str(error)
    return None


def not_its_bound(
    model: Callable, guide: Callable, args: tuple, pair: Pair, modules: Sequence[nn.Module]
) -> str | None:
    """Returns why no objective bounds log p(x) under the present scales and modes of this pair, or None.

    The scale of a plate that holds a subsample makes the loss one of all data, and is none of these.
    """
    for name, site in (*pair.model_sites.items(), *pair.guide_sites.items()):
        scale = torch.as_tensor(site["scale"]) / inner_scale(site, ())
        if not torch.allclose(scale, torch.ones_like(scale)):
            shown = f"{scale.item():g}" if scale.numel() == 1 else "more than one number"
            return f'under the scale (beta) {shown} at site "{name}" an objective is no bound on log p(x)'
    if _mode_matters(model, guide, args, pair, modules):
        return "modules in training mode give other densities than in evaluation, where log p(x) is taken"
    return None


def is_bound(objective: PyroELBO) -> bool:
    """Returns True if the mean of minus the loss is known to lie below log p(x).

    This holds for every objective of log-weights that never exceeds log 1/K sum_k w_k, whose mean is below log p(x);
    the objective is evaluated on some draws to find out. It does not hold for Renyi's bound with alpha < 0, nor for
    free bits, which replace small KL terms by a floor. Nothing is known about a class that is not listed here.
    """
    match objective:
        case Objective():
            return _is_below_mean_weight(objective)
        case AnalyticKLELBO():
            return objective.free_bits is None
        case RenyiELBO():
            return objective.alpha >= 0
        case EnumeratedELBO() | Trace_ELBO() | TraceGraph_ELBO() | TraceEnum_ELBO() | TraceMeanField_ELBO():
            return True
    return False


def _is_below_mean_weight(objective: Objective) -> bool:
    """Returns True if the objective is at most log 1/K sum_k w_k on log-weights of three different spreads."""
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(objective.num_draws, 64, generator=generator, dtype=torch.float64)
    log_weights = torch.cat([scale * log_weights for scale in (0.1, 1.0, 10.0)], 1)
    excess = objective.bound(log_weights) - log_mean_exp(log_weights)
    return bool((excess <= 1e-9).all())


@torch.no_grad()
def _mode_matters(model: Callable, guide: Callable, args: tuple, pair: Pair, modules: Sequence[nn.Module]) -> bool:
    """Returns True if the densities at the same latents differ between training mode and evaluation mode."""
    training = [module for module in modules if module.training]
    if not training:
        return False
    found = []
    try:
        for mode in (True, False):
            for module in training:
                module.training = mode
            with local_seed(0):
                found.append(pair_at(model, guide, pair.draws(), *args, like=pair).terms().log_weights)
    except NoInverse:  # in the other mode, a transform makes other draws of the same numbers
        return True
    finally:
        for module in training:
            module.training = True
    one, other = found
    return not torch.allclose(one, other, rtol=MODE_TOLERANCE, atol=MODE_TOLERANCE, equal_nan=True)
