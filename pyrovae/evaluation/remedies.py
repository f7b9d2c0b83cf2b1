"""What to do about an estimate of log p(x) that is not to be believed: only what can be done with its pair."""

from collections.abc import Callable

from torch import Tensor

from pyrovae.common import InputError
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.hmc import bijection
from pyrovae.evaluation.joint_evidence import takes_all_at_once
from pyrovae.evaluation.proposal_misfit import misfit_of
from pyrovae.evaluation.remedy_words import ANNEALED, DEFENSIVE, DRAWS
from pyrovae.programs import Pair, is_marked, proposals


def remedies_of(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None = None) -> tuple[str, ...]:
    """Returns what helps a pair whose guide is a bad proposal: more draws, and other methods that take the pair.

    `is_bad` is True for the data at which its weights are bad, `(batch,)`.
    """
    pair = found.pair
    named = [DRAWS]
    if all(proposals.can_widen(site["fn"]) for site in pair.guide_sites.values()):
        named.append(misfit_of(model, guide, found, is_bad))
    elif len(pair.guide_sites) == 1 and pair.guide_sites.keys() == pair.latent.keys() == _latents(pair):
        named.append(DEFENSIVE)
    if _can_anneal(model, guide, found):
        named.append(ANNEALED)
    return tuple(named)


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
