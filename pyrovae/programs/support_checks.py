"""Compares the supports of prior and guide: draws of weight 0, and values of the prior that are never drawn."""

import re
from collections.abc import Iterator
from contextlib import suppress

from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import constraints

from pyrovae.common import InputError, require, warn
from pyrovae.programs.distribution_supports import support_of
from pyrovae.programs.impossible_outcomes import impossible_alone
from pyrovae.programs.one_way_transforms import draws_a_part
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import base_of, is_autoencoder, is_masked, outside_support
from pyrovae.programs.supports import contains, described

NEVER_DRAWN = "the guide never draws a part of what the prior gives"
PRIOR_DRAWS = 100  # for each particle and datum, where constraints do not tell what the guide never draws


class DrawsOutside(InputError):
    """The guide drew what the prior cannot give, and the model does not run there."""


def check_no_zero_weights(pair: Pair) -> None:
    """Raises `InputError` if the guide draws what the prior cannot give: the weight is 0, and the ELBO is -inf."""
    for name, site, prior, proposal in _supports(pair):
        inside = contains(prior, proposal, compare_tensors=not is_masked(site))
        if inside is None:
            inside = _is_inside(site, prior, site["value"])
        then = "the ELBO is then -inf; log p(x) and bounds of several particles are defined"
        require(inside, f"{_rule(name, prior, proposal)}: {then}")


def refuse_draws_outside(model_sites: dict[str, dict], guide_sites: dict[str, dict], error: Exception) -> None:
    """Raises `DrawsOutside` if the guide drew what the prior cannot give, where the model failed by `error`.

    Such a draw has a weight of 0, but a scale below 0 gives the data no density at all.
    """
    for name in model_sites.keys() & guide_sites.keys():
        site, proposal = model_sites[name], guide_sites[name]["fn"]
        with suppress(NotImplementedError):  # of a distribution that does not declare its support
            if not (site["is_observed"] or _is_inside(site, support_of(site["fn"]), site["value"])):
                rule = _rule(name, support_of(site["fn"]), support_of(proposal))
                raise DrawsOutside(f"{rule}: the model does not run at such draws") from error


def families_drawn_outside(pair: Pair) -> frozenset[tuple]:
    """Returns the families of sites at which the guide may draw what the prior cannot give.

    A family is the sites of one kind whose names differ in numbers alone, as those of the steps of a sequence do.
    """
    return frozenset(
        (re.sub(r"\d+", "#", name), type(base_of(site["fn"])), type(base_of(pair.guide_sites[name]["fn"])))
        for name, site, prior, proposal in _supports(pair)
        if contains(prior, proposal, compare_tensors=not is_masked(site)) is not True
    )


def _rule(name: str, prior: constraints.Constraint, proposal: constraints.Constraint) -> str:
    return (
        f'the guide must draw what the prior can give at site "{name}", {described(prior)}, got a guide on '
        f"{described(proposal)}"
    )


def never_drawn(pair: Pair) -> str | None:
    """Describes the part of the prior that the guide never draws, or returns None if there is none.

    The part may lie outside the guide's support, or be a state that the guide gives a probability of 0.

    However many draws are made, an estimate of log p(x) then converges too low.
    """
    for name, site, prior, proposal in _supports(pair):
        covered, guide_site = contains(proposal, prior, compare_tensors=not is_masked(site)), pair.guide_sites[name]
        if covered is None:
            with suppress(NotImplementedError):  # of an improper prior, which cannot be drawn from
                covered = _is_inside(guide_site, proposal, site["fn"].sample((PRIOR_DRAWS,)))
        why = draws_a_part(guide_site["fn"]) or impossible_alone(site, guide_site)
        if covered is False:
            why = f"the prior is on {described(prior)}, the guide on {described(proposal)}"
        if why is not None:
            return f'{NEVER_DRAWN} at site "{name}": {why}'
    return None


def warn_of_never_drawn(pair: Pair) -> None:
    """Warns if the prior gives what the guide never draws: a training bound stays valid but never gets tight."""
    missing = never_drawn(pair)
    if missing is not None:
        warn(f"{missing}: the bound is valid but never tight")


def _is_inside(site: dict, support: constraints.Constraint, value: Tensor) -> bool:
    """Returns True if every element of the value that no mask of the site excludes lies in its support."""
    if is_masked(site):
        return outside_support({**site, "value": value}) is None
    return bool(support.check(value).all())


def _supports(pair: Pair) -> Iterator[tuple[str, dict, constraints.Constraint, constraints.Constraint]]:
    """Yields name, site, and the supports of prior and guide, for each latent that is drawn."""
    for name, site in pair.latent.items():
        proposal = pair.guide_sites[name]["fn"]
        if not (isinstance(base_of(proposal), Delta) or is_autoencoder(site)):
            try:
                yield name, site, support_of(site["fn"]), support_of(proposal)
            except NotImplementedError:  # a distribution that does not declare its support
                continue
