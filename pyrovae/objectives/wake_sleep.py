"""Reweighted wake-sleep: the guide learns by matching the posterior's weights, and not by a bound's gradient.

model  sum_k w~_k d log p(x, z_k)
guide  sum_k w~_k d log q(z_k|x),  or d log q(z|x) at draws (x, z) of the model
"""

from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.common import require, require_number
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.score_function import vimco_score
from pyrovae.programs import Pair, log_mean_exp, sample_sites, simulated


@dataclass(frozen=True)
class ReweightedWakeSleep(Objective):
    """Trains the model by IWAE's gradient, and the guide to match the posterior.

        wake-phi   sum_k w~_k d log q(z_k|x),  z_k ~ q(z|x)
        sleep-phi  d log q(z|x),               (x, z) ~ p(x, z)

    Wake-phi goes down KL(p(z|x) || q(z|x)), estimated with normalised weights per datum (Pyro's are joint over the
    minibatch). It is not defined for a beta on the latents.

    Args:
        num_particles: K >= 2, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        sleep_weight: The share of sleep-phi in the guide's gradient, in [0, 1]; the rest is wake-phi. Above 0 every
            observed site must observe an argument as it is: the guide is given what the model drew in its place.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: There are fewer than two particles, or `sleep_weight` lies outside [0, 1].

    Example:
        >>> objective = pv.objectives.ReweightedWakeSleep(2)
        >>> objective.coefficients(torch.tensor([[1.0], [3.0]]).log(), torch.ones(())).score.flatten()
        tensor([0.2500, 0.7500])

    Source: Bornschein and Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469.
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

    def outer_score(self, log_weights: Tensor) -> Tensor:
        return vimco_score(log_weights)  # wake-phi is no gradient of the bound

    def check(self, pair: Pair) -> None:
        super().check(pair)
        if self.sleep_weight == 0:
            return
        require(
            not pair.layout.has_globals,
            "sleep_weight must be 0 for a pair with global sites: data drawn anew come from other values of them",
        )
        require(
            not pair.guide_only,
            "sleep_weight must be 0 for a guide whose latents are made of auxiliary sites: it has no density at other "
            "latents than its own",
        )
        require(len(pair.plates) < 2, "sleep_weight must be 0 for a pair with several data plates: they scale apart")

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        loss = super()._differentiable_loss(call)
        if self.sleep_weight == 0 or not torch.is_grad_enabled():
            return loss
        with torch.no_grad(), call.kept_statistics():
            args, kwargs, dream = simulated(call.model, call.args, call.kwargs)
        drawn = {name: site["value"] for name, site in dream.items()}
        with call.kept_statistics():
            asleep = poutine.trace(poutine.condition(call.guide, data=drawn)).get_trace(*args, **kwargs)
        log_q = sum(
            scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"]).sum()
            for site in sample_sites(asleep).values()
        )
        scale = next(site["scale"] for site in dream.values() if site["infer"].get("was_observed"))
        surrogate = -self.sleep_weight * scale * log_q
        return loss + surrogate - surrogate.detach()
