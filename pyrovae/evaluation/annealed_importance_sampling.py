"""log p(x) per datum by annealed importance sampling, and between two bounds where the data are the model's own."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import Workers, device_of, evaluates, hides_progress, local_seed, require_choice, require_count
from pyrovae.evaluation.hmc import Path, unconstrained
from pyrovae.evaluation.importance_sampling import Estimate, check_args, pairs_at_a_time
from pyrovae.evaluation.importance_weights import influences, log_mean
from pyrovae.programs import simulated

SCHEDULES = ("sigmoid", "linear")
SIGMOID_DELTA = 4.0
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
        # The chains of the two have no draws in common.
        error = (self.lower.standard_error.square() + self.upper.standard_error.square()).sqrt()
        return Estimate(self.upper.value - self.lower.value, error)


@evaluates
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
    chunk_size: int | None = None,
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
    first. `chunk_size` pairs of a chain and a datum (one datum's chains, if there are more) run at a time; None is as
    in `log_marginal`. `compile` runs densities and gradients as a compiled graph, the same to rounding; `"auto"` does
    for 5,000 leapfrog steps or five million gradients. `progress=None` shows a bar on a terminal.

    Raises `InputError` if the pair breaks the contract, if a latent site is discrete, or where no density exists.
    Where memory does not suffice, `chunk_size` must be made smaller by hand.
    """
    path = Path(model, guide, start, num_leapfrog, num_distributions, compile)
    annealer = _Annealer(path, num_distributions, num_chains, schedule)
    parts = []
    for data, bar in _chunks(annealer, args, chunk_size, 1, progress):
        path.check(data)
        steps = annealer.pilot(data, bar)
        parts.append(annealer.forward(data, steps, bar))
    return _cat(parts, args[0].device)


@evaluates
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
    chunk_size: int | None = None,
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
    path = Path(model, guide, start, num_leapfrog, num_distributions, compile)
    annealer = _Annealer(path, num_distributions, num_chains, schedule)
    lower, upper, drawn = [], [], []
    for data, bar in _chunks(annealer, args, chunk_size, 2, progress):
        data, _, sites = simulated(model, data, {})
        latent = {name: site for name, site in sites.items() if not site["infer"].get("was_observed")}
        path.check(data)
        steps = annealer.pilot(data, bar)
        lower.append(annealer.forward(data, steps, bar))
        upper.append(annealer.reverse(data, unconstrained(latent)[0], steps, bar))
        drawn.append(data)
    home = args[0].device
    drawn = Workers().in_turn([[part.cpu() for part in data] for data in drawn])
    args = tuple(torch.cat(parts).to(home) for parts in zip(*drawn, strict=True))
    return BidirectionalEstimate(_cat(lower, home), _cat(upper, home), args)


def temperatures(num_distributions: int, schedule: str) -> list[float]:
    """t_0 = 0 < t_1 < ... < t_K = 1 for K = `num_distributions`.

    Linear, t_k = k / K, or the sigmoid of Wu et al.: s(delta (2 k / K - 1)) with delta = 4, rescaled to end at 0 and 1.
    """
    require_count("num_distributions", num_distributions)
    require_choice("schedule", schedule, SCHEDULES)
    t = torch.linspace(0, 1, num_distributions + 1, dtype=torch.float64)
    if schedule == "sigmoid":
        t = (SIGMOID_DELTA * (2 * t - 1)).sigmoid()
        t = (t - t[0]) / (t[-1] - t[0])
    return t.tolist()


# Chunks --------------------------------------------------------------------------------------------------------------


def _chunks(
    annealer: "_Annealer", args: tuple, chunk_size: int | None, num_runs: int, progress: bool | None
) -> Iterator[tuple[list[Tensor], tqdm]]:
    """Runs of data, on the model's device, and the bar, which counts transitions of a pilot and `num_runs` runs."""
    check_args(args)
    Workers().check_same("data", args)
    path = annealer.path
    device = device_of(path.model, args)
    step = max(1, pairs_at_a_time(path.model, path.guide, args, chunk_size) // annealer.num_chains)
    total = math.ceil(len(args[0]) / step) * (annealer.num_pilot + num_runs * (len(annealer.t) - 1))
    disable = hides_progress(progress)
    with tqdm(total=total, unit="step", desc="log p(x) by AIS", disable=disable, leave=False) as bar:
        for index, first in enumerate(range(0, len(args[0]), step)):
            seed = int(torch.randint(2**62, ()))  # so that it does not matter by which process these data are taken
            if Workers().owns(index):
                with local_seed(seed):
                    yield [arg[first : first + step].to(device).contiguous() for arg in args], bar


def _cat(parts: list[AnnealedEstimate], device: torch.device) -> AnnealedEstimate:
    columns = Workers().in_turn([{f.name: getattr(part, f.name).cpu() for f in fields(part)} for part in parts])
    return AnnealedEstimate(**{f: torch.cat([column[f] for column in columns], -1).to(device) for f in columns[0]})


# Chains --------------------------------------------------------------------------------------------------------------


class _Annealer:
    """AIS on one chunk of data at a time."""

    def __init__(self, path: Path, num_distributions: int, num_chains: int, schedule: str) -> None:
        require_count("num_chains", num_chains)
        self.path, self.num_chains = path, num_chains
        self.t = temperatures(num_distributions, schedule)
        self.pilot_repeats = math.ceil(PILOT_TRANSITIONS / num_distributions)
        self.num_pilot = PILOT_WARMUP + self.pilot_repeats * num_distributions

    def forward(self, data: list[Tensor], steps: Tensor, bar: tqdm) -> AnnealedEstimate:
        """Chains from q_0 to the posterior, by step sizes `(num_distributions, data)`."""
        state = self.path.first(data, self.num_chains)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(1, len(self.t)):
            log_w += (self.t[k] - self.t[k - 1]) * state.ratio.double()
            state, probability = self.path.transition(state, self.t[k], steps[k - 1], data)
            acceptance += probability.mean(0) / len(steps)
            bar.update()
        return AnnealedEstimate(*log_mean(log_w), acceptance, steps, log_w, influences=influences(log_w))

    def reverse(self, data: list[Tensor], exact: Tensor, steps: Tensor, bar: tqdm) -> AnnealedEstimate:
        """The same chains backwards, from exact draws of the posterior `(data, dim)`; log-weights with their sign."""
        state = self.path.state(exact.expand(self.num_chains, *exact.shape).contiguous(), data)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(len(self.t) - 1, 0, -1):
            state, probability = self.path.transition(state, self.t[k], steps[k - 1], data)
            log_w += (self.t[k - 1] - self.t[k]) * state.ratio.double()
            acceptance += probability.mean(0) / len(steps)
            bar.update()
        value, error, ess = log_mean(log_w)
        return AnnealedEstimate(-value, error, ess, acceptance, steps, -log_w, influences=-influences(log_w))

    def pilot(self, data: list[Tensor], bar: tqdm) -> Tensor:
        """Step sizes `(num_distributions, data)` at which HMC accepts 0.65 of its proposals.

        Stochastic approximation on log step along the schedule, at a gain that lets it follow the narrowing
        distributions; schedules too short to be followed are gone through with several transitions at each.
        """
        state = self.path.first(data, PILOT_CHAINS)
        log_step, table = torch.full_like(state.base[0], math.log(0.5)), []

        def move(t: float, gain: float) -> None:
            nonlocal state, log_step
            state, probability = self.path.transition(state, t, log_step.exp(), data)
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
