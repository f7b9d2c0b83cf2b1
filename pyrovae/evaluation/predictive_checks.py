"""Posterior predictive checks: data that the model draws anew, beside the data, in a statistic of the user's own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyrovae.common import (
    InputError,
    device_of,
    evaluates,
    require,
    require_callable,
    require_compile,
    require_plain,
    require_size,
    shown,
)
from pyrovae.data import moved
from pyrovae.evaluation.arguments import tensors_in
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.data_given_latents import DataGivenLatents
from pyrovae.evaluation.expectation import Expectation, Site
from pyrovae.evaluation.posterior_expectations import posterior
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.evaluation.weighted_draws import of_resampled
from pyrovae.plots import replicated_statistic
from pyrovae.programs import check_model_sees_parts, observing_parts, takes_mask, takes_pair

EXTREME = 0.01  # of a p-value's distance to 0 or 1
GROUPS = 20  # of weighted draws, whose p-values tell the error

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class PredictiveCheck:
    """Holds a statistic of the data and of data that the model has drawn anew, as `predictive_check` returns it.

    Args:
        observed: T(x) of each datum, `(batch,)`, in units of the statistic.
        replicated: T of replicated data sets, `(num_replicates, batch)`: a row is one data set.
        p_values: P(T(x_new) > T(x) | x) for each datum, an `Expectation` with tensors `(batch,)`; ties count half.
        draws_verdict: How far to believe the weighted draws of z behind all of this.
        grouped: T of further replicates, `(groups, number, batch)`: each group rests on weighted draws of its own, and
            their p-values differ as those of other runs would.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> check = pv.predictive_check(vae, torch.randn(20, 3), statistic=lambda x: x.amax(-1), num_samples=200)
        >>> check.replicated.shape
        torch.Size([1000, 20])
        >>> p, error = check.over(torch.amax)  # of the largest of all data
        >>> 0 <= p <= 1
        True
    """

    observed: Tensor
    replicated: Tensor
    p_values: Expectation
    draws_verdict: str
    grouped: Tensor

    def over(self, combine: Callable[..., Tensor] = torch.mean) -> tuple[float, float]:
        """Returns the p-value of a statistic of the whole data set, and its Monte Carlo standard error.

            p = P(combine(T(x_new)) > combine(T(x)))    (ties count half)

        The error covers the replicates and the weighted draws that they rest on, from groups with draws of their own.

        Args:
            combine: Is given T, `(batch,)` or `(num_replicates, batch)`, and a dimension, and combines the data along
                it to a number: `torch.mean`, `torch.amax`, `torch.std`, ...

        Raises:
            InputError: If it returns something else.
        """
        require_callable("combine", combine)
        observed, replicated = (combine(values, -1) for values in (self.observed, self.replicated))
        fits = isinstance(replicated, Tensor) and replicated.shape == self.replicated.shape[:1]
        require(fits, f"combine must give a number for each of {len(self.replicated):,}, got {shown(replicated)}")
        num, groups = len(replicated), len(self.grouped)
        above = (_above(replicated, observed)).sum().item()
        likely = (above + 1) / (num + 2)  # a p of 0 has an error, too
        apart = _above(combine(self.grouped.flatten(0, 1), -1), observed).view(groups, -1).mean(1)
        between = apart.var().item() / groups if groups > 1 else math.nan
        return above / num, math.sqrt(max(between, likely * (1 - likely) / num))

    @property
    def p_value(self) -> float:
        """The p-value of the mean of T over the data, as `over` returns it."""
        return self.over()[0]

    @property
    def verdict(self) -> str:
        """A conclusion about the model as the mean of T over the data tells, and about the draws that it rests on."""
        (p, error), draws = self.over(), self.p_values.num_samples * len(self.observed)
        num = min(len(self.replicated), draws)  # replicates of one datum are no more than the draws of z behind them
        number = f"p = {p:.3f} ({error:.1g}) of the mean over {len(self.observed):,} data"
        way = "larger" if p < 0.5 else "smaller"
        if _upper_limit(min(p, 1 - p), num) < EXTREME:
            found = f"the model does not make such data: their statistic is {way} than that of its own, {number}"
        elif min(p, 1 - p) < EXTREME:
            found = f"perhaps a misfit, {number}: take more replicates than {len(self.replicated):,} to tell"
            found += f", and more draws than {self.p_values.num_samples:,}" * (draws < len(self.replicated))
        else:
            found = f"no misfit seen: {number}, and p is usually nearer to 1/2 than chance alone would have it"
        return f"{found}\ndraws: {self.draws_verdict}"

    def __repr__(self) -> str:
        return self.verdict

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the mean of T over each replicated data set, and over the data.

        Args:
            axes: The axes to draw in; by default those of a new figure.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> check = pv.predictive_check(vae, torch.randn(20, 3), statistic=lambda x: x.amax(-1), num_samples=200)
            >>> _, (axes,) = pv.plots.figure_row(1)
            >>> check.plot(axes).get_xlabel()
            'mean statistic of a data set'
        """
        p, _ = self.over()
        return replicated_statistic(self.replicated.mean(-1), self.observed.mean().item(), f"p = {p:.3f}", axes)


