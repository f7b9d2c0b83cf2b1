"""Inference gaps: the parts of log p(x) - ELBO that are due to the guide's family and to its network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import (
    evaluates,
    progress_bar,
    require,
    require_finite,
    require_number,
    require_plain,
    require_size,
    warn,
)
from pyrovae.evaluation.annealed_estimate import AnnealedEstimate
from pyrovae.evaluation.arguments import home_of
from pyrovae.evaluation.best_gaussian import STEPS_PER_ROUND, BestGaussian, fit_best_gaussian, guide_gaussian
from pyrovae.evaluation.chunks import DATA_PER_CHUNK, opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood, estimate_lines
from pyrovae.evaluation.importance_sampling import log_marginal
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import takes_pair

NOT_CONVERGED = (
    "the best Gaussian of some data was still improving after num_steps, which should be larger: "
    "their amortisation gap is a lower bound, their approximation gap an upper one"
)
TOO_NEGATIVE = 3  # standard errors below 0: more than the draws explain
ROUNDING = 1e-6  # relative: log p(x) and ELBOs may come from float32
SEARCH_SLACK = 0.03  # nats that a search which has converged may lack


@dataclass(frozen=True)
class InferenceGaps:
    """Holds the inference gaps of each datum, in nats, as `inference_gaps` returns them; prints as a table.

        total = approximation + amortisation

    Args:
        log_px: log p(x).
        elbo: The ELBO of the guide.
        best_elbo: The ELBO of the best diagonal Gaussian. It is estimated from the draws of `elbo`, so that the
            difference has a smaller error than either.
        total: log p(x) - ELBO of the guide.
        approximation: log p(x) - ELBO of the best Gaussian.
        amortisation: ELBO of the best Gaussian - ELBO of the guide.
        loc: The means of the best Gaussians, `(batch, latent_dim)`.
        scale: Their standard deviations, `(batch, latent_dim)`.
        converged: False if `num_steps` ran out while the ELBO still rose. The amortisation gap is then a lower bound,
            and the approximation gap an upper one.

    No gap is negative but by noise: log p(x) is at least any ELBO. Below the table are the verdict on log p(x), if it
    has one, and a line for each gap that is more than three standard errors below 0, whose log p(x) is too low.
    """

    log_px: Estimate
    elbo: Estimate
    best_elbo: Estimate
    total: Estimate
    approximation: Estimate
    amortisation: Estimate
    loc: Tensor
    scale: Tensor
    converged: bool

    def __repr__(self) -> str:
        rows = {
            "log p(x)": self.log_px,
            "ELBO of the guide": self.elbo,
            "ELBO of the best Gaussian": self.best_elbo,
            "total gap": self.total,
            "approximation gap": self.approximation,
            "amortisation gap": self.amortisation,
        }
        head = f"nats per datum, {len(self.total.value)} data"
        below = [f"impossible: the {name} is negative, so {why}" for name, why in self._impossible.items()]
        if isinstance(self.log_px, MarginalLikelihood | AnnealedEstimate):
            below.append(f"log p(x): {self.log_px.verdict}")
        return "\n".join((head, *estimate_lines(rows), *below, *(() if self.converged else (NOT_CONVERGED,))))

    @property
    def _impossible(self) -> dict[str, str]:
        """Returns which gaps are negative by more than their noise, and what must be wrong then."""
        low = "log p(x) is too low"
        rounding = ROUNDING * (1 + abs(self.log_px.mean))
        gaps = [("total gap", self.total, rounding, low), ("approximation gap", self.approximation, rounding, low)]
        gaps += [("amortisation gap", self.amortisation, SEARCH_SLACK, "the best Gaussian was not found")]
        return {
            name: why for name, gap, slack, why in gaps if gap.mean < -(TOO_NEGATIVE * gap.monte_carlo_error + slack)
        }


@takes_pair
@evaluates
def inference_gaps(
    model: Callable,
    guide: Callable,
    *args: object,
    log_px: Tensor | Estimate | None = None,
    num_samples: int = 5_000,
    num_steps: int = 1_000,
    num_draws: int = 32,
    num_final_draws: int = 1_000,
    lr: float = 0.1,
    chunk_size: int | None = None,
    progress: bool | None = None,
) -> InferenceGaps:
    """Splits log p(x) - ELBO(q) of each datum into an approximation gap and an amortisation gap, at beta = 1.

        approximation = log p(x) - ELBO(q*)    what no diagonal Gaussian near the guide's can do
        amortisation  = ELBO(q*) - ELBO(q)     what the guide's network leaves undone

    q* = N(loc, diag(scale^2)) is the best diagonal Gaussian for each datum alone. Adam finds it from the guide's own,
    on loc and log-scale, with fresh draws at each step. The learning rate is halved each time that 25 steps gain less
    than 0.001 nats in the mean over the data. After the eighth time the search has converged; it may still lack some
    thousandths of a nat (at most 0.03 for a datum of linear Gaussian models of four latents, whose q* is known; 0.02 to
    0.04 in the mean over data with 30 latents). A datum whose q* became clearly worse keeps the guide's.

    Of a posterior with several modes, q* is the best in the mode where the guide is: `converged` does not say that
    there is none better elsewhere. The approximation gap is then too large, and the amortisation gap too small.

    Both ELBOs are then estimated from the same draws, which the optimisation has not seen: on its own draws they would
    be too high.

    Args:
        model: The generative program p(x, z) of a pair with one latent site.
        guide: Its guide, which draws that site from Normal(...).to_event(1).
        *args: What model and guide take, of any number and type.
        log_px: log p(x), if it is known, `(batch,)`, in nats, or an `Estimate`. None takes `log_marginal`. That is too
            low if the guide is far from p(z|x), and so is then the approximation gap: look at `gaps.log_px.pareto_k`.
        num_samples: The number of draws of `log_marginal` for each datum.
        num_steps: The largest number of steps of Adam, at least 25.
        num_draws: The number of draws for each datum at each step.
        num_final_draws: The number of draws for each datum from which the ELBOs are estimated, at least 2.
        lr: The learning rate of Adam, in units of the guide's scales.
        chunk_size: The number of pairs of a draw and a datum that are decoded at a time, but at least `num_draws` with
            gradient. None is as in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `InferenceGaps`. A warning tells if it has not converged.

    Raises:
        InputError: If the pair is refused, the data share a latent, the guide is another one, or no density
            exists.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.eye(2), torch.zeros(2), 0.5, torch.zeros(2))  # a diagonal posterior
        >>> x = torch.zeros(4, 2)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         mean, scale = torch.zeros(len(x), 2), vae.posterior(x).stddev.detach()
        ...         pyro.sample("z", pyro.distributions.Normal(mean, scale).to_event(1))
        >>> gaps = pv.inference_gaps(vae.model, guide, x, log_px=vae.log_px(x))
        >>> bool(gaps.total.value.abs().max() < 1e-4)  # the guide is the posterior
        True

    Source:
        Cremer, Li and Duvenaud 2018, arXiv:1801.03558.
    """
    require_size("num_samples", num_samples)
    require_size("num_steps", num_steps, STEPS_PER_ROUND)
    require_size("num_draws", num_draws)
    require_size("num_final_draws", num_final_draws, 2)
    require_number("lr", lr, above=0)
    is_known = log_px is None or isinstance(log_px, Tensor | Estimate)
    require(is_known, f"log_px must be a tensor, an Estimate or None, got {type(log_px).__name__}")
    if isinstance(log_px, Tensor):
        require_plain("log_px", log_px)
    found = opened(model, guide, args, chunk_size)
    check_subsamples("inference_gaps", model, guide, found)
    home, chunk_size, num_data = home_of(args), found.pairs_at_a_time, found.data.size
    size = min(DATA_PER_CHUNK, max(1, chunk_size // num_draws))
    data = cut(model, guide, found, size)
    guide_gaussian(model, guide, next(data.in_chunks(size)).args)  # refuses before log p(x) takes its time
    if log_px is None:
        log_px = log_marginal(model, guide, *args, num_samples=num_samples, chunk_size=chunk_size, progress=progress)
    shape = tuple(log_px.shape if isinstance(log_px, Tensor) else log_px.value.shape)
    require(shape == (num_data,), f"log_px must have shape ({num_data},), got {shape}")
    if isinstance(log_px, Tensor):
        log_px = Estimate(log_px.detach().double(), torch.zeros_like(log_px, dtype=torch.float64))
    parts, converged = [], True
    with progress_bar(progress, num_data, "inference gaps", "datum") as bar:
        for chunk in data.in_chunks(size):
            part, done = fit_best_gaussian(
                model,
                guide,
                chunk.args,
                chunk_size=chunk_size,
                num_steps=num_steps,
                num_draws=num_draws,
                num_final_draws=num_final_draws,
                lr=lr,
            )
            parts.append([tensor.to(home) for tensor in part])
            converged = converged and done
            bar.update(chunk.size)
    best = BestGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))
    require_finite("the ELBO of the guide", best.guide_elbo)
    if not converged:
        warn(NOT_CONVERGED)

    elbo, best_elbo = Estimate(best.guide_elbo, best.guide_elbo_error), Estimate(best.elbo, best.elbo_error)
    return InferenceGaps(
        log_px=log_px,
        elbo=elbo,
        best_elbo=best_elbo,
        total=log_px.minus(elbo),
        approximation=log_px.minus(best_elbo),
        amortisation=Estimate(best.elbo - best.guide_elbo, best.gain_error),
        loc=best.loc,
        scale=best.scale,
        converged=converged,
    )
