"""Checks that an objective has an estimator for each site of a guide: a path, a score function or a sum."""

from typing import Any

import torch

from pyrovae.common import require
from pyrovae.objectives.estimator import coefficients_at_equal_weights
from pyrovae.objectives.surrogate import sites_without_rsample
from pyrovae.programs import Pair, enumerated_states, frames_of, mark_of, one_way_site

INSTEAD = "mark it in the model alone and leave it out of the guide"


def check_guide(objective: Any, pair: Pair) -> None:
    """Raises `InputError` if an objective cannot give a local site of the guide its gradient."""
    name, without = type(objective).__name__, sites_without_rsample(pair)
    marked = {site_name: site for site_name, site in pair.guide_sites.items() if mark_of(site) is not None}
    for site_name, site in marked.items():
        require(
            objective.sums_marked,
            f'{name} draws every site of the guide, and "{site_name}" is marked for enumeration: use elbo, which sums '
            f"over it, or {INSTEAD}",
        )
        _check_mark(site_name, site, pair)
    if marked:
        enumerated_states(marked)
    has_path = coefficients_at_equal_weights(objective).path is not None
    if has_path and without:
        require(
            objective.without_rsample(torch.zeros(objective.num_draws, 1), torch.ones(())) is not None,
            f'{name} needs a reparameterised guide, and site "{without[0]}" has no rsample: use elbo, iwae, dreg, '
            "score_function, vimco or reweighted_wake_sleep, or of few values elbo_enumerated",
        )


def require_held_densities(objective: Any, pair: Pair) -> None:
    """Raises `InputError` if an objective needs the gradient of a density at held draws where there is none.

    A transform without an inverse does not say what a held draw is made from once its parameters have moved.
    """
    held = one_way_site(pair.guide_sites)
    if held is None:
        return
    name = type(objective).__name__
    require(
        coefficients_at_equal_weights(objective).is_total,
        f"{name} differentiates densities at held draws, and {held}: use elbo, iwae, renyi, miwae or ciwae",
    )
    without = one_way_site({n: site for n, site in pair.guide_sites.items() if not site["fn"].has_rsample})
    require(without is None, f"a site without rsample learns from its density at held draws, and {without}")


def _check_mark(name: str, site: dict, pair: Pair) -> None:
    """Raises `InputError` unless a marked site can be summed over for each datum alone."""
    how, samples, frames = mark_of(site), site["infer"].get("num_samples"), frames_of(site)
    require(how == "parallel", f'the guide must mark site "{name}" as enumerate="parallel", got {how!r}')
    require(samples is None, f'the sum over site "{name}" of the guide takes no num_samples, got {samples}')
    plates = tuple(frame.name for frame in frames)
    require(
        plates == pair.layout.plates and len(plates) < 2 and all(frame.vectorized for frame in frames),
        f'a sum over a site of the guide must be for each datum of one data plate, and "{name}" lies in '
        f"{' and '.join(map(repr, plates)) or 'no plate'}: {INSTEAD}",
    )
    require(not pair.layout.sums, f'site "{name}" is marked in the guide, and others are in the model alone: {INSTEAD}')
