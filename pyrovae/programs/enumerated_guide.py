"""Sums a pair's terms over the sites of the guide that are marked `infer={"enumerate": "parallel"}`.

A marked site c has all of its values at once, along a dimension of its own to the left of the particles. Sites that
come after it are drawn once for each of them. A particle's term f is then its mean under the guide, sum_c q(c|.) f(c).
"""

import functools
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.common import require
from pyrovae.programs.enumeration import MAX_STATES, enumerated_states
from pyrovae.programs.pair import Pair

_VALUES = "_all_values"  # the key in a site's `infer` of the dimension along which it has all of its values


def mark_of(site: dict) -> str | None:
    """Returns how a site is marked for enumeration, or None if it is not."""
    return site["infer"].get("enumerate")


def state_dims(sites: dict[str, dict]) -> set[int]:
    """Returns the dimensions along which sites of the guide have all of their values."""
    return {site["infer"][_VALUES] for site in sites.values() if _VALUES in site["infer"]}


class AllValues(Messenger):
    """Gives every marked site that is drawn all of its values, each site along a dimension of its own.

    Args:
        first_dim: The dimension of the first site, to the left of all plates and of the particles.

    Raises:
        InputError: A site has no finite number of values, or all together have more than 65,536.
    """

    def __init__(self, first_dim: int) -> None:
        super().__init__()
        self.first_dim = first_dim

    def __enter__(self) -> "AllValues":
        self.sizes: dict[str, int] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["done"] or msg["is_observed"] or mark_of(msg) is None:
            return
        values, dim = enumerated_states({name: msg})[name], self.first_dim - len(self.sizes)
        self.sizes[name] = len(values)
        _check_number_of_states(self.sizes)
        num_right = -dim - 1  # dimensions between those of the site's values and its event
        values = values.reshape(len(values), *(1,) * num_right, *values.shape[2:])
        if msg["infer"].get("expand"):
            ones = (1,) * (num_right - len(fn.batch_shape))
            values = values.expand(len(values), *ones, *fn.batch_shape, *fn.event_shape)
        msg["value"], msg["done"], msg["infer"] = values, True, {**msg["infer"], _VALUES: dim}


def _check_number_of_states(sizes: dict[str, int]) -> None:
    """Raises `InputError` if sites with these numbers of values have more than 65,536 joint values."""
    size = math.prod(sizes.values())
    found = f"{size:,} of {', '.join(map(repr, sizes))}"
    require(size <= MAX_STATES, f"sites marked for enumeration must have at most {MAX_STATES:,} values, got {found}")


# Terms ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairOfStates(Pair):
    """Holds a run of a pair with terms for every state of some sites, `(*states, num_particles, batch)`."""

    state_shape: torch.Size = torch.Size()  # noqa: RUF009

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size((*self.state_shape, *super().batch_shape))


@dataclass(frozen=True)
class EnumeratedPair(Pair):
    """Holds a run of a pair in which sites of the guide have all of their values.

    `sizes` has the number of values of each of them by name, in the order of their dimensions from right to left.
    """

    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def states(self) -> PairOfStates:
        """The same run with terms for every state."""
        shape = torch.Size(reversed(self.sizes.values()))
        others = tuple(one.states for one in self.others if isinstance(one, EnumeratedPair))
        return PairOfStates(**{**_fields(self), "others": others}, state_shape=shape)

    @functools.cached_property
    def log_probabilities(self) -> Tensor:
        """log q of the sites with all of their values at each state, `(*states, num_particles, batch)`."""
        return self.states.log_q_of_draws(list(self.sizes), masked=False)

    def total(self, sites: dict[str, dict]) -> Tensor:
        """Returns the mean over the states of the log-densities of the sites, `(num_particles, batch)`.

        It is -inf where the log-density is at a state of positive probability.
        """
        one = replace(self, others=()) if self.others else self
        each, log_q = one.states.total(sites), one.log_probabilities
        possible = log_q > -math.inf  # 0 log 0 is 0, and would be nan
        no_density = possible & (each == -math.inf)
        probabilities = torch.where(possible, log_q, 0.0).exp()
        mean = torch.where(possible & ~no_density, probabilities * torch.where(each == -math.inf, 0.0, each), 0.0)
        dims = tuple(range(len(self.sizes)))
        return torch.where(no_density.any(dims), -math.inf, mean.sum(dims))


def with_means(pair: Pair) -> Pair:
    """Returns a pair whose terms are means over the sites of the guide that have all of their values, if there are any.

    `pair` is a run under `AllValues`.
    """
    dims = {name: site["infer"][_VALUES] for name, site in pair.guide_sites.items() if _VALUES in site["infer"]}
    if not dims:
        return pair
    sizes = {}
    for name, dim in dims.items():
        site = pair.guide_sites[name]
        sizes[name] = site["value"].shape[dim - site["fn"].event_dim]
    return EnumeratedPair(**_fields(pair), sizes=sizes)


def _fields(pair: Pair) -> dict[str, Any]:
    return {each.name: getattr(pair, each.name) for each in fields(Pair)}
