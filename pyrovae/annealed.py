"""log p(x) per datum by annealed importance sampling, and between two bounds where the data are the model's own."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from tqdm.auto import tqdm

from pyrovae.errors import InputError, require, require_choice, require_count, warn
from pyrovae.importance import log_mean
from pyrovae.marginal import COMPILE_PAIRS, Estimate, check_args, device_of
from pyrovae.objectives.pair import PARTICLES, Pair, check_pair, sample_sites
from pyrovae.replay import Replay
from pyrovae.rng import local_seed

STARTS = ("prior", "guide")
SCHEDULES = ("sigmoid", "linear")
SIGMOID_DELTA = 4.0
JITTER = 0.2
TARGET_ACCEPTANCE = 0.65
PILOT_CHAINS = 4
PILOT_WARMUP, PILOT_TRANSITIONS = 20, 200
WARMUP_GAIN, PILOT_GAIN = 0.8, 0.3


@dataclass(frozen=True)
class AnnealedEstimate(Estimate):
    """What annealed importance sampling gives: log p(x) is `value`, and `ess` and `acceptance` are `(batch,)`, too.

    `acceptance` is the mean probability with which HMC took its proposals, over chains and distributions; `step_size`
    `(num_distributions, batch)` is what it took them with, and `log_weights` are `(num_chains, batch)`.
    """

    ess: Tensor
    acceptance: Tensor
    step_size: Tensor
    log_weights: Tensor

    @property
    def log_px(self) -> Tensor:
        return self.value


@dataclass(frozen=True)
class BidirectionalEstimate:
    """Data `args` that the model drew, and bounds on their log p(x) from below and above; see `bidirectional_gap`."""

    lower: AnnealedEstimate
    upper: AnnealedEstimate
    args: tuple[Tensor, ...]

    @property
    def gap(self) -> Estimate:
        """upper - lower, in nats, `(batch,)`: in expectation, either bound is no further off than this."""
        error = (self.lower.standard_error.square() + self.upper.standard_error.square()).sqrt()
        return Estimate(self.upper.value - self.lower.value, error)


@torch.no_grad()
def annealed_log_marginal(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_distributions: int = 1_000,
    num_chains: int = 16,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    chunk_size: int = 8_192,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> AnnealedEstimate:
    """log p(x) for each datum by annealed importance sampling (AIS), at beta = 1.

    A chain goes from z_0 ~ q_0 to the posterior through pi_k(z), proportional to q_0(z)^(1 - t_k) p(x, z)^t_k, with
    0 = t_0 < ... < t_K = 1 and K = `num_distributions`; z_k is one step of Hamiltonian Monte Carlo from z_{k-1} that
    leaves pi_k invariant. Then (Neal 2001, physics/9803008; Wu et al. 2017, arXiv:1611.04273)

        log w = sum_k (t_k - t_{k-1}) (log p(x, z_{k-1}) - log q_0(z_{k-1})),   E[w] = p(x),

    whatever K and however well HMC mixes. log 1/C sum_c w_c over C = `num_chains` independent chains is so a stochastic
    lower bound on log p(x), in nats. Its `standard_error`, by the delta method, is sd(w) / (mean(w) sqrt(C)), and nan
    for one chain; `ess` = (sum w)^2 / sum w^2. Where the ESS is a few of C chains the estimate is low and its error too
    small: take more distributions.

    - `start`: q_0 is the model's prior p(z), or the guide's q(z|x), nearer but perhaps too narrow.
    - `schedule`: t linear in k, or the sigmoid of Wu et al., slow at both ends.
    - HMC takes `num_leapfrog` leapfrog steps with identity mass and fresh momentum. Their size is that of the datum and
      of k, tuned in a pilot run of a few chains to an acceptance of 0.65, then held: adapted within the run it would
      cost E[w] = p(x). It is jittered by a fifth either way at each use, lest trajectories close upon themselves.
    - Latents on constrained supports move where `biject_to(support)` comes from, by the density there.

    `model` and `guide` are any pair that keeps the contract, `args` what they take: tensors of one length, the data
    first. `chunk_size` pairs of a chain and a datum (one datum's chains, if there are more) run at a time. `compile`
    runs densities and gradients as a compiled graph, the same to rounding; `"auto"` does for five million gradients or
    more. `progress=None` shows a bar on a terminal.

    Raises `InputError` if the pair breaks the contract, if a latent site is discrete, or where no density exists.
    """
    annealer = _Annealer(model, guide, num_distributions, num_chains, start, schedule, num_leapfrog, compile)
    parts = []
    for data, bar in _chunks(annealer, args, chunk_size, 1, progress):
        annealer.check(data)
        steps = annealer.pilot(data, bar)
        parts.append(annealer.forward(data, steps, bar))
    return _cat(parts, args[0].device)


@torch.no_grad()
def bidirectional_gap(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_distributions: int = 1_000,
    num_chains: int = 16,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    chunk_size: int = 8_192,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> BidirectionalEstimate:
    """How far AIS can be off: bounds on log p(x) from both sides, for x that the model itself draws, at beta = 1.

    Bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543). With (z*, x*) ~ p(z, x), z* is an exact draw from
    the posterior of x*. The chains of `annealed_log_marginal` on x* give `lower`. Run backwards from z*, from pi_K to
    pi_1, they have weights w' = prod_k pi~_{k-1}(z_{k-1}) / pi~_k(z_{k-1}), pi~ not normalised, with E[w'] = 1 / p(x*).
    So -log 1/C sum_c w'_c is a stochastic upper bound: `upper`, of which `log_weights` are the -log w'.

    The chains of a datum all start at its one z*. Each is valid, but the `standard_error` of `upper` and of `gap` holds
    for given z*, and more chains do not take away what z* itself adds: the mean over the data averages over z*, and
    its `data_error` has it all in.

    `args` stand in for the data, by their number and shape: every observed site must observe one of them as it is, and
    what it draws takes that one's place. All others (conditions) stay. What was drawn is returned as `args`. The other
    arguments, and the errors raised, are those of `annealed_log_marginal`.
    """
    annealer = _Annealer(model, guide, num_distributions, num_chains, start, schedule, num_leapfrog, compile)
    lower, upper, drawn = [], [], []
    for data, bar in _chunks(annealer, args, chunk_size, 2, progress):
        data, latent = _simulate(model, data)
        annealer.check(data)
        steps = annealer.pilot(data, bar)
        lower.append(annealer.forward(data, steps, bar))
        upper.append(annealer.reverse(data, _unconstrained(latent)[0], steps, bar))
        drawn.append(data)
    home = args[0].device
    simulated = tuple(torch.cat(parts).to(home) for parts in zip(*drawn, strict=True))
    return BidirectionalEstimate(_cat(lower, home), _cat(upper, home), simulated)


def temperatures(num_distributions: int, schedule: str) -> list[float]:
    """t_0 = 0 < t_1 < ... < t_K = 1 for K = `num_distributions`.

    Linear, t_k = k / K, or the sigmoid of Wu et al.: s(delta (2 k / K - 1)) with delta = 4, rescaled to end at 0 and 1.
    """
    t = torch.linspace(0, 1, num_distributions + 1, dtype=torch.float64)
    if schedule == "sigmoid":
        t = (SIGMOID_DELTA * (2 * t - 1)).sigmoid()
        t = (t - t[0]) / (t[-1] - t[0])
    return t.tolist()


# Chunks --------------------------------------------------------------------------------------------------------------


def _chunks(
    annealer: "_Annealer", args: tuple, chunk_size: int, num_runs: int, progress: bool | None
) -> Iterator[tuple[list[Tensor], tqdm]]:
    """Runs of data, on the model's device, and the bar, which counts transitions of a pilot and `num_runs` runs."""
    require_count("chunk_size", chunk_size)
    check_args(args)
    device, step = device_of(annealer.model, args), max(1, chunk_size // annealer.num_chains)
    total = math.ceil(len(args[0]) / step) * (annealer.num_pilot + num_runs * (len(annealer.t) - 1))
    disable = None if progress is None else not progress
    with tqdm(total=total, unit="step", desc="log p(x) by AIS", disable=disable, leave=False) as bar:
        for first in range(0, len(args[0]), step):
            yield [arg[first : first + step].to(device).contiguous() for arg in args], bar


def _cat(parts: list[AnnealedEstimate], device: torch.device) -> AnnealedEstimate:
    names = [field.name for field in fields(AnnealedEstimate)]
    return AnnealedEstimate(**{n: torch.cat([getattr(part, n) for part in parts], -1).to(device) for n in names})


def _simulate(model: Callable, data: list[Tensor]) -> tuple[list[Tensor], dict[str, dict]]:
    """(x*, z*): the arguments with draws in the place of what was observed, and the latent sites."""
    sites = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*data))
    simulated = list(data)
    for name, site in sites.items():
        if site["infer"].get("was_observed"):
            index = next((i for i, arg in enumerate(data) if site["infer"]["obs"] is arg), None)
            if index is None or site["value"].shape != data[index].shape:
                raise InputError(f'the site "{name}" must observe one of the arguments as it is, to be drawn anew')
            simulated[index] = site["value"].to(data[index])
    return simulated, {name: site for name, site in sites.items() if not site["infer"].get("was_observed")}


