"""What to do about an estimate of log p(x) that is not to be believed: only what can be done with its pair."""

from collections.abc import Callable

from torch import Tensor

from pyrovae.common import InputError
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.hmc import bijection
from pyrovae.evaluation.joint_evidence import takes_all_at_once
from pyrovae.evaluation.proposal_misfit import misfit_of
from pyrovae.evaluation.remedy_words import ANNEALED, DEFENSIVE, DRAWS, RESCALED, SUMMED_OUT, UNTRIED
from pyrovae.programs import Pair, is_marked, proposals

MOST_VALUES = 64  # of a discrete latent that is to be summed out


def remedies_of(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None = None) -> tuple[str, ...]:
    """Returns what helps a pair whose guide is a bad proposal, with what is surest to help first.

    That is a proposal that has been tried, then methods that take the pair and leave the guide behind, and then more
    draws, which help little where Pareto k is above 0.7. `is_bad` is True for the data at which the weights are bad,
    `(batch,)`.
    """
    pair = found.pair
    tried: list[str] = []
    others: list[str] = []
    if all(proposals.can_widen(site["fn"]) for site in pair.guide_sites.values()):
        misfit = misfit_of(model, guide, found, is_bad)
        (others if misfit in (RESCALED, UNTRIED) else tried).append(misfit)
    elif len(pair.guide_sites) == 1 and pair.guide_sites.keys() == pair.latent.keys() == _latents(pair):
        others.append(DEFENSIVE)
    summed_out = [SUMMED_OUT] if any(map(_can_sum_out, pair.latent.values())) else []
    annealed = [ANNEALED] if _can_anneal(model, guide, found) else []
    return (*tried, *summed_out, *annealed, *others, DRAWS)


def _can_sum_out(site: dict) -> bool:
    """Returns True if a site is discrete and has few values."""
    fn = site["fn"]
    if not fn.has_enumerate_support or fn.event_shape:
        return False
    try:
        return len(fn.enumerate_support(expand=False)) <= MOST_VALUES
    except (NotImplementedError, ValueError):  # a count has no end, or another one for each datum
        return False


def _latents(pair: Pair) -> set[str]:
    return {name for name, site in pair.model_sites.items() if not site["is_observed"] or is_marked(site)}


def _can_anneal(model: Callable, guide: Callable, found: Opened) -> bool:
    try:
        for site in found.pair.latent.values():
            bijection(site)
    except InputError:
        return False
    if found.pair.layout.has_globals:  # its chains are over all data at once
        return takes_all_at_once(model, guide, found)
    return found.pair.layout.is_vectorized
