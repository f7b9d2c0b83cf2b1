"""Simulation-based calibration: tests on the model's own data whether the guide is the posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import (
    InputError,
    device_of,
    evaluates,
    local_seed,
    progress_bar,
    require,
    require_count,
    require_size,
)
from pyrovae.data import moved
from pyrovae.evaluation.arguments import check_args, home_of, tensors_in
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.rows import as_rows, data_dim_of, require_rows
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import (
    Layout,
    drawn_anew,
    drawn_sites,
    gate,
    guide_draws,
    is_masked,
    require_new_draws,
    require_no_masks,
    sample_sites,
    takes_pair,
)

SIGNIFICANCE = 0.01
TAIL_SHARE = 0.1


@dataclass(frozen=True)
class Calibration:
    """Holds the ranks of simulation-based calibration and tests them, as `simulation_based_calibration` returns it.

    Args:
        ranks: The ranks, whole numbers in 0 ... `num_draws`, `(num_data, latent_dim)`.
        num_draws: The number of the guide's draws for each datum.
        num_bins: The number of bins of the histograms; it divides `num_draws` + 1.
        names: A name for each latent dimension, counted from 1: "2", or "2 of z1" if there are several sites.
    """

    ranks: Tensor
    num_draws: int
    num_bins: int
    names: tuple[str, ...]

    @property
    def counts(self) -> Tensor:
        """The number of ranks in each of `num_bins` bins of equal width, `(latent_dim, num_bins)`."""
        bins = self.ranks * self.num_bins // (self.num_draws + 1)
        return (bins.unsqueeze(-1) == torch.arange(self.num_bins, device=bins.device)).sum(0)

    @property
    def p_values(self) -> Tensor:
        """The p-values of the chi-square test of `counts` against a uniform distribution, `(latent_dim,)`.

        They are not corrected for the number of dimensions.
        """
        expected = len(self.ranks) / self.num_bins
        chi_square = ((self.counts.double() - expected) ** 2 / expected).sum(-1)
        degrees = torch.full_like(chi_square, self.num_bins - 1)
        return torch.special.gammaincc(degrees / 2, chi_square / 2)

    @property
    def rejected(self) -> Tensor:
        """True where p < 0.01 / latent_dim (Bonferroni), `(latent_dim,)`.

        For an exact guide this happens, in any dimension, in at most 1 of 100 runs.
        """
        return self.p_values < SIGNIFICANCE / len(self.names)

    @property
    def misfits(self) -> dict[str, str]:
        """For each rejected dimension, by name, what is wrong with the guide, read from the histogram of ranks.

        "too low" means that the guide's draws lie below the latents that made the data.
        """
        return {
            self.names[j]: self._misfit(self.ranks[:, j].double()) for j in self.rejected.nonzero().flatten().tolist()
        }

    @property
    def verdict(self) -> str:
        """A sentence that says if the guide is calibrated, and names the dimensions in which it is not."""
        found, num = self.misfits, len(self.names)
        if not found:
            return (
                f"calibrated as far as {len(self.ranks)} data tell: the ranks of no latent dimension of {num} are "
                f"rejected as uniform (smallest p {self.p_values.min().item():.2g}, limit {SIGNIFICANCE:g} / {num})"
            )
        kinds = {kind: [name for name, its in found.items() if its == kind] for kind in found.values()}
        text = "; ".join(f"{', '.join(names)} {kind}" for kind, names in kinds.items())
        return f"not calibrated in {len(found)} of {num} latent dimensions (p < {SIGNIFICANCE:g} / {num}): {text}"

    def __repr__(self) -> str:
        return self.verdict

    def _misfit(self, ranks: Tensor) -> str:
        """Returns in words what the ranks of one dimension say about the guide."""
        num, top = len(ranks), self.num_draws
        # The two ends of the histogram, and not its variance, tell the width of q: a mere shift empties one end and
        # fills the other.
        width = max(1, round(TAIL_SHARE * (top + 1)))
        share = width / (top + 1)
        error = math.sqrt(share * (1 - share) / num)
        low, high = ((tail.double().mean().item() - share) / error for tail in (ranks < width, ranks > top - width))
        off, deviation = (ranks.mean() - top / 2).item(), ranks.std().item() / math.sqrt(num)
        kinds = []
        if min(low, high) > 2:
            kinds.append("too narrow (U-shape)")
        if max(low, high) < -2:
            kinds.append("too wide (dome)")
        if abs(off) > 3.5 * deviation:  # by chance in 1 of 2,000: as rare as SIGNIFICANCE asks among 20 dimensions
            kinds.append("shifted, too low (slope up)" if off > 0 else "shifted, too high (slope down)")
        return " and ".join(kinds) or "neither too narrow, too wide nor shifted, but of another shape"


@takes_pair
@evaluates
@torch.no_grad()
def simulation_based_calibration(
    model: Callable,
    guide: Callable,
    *args: object,
    num_draws: int = 99,
    num_bins: int = 20,
    chunk_size: int = 8_192,
    progress: bool | None = None,
) -> Calibration:
    """Ranks the latents that the model draws among the guide's draws, to test if q(z|x) = p(z|x), at beta = 1.

        (z, x) ~ p(z) p(x|z),    z_1 ... z_L ~ q(z|x),    rank_j = #{l: z_lj < z_j}

    If q(z|x) = p(z|x), the ranks are uniform on 0 ... L for every latent dimension j. Their histogram has the shape of
    a U if q is too narrow, of a dome if it is too wide, and a slope if it is shifted. Draws that equal z_j, as rounding
    makes them near a bound, count as below or above it at random.

    A guide that passes is not proved right. The test looks at one dimension at a time, at data of the model and not at
    real ones, and averages over x: a guide that gives the prior for every x passes, too.

    Args:
        model: The generative program p(x, z) of a pair with one observed site.
        guide: Its guide.
        *args: What model and guide take, the tensor of data first. Only the number, shape and dtype of the data are
            used (zeros will do). The model is conditioned on the others (labels). One set of latents is drawn for each
            datum.
        num_draws: The number L of the guide's draws for each datum.
        num_bins: The number of bins of the histograms. It must divide `num_draws` + 1, and each bin must hold 5 data in
            expectation.
        chunk_size: The number of the guide's draws that are made at a time.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `Calibration` with the ranks, the test and the verdict.

    Raises:
        InputError: If the pair is refused, the model does not have exactly one observed site or masks it, or a
            latent is discrete, masked, without a density, or shared by the data.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> result = pv.simulation_based_calibration(vae.model, vae.exact_guide, torch.zeros(200, 3))
        >>> result.counts.shape, result.counts.sum(1)
        (torch.Size([2, 20]), tensor([200, 200]))

    Source:
        Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv:1804.06788.
    """
    require_size("num_draws", num_draws)
    require_size("num_bins", num_bins, 2)
    require_count("chunk_size", chunk_size)
    require(
        (num_draws + 1) % num_bins == 0,
        f"num_bins must divide num_draws + 1 = {num_draws + 1}, so that bins hold equally many ranks; got {num_bins}",
    )
    check_args(model, args)
    device = device_of(model, tensors_in(args))
    with local_seed(0):
        observed, x = _drawn_data(model, moved(args, device))
    found = opened(model, guide, (x, *args[1:]))
    layout, num_data = found.pair.layout, found.data.size
    require_rows("simulation_based_calibration", layout, "rank a draw of theta in many data sets", vectorized=False)
    check_subsamples("simulation_based_calibration", model, guide, found)
    require(
        num_data >= 5 * num_bins,
        f"{num_bins} bins need at least {5 * num_bins} data (5 each), got {num_data}",
    )
    size = max(1, chunk_size // num_draws)
    chunks = list(cut(model, guide, found, size).in_chunks(size))
    for data in chunks:
        with local_seed(0):
            latents = _checked_latents(model, guide, data.args)
    if len(chunks) > 1:
        require_new_draws(poutine.uncondition(model), *chunks[0].args)
        gate.check_new_draws(found.pair, model, guide, *chunks[0].args)
    ranks = []
    with progress_bar(progress, num_data, "calibration", "datum") as bar:
        for data in chunks:
            drawn = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*data.args))
            new = (drawn_anew(drawn[observed], data.args[0]), *data.args[1:])
            guessed = guide_draws(guide, *new, num_particles=num_draws, layout=layout)
            parts = [_ranks(*_coordinates(drawn[n]["value"], guessed[n], site, layout)) for n, site in latents.items()]
            ranks.append(torch.cat(parts, 1))
            bar.update(data.size)
    names = tuple(
        f"{j + 1}" if len(latents) == 1 else f"{j + 1} of {name}"
        for name, part in zip(latents, parts, strict=True)
        for j in range(part.shape[1])
    )
    return Calibration(torch.cat(ranks).to(home_of(args)), num_draws, num_bins, names)


def _coordinates(value: Tensor, draws: Tensor, site: dict, layout: Layout) -> tuple[Tensor, Tensor]:
    """Returns a site's value `(data, coordinates)`, and the draws of the guide, `(draws, data, coordinates)`."""
    event_dim, data_dim = site["fn"].event_dim, data_dim_of(site, layout)

    def rows(one: Tensor) -> Tensor:
        return as_rows(one, one.dim() - event_dim, data_dim, layout)

    own, guessed = rows(value), rows(draws) if layout.is_vectorized else torch.stack([rows(one) for one in draws])
    return own.reshape(len(own), -1), guessed.reshape(*guessed.shape[:2], -1)