# Unconstrained latents -----------------------------------------------------------------------------------------------


def _bijection(site: dict) -> Transform:
    """From real vectors to the support of a latent site."""
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


def _unconstrained(sites: dict[str, dict]) -> tuple[Tensor, list[tuple[str, torch.Size]]]:
    """The sites' values before their bijections, side by side: `(..., dim)`, and each one's name and event shape."""
    parts, layout = [], []
    for name, site in sorted(sites.items()):  # model and guide may draw in different orders
        batch_dim = site["value"].dim() - site["fn"].event_dim
        u = _bijection(site).inv(site["value"])
        parts.append(u.reshape(*u.shape[:batch_dim], -1))
        layout.append((name, u.shape[batch_dim:]))
    return torch.cat(parts, -1), layout


class _Placed(Messenger):
    """Latent sites take the value that the bijection to their support makes of given real ones."""

    def __init__(self, u: dict[str, Tensor]) -> None:
        super().__init__()
        self.u = u
        self.log_jacobian: Tensor | float = 0.0
        """log |det dz/du| of all of them, `(chains, data)`."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.u and not msg["is_observed"]:
            u, bijection = self.u[msg["name"]], _bijection(msg)
            msg["value"], msg["done"] = bijection(u), True
            self.log_jacobian = self.log_jacobian + bijection.log_abs_det_jacobian(u, msg["value"])


# Chains --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """Chains at `u` `(chains, data, dim)`, where log pi~_t = base + t * ratio, `(chains, data)`, and the gradients."""

    u: Tensor
    base: Tensor
    ratio: Tensor
    base_gradient: Tensor
    ratio_gradient: Tensor

    def log_density(self, t: float) -> Tensor:
        return self.base + t * self.ratio

    def gradient(self, t: float) -> Tensor:
        return self.base_gradient + t * self.ratio_gradient

    def moved(self, accepted: Tensor, to: "_State") -> "_State":
        """Where `accepted` `(chains, data)` the other state, else this one."""
        pairs = [(getattr(to, field.name), getattr(self, field.name)) for field in fields(self)]
        return _State(*(torch.where(accepted.reshape(*accepted.shape, *[1] * (a.dim() - 2)), a, b) for a, b in pairs))


class _Annealer:
    """AIS on one chunk of data at a time. All of it runs without gradients but for `_densities`."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        num_distributions: int,
        num_chains: int,
        start: str,
        schedule: str,
        num_leapfrog: int,
        compile: bool | str,
    ) -> None:
        require_count("num_distributions", num_distributions)
        require_count("num_chains", num_chains)
        require_count("num_leapfrog", num_leapfrog)
        require_choice("start", start, STARTS)
        require_choice("schedule", schedule, SCHEDULES)
        require(compile in (True, False, "auto"), f"compile must be true, false or auto, got {compile!r}")
        self.model, self.guide, self.start = model, guide, start
        self.num_chains, self.num_leapfrog, self.compile = num_chains, num_leapfrog, compile
        self.t = temperatures(num_distributions, schedule)
        self.pilot_repeats = math.ceil(PILOT_TRANSITIONS / num_distributions)
        self.num_pilot = PILOT_WARMUP + self.pilot_repeats * num_distributions
        self.layout: list[tuple[str, torch.Size]] = []
        self._replays: dict[tuple, Replay] = {}

    def check(self, data: list[Tensor]) -> None:
        """One validated run, of which the caller's generators know nothing: all others are not validated."""
        with local_seed(0):
            pair = check_pair(self.model, self.guide, *data)
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

    def forward(self, data: list[Tensor], steps: Tensor, bar: tqdm) -> AnnealedEstimate:
        """Chains from q_0 to the posterior, by step sizes `(num_distributions, data)`."""
        state = self._first(data, self.num_chains)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(1, len(self.t)):
            log_w += (self.t[k] - self.t[k - 1]) * state.ratio.double()
            state, probability = self.transition(state, self.t[k], steps[k - 1], data)
            acceptance += probability.mean(0) / len(steps)
            bar.update()
        return AnnealedEstimate(*log_mean(log_w), acceptance, steps, log_w)

    def reverse(self, data: list[Tensor], exact: Tensor, steps: Tensor, bar: tqdm) -> AnnealedEstimate:
        """The same chains backwards, from exact draws of the posterior `(data, dim)`; log-weights with their sign."""
        state = self._state(exact.expand(self.num_chains, *exact.shape).contiguous(), data)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(len(self.t) - 1, 0, -1):
            state, probability = self.transition(state, self.t[k], steps[k - 1], data)
            log_w += (self.t[k - 1] - self.t[k]) * state.ratio.double()
            acceptance += probability.mean(0) / len(steps)
            bar.update()
        value, error, ess = log_mean(log_w)
        return AnnealedEstimate(-value, error, ess, acceptance, steps, -log_w)

    def pilot(self, data: list[Tensor], bar: tqdm) -> Tensor:
        """Step sizes `(num_distributions, data)` at which HMC accepts 0.65 of its proposals.

        Stochastic approximation on log step along the schedule, at a gain that lets it follow the narrowing
        distributions; schedules too short to be followed are gone through with several transitions at each.
        """
        state = self._first(data, PILOT_CHAINS)
        log_step, table = torch.full_like(state.base[0], math.log(0.5)), []

        def move(t: float, gain: float) -> None:
            nonlocal state, log_step
            state, probability = self.transition(state, t, log_step.exp(), data)
            log_step = log_step + gain * (probability.mean(0) - TARGET_ACCEPTANCE)
            bar.update()

        for _ in range(PILOT_WARMUP):
            move(self.t[1], WARMUP_GAIN)
        for t in self.t[1:]:
            found = torch.zeros_like(log_step)
            for _ in range(self.pilot_repeats):
                move(t, PILOT_GAIN)
                found += log_step / self.pilot_repeats
            table.append(found.exp())
        return torch.stack(table)

    def transition(self, state: _State, t: float, step: Tensor, data: list[Tensor]) -> tuple[_State, Tensor]:
        """HMC that leaves pi_t invariant with `step` `(data,)`: where it goes, and its probabilities of acceptance."""
        size = (step * (1 - JITTER + 2 * JITTER * torch.rand_like(state.base))).unsqueeze(-1)
        first = torch.randn_like(state.u)
        momentum, new = first + 0.5 * size * state.gradient(t), state
        for index in range(self.num_leapfrog):
            new = self._state(new.u + size * momentum, data)
            last = index == self.num_leapfrog - 1
            momentum = momentum + (0.5 if last else 1.0) * size * new.gradient(t)
        kinetic = 0.5 * (momentum.square() - first.square()).sum(-1)
        change = new.log_density(t) - state.log_density(t) - kinetic
        # Where there is no finite density, rounding has gone out of the support: as good as none.
        possible = new.log_density(t).isfinite() & ~change.isnan()
        probability = torch.where(possible, change.clamp(max=0).exp(), 0.0)
        return state.moved(torch.rand_like(probability) < probability, new), probability

    # Densities --------------------------------------------------------------------------------------------------------

    def _first(self, data: list[Tensor], num_chains: int) -> _State:
        """Chains at draws from q_0."""
        program = self.model if self.start == "prior" else self.guide
        with pyro.validation_enabled(False), pyro.plate(PARTICLES, num_chains, dim=-2):
            sites = sample_sites(poutine.trace(program).get_trace(*data))
        u, self.layout = _unconstrained({name: site for name, site in sites.items() if not site["is_observed"]})
        return self._state(u, data)

    def _state(self, u: Tensor, data: list[Tensor]) -> _State:
        shape, args = tuple(u.shape), [u, *data]
        if shape in self._replays:
            return _State(u, *self._replays[shape](*args))
        num_gradients = shape[0] * shape[1] * len(self.t) * self.num_leapfrog
        if not (self.compile is True or (self.compile == "auto" and num_gradients >= COMPILE_PAIRS)):
            return _State(u, *self._densities(*args))
        replay = Replay(self._densities, args, lambda: self._densities(*args), (self.model, self.guide))
        if replay.graph is None:
            warn(f"chains run eagerly, as the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self._replays[shape] = replay
        return _State(u, *replay.outcome)

    def _densities(self, u: Tensor, *data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(base, ratio, and the gradient of each) at `u` `(chains, data, dim)`, of which nothing keeps a graph.

        base = log q_0(z) + log |det dz/du| and ratio = log p(x, z) - log q_0(z), the log-likelihood from the prior.
        """
        with torch.enable_grad(), pyro.validation_enabled(False), pyro.plate(PARTICLES, len(u), dim=-2):
            u = u.detach().requires_grad_()
            parts = u.split([shape.numel() for _, shape in self.layout], -1)
            placed = _Placed({n: p.reshape(*u.shape[:2], *s) for (n, s), p in zip(self.layout, parts, strict=True)})
            trace = poutine.trace(placed(self.model)).get_trace(*data)
            guide_sites = {}
            if self.start == "guide":
                guide_sites = sample_sites(poutine.trace(poutine.replay(self.guide, trace=trace)).get_trace(*data))
            terms = Pair(sample_sites(trace), guide_sites, u.shape[:2]).terms()
            if self.start == "prior":
                base, ratio = terms.log_prior, terms.log_likelihood
            else:
                base, ratio = terms.log_posterior, terms.log_weights
            base = base + placed.log_jacobian
            return base.detach(), ratio.detach(), _gradient(base, u), _gradient(ratio, u)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:  # a likelihood, say, without latents and parameters
        return torch.zeros_like(u)
    return torch.autograd.grad(value.sum(), u, retain_graph=True, materialize_grads=True)[0]
