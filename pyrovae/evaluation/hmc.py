"""Hamiltonian Monte Carlo on the latents of a pair, for distributions between a start q_0(z) and the joint p(x, z)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform

from pyrovae.common import InputError, local_seed, require, require_choice, require_compile, require_size, warn
from pyrovae.compilation import Replay
from pyrovae.evaluation.arguments import changeable, with_tensors
from pyrovae.evaluation.chunks import COMPILE_PAIRS
from pyrovae.evaluation.rows import as_rows, data_dim_of, from_rows
from pyrovae.programs import (
    AS_IT_COMES,
    Layout,
    Pair,
    Reading,
    bijection_of,
    drawn_sites,
    gate,
    one_way_site,
    pair_of_sites,
    particles,
    require_new_draws,
    require_no_seed,
    run_pair,
    sample_sites,
    support_of,
    with_all_states,
    without_mask,
)

STARTS = ("prior", "guide")
COMPILE_STEPS = 5_000  # leapfrog steps of one shape, after which a graph has paid for its compilation
STEP_JITTER = 0.2


@dataclass(frozen=True)
class ChainState:
    """Holds chains at unconstrained latents `u` `(chains, data, dim)`, with log-densities and their gradients there.

    log pi~_t = base + t * ratio, each `(chains, data)`; pi~ is not normalised.
    """

    u: Tensor
    base: Tensor
    ratio: Tensor
    base_gradient: Tensor
    ratio_gradient: Tensor

    def log_density(self, t: float) -> Tensor:
        return self.base + t * self.ratio

    def gradient(self, t: float) -> Tensor:
        return self.base_gradient + t * self.ratio_gradient

    def moved(self, accepted: Tensor, to: "ChainState") -> "ChainState":
        """Returns the state `to` for the chains that are `accepted` `(chains, data)`, and this one for the others."""
        pairs = [(getattr(to, field.name), getattr(self, field.name)) for field in fields(self)]
        return ChainState(
            *(torch.where(accepted.reshape(*accepted.shape, *[1] * (a.dim() - 2)), a, b) for a, b in pairs)
        )


class AnnealedHMC:
    """Takes HMC steps on the annealed distributions of a pair, for all chains and data of a chunk at a time.

        pi_t(z) proportional to q_0(z)^(1 - t) p(x, z)^t

    q_0 is the model's prior or the guide's q(z|x), as `start` says. `num_transitions` is the number of transitions
    that each chain is expected to take; `compile="auto"` decides by it. Only `_densities` runs with gradients.
    `reading` is how the pair is read, and `normalised` False takes factors; both may be set before the first check.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        start: str,
        num_leapfrog: int,
        num_transitions: int,
        compile: bool | str,
    ) -> None:
        require_size("num_leapfrog", num_leapfrog)
        require_choice("start", start, STARTS)
        require_compile(compile)
        self.model, self.guide, self.start = model, guide, start
        self.num_leapfrog, self.num_transitions, self.compile = num_leapfrog, num_transitions, compile
        self.reading: Reading = AS_IT_COMES
        self.normalised = True
        self.layout = Layout()
        self.latents: Collection[str] | None = None  # without those that are summed out
        self.places: list[Place] = []
        self._replays: dict[tuple, Replay] = {}

    def check(self, data: Sequence) -> Pair:
        """Returns the pair, checked in one validated run that leaves the caller's generators alone; no other run is."""
        needs = gate.Weights(densities=False, everywhere=False, reading=self.reading)
        with local_seed(0):
            pair = gate.check(self.model, self.guide, needs, *data)
        self.layout, self.latents = pair.layout, list(pair.latent)
        require(len(pair.latent) > 0, "the model must have a latent site, and has none")
        for site in pair.latent.values():
            bijection(site)
        held = one_way_site(pair.guide_sites) if self.start == "guide" else None
        require(held is None, f"chains from the guide need its density at other values, and {held}: start at the prior")
        pair.check_densities(auxiliary=self.start == "prior", normalised=self.normalised)
        for name, site in pair.latent.items() if self.start == "guide" else ():
            u = bijection(site).inv(site["value"])
            if not torch.allclose(bijection(pair.guide_sites[name])(u), bijection(site)(u), rtol=1e-3, atol=1e-5):
                ours, theirs = support_of(site["fn"]), support_of(pair.guide_sites[name]["fn"])
                raise InputError(
                    f'to start at the guide, the latent site "{name}" must have one support in model and guide, '
                    f"got {ours} in the model and {theirs} in the guide"
                )
        # HMC draws between runs of the programs.
        both = partial(run_pair, self.model, self.guide, num_particles=2, reading=self.reading)
        run = partial(drawn_sites, self.model) if self.start == "prior" else both
        require_no_seed(lambda: run(*data))
        return pair

    def check_new_starts(self, pair: Pair, data: Sequence) -> None:
        """Raises `InputError` if chains of other data would start at the same draws; `pair` is a run of the pair."""
        if self.start == "prior":
            require_new_draws(self.model, *data)
        else:
            gate.check_new_draws(pair, self.model, self.guide, *data)

    def first(self, data: Sequence, num_chains: int) -> ChainState:
        """Returns chains at draws from q_0."""
        program = self.model if self.start == "prior" else self.guide
        with pyro.validation_enabled(False), particles(num_chains, self.layout):
            sites = drawn_sites(program, *data)
        u, self.places = unconstrained(self.walked(sites), self.layout)
        return self.state(u, data)

    def walked(self, sites: dict[str, dict]) -> dict[str, dict]:
        """Returns those of the sites that chains walk over: latents that are not summed out."""
        names = sites if self.latents is None else self.latents
        return {name: site for name, site in sites.items() if name in names and not site["is_observed"]}

    def state(self, u: Tensor, data: Sequence) -> ChainState:
        """Returns chains at `u`, `(chains, data, dim)`."""
        shape, inputs = tuple(u.shape), [u, *changeable(tuple(data))]
        if shape in self._replays:
            return ChainState(u, *cast(tuple[Tensor, ...], self._replays[shape](*inputs)))
        num_steps = self.num_transitions * self.num_leapfrog
        pays = num_steps >= COMPILE_STEPS or num_steps * shape[0] * shape[1] >= COMPILE_PAIRS
        if not (pays if self.compile == "auto" else self.compile):
            return ChainState(u, *self._densities(u, *data))

        def on_tensors(u: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            remaining = iter(tensors)
            return self._densities(u, *with_tensors(tuple(data), lambda _: next(remaining)))

        replay = Replay(on_tensors, inputs, lambda: on_tensors(*inputs), (self.model, self.guide))
        if replay.graph is None:
            warn(f"chains run eagerly, because the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self._replays[shape] = replay
        return ChainState(u, *cast(tuple[Tensor, ...], replay.outcome))

    def transition(self, state: ChainState, t: float, step: Tensor, data: Sequence) -> tuple[ChainState, Tensor]:
        """Takes one HMC step that leaves pi_t invariant, with step sizes `step` `(data,)`.

        Returns the new state and the probabilities of acceptance, `(chains, data)`.
        """
        size = (step * (1 - STEP_JITTER + 2 * STEP_JITTER * torch.rand_like(state.base))).unsqueeze(-1)
        first = torch.randn_like(state.u)
        momentum, new = first + 0.5 * size * state.gradient(t), state
        for index in range(self.num_leapfrog):
            new = self.state(new.u + size * momentum, data)
            last = index == self.num_leapfrog - 1
            momentum = momentum + (0.5 if last else 1.0) * size * new.gradient(t)
        kinetic = 0.5 * (momentum.square() - first.square()).sum(-1)
        change = new.log_density(t) - state.log_density(t) - kinetic
        # A density that is not finite means that rounding has left the support: the proposal is refused.
        possible = new.log_density(t).isfinite() & ~change.isnan()
        probability = torch.where(possible, change.clamp(max=0).exp(), 0.0)
        return state.moved(torch.rand_like(probability) < probability, new), probability

    def pair_at(self, u: Tensor, data: Sequence) -> Pair:
        """Returns a run of the model at `u` `(chains, data, dim)`, its latents as if a guide had drawn them."""
        with pyro.validation_enabled(False), particles(len(u), self.layout):
            sites = sample_sites(self._placed(u, data)[1])
        return pair_of_sites(sites, self.walked(sites), len(u), self.layout)

    def _placed(self, u: Tensor, data: Sequence) -> "tuple[_PlacedLatents, poutine.Trace]":
        """Returns the latents at `u` and a trace of the model there; the caller sees to particles."""
        parts = u.split([place.shape.numel() for place in self.places], -1)
        placed = _PlacedLatents(self.layout, u.shape[:2], dict(zip(self.places, parts, strict=True)))
        model = with_all_states(self.model, self.layout, [place.name for place in self.places])
        return placed, poutine.trace(placed(model)).get_trace(*data)

    def _densities(self, u: Tensor, *data: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (base, ratio, gradient of base, gradient of ratio) at `u` `(chains, data, dim)`, without a graph.

        base = log q_0(z) + log |det dz/du|, ratio = log p(x, z) - log q_0(z): the log-likelihood if q_0 is the prior.
        """
        with torch.enable_grad(), pyro.validation_enabled(False), particles(len(u), self.layout):
            u = u.detach().requires_grad_()
            placed, trace = self._placed(u, data)
            guide_sites = {}
            if self.start == "guide":
                guide_sites = sample_sites(poutine.trace(poutine.replay(self.guide, trace=trace)).get_trace(*data))
            # What is masked is walked over, too, and integrates to 1 with its density.
            model_sites = {n: without_mask(s) if n in placed.u else s for n, s in sample_sites(trace).items()}
            guide_sites = {n: without_mask(s) for n, s in guide_sites.items()}
            terms = pair_of_sites(model_sites, guide_sites, len(u), self.layout).terms()
            if self.start == "prior":
                base, ratio = terms.log_prior, terms.log_likelihood
            else:
                base, ratio = terms.log_posterior, terms.log_weights
            base = base + placed.log_jacobian
            return base.detach(), ratio.detach(), _gradient(base, u), _gradient(ratio, u)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:  # as of a likelihood without latents and parameters
        return torch.zeros_like(u)
    return torch.autograd.grad(value.sum(), u, retain_graph=True, materialize_grads=True)[0]


# Unconstrained latents -----------------------------------------------------------------------------------------------


def bijection(site: dict) -> Transform:
    """Returns the bijection from real vectors to the support of a latent site."""
    return bijection_of(site, "HMC needs latents with a density on real numbers")


class Place(NamedTuple):
    """States a latent site's name, the shape of what a datum has there, and the dimension of the data."""

    name: str
    shape: torch.Size
    data_dim: int | None


def unconstrained(sites: dict[str, dict], layout: Layout) -> tuple[Tensor, list[Place]]:
    """Returns the unconstrained values of all sites side by side, `(..., data, dim)`, and the place of each."""
    parts, places = [], []
    for name, site in sorted(sites.items()):  # model and guide may draw in different orders
        batch_dim, data_dim = site["value"].dim() - site["fn"].event_dim, data_dim_of(site, layout)
        u = as_rows(bijection(site).inv(site["value"]), batch_dim, data_dim, layout)
        leading = 1 + max(0, batch_dim - layout.nesting)
        parts.append(u.reshape(*u.shape[:leading], -1))
        places.append(Place(name, u.shape[leading:], data_dim))
    return torch.cat(parts, -1), places


class _PlacedLatents(Messenger):
    """Gives latent sites the values to which the bijections to their supports take given real vectors `u`.

    These are `(chains, data, dim)`, for each of the sites.
    """

    def __init__(self, layout: Layout, shape: torch.Size, u: dict[Place, Tensor]) -> None:
        super().__init__()
        self.layout, self.shape = layout, shape
        self.u = {place.name: (place, part) for place, part in u.items()}
        self.log_jacobian: Tensor | float = 0.0
        """log |det dz/du| of all sites together, `(chains, data)`."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.u and not msg["is_observed"]:
            place, part = self.u[msg["name"]]
            u = from_rows(part.reshape(*self.shape, *place.shape), place.data_dim, self.layout)
            onto = bijection(msg)
            msg["value"], msg["done"] = onto(u), True
            jacobian = onto.log_abs_det_jacobian(u, msg["value"])
            rows = as_rows(jacobian, jacobian.dim(), place.data_dim, self.layout)
            self.log_jacobian = self.log_jacobian + rows.reshape(*self.shape, -1).sum(-1)