def _ranks(value: Tensor, draws: Tensor) -> Tensor:
    """Returns how many of the draws, along their first dimension, lie below the value.

    A random number of those that equal it is added. Rounding makes continuous values equal: in float32, half of the
    draws of Beta(0.1, 0.1) above 1/2 are 1.
    """
    below, equal = (draws < value).sum(0), (draws == value).sum(0)
    return below + (torch.rand(equal.shape, dtype=torch.float64, device=equal.device) * (equal + 1)).long()


def _drawn_data(model: Callable, args: tuple) -> tuple[str, Tensor]:
    """Returns the name of the model's one observed site, and a draw of it in place of the data."""
    x = args[0] if args else None
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor, whose place draws can take, got {type(x).__name__}")
    drawn = drawn_sites(poutine.uncondition(model), *args)
    observed = [name for name, site in drawn.items() if site["infer"].get("was_observed")]
    require(len(observed) == 1, f"the model must have one observed site, that of the data, got {observed}")
    site, value = drawn[observed[0]], drawn[observed[0]]["value"]
    masked = is_masked(site) and "observes" not in site["infer"]  # the mask of missing cells is that of every draw
    require(not masked, f'the observed site "{observed[0]}" must not be masked')
    require(
        value.shape == x.shape and value.dtype == x.dtype,
        f'a draw of the observed site "{observed[0]}" must be like the data, '
        f"{tuple(x.shape)} {x.dtype}, got {tuple(value.shape)} {value.dtype}",
    )
    return observed[0], drawn_anew(site, x)


def _checked_latents(model: Callable, guide: Callable, args: tuple) -> dict[str, dict]:
    """Returns the latent sites of the model, after a check that they have ranks."""
    pair = gate.check(model, guide, None, *args)
    pair.check_densities(auxiliary=True)
    require_no_masks(pair, "ranks need latents that every datum has")
    for name, site in pair.latent.items():
        if site["fn"].support.is_discrete:
            raise InputError(f'ranks need latents that are continuous, got {site["fn"].support} at site "{name}"')
    return pair.latent