@takes_pair
@evaluates
@torch.no_grad()
def predictive_check(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *y: Tensor,
    statistic: Statistic,
    num_samples: int = 1_000,
    num_replicates: int = 1_000,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> PredictiveCheck:
    """Compares the data with data that the model draws anew at the latents of each datum.

        p = P(T(x_new) > T(x) | x),    x_new ~ p(x_new | z),    z ~ p(z | x) as `posterior` weighs it

    T is a statistic of a datum that ought to come out alike if the model is right: its largest cell, how many cells are
    0, its roughness. A p near 0 says that T of the data is larger than the model makes it, near 1 that it is smaller.

    The data are used twice, for z and beside x_new. Under the right model p is therefore usually nearer to 1/2 than a
    uniform number would be, the more so the better z is known: a small p is usually at least as unlikely as it says,
    and never more than twice as likely (averaged over the model's own data), and a p of 1/2 proves little. Of the whole
    data set T is combined over the data; `over` gives its p-value, of the mean by default.

    The model must draw every cell that is not missing by a site that observes it as it is, and read x nowhere else.

    Args:
        model: The generative program p(x, z) of a pair whose sites all lie in the data plate.
        guide: The proposal q(z|x), as in `posterior`.
        x: The data, `(batch, ...)`. A cell that is NaN, where the pair takes such, is NaN in x_new, too.
        *y: What model and guide take besides, each `(batch, ...)`.
        statistic: T: is given data `(draws, data, ...)` of the shape of x behind a dimension of draws, and returns a
            number for each, `(draws, data)`. It must treat each datum alone.
        num_samples: The number of draws of z for each datum, behind its p-value.
        num_replicates: The number of replicated data sets, from resampled draws of z; about as many more tell the error
            of `over`. A p below 0.01 takes 300 to tell.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `PredictiveCheck` with p-values, the statistics, a verdict and a figure.

    Raises:
        InputError: As `posterior` does; if latents are shared or summed out, or sites lie in other plates; if the model
            does not observe each cell of x as it is, or reads x elsewhere; or if `statistic` returns another shape or
            what is not finite.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = 3 * torch.randn(50, 3)  # no two cells of the model differ so much
        >>> check = pv.predictive_check(vae, x, statistic=lambda x: x.std(-1))
        >>> check.p_value < 0.01
        True

    Source:
        Rubin 1984, Annals of Statistics 12; Gelman, Meng and Stern 1996, Statistica Sinica 6; Bayarri and Berger 2000,
        Journal of the American Statistical Association 95 (why p is near 1/2); Meng 1994, Annals of Statistics 22 (at
        most twice).
    """
    require_callable("statistic", statistic)
    require_size("num_samples", num_samples)
    require_size("num_replicates", num_replicates)
    require_compile(compile)
    require_plain("x", x)
    there = moved((x, *y), device_of(model, tensors_in((x, *y))))
    if takes_mask(guide, len(there)) or bool(x.isnan().any()):
        check_model_sees_parts(model, guide, there)
        model, guide = observing_parts(model, guide)
    ran = opened(model, guide, (x, *y), chunk_size)
    check_subsamples("predictive_check", model, guide, ran)
    made = DataGivenLatents.of(model, ran, "predictive_check")
    post = posterior(
        model, guide, x, *y, num_samples=num_samples, chunk_size=chunk_size, compile=compile, progress=progress
    )

    def above(site: Site, x: Tensor, *y: Tensor) -> Tensor:
        new = _statistic_of(statistic, made.replicated(site, x, *y))
        return _above(new, _statistic_of(statistic, x.unsqueeze(0)))

    p_values = post.expectation(above, x, *y)
    observed = _statistic_of(statistic, x.unsqueeze(0))[0].double()

    def replicate(site: Site, x: Tensor, *y: Tensor) -> Tensor:
        return _statistic_of(statistic, made.replicated(site, x, *y)).double()

    replicated = of_resampled(post, model, replicate, (x, *y), num_replicates)
    groups = min(GROUPS, num_samples, num_replicates)
    apart = of_resampled(post, model, replicate, (x, *y), num_replicates // groups, groups)
    grouped = apart.view(groups, -1, len(observed))
    return PredictiveCheck(observed, replicated, p_values, post.verdict, grouped)


def _upper_limit(p: float, num: int) -> float:
    """Returns the upper 95% limit of a probability of which `num` replicates show p (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv  # imported here so that `import pyrovae` is quicker

    return float(betaincinv(p * num + 1, num - p * num, 0.95))


def _above(new: Tensor, observed: Tensor) -> Tensor:
    """Returns 1 where a new statistic is larger than that of the data, 1/2 where they are equal."""
    return (new > observed).double() + 0.5 * (new == observed).double()


def _statistic_of(statistic: Statistic, x: Tensor) -> Tensor:
    """Returns T of data `(draws, data, ...)`, after a check of its shape."""
    found, wanted = statistic(x.clone()), tuple(x.shape[:2])
    fits = isinstance(found, Tensor) and not found.is_complex() and tuple(found.shape) == wanted
    what = tuple(found.shape) if isinstance(found, Tensor) else shown(found)
    require(fits, f"statistic must return a real number for each of (draws, data), here {wanted}, got {what}")
    if not bool(found.isfinite().all()):
        value = found[~found.isfinite()][0].item()
        holes = " (cells that are missing are NaN in x and x_new)" if bool(x.isnan().any()) else ""
        raise InputError(f"statistic must return finite numbers{holes}, got {value}")
    return found
