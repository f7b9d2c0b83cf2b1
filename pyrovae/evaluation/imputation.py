"""Missing cells of x given the observed ones: their means, standard deviations and draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.common import device_of, evaluates, require, require_compile, require_plain, require_size
from pyrovae.data import moved
from pyrovae.evaluation.arguments import check_args, tensors_in
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.data_given_latents import DataGivenLatents
from pyrovae.evaluation.expectation import SAME, Site, verdict_on_answers, why_unknown
from pyrovae.evaluation.posterior_expectations import posterior
from pyrovae.evaluation.remedy_words import DRAWS, FOR_CELLS
from pyrovae.evaluation.weighted_draws import of_resampled
from pyrovae.evaluation.weights_verdict import largest_k
from pyrovae.models import VAE
from pyrovae.programs import check_guide_sees_parts, check_model_sees_parts, observing_parts, takes_pair

LEAST_LEFT = 1e-6  # of a variance that the mean of the same draws takes away from, beyond rounding


@dataclass(frozen=True)
class Imputation:
    """Holds data with their missing cells filled in, as `impute` returns it.

    Every tensor but `draws` has the shape of x, `(batch, *event_shape)`. The standard deviation says how far a cell may
    lie from its mean, and does not fall with the number of draws; the standard error, how well that mean is known.

    Args:
        value: x with E[x_m | x_o] in the place of its missing cells.
        standard_deviation: That of x_m given x_o, in units of x; 0 where a cell was observed, nan for one draw or one
            that has all the weight.
        standard_error: The Monte Carlo error of `value`; 0 where a cell was observed, nan for one draw.
        draws: x with missing cells drawn from p(x_m | x_o), `(num_draws, batch, *event_shape)`. The latents behind them
            are spread evenly over the weighted draws (systematic resampling), so that the mean of m draws varies less
            than that of m independent ones: with m draws Rubin's variance between imputations is too large, by up to
            m / (m - 1) in the part that the latents give.
        missing: True for each missing cell.
        ess: The effective sample size of each mean; nan where a cell was observed.
        pareto_k: The larger of those behind mean and standard deviation; nan where a cell was observed.
        weights_pareto_k: That of the weights themselves; nan where a cell was observed.
        num_samples: The number of draws of z for each datum.
        remedies: What can be done with the pair where cells are not to be believed, as `verdict` says.

    Example:
        >>> vae = pv.VAE((3,), latent_dim=1, hidden=(8,), likelihood=pv.Gaussian(0.5), missing="mask")
        >>> filled = pv.impute(vae, torch.tensor([[1.0, torch.nan, 2.0]]), num_samples=500)
        >>> filled.value[0, [0, 2]], filled.missing.tolist()
        (tensor([1., 2.]), [[False, True, False]])
    """

    value: Tensor
    standard_deviation: Tensor
    standard_error: Tensor
    draws: Tensor = field(repr=False)
    missing: Tensor
    ess: Tensor
    pareto_k: Tensor
    weights_pareto_k: Tensor
    num_samples: int
    remedies: tuple[str, ...] = (DRAWS,)

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the filled cells, and what to do if they are not to be believed."""
        return self.verdict_in(FOR_CELLS)

    def verdict_in(self, words: Mapping[str, str]) -> str:
        """Returns the verdict; `words` has what is to be done, as it is called where the verdict is read."""
        at, why = self.missing, why_unknown(self.weights_pareto_k[self.missing], SAME.format("a cell"))
        k, ess = self.pareto_k[at], self.ess[at]
        return verdict_on_answers(k, ess, self.num_samples, self.remedies, "missing cells", why, words)

    def __repr__(self) -> str:
        num, of, error = int(self.missing.sum()), self.missing.numel(), self.standard_error[self.missing].max().item()
        deviation = self.standard_deviation[self.missing].mean().item()
        spread = f"standard deviation {deviation:.2g} on average, standard errors up to {error:.2g}"
        spread = spread if self.num_samples > 1 else "standard deviations and standard errors unknown"
        return f"{num:,} of {of:,} cells filled in, {spread}\n{self.verdict}"


