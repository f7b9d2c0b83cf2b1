"""Tells which outcomes a discrete distribution gives a probability of 0, which its support does not say."""

import math

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
)
from torch.nn.functional import pad

from pyrovae.programs.sites import base_of, is_discrete, seen

_OF_STATES = Categorical, OneHotCategorical, Bernoulli
# PyTorch gives a probability of 0 the logarithm of a number's epsilon; that of a logit beyond has only underflowed.
_CLAMPED = 1.02


def impossible_alone(prior: dict, proposal: dict) -> str | None:
    """Describes an outcome that the guide's site never gives and the prior's does, or returns None if there is none.

    Elements that a mask excludes do not count, nor does a probability that underflows with a finite logit.
    """
    never = impossible(proposal["fn"])
    if never is None:
        return None
    theirs, (own, base) = None, (base_of(site["fn"]) for site in (prior, proposal))
    if _kind(own) == _kind(base):
        theirs = impossible(prior["fn"])
    if theirs is not None:  # of more states, of which a prior of fewer has none
        states = never.shape[-1]
        never = never & ~pad(theirs[..., :states], (0, max(0, states - theirs.shape[-1])), value=True)
    mask = seen(proposal).to(never.device)
    found = (never & (mask if base.event_dim or not mask.dim() else mask.unsqueeze(-1))).nonzero()
    if not len(found):
        return None
    if isinstance(base, (*_OF_STATES, Multinomial, MixtureSameFamily)):
        made_of_probs = not isinstance(base, MixtureSameFamily) and bool(base.logits.isfinite().all())
        hint = " (if it has underflowed, give the guide logits)" if made_of_probs else ""
        return f"the guide gives state {int(found[0, -1])} a probability of 0, and the prior does not{hint}"
    return f"the guide, a {type(base).__name__}, gives one value alone, and the prior others"


def impossible(fn: Distribution) -> Tensor | None:
    """Returns which states, or which sides of a trial, have no probability: `(*batch, states)` without `to_event`.

    Of a distribution of other numbers the two columns are its mean and all else. None stands for a distribution that
    is not discrete, or not known.
    """
    base = base_of(fn)  # type: ignore[arg-type]
    match base:
        case Categorical() | OneHotCategorical() | Multinomial():
            return _is_none(base.probs, base.logits)
        case Bernoulli() | Binomial() | Geometric() | NegativeBinomial():
            sides = (_is_none(side, base.logits) for side in (1 - base.probs, base.probs))
            return torch.stack(tuple(sides), -1)
        case MixtureSameFamily():
            component = base.component_distribution
            each, without_weight = impossible(component), impossible(base.mixture_distribution)
            if each is None or without_weight is None:
                return None
            dim = -2 - (component.event_dim - base_of(component).event_dim)
            return (each | without_weight.reshape(*without_weight.shape, *(1,) * (-1 - dim))).all(dim)
    try:
        if base.event_dim or not is_discrete(base):
            return None
        is_one_value = base.variance == 0
    except NotImplementedError:
        return None
    return torch.stack((torch.zeros_like(is_one_value), is_one_value), -1)


def _is_none(probability: Tensor, logits: Tensor) -> Tensor:
    """Returns True for a probability of 0 that has not underflowed."""
    least = -math.log(torch.finfo(logits.dtype).eps)
    return (probability == 0) & ~(logits.isfinite() & (logits.abs() > _CLAMPED * least))


def _kind(base: Distribution) -> object:
    return _OF_STATES if isinstance(base, _OF_STATES) else type(base)
