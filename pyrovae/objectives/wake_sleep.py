"""Reweighted wake-sleep: the guide learns by matching the posterior's weights, and not by a bound's gradient."""

from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import require, require_number
from pyrovae.objectives.base import Coefficients, Objective, Program, log_mean_exp
from pyrovae.programs import sample_sites, simulated


@dataclass(frozen=True)
class ReweightedWakeSleep(Objective):
    """Model: IWAE's gradient. Guide: wake-phi sum_k w~_k d log q(z_k|x), mixed with sleep-phi d log q(z|x) at draws
    (x, z) of the model.

    Bornschein and Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469. The guide goes down
    KL(p(z|x) || q(z|x)), estimated with normalised weights per datum (Pyro's are joint over the minibatch).
    `sleep_weight` in [0, 1] is the share of sleep-phi, for which every observed site must observe an argument as it is:
    the guide is then given what the model drew in the place of each.
    """

    num_particles: int = 2
    sleep_weight: float = 0.0

    min_particles = 2
    takes_beta = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("sleep_weight", self.sleep_weight)
        require(0 <= self.sleep_weight <= 1, f"sleep_weight must lie in [0, 1], got {self.sleep_weight}")

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        weights = log_weights.softmax(0)
        return Coefficients(weights, score=(1 - self.sleep_weight) * weights)

    def _differentiable_loss(self, program: Program) -> Tensor:
        loss = super()._differentiable_loss(program)
        if self.sleep_weight == 0 or not torch.is_grad_enabled():
            return loss
        with torch.no_grad(), program.kept_statistics():
            args, kwargs, dream = simulated(program.model, program.args, program.kwargs)
        drawn = {name: site["value"] for name, site in dream.items()}
        with program.kept_statistics():
            asleep = poutine.trace(poutine.condition(program.guide, data=drawn)).get_trace(*args, **kwargs)
        log_q = sum(site["fn"].log_prob(site["value"]).sum() for site in sample_sites(asleep).values())
        scale = next(site["scale"] for site in dream.values() if site["infer"].get("was_observed"))
        surrogate = -self.sleep_weight * scale * log_q
        return loss + surrogate - surrogate.detach()
