"""Missing cells of x given the observed ones, under a VAE: their means, standard deviations and draws."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.common import evaluates, require, require_compile, require_size
from pyrovae.evaluation.chunks import PAIRS_PER_CHUNK
from pyrovae.evaluation.expectation import Site, verdict_on_answers, why_unknown
from pyrovae.evaluation.posterior_expectations import posterior
from pyrovae.evaluation.remedy_words import DRAWS
from pyrovae.evaluation.weights_verdict import largest_k
from pyrovae.models import VAE
from pyrovae.programs import takes_pair


@dataclass(frozen=True)
class Imputation:
    """Holds data with their missing cells filled in, as `impute` returns it.

    Every tensor but `draws` has the shape of x, `(batch, *event_shape)`. The standard deviation says how far a cell may
    lie from its mean, and does not fall with the number of draws; the standard error, how well that mean is known.

    Args:
        value: x with E[x_m | x_o] in the place of its missing cells.
        standard_deviation: That of x_m given x_o, in units of x; 0 where a cell was observed, nan for one draw.
        standard_error: The Monte Carlo error of `value`; 0 where a cell was observed, nan for one draw.
        draws: x with missing cells drawn from p(x_m | x_o), `(num_draws, batch, *event_shape)`.
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
        at, why = self.missing, why_unknown(self.weights_pareto_k[self.missing], "a cell")
        k, ess = self.pareto_k[at], self.ess[at]
        return verdict_on_answers(k, ess, self.num_samples, self.remedies, "missing cells", why)

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
    num_samples: int = 1_000,
    num_draws: int = 20,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> Imputation:
    """Fills in the missing cells of x given the observed ones, under a VAE with `missing="mask"`.

        E[x_m | x_o] = E[E[x_m | z] | x_o],    z ~ p(z | x_o) as `posterior` weighs it

    A single imputation, the mean, is the best guess of each cell and no data set: cells are less spread and more alike
    than real ones, and what is estimated from it looks too certain. For that take several, `draws`: estimate from each
    of them and combine (Rubin's rules). The mean of a column of categories is that of their numbers, and only draws are
    categories.

    The cells must be missing at random: whether one is missing may depend on the observed cells alone.

    Args:
        model: The VAE, which stands for its model and guide, or the method `model` of one.
        guide: Its guide, or another proposal q(z|x), if `model` is given alone.
        x: The data, `(batch, *event_shape)`, NaN where a cell is missing.
        *y: The conditions, if the VAE has any.
        num_samples: The number of draws of z for each datum, behind means and standard deviations.
        num_draws: The number of imputations drawn.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `Imputation`. k of its means takes half a millisecond for each missing cell.

    Raises:
        InputError: If it is not the model of a VAE with `missing="mask"`, no cell is missing, or as `posterior` does.

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
    vae = getattr(model, "__self__", None)
    has_missing = isinstance(vae, VAE) and vae.missing is not None
    require(has_missing, 'impute needs the model of a VAE with missing="mask"')
    assert isinstance(vae, VAE)
    vae.check_data(x, *y)
    missing = x.isnan()
    require(bool(missing.any()), "x must have a missing cell (NaN), and has none")
    post = posterior(
        model, guide, x, *y, num_samples=num_samples, chunk_size=chunk_size, compile=compile, progress=progress
    )
    code = "z" if "z" in post.shapes else "z1"  # of a prior with layers, what the decoder takes

    def cells(site: Site, missing: Tensor, *y: Tensor) -> Tensor:
        x_given_z = vae.decode(site[code], *y)
        draw = x_given_z.sample().double()
        parts = torch.stack([x_given_z.mean.double(), draw, draw.square()], 2)
        return torch.where(missing.unsqueeze(1), parts, torch.nan)

    found = post.expectation(cells, missing, *y)
    mean, first, second = (value.to(x.device) for value in found.value.unbind(1))
    exists = bool(mean[missing].isfinite().all())
    require(exists, f"impute needs a likelihood that has a mean, got {type(vae.likelihood).__name__}")
    deviation = (second - first.square()).clamp(min=0).sqrt() if num_samples > 1 else torch.full_like(mean, torch.nan)
    return Imputation(
        torch.where(missing, mean.to(x), x),
        torch.where(missing, deviation, 0.0).to(x),
        torch.where(missing, found.standard_error[:, 0], 0.0).to(x),
        torch.where(missing, _drawn(vae, post.sample(num_draws)[code], y, x), x),
        missing,
        found.ess[:, 0],
        largest_k(found.pareto_k[:, 0], found.pareto_k[:, 2], found.weights_pareto_k[:, 0]),
        found.weights_pareto_k[:, 0],
        num_samples,
        found.remedies,
    )


def _drawn(vae: VAE, z: Tensor, y: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Returns draws of x given each z, `(draws, batch, *event_shape)`, on the device of x."""
    device = next(vae.parameters()).device
    y = tuple(value.to(device) for value in y)
    parts = z.split(max(1, PAIRS_PER_CHUNK // z.shape[1]))
    return torch.cat([vae.decode(part.to(device), *y).sample().to(x) for part in parts])
