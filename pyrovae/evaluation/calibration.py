"""Simulation-based calibration: tests on the model's own data whether the guide is the posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, device_of, evaluates, local_seed, progress_bar, require, require_count
from pyrovae.evaluation.chunks import check_args, in_chunks
from pyrovae.programs import gate, is_masked, particles, require_no_masks, sample_sites, takes_pair

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
    *args: Tensor,
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
        model: The model of any pair that keeps the contract, with one observed site.
        guide: Its guide.
        *args: The tensors that model and guide take, of one length, the data first. Only the number, shape and dtype of
            the data are used (zeros will do). The model is conditioned on the others (labels). One set of latents is
            drawn for each datum.
        num_draws: The number L of the guide's draws for each datum.
        num_bins: The number of bins of the histograms. It must divide `num_draws` + 1, and each bin must hold 5 data in
            expectation.
        chunk_size: The number of the guide's draws that are made at a time.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `Calibration` with the ranks, the test and the verdict.

    Raises:
        InputError: If the pair breaks the contract, the model does not have exactly one observed site or masks it, or a
            latent is discrete, masked or without a density.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> result = pv.simulation_based_calibration(vae.model, vae.exact_guide, torch.zeros(200, 3))
        >>> result.counts.shape, result.counts.sum(1)
        (torch.Size([2, 20]), tensor([200, 200]))

    Source:
        Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv:1804.06788.
    """
    require_count("num_draws", num_draws)
    require_count("num_bins", num_bins, 2)
    require_count("chunk_size", chunk_size)
    require(
        (num_draws + 1) % num_bins == 0,
        f"num_bins must divide num_draws + 1 = {num_draws + 1}, for bins of as many ranks each, got {num_bins}",
    )
    check_args(args)
    num_data = len(args[0])
    require(
        num_data >= 5 * num_bins,
        f"{num_bins} bins need at least {5 * num_bins} data (5 each), got {num_data}",
    )
    device, home = device_of(model, args), args[0].device
    args = tuple(arg.to(device) for arg in args)
    size = max(1, chunk_size // num_draws)
    for data in in_chunks(args, size):
        with local_seed(0):
            observed, latents = _check_pair(model, guide, list(data))
    names = tuple(
        f"{j + 1}" if len(latents) == 1 else f"{j + 1} of {name}"
        for name, width in latents.items()
        for j in range(width)
    )
    ranks = []
    with progress_bar(progress, num_data, "calibration", "datum") as bar:
        for x, *y in in_chunks(args, size):
            drawn = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(x, *y))
            with particles(num_draws):
                guessed = sample_sites(poutine.trace(guide).get_trace(drawn[observed]["value"], *y))
            found = [_ranks(drawn[name]["value"], guessed[name]["value"]).reshape(len(x), -1) for name in latents]
            ranks.append(torch.cat(found, 1))
            bar.update(len(x))
    return Calibration(torch.cat(ranks).to(home), num_draws, num_bins, names)


def _ranks(value: Tensor, draws: Tensor) -> Tensor:
    """Returns how many of the draws, along their first dimension, lie below the value.

    A random number of those that equal it is added. Rounding makes continuous values equal: in float32, half of the
    draws of Beta(0.1, 0.1) above 1/2 are 1.
    """
    below, equal = (draws < value).sum(0), (draws == value).sum(0)
    return below + (torch.rand(equal.shape, dtype=torch.float64, device=equal.device) * (equal + 1)).long()


def _check_pair(model: Callable, guide: Callable, data: list[Tensor]) -> tuple[str, dict[str, int]]:
    """Checks the pair; returns the name of its observed site and the number of dimensions of each latent one."""
    x, *y = data
    drawn = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*data))
    observed = [name for name, site in drawn.items() if site["infer"].get("was_observed")]
    require(len(observed) == 1, f"the model must have one observed site, that of the data, got {observed}")
    value = drawn[observed[0]]["value"]
    require(not is_masked(drawn[observed[0]]), f'the observed site "{observed[0]}" must not be masked')
    require(
        value.shape == x.shape and value.dtype == x.dtype,
        f'a draw of the observed site "{observed[0]}" must be like the data it takes the place of, '
        f"{tuple(x.shape)} {x.dtype}, got {tuple(value.shape)} {value.dtype}",
    )
    pair = gate.check(model, guide, None, value, *y)
    pair.check_densities(auxiliary=True)
    require_no_masks(pair, "ranks need latents that every datum has")
    for name, site in pair.latent.items():
        if site["fn"].support.is_discrete:
            raise InputError(f'ranks need latents that are continuous, got {site["fn"].support} at site "{name}"')
    return observed[0], {name: site["value"][0, 0].numel() for name, site in pair.latent.items()}
