"""Simulation-based calibration: is the guide the posterior of the model, on the model's own data?"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import InputError, device_of, evaluates, hides_progress, local_seed, require, require_count
from pyrovae.evaluation.importance_sampling import check_args
from pyrovae.programs import PARTICLES, gate, is_masked, sample_sites

LEVEL = 0.01
TAIL = 0.1


@dataclass(frozen=True)
class Calibration:
    """What `simulation_based_calibration` returns.

    `ranks` `(num_data, latent_dim)` are whole numbers in 0 ... `num_draws`; `names` has one name for each of the
    latent dimensions, which are counted from 1: "2", or where there are several sites "2 of z1".
    """

    ranks: Tensor
    num_draws: int
    num_bins: int
    names: tuple[str, ...]

    @property
    def counts(self) -> Tensor:
        """How many ranks fall into each of `num_bins` bins of as many ranks each, `(latent_dim, num_bins)`."""
        bins = self.ranks * self.num_bins // (self.num_draws + 1)
        return (bins.unsqueeze(-1) == torch.arange(self.num_bins, device=bins.device)).sum(0)

    @property
    def p_values(self) -> Tensor:
        """Of the chi-square test of `counts` against a uniform distribution, `(latent_dim,)`, not corrected."""
        expected = len(self.ranks) / self.num_bins
        chi_square = ((self.counts.double() - expected) ** 2 / expected).sum(-1)
        degrees = torch.full_like(chi_square, self.num_bins - 1)
        return torch.special.gammaincc(degrees / 2, chi_square / 2)

    @property
    def rejected(self) -> Tensor:
        """Where p < 0.01 / latent_dim (Bonferroni): a right guide has any such dimension in 1 of 100 runs or fewer."""
        return self.p_values < LEVEL / len(self.names)

    @property
    def misfits(self) -> dict[str, str]:
        """For each dimension that is rejected how the guide is off there, by the shape of the histogram of ranks.

        "too low": what the guide draws lies below the latents that made the data.
        """
        return {
            self.names[j]: self._misfit(self.ranks[:, j].double()) for j in self.rejected.nonzero().flatten().tolist()
        }

    @property
    def verdict(self) -> str:
        """In words, with the dimensions that are off by name."""
        found, num = self.misfits, len(self.names)
        if not found:
            return (
                f"calibrated as far as {len(self.ranks)} data tell: the ranks of no latent dimension of {num} are "
                f"rejected as uniform (smallest p {self.p_values.min().item():.2g}, limit {LEVEL:g} / {num})"
            )
        kinds = {kind: [name for name, its in found.items() if its == kind] for kind in found.values()}
        text = "; ".join(f"{', '.join(names)} {kind}" for kind, names in kinds.items())
        return f"not calibrated in {len(found)} of {num} latent dimensions (p < {LEVEL:g} / {num}): {text}"

    def _misfit(self, ranks: Tensor) -> str:
        num, top = len(ranks), self.num_draws
        # Both ends of the histogram, and not its variance, say how wide q is: a mere shift empties one and fills one.
        width = max(1, round(TAIL * (top + 1)))
        share = width / (top + 1)
        error = math.sqrt(share * (1 - share) / num)
        low, high = ((tail.double().mean().item() - share) / error for tail in (ranks < width, ranks > top - width))
        off, deviation = (ranks.mean() - top / 2).item(), ranks.std().item() / math.sqrt(num)
        kinds = []
        if min(low, high) > 2:
            kinds.append("too narrow (U-shape)")
        if max(low, high) < -2:
            kinds.append("too wide (dome)")
        if abs(off) > 3.5 * deviation:  # by chance in 1 of 2,000: as rare as LEVEL asks among 20 dimensions
            kinds.append("shifted, too low (slope up)" if off > 0 else "shifted, too high (slope down)")
        return " and ".join(kinds) or "neither too narrow, too wide nor shifted, but of another shape"


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
    """Ranks of the model's own latents among the guide's draws (Talts et al. 2018, arXiv:1804.06788), at beta = 1.

    (z, x) ~ p(z) p(x|z), z_1 ... z_L ~ q(z|x), rank_j = #{l: z_lj < z_j}, with L = `num_draws`: uniform on 0 ... L for
    every latent dimension j if q(z|x) = p(z|x). U-shaped where q is too narrow, a dome where it is too wide, sloped
    where it is shifted. Draws equal to z_j, to which values near a bound are rounded, are put below or above it at
    random. `Calibration` has the test and the verdict.

    One set for each datum: `args` are what model and guide take, tensors of one length, the data first. Of the data
    only number, shape and dtype are used (zeros will do), the rest (labels) is what the model is conditioned on.
    `num_bins` must divide `num_draws` + 1, and hold 5 data each in expectation. `chunk_size` draws of the guide are
    made at a time. `progress=None` shows a bar on a terminal.

    What passes is not proved right: the test is of one dimension at a time, on data of the model's and not on real
    ones, and averaged over x: a guide that gives the prior for every x passes, too.

    Raises `InputError` if the pair breaks the contract, the model has not one observed site (or masks it), or a latent
    is discrete or has no density.
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
    for data in zip(*(arg.split(size) for arg in args), strict=True):
        with local_seed(0):
            observed, latents = _check(model, guide, list(data))
    names = tuple(
        f"{j + 1}" if len(latents) == 1 else f"{j + 1} of {name}"
        for name, width in latents.items()
        for j in range(width)
    )
    ranks, disable = [], hides_progress(progress)
    with tqdm(total=num_data, unit="datum", desc="calibration", disable=disable, leave=False) as bar:
        for x, *y in zip(*(arg.split(size) for arg in args), strict=True):
            drawn = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(x, *y))
            with pyro.plate(PARTICLES, num_draws, dim=-2):
                guessed = sample_sites(poutine.trace(guide).get_trace(drawn[observed]["value"], *y))
            found = [_ranks(drawn[name]["value"], guessed[name]["value"]).reshape(len(x), -1) for name in latents]
            ranks.append(torch.cat(found, 1))
            bar.update(len(x))
    return Calibration(torch.cat(ranks).to(home), num_draws, num_bins, names)


def _ranks(value: Tensor, draws: Tensor) -> Tensor:
    """How many of the draws, along their first dimension, are below the value; of those equal to it a random number.

    Rounding makes equals of what is continuous: in float32 half of the draws of Beta(0.1, 0.1) above 1/2 are 1.
    """
    below, equal = (draws < value).sum(0), (draws == value).sum(0)
    return below + (torch.rand(equal.shape, dtype=torch.float64, device=equal.device) * (equal + 1)).long()


def _check(model: Callable, guide: Callable, data: list[Tensor]) -> tuple[str, dict[str, int]]:
    """The name of the one observed site, and the number of dimensions of each latent one, after all checks."""
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
    for name, site in pair.latent.items():
        if site["fn"].support.is_discrete:
            raise InputError(f'ranks need latents that are continuous, got {site["fn"].support} at site "{name}"')
    return observed[0], {name: site["value"][0, 0].numel() for name, site in pair.latent.items()}
