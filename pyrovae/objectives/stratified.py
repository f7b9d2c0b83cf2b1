"""Bounds for a guide that is a mixture, from equally many draws of each component, each with its path gradient.

    SIWAE    log 1/T sum_t sum_k a_k w_kt
    MISELBO  sum_k a_k log 1/T sum_t w_kt

Here q(z|x) = sum_k a_k q_k(z|x) has S components, z_kt ~ q_k(z|x), and w_kt = p(x, z_kt) / q(z_kt|x).
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrovae.common import kept_generators, require
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.kept_terms import kept_terms
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.objectives.surrogate import sites_without_rsample
from pyrovae.programs import (
    Pair,
    Stratified,
    component_logits,
    frames_of,
    log_mean_exp,
    log_shares,
    mixture_of,
    num_components,
    restore_generators,
    saved_generators,
)

SAME_WEIGHTS = 1e-3  # in nats


@dataclass(frozen=True)
class SIWAE(IWAE):
    """Estimates an importance-weighted bound for a guide with a mixture q = sum_k a_k q_k of S components.

        log 1/T sum_t sum_k a_k p(x, z_kt) / q(z_kt|x),  z_kt ~ q_k(z|x)

    T draws are made from each component. The gradient is that of plain autograd: through every draw, the density and
    the weights a_k. An ordinary draw from a mixture has no path, so that `IWAE` takes a score function there. The bound
    lies below log p(x) and rises with T. With one component it is `IWAE`, and so it is with S equal
    ones of equal weights, of K draws.

    The guide has one mixture, `pv.VAE(..., posterior="mixture")` or a `MixtureSameFamily` of a guide of one's own, with
    components that have `rsample`, and of each datum one draw. All other sites need `rsample`, too. `bound` takes the
    log-weights of one component.

    Args:
        num_particles: K = S T, all draws of z per datum: a multiple of the number of components.
        chunk_size: How many particles are run at a time, such a multiple, too; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae, x = pv.VAE((2,), **settings, posterior="mixture"), torch.zeros(8, 2)
        >>> loss = pv.objectives.SIWAE(8).differentiable_loss(vae.model, vae.guide, x)  # two of each of four components
        >>> loss.requires_grad
        True

    Source: Morningstar et al. 2021, arXiv:2003.01687.
    """

    def stratified_bound(self, log_weights: Tensor, log_shares: Tensor) -> Tensor:
        """Returns the bound of each datum, `(batch,)`, from log w_kt and log S a_k, each `(T, S, batch)`."""
        return log_mean_exp(_that_count((log_weights + log_shares).flatten(0, 1)))

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        call = _StratifiedCall(call.model, call.guide, call.args, call.kwargs, call.needs)
        if self.chunk_size is None or self.chunk_size >= self.num_draws:
            parts = [_strata(call.run(self.num_draws, once=True))]
        else:
            parts = _strata_in_chunks(call, self.num_draws, self.chunk_size)
        first = parts[0]
        log_weights, shares = (torch.cat(each) for each in zip(*(part[:2] for part in parts), strict=True))
        loss = -(first.scale * self.stratified_bound(log_weights, shares)).sum()
        if first.log_ratio is not None:
            loss = loss - first.log_ratio
        if first.global_score is not None:
            score = loss.detach() * first.global_score
            loss = loss + score - score.detach()
        return loss

    def check(self, pair: Pair) -> None:
        super().check(pair)
        name = type(self).__name__
        mixtures = {n: m for n, site in pair.guide_sites.items() if (m := mixture_of(site["fn"])) is not None}
        found = " and ".join(f'"{n}"' for n in mixtures) or "none"
        require(len(mixtures) == 1, f"{name} needs a guide with one site that is a MixtureSameFamily, got {found}")
        ((site_name, mixture),) = mixtures.items()
        site, size = pair.guide_sites[site_name], num_components(mixture)
        said = f'{name} needs a mixture of vectors at site "{site_name}"'
        require(mixture.batch_shape == site["fn"].batch_shape, f"{said}: to_event belongs inside its components")
        said = f'{name} goes through the draws, and at site "{site_name}" components have no rsample: use elbo or vimco'
        require(mixture.component_distribution.has_rsample, said)
        frames = frames_of(site)
        plates = tuple(frame.name for frame in frames)
        require(
            plates == pair.layout.plates and len(plates) < 2 and all(frame.vectorized for frame in frames),
            f'{name} needs one draw of site "{site_name}" for each datum of one data plate, and it lies in '
            f"{' and '.join(map(repr, plates)) or 'no plate'}",
        )
        for setting in ("num_particles", "chunk_size"):
            value = getattr(self, setting)
            said = f'{setting} must be a multiple of the {size} components of site "{site_name}", got {value}'
            require(value is None or value % size == 0, said)
        others = [other for other in sites_without_rsample(pair) if other != site_name]
        require(
            not others, f'{name} goes through the draws, and site "{"".join(others[:1])}" has no rsample: use vimco'
        )
        self._check_zero_weights(pair)


@dataclass(frozen=True)
class MISELBO(SIWAE):
    """Estimates the mean over the components of a mixture guide of one importance-weighted bound each.

        sum_k a_k log 1/T sum_t p(x, z_kt) / q(z_kt|x),  z_kt ~ q_k(z|x)

    With one draw of each component, K = S, it is the ELBO of the mixture (Morningstar et al. call that SELBO), with a
    path gradient in place of the score function that `ELBO` takes there. With more it still lies below `SIWAE` of the
    same draws: the mean over components stays outside the logarithm. Kviman et al. have equal weights, 1/S; at others,
    each a_k must be one for all draws of a datum if there is more than one draw of each component.

    Args:
        num_particles: K = S T, all draws of z per datum: a multiple of the number of components.
        chunk_size: How many particles are run at a time, such a multiple, too; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Example:
        >>> log_w = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).log().unsqueeze(-1)  # two draws of each of two components
        >>> objective, equal = pv.objectives.MISELBO(4), torch.zeros(2, 2, 1)
        >>> objective.stratified_bound(log_w, equal), pv.objectives.SIWAE(4).stratified_bound(log_w, equal)
        (tensor([0.6931]), tensor([0.6931]))

    Source: Kviman et al. 2022, arXiv:2202.10951; as the bound of a VAE: Kviman et al. 2023, arXiv:2209.15514.
    """

    def stratified_bound(self, log_weights: Tensor, log_shares: Tensor) -> Tensor:
        bound = (log_shares[0].exp() * log_mean_exp(_that_count(log_weights))).mean(0)
        # Weights that did not depend on another draw when the pair was checked may do so later on.
        same = torch.isclose(log_shares, log_shares[:1], rtol=0, atol=SAME_WEIGHTS).all(0).all(0)
        return torch.where(same, bound, math.nan)

    def check(self, pair: Pair) -> None:
        super().check(pair)
        (name,) = (n for n, site in pair.guide_sites.items() if mixture_of(site["fn"]) is not None)
        logits = component_logits(pair, name)
        require(
            self.num_draws == logits.shape[-1] or torch.allclose(logits, logits[:1], atol=SAME_WEIGHTS),
            f"{type(self).__name__} with more than one draw of each component needs weights of them that depend on no "
            f'other draw, and at site "{name}" they do: use siwae',
        )


# Runs -----------------------------------------------------------------------------------------------------------------


def _that_count(log_weights: Tensor) -> Tensor:
    """Returns log-weights with -inf for those that rounding hides beside the largest, along the first dimension.

    Components lie far apart, and such weights would be subnormal numbers, which take a CPU several times as long.
    """
    hidden = log_weights < log_weights.amax(0) + 2 * math.log(torch.finfo(log_weights.dtype).eps)
    return log_weights.masked_fill(hidden, -math.inf)


class _StratifiedCall(PairCall):
    """Runs the pair with draws from each component in turn; the gate checks it with its own."""

    def _run(self, num_particles: int) -> Pair:
        with Stratified():
            return super()._run(num_particles)


class _Strata(NamedTuple):
    """Holds log w_kt and log S a_k, `(T, S, batch)`; the scale of the data; and log p - log q and score of globals."""

    log_weights: Tensor
    log_shares: Tensor
    scale: Tensor
    log_ratio: Tensor | None
    global_score: Tensor | None


def _strata(pair: Pair) -> _Strata:
    terms, shares = weighted_terms(pair), log_shares(pair)
    _keep(terms, shares)
    score = None if terms.log_ratio is None else pair.global_score()
    return _Strata(terms.log_weights.unflatten(0, shares.shape[:2]), shares, terms.scale, terms.log_ratio, score)


def _keep(terms: WeightedTerms, shares: Tensor) -> None:
    """Tells reconstruction and KL of these draws, each of which counts by the weight of its component."""
    kept = kept_terms()
    if kept is not None:
        with torch.no_grad():
            share, plain = shares.exp().flatten(0, 1), terms.plain
            kl = share * (plain.log_posterior - plain.log_prior)
            kept.add((share * plain.log_likelihood).sum(), kl.sum(), len(share))


def _strata_in_chunks(call: PairCall, num_draws: int, chunk_size: int) -> list[_Strata]:
    """Runs chunks of particles, each of which autograd runs again for its gradient, so that it keeps no graph."""
    ends: list[tuple] = []

    def chunk(start: tuple, size: int) -> _Strata:
        with kept_generators(), call.kept_statistics() if ends else nullcontext():
            restore_generators(start)
            strata = _strata(call.run(size))
            ends.append(saved_generators())
        return strata

    with torch.no_grad():
        start = saved_generators()
        with call.kept_statistics():
            call.run(chunk_size)  # the gate's look at the pair must not be a part of what is run again
        restore_generators(start)
        call.draw_for_all_chunks()
    parts = []
    for part in torch.arange(num_draws).split(chunk_size):
        parts.append(checkpoint(chunk, call.start_of_chunk(), len(part), use_reentrant=False))
        restore_generators(ends[-1])
    return parts
