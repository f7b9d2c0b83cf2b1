"""Draws from each component of a mixture in a guide in turn, so that every draw has a path to its parameters.

A mixture's own draw chooses a component, and has no derivative. Of K draws here, K / S come from each of S components,
by the component's `rsample`; the log-density stays that of the whole mixture.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily, constraints
from torch.types import _size

from pyrovae.programs.distribution_supports import support_of
from pyrovae.programs.layout import PARTICLES
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import base_of


class Stratified(Messenger):
    """Lets the mixture of a guide draw from component k mod S for particle k, within the block.

    It goes around `run_pair`. Particles one after another are counted. A mixture whose components have no `rsample`,
    or that is under `to_event`, draws as it does by itself.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrovae.programs.stratified_guide import Stratified
        >>> def guide():
        ...     components = dist.Normal(torch.tensor([0.0, 100.0]), 1.0)
        ...     return pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components))
        >>> with Stratified():
        ...     guide() < 50, guide() > 50
        (tensor(True), tensor(True))
    """

    def __enter__(self) -> "Stratified":
        self.count = 0
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        mixture = mixture_of(msg["fn"])
        if msg["done"] or msg["is_observed"] or mixture is None or mixture.batch_shape != msg["fn"].batch_shape:
            return
        if not mixture.component_distribution.has_rsample:
            return
        dim = next((frame.dim for frame in msg["cond_indep_stack"] if frame.name == PARTICLES), None)
        if dim is None:
            index, self.count = torch.tensor(self.count), self.count + 1
        else:
            index = torch.arange(mixture.batch_shape[dim]).reshape(-1, *(1,) * (-dim - 1))
        index = (index % num_components(mixture)).to(mixture.mixture_distribution.logits.device)
        msg["fn"] = OneComponent(msg["fn"], mixture, index)


class OneComponent(TorchDistribution):
    """Draws from one component of a mixture for each particle, and has the density of the whole mixture.

    Args:
        fn: The distribution of the site.
        mixture: The mixture in it, of the same batch shape.
        index: Which component each particle draws from, of a shape that broadcasts with the batch.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, fn: TorchDistribution, mixture: MixtureSameFamily, index: Tensor) -> None:
        self.fn, self.mixture, self.index = fn, mixture, index
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return support_of(self.fn)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Returns draws of all components, of which only that of each particle's own component is kept."""
        return self._own(self.mixture.component_distribution.rsample(sample_shape), self.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(value)

    @property
    def num_components(self) -> int:
        """S, the number of components."""
        return num_components(self.mixture)

    @property
    def log_share(self) -> Tensor:
        """log S a_k with the weight a_k of each draw's component, of the batch shape: 0 at equal weights."""
        return self._own(self.mixture.mixture_distribution.logits, 0) + math.log(self.num_components)

    def _own(self, values: Tensor, event_dim: int) -> Tensor:
        dim = -1 - event_dim  # that of the components
        index = self.index.reshape(*self.index.shape, *(1,) * -dim)
        index = index.reshape(*(1,) * (values.dim() - index.dim()), *index.shape)
        return torch.take_along_dim(values, index, dim).squeeze(dim)


def mixture_of(fn: TorchDistribution) -> MixtureSameFamily | None:
    """Returns the mixture that a distribution is, or None if it is none."""
    base = base_of(fn)
    return base if isinstance(base, MixtureSameFamily) else None


def num_components(mixture: MixtureSameFamily) -> int:
    """Returns the number of components of a mixture."""
    return mixture.mixture_distribution.logits.shape[-1]


def log_shares(pair: Pair) -> Tensor:
    """Returns log S a_k for T draws of each of S components and each datum, `(T, S, batch)`, 0 where a mask is False.

    `pair` is a run under `Stratified` with one mixture; particle S t + k is draw t of component k.
    """
    parts = []
    for run in (replace(run, others=()) for run in pair.runs):
        site = next(site for site in run.guide_sites.values() if isinstance(site["fn"], OneComponent))
        parts.append(run.by_datum(scale_and_mask(site["fn"].log_share, mask=site["mask"]), site))
    return torch.cat(parts, -2).unflatten(0, (-1, site["fn"].num_components))


def component_logits(pair: Pair, name: str) -> Tensor:
    """Returns log a_k of the mixture at a site of the guide, `(num_particles, batch, S)`."""
    parts = []
    for run in (replace(run, others=()) for run in pair.runs):
        site = run.guide_sites[name]
        logits = mixture_of(site["fn"]).mixture_distribution.logits  # type: ignore[union-attr]
        parts.append(torch.stack([run.by_datum(own, site) for own in logits.unbind(-1)], -1))
    return torch.cat(parts)
