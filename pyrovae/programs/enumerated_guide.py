"""Sums a pair's terms over the sites of the guide that are marked `infer={"enumerate": "parallel"}`.

A marked site c has all of its values at once, along a dimension of its own to the left of the particles. Sites that
come after it are drawn once for each of them. A particle's term f is then its mean under the guide, sum_c q(c|.) f(c).
"""

import functools
import math
from dataclasses import dataclass, field, fields
from typing import cast

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyrovae.common import require
from pyrovae.programs.enumeration import MAX_STATES, enumerated_states
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import without_mask

FIRST_DIM = -3  # left of the particles and the data


def is_marked(site: dict | Message) -> bool:
    """Returns True for a site that is marked for enumeration."""
    infer = site["infer"] or {}
    return infer.get("enumerate") is not None


class AllValues(Messenger):
    """Gives every marked site that is drawn all of its values, each site along a dimension of its own.

    `sizes` has the numbers of values of the last run, by name; the first site's dimension is the rightmost. Raises
    `InputError` where a site has no finite number of values, or all together have more than 65,536.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = cast(str, msg["name"]), cast(TorchDistribution, msg["fn"])
        if msg["done"] or msg["is_observed"] or not is_marked(msg):
            return
        if name in self.sizes:  # the program is run again
            self.sizes = {}
        values = enumerated_states({name: msg})[name]  # type: ignore[dict-item]
        self.sizes[name] = len(values)
        _check_number_of_states(self.sizes)
        num_right = -FIRST_DIM - 2 + len(self.sizes)  # dimensions between those of the site's values and its event
        values = values.reshape(len(values), *(1,) * num_right, *values.shape[2:])
        if msg["infer"].get("expand"):  # type: ignore[union-attr]
            ones = (1,) * (num_right - len(fn.batch_shape))
            values = values.expand(len(values), *ones, *fn.batch_shape, *fn.event_shape)
        msg["value"], msg["done"] = values, True


def _check_number_of_states(sizes: dict[str, int]) -> None:
    """Raises `InputError` if sites with these numbers of values have more than 65,536 joint values."""
    size = math.prod(sizes.values())
    found = f"{size:,} of {', '.join(map(repr, sizes))}"
    require(size <= MAX_STATES, f"sites marked for enumeration must have at most {MAX_STATES:,} values, got {found}")


@dataclass(frozen=True)
class EnumeratedPair(Pair):
    """Holds a run of a pair in which sites of the guide have all of their values.

    `sizes` has the number of values of each of them by name, in the order of their dimensions from right to left.
    """

    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, pair: Pair, sizes: dict[str, int]) -> "EnumeratedPair":
        """Returns the same run, with the sizes of the sites that have all of their values."""
        return cls(**{field.name: getattr(pair, field.name) for field in fields(pair)}, sizes=dict(sizes))

    @property
    def states(self) -> Pair:
        """The same run with every state, so that terms are `(*states, num_particles, batch)`."""
        left = tuple(reversed(self.sizes.values()))
        return Pair(self.model_sites, self.guide_sites, torch.Size((*left, *self.batch_shape)))

    @functools.cached_property
    def log_probabilities(self) -> Tensor:
        """log q of the sites with all of their values at each state, `(*states, num_particles, batch)`."""
        names = list(self.sizes)
        return self.states.total({name: without_mask(self.guide_sites[name]) for name in names})

    def total(self, sites: dict[str, dict]) -> Tensor:
        """Returns the mean over the states of the log-densities of the sites, `(num_particles, batch)`.

        It is -inf where the log-density is at a state of positive probability.
        """
        each, log_q = self.states.total(sites), self.log_probabilities
        possible = log_q > -math.inf  # 0 log 0 is 0, and would be nan
        no_density = possible & (each == -math.inf)
        probabilities = torch.where(possible, log_q, 0.0).exp()
        mean = torch.where(possible & ~no_density, probabilities * torch.where(each == -math.inf, 0.0, each), 0.0)
        dims = tuple(range(len(self.sizes)))
        return torch.where(no_density.any(dims), -math.inf, mean.sum(dims))