@takes_pair
@evaluates
@torch.no_grad()
def impute(
    model: Callable,
    guide: Callable,
    x: Tensor,
    *y: Tensor,
    missing: Tensor | None = None,
    num_samples: int = 1_000,
    num_draws: int = 20,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> Imputation:
    """Fills in the missing cells of x given the observed ones, under a model of both.

        E[x_m | x_o] = E[E[x_m | z] | x_o],    z ~ p(z | x_o) as `posterior` weighs it

    A single imputation, the mean, is the best guess of each cell and no data set: cells are less spread and more alike
    than real ones, and what is estimated from it looks too certain. For that take several, `draws`: estimate from each
    of them and combine (Rubin's rules). The mean of a column of categories is that of their numbers, and only draws are
    categories.

    The cells must be missing at random: whether one is missing may depend on the observed cells alone. Given z they
    must not depend on the observed ones, and the model must observe them as they are; the model is run at other values
    of the observed ones to see that.

    Model and guide must take a part of the data, as a VAE with `missing="mask"` does. The other pairs that do are those
    of `conditional_log_marginal`, whose guide has an argument `mask` or takes NaN.

    Args:
        model: The generative program p(x, z) of a pair whose sites all lie in the data plate.
        guide: The proposal q(z|x), for any part of x.
        x: The data, `(batch, *event_shape)`, floating-point, NaN where a cell is missing.
        *y: What model and guide take besides (conditions).
        missing: True for each cell that is missing although x has a number there, `(batch, *event_shape)`; none by
            default.
        num_samples: The number of draws of z for each datum, behind means and standard deviations.
        num_draws: The number of imputations drawn.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `Imputation`. k of its means takes half a millisecond for each missing cell.

    Raises:
        InputError: If the pair cannot take a part of x, sums out discrete sites or has sites in other plates; if no
            cell is missing, or a missing one has no mean; or as `posterior` does.

    Example:
        >>> vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), missing="mask")
        >>> x = torch.randn(10, 4)
        >>> x[::2, 1] = torch.nan
        >>> filled = pv.impute(vae, x)
        >>> filled.value.isnan().any(), filled.draws.shape
        (tensor(False), torch.Size([20, 10, 4]))

    Source:
        Mattei and Frellsen 2019, arXiv:1812.02633; Rubin 1987, Multiple Imputation for Nonresponse in Surveys.
    """
    require_size("num_samples", num_samples)
    require_size("num_draws", num_draws)
    require_compile(compile)
    x = with_missing(x, missing)
    at = x.isnan()
    require(bool(at.any()), "x must have a missing cell (NaN), and has none")
    if isinstance(vae := getattr(model, "__self__", None), VAE) and vae.missing is not None:
        vae.check_data(x, *y)
    programs = observing_parts(model, guide)
    check_args(programs[0], (x, *y))
    there = moved((x, *y), device_of(model, tensors_in((x, *y))))
    check_guide_sees_parts(guide, there)
    check_model_sees_parts(model, guide, there)
    model, guide = programs
    made = DataGivenLatents.of(model, opened(model, guide, (x, *y), chunk_size), "impute", independent=True)
    post = posterior(
        model, guide, x, *y, num_samples=num_samples, chunk_size=chunk_size, compile=compile, progress=progress
    )

    def cells(site: Site, x: Tensor, *y: Tensor) -> Tensor:
        mean, draw = (part.double() for part in made(site, x, *y))
        return torch.where(x.isnan().unsqueeze(1), torch.stack([mean, draw, draw.square()], 2), torch.nan)

    found = post.expectation(cells, x, *y)
    mean, first, second = (value.to(x.device) for value in found.value.unbind(1))
    require(bool(first[at].isfinite().all()), "impute needs the model to observe every missing cell, and one is not")
    families = ", ".join(made.without_mean) or "one that has none everywhere"
    require(bool(mean[at].isfinite().all()), f"impute needs a likelihood that has a mean, got {families}")
    deviation = _deviation(first, second, post.ess.to(x.device))
    return Imputation(
        torch.where(at, mean.to(x), x),
        torch.where(at, deviation, 0.0).to(x),
        torch.where(at, found.standard_error[:, 0], 0.0).to(x),
        torch.where(at, of_resampled(post, model, lambda site, *rows: made(site, *rows)[1], (x, *y), num_draws), x),
        at,
        found.ess[:, 0],
        largest_k(found.pareto_k[:, 0], found.pareto_k[:, 2], found.weights_pareto_k[:, 0]),
        found.weights_pareto_k[:, 0],
        num_samples,
        found.remedies,
    )


def _deviation(first: Tensor, second: Tensor, ess: Tensor) -> Tensor:
    """Returns the standard deviation of cells from weighted means of their draws and of the squares of these.

    The mean is that of the same draws, which takes the share sum_s W_s^2 = 1 / ess of the variance away. Where one draw
    has all the weight, the spread is unknown.
    """
    left = 1 - 1 / ess.double().view(-1, *[1] * (first.dim() - 1))
    left = torch.where(left > LEAST_LEFT, left, torch.nan)
    return ((second - first.square()).clamp(min=0) / left).sqrt()


def with_missing(x: Tensor, missing: Tensor | None) -> Tensor:
    """Returns x with NaN in its missing cells, after a check of which those are."""
    require_plain("x", x)
    require(x.is_floating_point(), f"x must be a floating-point tensor, in which NaN is a missing cell, got {x.dtype}")
    if missing is None:
        return x
    require_plain("missing", missing)
    rule = f"missing must be a tensor of True and False, of shape {tuple(x.shape)}"
    found = missing.dtype if missing.dtype != torch.bool else tuple(missing.shape)
    require(missing.dtype == torch.bool and missing.shape == x.shape, f"{rule}, got {found}")
    return torch.where(missing.to(x.device), torch.nan, x)
