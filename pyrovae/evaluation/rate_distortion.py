"""The rate-distortion curve of a model, from one run of annealed importance sampling."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae.common import Workers, evaluates, require_number
from pyrovae.evaluation.annealed_chains import AnnealedChains
from pyrovae.evaluation.annealed_estimate import AnnealedEstimate
from pyrovae.evaluation.annealed_importance_sampling import annealed_chunks, joined_estimates
from pyrovae.evaluation.arguments import home_of
from pyrovae.evaluation.hmc import AnnealedHMC, ChainState
from pyrovae.plots import rate_distortion
from pyrovae.programs import takes_pair


@dataclass(frozen=True)
class RateDistortion:
    """Holds the rate-distortion curve of a model, as `annealed_rate_distortion` returns it.

    The distributions are in the order of the run, from the prior on. Tensors are `(num_distributions, batch)` and in
    nats unless another shape is given. For data that share latents all numbers are those of all data together, and the
    batch is 1.

    Args:
        betas: The weight of the rate at each distribution, `(num_distributions,)`: the curve has the slope -beta there.
        rate: KL(q(z|x) || p(z)), an upper bound in expectation.
        distortion: -E_q[log p(x|z)].
        rate_error: The standard errors of the rates, by the delta method: too small for few chains that disagree.
        distortion_error: The standard errors of the distortions.
        end: Where the chains end: log of the integral of p(z) p(x|z)^(1/beta) at the last beta, which is log p(x) at 1,
            and has a `log_px` only there.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> curve = pv.annealed_rate_distortion(vae, torch.zeros(4, 3), num_distributions=5, num_leapfrog=1)
        >>> curve.betas.shape, curve.rate.shape, curve.betas[-1].item()
        (torch.Size([5]), torch.Size([5, 4]), 1.0)
    """

    betas: Tensor
    rate: Tensor
    distortion: Tensor
    rate_error: Tensor
    distortion_error: Tensor
    end: AnnealedEstimate

    @property
    def mean_rate(self) -> Tensor:
        """The rates' mean over the data, `(num_distributions,)`."""
        return self.rate.mean(1)

    @property
    def mean_distortion(self) -> Tensor:
        """The distortions' mean over the data, `(num_distributions,)`."""
        return self.distortion.mean(1)

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the curve, as its end tells."""
        return f"at beta = {self.betas[-1].item():g}: {self.end.verdict}"

    def __repr__(self) -> str:
        ends = []
        for name, values, errors in (
            ("rate", self.mean_rate, self.rate_error),
            ("distortion", self.mean_distortion, self.distortion_error),
        ):
            error = errors[-1].square().sum().sqrt().item() / errors.shape[1]
            ends.append(f"{name} {values[-1].item():.3f} ({error:.2g})")
        where = f"at beta = {self.betas[-1].item():g} {', '.join(ends)}"
        unit = "nats per datum" if self.end.evidence_of is None else "nats of all data together"
        return f"rate and distortion at {len(self.betas):,} betas, {unit}; {where}\n{self.verdict}"

    def plot(self, betas: int = 6, axes: Axes | None = None) -> Axes:
        """Draws the curve of the means over the data, with a few betas beside it.

        Args:
            betas: The number of points that are marked, evenly along the rate.
            axes: The axes to draw in; by default those of a new figure.
        """
        rates = torch.linspace(self.mean_rate.min().item(), self.mean_rate[-1].item(), betas)[:-1].to(self.mean_rate)
        at = [*(self.mean_rate[:, None] - rates).abs().argmin(0).tolist(), len(self.betas) - 1]
        rate, distortion, labels = (part[at].tolist() for part in (self.mean_rate, self.mean_distortion, self.betas))
        axes = rate_distortion(rate, distortion, [float(f"{beta:.2g}") for beta in labels], axes)
        axes.lines[-1].set_linestyle("none")
        axes.plot(self.mean_rate, self.mean_distortion, color=axes.lines[-1].get_color(), zorder=1)
        return axes


@takes_pair
@evaluates
@torch.no_grad()
def annealed_rate_distortion(
    model: Callable,
    guide: Callable,
    *args: object,
    lowest_beta: float = 1.0,
    num_distributions: int = 1_000,
    num_chains: int = 16,
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> RateDistortion:
    """Estimates how many nats of rate each distortion costs under a model, with the best encoder for it.

        q_beta(z|x) proportional to p(z) p(x|z)^(1/beta)    minimises D + beta R over all q(z|x)
        D = -E_q[log p(x|z)],    R = KL(q_beta(z|x) || p(z)) = -D / beta - log Z_beta

    These are the distributions that annealed importance sampling (AIS) goes through on its way from the prior, so that
    one run has the whole curve. The chains at each beta are weighted as `annealed_log_marginal` weighs them, D is their
    mean and log Z_beta that of the weights. With few chains, or chains that do not mix, they are draws of another
    distribution than q_beta: its D is attained at a rate below the one given, in expectation, so that the curve lies
    above the model's, as that of any encoder does.

    A sweep over beta (`fit(..., beta=...)`) trains a decoder and an encoder for each beta. This curve is that of the
    one decoder given, and needs no encoder: what lies between it and (R, D) of the guide is the guide's fault.

    Args:
        model: The generative program p(x, z) of any pair whose latents are continuous.
        guide: Its guide, which is not run.
        *args: What model and guide take, of any number and type.
        lowest_beta: The beta at which the chains end, a number > 0: at 1 q is the posterior, and -(D + R) is log p(x).
        num_distributions: The number of distributions K.
        num_chains: The number of chains C for each datum.
        schedule: As in `annealed_log_marginal`, of 1/beta.
        num_leapfrog: The number of leapfrog steps of each HMC step.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: As in `annealed_log_marginal`.
        compile: As in `annealed_log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `RateDistortion`.

    Raises:
        InputError: As `annealed_log_marginal` does.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> curve = pv.annealed_rate_distortion(vae, torch.zeros(4, 3), num_distributions=5, num_leapfrog=1)
        >>> bool(curve.mean_distortion[0] > curve.mean_distortion[-1])  # more nats of rate buy less distortion
        True

    Source:
        Huang, Makhzani, Cao and Grosse 2020, arXiv:2008.06653.
    """
    require_number("lowest_beta", lowest_beta, above=0)
    hmc = AnnealedHMC(model, guide, "prior", num_leapfrog, num_distributions, compile)
    chains = AnnealedChains(hmc, num_distributions, num_chains, schedule)
    chains.t = [t / lowest_beta for t in chains.t]
    ends, parts = [], []
    for data, bar in annealed_chunks("annealed_rate_distortion", chains, args, plate, chunk_size, 1, progress):
        hmc.check(data.args)
        steps, found = chains.pilot(data.args, bar), _Path(chains.t)
        ends.append(chains.forward(data.args, steps, bar, found.visit))
        parts.append(tuple(torch.stack(part).cpu() for part in zip(*found.points, strict=True)))
    home = home_of(args)
    rate, distortion, *errors = (torch.cat(part, 1).to(home) for part in zip(*Workers().in_turn(parts), strict=True))
    betas = 1 / torch.tensor(chains.t[1:], dtype=torch.float64, device=home)
    of = chains.evidence_of
    if of is not None and lowest_beta != 1:
        of = of.replace("joint evidence", "joint integral")
    end = joined_estimates(ends, home, of, likelihood_power=1 / lowest_beta)
    return RateDistortion(betas, rate, distortion, errors[0], errors[1], end)


class _Path:
    """Collects rate, distortion and their errors, each `(data,)`, at one distribution after another."""

    def __init__(self, t: list[float]) -> None:
        self.points: list[tuple[Tensor, ...]] = []
        self._t = t

    def visit(self, state: ChainState, log_w: Tensor) -> None:
        t, num = self._t[len(self.points) + 1], len(log_w)
        share, fit = log_w.softmax(0), state.ratio.double()  # log p(x|z)
        distortion = -(share * fit).sum(0)
        rate = -t * distortion - (log_w.logsumexp(0) - math.log(num))
        moves = share * (fit + distortion)  # by which each chain moves -D, to first order
        scale = num / (num - 1) if num > 1 else math.nan
        errors = [(scale * one.square().sum(0)).sqrt() for one in (t * moves - (share - 1 / num), moves)]
        self.points.append((rate, distortion, *errors))
