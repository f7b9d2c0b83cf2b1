"""Annealed chains on one chunk of data: forwards, backwards, and the pilot run that tunes their step sizes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import require_choice, require_size
from pyrovae.evaluation.annealed_estimate import TARGET_ACCEPTANCE, AnnealedEstimate
from pyrovae.evaluation.hmc import AnnealedHMC, ChainState
from pyrovae.evaluation.importance_weights import influences, log_mean

TEMPERATURE_SCHEDULES = ("sigmoid", "linear")
SIGMOID_DELTA = 4.0
PILOT_CHAINS = 4
PILOT_WARMUP, PILOT_TRANSITIONS = 20, 200
WARMUP_GAIN, PILOT_GAIN = 0.8, 0.3


def temperatures(num_distributions: int, schedule: str) -> list[float]:
    """Returns t_0 = 0 < t_1 < ... < t_K = 1 for K = `num_distributions`.

    "linear" is t_k = k / K. "sigmoid" is that of Wu et al.: s(delta (2 k / K - 1)) with delta = 4, rescaled so that it
    ends at 0 and 1.
    """
    require_size("num_distributions", num_distributions)
    require_choice("schedule", schedule, TEMPERATURE_SCHEDULES)
    t = torch.linspace(0, 1, num_distributions + 1, dtype=torch.float64)
    if schedule == "sigmoid":
        t = (SIGMOID_DELTA * (2 * t - 1)).sigmoid()
        t = (t - t[0]) / (t[-1] - t[0])
    return t.tolist()


class AnnealedChains:
    """Runs the chains of annealed importance sampling on one chunk of data at a time."""

    def __init__(self, hmc: AnnealedHMC, num_distributions: int, num_chains: int, schedule: str) -> None:
        require_size("num_chains", num_chains)
        self.hmc, self.num_chains = hmc, num_chains
        self.evidence_of: str | None = None  # where all data are one datum
        self.t = temperatures(num_distributions, schedule)
        self.pilot_repeats = math.ceil(PILOT_TRANSITIONS / num_distributions)
        self.num_pilot = PILOT_WARMUP + self.pilot_repeats * num_distributions

    def forward(
        self, data: Sequence, steps: Tensor, bar: tqdm, visit: Callable[[ChainState, Tensor], object] | None = None
    ) -> AnnealedEstimate:
        """Runs chains from q_0 to the posterior with step sizes `steps` `(num_distributions, data)`.

        `visit` is called at each distribution with the chains there and their log-weights, `(chains, data)`.
        """
        state = self.hmc.first(data, self.num_chains)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(1, len(self.t)):
            log_w += (self.t[k] - self.t[k - 1]) * state.ratio.double()
            state, probability = self.hmc.transition(state, self.t[k], steps[k - 1], data)
            acceptance += probability.mean(0) / len(steps)
            if visit is not None:
                visit(state, log_w)
            bar.update()
        return AnnealedEstimate(*log_mean(log_w), acceptance, steps, log_w, influences=influences(log_w))

    def reverse(self, data: Sequence, exact: Tensor, steps: Tensor, bar: tqdm) -> AnnealedEstimate:
        """Runs the same chains backwards from exact draws of the posterior, `exact` `(data, dim)`.

        Returns the upper bound on log p(x): value and log-weights are minus those of 1 / p(x).
        """
        state = self.hmc.state(exact.expand(self.num_chains, *exact.shape).contiguous(), data)
        log_w, acceptance = torch.zeros_like(state.base, dtype=torch.float64), torch.zeros_like(steps[0])
        for k in range(len(self.t) - 1, 0, -1):
            state, probability = self.hmc.transition(state, self.t[k], steps[k - 1], data)
            log_w += (self.t[k - 1] - self.t[k]) * state.ratio.double()
            acceptance += probability.mean(0) / len(steps)
            bar.update()
        value, error, ess = log_mean(log_w)
        return AnnealedEstimate(-value, error, ess, acceptance, steps, -log_w, True, influences=-influences(log_w))

    def pilot(self, data: Sequence, bar: tqdm) -> Tensor:
        """Returns the step sizes at which HMC accepts 0.65 of its proposals, `(num_distributions, data)`.

        They are found by stochastic approximation on log step along the schedule, at a gain that lets it follow the
        distributions as they narrow. A schedule too short to be followed gets several transitions at each distribution.
        """
        state = self.hmc.first(data, PILOT_CHAINS)
        log_step, table = torch.full_like(state.base[0], math.log(0.5)), []

        def move(t: float, gain: float) -> None:
            nonlocal state, log_step
            state, probability = self.hmc.transition(state, t, log_step.exp(), data)
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
