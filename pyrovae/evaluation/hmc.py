"""Hamiltonian Monte Carlo on the latents of a pair, for distributions between a start q_0(z) and the joint p(x, z)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyrovae.common import InputError, local_seed, require, require_choice, require_compile, require_count, warn
from pyrovae.compilation import Replay
from pyrovae.evaluation.chunks import COMPILE_PAIRS
from pyrovae.programs import gate, particles, sample_sites, simple_pair, without_mask

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
        require_count("num_leapfrog", num_leapfrog)
        require_choice("start", start, STARTS)
        require_compile(compile)
        self.model, self.guide, self.start = model, guide, start
        self.num_leapfrog, self.num_transitions, self.compile = num_leapfrog, num_transitions, compile
        self.layout: list[tuple[str, torch.Size]] = []
        self._replays: dict[tuple, Replay] = {}

    def check(self, data: list[Tensor]) -> None:
        """Checks the pair in one validated run that leaves the caller's generators alone; no other run is validated."""
        with local_seed(0):
            pair = gate.check(self.model, self.guide, None, *data)
        require(len(pair.latent) > 0, "the model must have a latent site, and has none")
        for site in pair.latent.values():
            _bijection(site)
        pair.check_densities()
        for name, site in pair.latent.items() if self.start == "guide" else ():
            u = _bijection(site).inv(site["value"])
            if not torch.allclose(_bijection(pair.guide_sites[name])(u), _bijection(site)(u), rtol=1e-3, atol=1e-5):
                ours, theirs = site["fn"].support, pair.guide_sites[name]["fn"].support
                raise InputError(
                    f'to start at the guide, the latent site "{name}" must have one support in model and guide, '
                    f"got {ours} in the model and {theirs} in the guide"
                )

    def first(self, data: list[Tensor], num_chains: int) -> ChainState:
        """Returns chains at draws from q_0."""
        program = self.model if self.start == "prior" else self.guide
        with pyro.validation_enabled(False), particles(num_chains):
            sites = sample_sites(poutine.trace(program).get_trace(*data))
        u, self.layout = unconstrained({name: site for name, site in sites.items() if not site["is_observed"]})
        return self.state(u, data)

    def state(self, u: Tensor, data: list[Tensor]) -> ChainState:
        """Returns chains at `u`, `(chains, data, dim)`."""
        shape, args = tuple(u.shape), [u, *data]
        if shape in self._replays:
            return ChainState(u, *cast(tuple[Tensor, ...], self._replays[shape](*args)))
        num_steps = self.num_transitions * self.num_leapfrog
        pays = num_steps >= COMPILE_STEPS or num_steps * shape[0] * shape[1] >= COMPILE_PAIRS
        if not (self.compile is True or (self.compile == "auto" and pays)):
            return ChainState(u, *self._densities(*args))
        replay = Replay(self._densities, args, lambda: self._densities(*args), (self.model, self.guide))
        if replay.graph is None:
            warn(f"chains run eagerly, as the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self._replays[shape] = replay
        return ChainState(u, *cast(tuple[Tensor, ...], replay.outcome))

    def transition(self, state: ChainState, t: float, step: Tensor, data: list[Tensor]) -> tuple[ChainState, Tensor]:
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

    def _densities(self, u: Tensor, *data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (base, ratio, gradient of base, gradient of ratio) at `u` `(chains, data, dim)`, without a graph.

        base = log q_0(z) + log |det dz/du|, ratio = log p(x, z) - log q_0(z): the log-likelihood if q_0 is the prior.
        """
        with torch.enable_grad(), pyro.validation_enabled(False), particles(len(u)):
            u = u.detach().requires_grad_()
            parts = u.split([shape.numel() for _, shape in self.layout], -1)
            placed = _PlacedLatents(
                {n: p.reshape(*u.shape[:2], *s) for (n, s), p in zip(self.layout, parts, strict=True)}
            )
            trace = poutine.trace(placed(self.model)).get_trace(*data)
            guide_sites = {}
            if self.start == "guide":
                guide_sites = sample_sites(poutine.trace(poutine.replay(self.guide, trace=trace)).get_trace(*data))
            # What is masked is walked over, too, and integrates to 1 with its density.
            model_sites = {n: s if s["is_observed"] else without_mask(s) for n, s in sample_sites(trace).items()}
            guide_sites = {n: without_mask(s) for n, s in guide_sites.items()}
            terms = simple_pair(model_sites, guide_sites, len(u)).terms()
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


def _bijection(site: dict) -> Transform:
    """Returns the bijection from real vectors to the support of a latent site."""
    support = site["fn"].support
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    why = "is discrete" if support.is_discrete else None
    try:
        if why is None:
            return biject_to(support)
    except NotImplementedError:
        why = f"lies in {support}"
    raise InputError(f'the latent site "{site["name"]}" must have a density that HMC can walk on: it {why}')


def unconstrained(sites: dict[str, dict]) -> tuple[Tensor, list[tuple[str, torch.Size]]]:
    """Returns the unconstrained values of all sites side by side, `(..., dim)`, and each one's name and event shape."""
    parts, layout = [], []
    for name, site in sorted(sites.items()):  # model and guide may draw in different orders
        batch_dim = site["value"].dim() - site["fn"].event_dim
        u = _bijection(site).inv(site["value"])
        parts.append(u.reshape(*u.shape[:batch_dim], -1))
        layout.append((name, u.shape[batch_dim:]))
    return torch.cat(parts, -1), layout


class _PlacedLatents(Messenger):
    """Gives latent sites the values to which the bijections to their supports take given real vectors `u`."""

    def __init__(self, u: dict[str, Tensor]) -> None:
        super().__init__()
        self.u = u
        self.log_jacobian: Tensor | float = 0.0
        """log |det dz/du| of all sites together, `(chains, data)`."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.u and not msg["is_observed"]:
            u, bijection = self.u[msg["name"]], _bijection(msg)
            msg["value"], msg["done"] = bijection(u), True
            self.log_jacobian = self.log_jacobian + bijection.log_abs_det_jacobian(u, msg["value"])
