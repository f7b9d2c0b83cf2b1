"""Draws with importance weights, which answer questions about the latents given the data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import (
    derived_seed,
    device_of,
    evaluation_mode,
    local_seed,
    require,
    require_callable,
    require_choice,
    require_number,
    require_plain,
    require_size,
)
from pyrovae.evaluation.arguments import tensors_in
from pyrovae.evaluation.arviz_export import as_arviz
from pyrovae.evaluation.chunks import Data
from pyrovae.evaluation.draw_runs import DrawRuns
from pyrovae.evaluation.estimate import MarginalLikelihood
from pyrovae.evaluation.expectation import Expectation, Site, expectation_of, verdict_on_answers
from pyrovae.evaluation.importance_weights import smoothed_log_weights
from pyrovae.evaluation.quantiles import BEYOND, LEAST_BEYOND, quantiles_of
from pyrovae.evaluation.resampling import in_blocks, resampled_in_groups
from pyrovae.evaluation.sampled_weights import joined
from pyrovae.evaluation.weights_verdict import RELIABLE_PARETO_K, largest_k


class WeightedDraws:
    """Holds weighted draws of the posterior of each datum, as `posterior` and `annealed_posterior` return them.

    All questions are answered from the same draws. Results are for each datum, the batch in front; for data that share
    latents it is 1. A latent that a mask leaves out of a datum is NaN there, and so is every answer about it.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=1_000)
        >>> post.shapes
        {'z': (2,)}
        >>> print(post)
        1,000 weighted draws of z for each of 4 data
        reliable as far as its own draws can tell: Pareto k <= 0.67 at all 4 data; smallest effective sample size ...
        >>> post.log_marginal.log_px.shape
        torch.Size([4])
    """

    def __init__(
        self,
        programs: tuple[Callable, Callable],
        args: tuple,
        runs: DrawRuns,
        shapes: Mapping[str, tuple[int, ...]],
        log_px: MarginalLikelihood,
        described: str,
        remedies: Callable[[Tensor], tuple[str, ...]],
        smoothed: bool,
        factor: str | None,
    ) -> None:
        self.num_samples = log_px.num_samples
        self._programs, self._args, self._runs = programs, args, runs
        self._shapes, self._described, self._smoothed, self._factor = shapes, described, smoothed, factor
        self._all_remedies = cache(lambda: remedies(log_px.is_unreliable))
        self._log_marginal = replace(log_px, remedies=self._remedies_of(log_px))

    @property
    def log_marginal(self) -> MarginalLikelihood:
        """log p(x) from the same draws, as `pv.log_marginal` returns it."""
        why = f'site "{self._factor}" is a factor, and the joint is then not normalised'
        require(self._factor is None, f"log p(x) does not exist or cannot be had: {why}")
        return self._log_marginal

    @property
    def ess(self) -> Tensor:
        """The effective sample size of the weights, `(batch,)`, between 1 and `num_samples`."""
        return self._log_marginal.ess

    @property
    def pareto_k(self) -> Tensor:
        """The shape of the tail of the weights, `(batch,)`; see `log_marginal`."""
        return self._log_marginal.pareto_k

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The latents that can be asked for, each with the shape that it has for one datum."""
        return {name: tuple(shape) for name, shape in self._shapes.items()}

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe answers, as the weights tell; every answer has a verdict of its own."""
        return verdict_on_answers(self.pareto_k, self.ess, self.num_samples, self._log_marginal.remedies, "data")

    def __repr__(self) -> str:
        return f"{self._described}\n{self.verdict}"

    def expectation(self, f: Callable[..., Tensor], *data: Tensor) -> Expectation:
        """Estimates E[f(z) | x] for each datum.

        Args:
            f: Is given a dict of the latents by name, each `(draws, data, *shape)` with the `shape` of `shapes` and as
                many draws and data at a time as memory allows, and returns `(draws, data, *event)`: numbers or truth
                values, whose means are probabilities. It must treat each draw of each datum alone. It may draw random
                numbers, as a predictive f does: they are the same each time.
            *data: What f needs of each datum besides, such as conditions, each `(batch, ...)`: f is given the rows
                `(data, ...)` of each after the dict.

        Returns:
            An `Expectation` with tensors `(batch, *event)`.

        Raises:
            InputError: If f returns another shape, something else than real numbers, or a number that is not finite;
                if `data` are not of this batch; or if the pair is not the one any more that was given to `posterior`.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=1_000)
            >>> post.expectation(lambda site: vae.decode(site["z"]).mean).value.shape  # E[E[x'|z] | x], a prediction
            torch.Size([4, 3])
            >>> centre = torch.randn(4, 2)
            >>> post.expectation(lambda site, centre: (site["z"] - centre).norm(dim=-1), centre).value.shape
            torch.Size([4])
        """
        require_callable("f", f)
        for tensor in data:
            require_plain("data", tensor)
            fits, found = tensor.shape[:1] == self.ess.shape, tuple(tensor.shape)
            require(fits, f"data must have shape ({len(self.ess)}, ...), as there are so many data, got {found}")
        parts = []
        with evaluation_mode(*self._programs, f), torch.no_grad():
            for chunk, seed, log_w, draws in self._runs:
                rows = [tensor[chunk.start : chunk.stop].to(log_w.device) for tensor in data]
                with local_seed(derived_seed(seed, "f")):
                    parts.append(expectation_of(f, log_w, draws, rows, self._used(log_w)))
        value, error, ess, k, bias = joined(parts, self._args, dim=0)
        return self._answer(value, error, ess, k, bias, value.dim() - 1)

    def mean(self, name: str) -> Expectation:
        """Estimates E[z | x] for each datum, for the latent called `name`.

        Args:
            name: The name of a latent of `shapes`.

        Returns:
            An `Expectation` with tensors `(batch, *shape)`.

        Raises:
            InputError: If there is no such latent.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=50).mean("z").value.shape
            torch.Size([4, 2])
        """
        self._require_latent(name)
        return self.expectation(lambda site: site[name])

    def quantile(self, name: str, levels: float | Sequence[float]) -> Expectation:
        """Estimates quantiles of a latent given x, for each datum and each element of it.

            q = the least z_s with sum_r W_r 1{z_r <= z_s} >= level

        or, where the sum equals the level, halfway between this draw and the next: the answer for 1 - level is then
        that of -z. The standard error is half the distance between the quantiles at level - e and level + e, where e is
        the standard error of the probability to be below q. It is nan where one of them lies beyond the draws. Where it
        is, or where fewer than 5 effective draws are above q or below it, k is unknown, and q not called reliable.

        Args:
            name: The name of a latent of `shapes`.
            levels: A number between 0 and 1, or several.

        Returns:
            An `Expectation` with tensors `(levels, batch, *shape)`; `(batch, *shape)` for one number.

        Raises:
            InputError: If there is no such latent, or a level is not between 0 and 1.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=1_000)
            >>> post.quantile("z", (0.05, 0.95)).value.shape
            torch.Size([2, 4, 2])

        Source:
            Woodruff 1952, Journal of the American Statistical Association 47 (the standard error).
        """
        self._require_latent(name)
        wanted = list(levels) if isinstance(levels, list | tuple) else [levels]
        require(len(wanted) > 0, "levels must hold at least one number, got none")
        for level in wanted:
            require_number("levels", level, 0, 1)
        at = torch.tensor(wanted, dtype=torch.float64)
        parts = []
        with evaluation_mode(*self._programs), torch.no_grad():
            for _, _, log_w, draws in self._runs:
                parts.append(quantiles_of(at.to(log_w.device), self._used(log_w), draws[name]))
        found = joined(parts, self._args, dim=1)
        value, error, ess, beyond = found if isinstance(levels, list | tuple) else (one[0] for one in found)
        is_known = error.isfinite() & (beyond > LEAST_BEYOND * (1 - 1e-9))
        k = torch.where(is_known, self.pareto_k.reshape(-1, *[1] * len(self.shapes[name])), torch.nan)
        return replace(
            self._answer(value, error, ess, k, torch.zeros_like(value), len(self.shapes[name])), unknown=BEYOND
        )

    def sample(self, num_samples: int) -> Site:
        """Draws the latents of each datum anew from the weighted draws: they are then of equal weight.

        The draws of a datum come in random order, and all latents of one draw belong together. Resampling is
        systematic: a draw with the share W_s of the weights comes floor(n W_s) or ceil(n W_s) times, so that the
        choice itself adds as little noise as it can; drawn independently (multinomial), even equal weights would repeat
        some and lose others. More draws than `ess` must repeat some.

        Args:
            num_samples: The number of draws n for each datum.

        Returns:
            A dict of the latents by name, each `(num_samples, batch, *shape)`.

        Raises:
            InputError: If `num_samples` is no positive whole number.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=1_000)
            >>> post.sample(100)["z"].shape
            torch.Size([100, 4, 2])

        Source:
            Kitagawa 1996, Journal of Computational and Graphical Statistics 5 (systematic resampling).
        """
        require_size("num_samples", num_samples)
        parts = []
        with evaluation_mode(*self._programs), torch.no_grad():
            for _, _, draws in self._of_equal_weight(num_samples):
                parts.append(tuple(draws[name] for name in self.shapes))
        return dict(zip(self.shapes, joined(parts, self._args, dim=1), strict=True))

    def to_arviz(self, num_samples: int = 1_000) -> Any:
        """Returns draws of equal weight, as `sample` makes them, in the form that ArviZ summarises and draws.

        The group "posterior" has each latent with the dimensions chain (of length 1), draw, datum and those of
        `shapes`. ArviZ takes the draws for independent, and its own effective sample size and errors do not know that
        some repeat: `ess` and the errors of `mean` do.

        Args:
            num_samples: The number of draws for each datum.

        Returns:
            An `arviz.InferenceData`; from ArviZ 1.0 on an `xarray.DataTree`.

        Raises:
            InputError: If ArviZ is not installed (`pip install 'pyrovae[arviz]'`), or as `sample` does.
        """
        return as_arviz(self.sample(num_samples))

    # The draws --------------------------------------------------------------------------------------------------------

    def _used(self, log_w: Tensor) -> Tensor:
        """Returns the log-weights that questions are answered with, from those of the draws as they are."""
        return smoothed_log_weights(log_w) if self._smoothed else log_w

    def _of_equal_weight(self, num_samples: int, groups: int = 1) -> Iterator[tuple[Data, int, Site]]:
        """Yields for one run of data of this process after another: the data, a seed, and draws as `sample` has them.

        Of several `groups` each has so many; see `resampled_in_groups`. The caller sees to the programs' mode, and that
        no gradient is recorded.
        """
        stream = int(torch.randint(2**62, ()))
        for chunk, seed, log_w, draws in self._runs:
            own = derived_seed(seed, f"sample {stream}")
            with local_seed(own):
                index = resampled_in_groups(self._used(log_w), num_samples, groups)
            data = torch.arange(log_w.shape[1], device=log_w.device)
            yield chunk, derived_seed(own, "f"), {name: draws[name][index, data] for name in self.shapes}

    def _answer(
        self, value: Tensor, error: Tensor, ess: Tensor, k: Tensor, bias: Tensor, event_dim: int
    ) -> Expectation:
        """Returns values `(..., batch, *event)` with their errors, each with its k."""
        of_weights = [one.reshape(-1, *[1] * event_dim).expand_as(value) for one in (self.pareto_k, self.ess)]
        weights_k, weights_ess = (torch.where(value.isnan(), torch.nan, one) for one in of_weights)
        # Where one weight outweighs the others, the spread of f and its error vanish, and their ratio says nothing.
        is_fine = largest_k(k, weights_k) <= RELIABLE_PARETO_K
        ess = torch.where(is_fine, ess, torch.minimum(ess, weights_ess))
        found = Expectation(value, error, ess, k, weights_k, bias, self.num_samples)
        return replace(found, remedies=self._remedies_of(found))

    def _remedies_of(self, found: MarginalLikelihood | Expectation) -> tuple[str, ...]:
        """Returns what helps the pair if anything is not to be believed; only then is it found out."""
        return self._all_remedies() if bool(found.is_unreliable.any()) else found.remedies

    def _require_latent(self, name: str) -> None:
        require_choice("name", name, self.shapes)


def of_resampled(
    post: WeightedDraws,
    model: Callable,
    function: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    num: int,
    groups: int = 1,
) -> Tensor:
    """Returns a function of resampled latents and of rows of `args`, `(groups * num, batch, ...)`; see `in_blocks`."""
    with evaluation_mode(model, function), torch.no_grad():
        runs, device = post._of_equal_weight(num, groups), device_of(model, tensors_in(args))
        parts = in_blocks(runs, device, function, args, groups * num)
    return joined(parts, args, dim=1)[0]
