"""One front for all estimates of log p(x): method by method, with errors and times, and models compared in pairs."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, TorchDistribution
from tabulate import tabulate
from torch import Tensor

from pyrovae.common import (
    InputError,
    derived_seed,
    device_of,
    evaluates,
    local_seed,
    require,
    require_count,
    require_seed,
)
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal
from pyrovae.evaluation.importance_sampling import (
    Estimate,
    MarginalLikelihood,
    check_args,
    check_in_parts,
    importance_bound,
    log_marginal,
)
from pyrovae.programs import Pair, Weights

ELBO_DRAWS = 100
IWAE_REPEATS = 10
CHECKED = 1_024
METHODS = "elbo, iwae_K, is_S, ais_T or ais_prior_T (K particles, S samples, T distributions)"


@dataclass(frozen=True)
class Measured:
    """One method's estimate, in nats per datum, and the seconds that it took."""

    method: str
    estimate: Estimate
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns; prints as a table.

    Bits per dimension are -sum_n log p(x_n) / (log 2 sum_n D_n) + `bits_offset`, with D_n the dimensions of datum n
    that are observed: those that a mask leaves out have no part in log p(x_n), and do not count. `event_size` is the
    mean of D_n; `bits_offset` is 0 for discrete data, 8 for pixels of 256 levels dequantised to [0, 1], and None where
    there is no such number, or nothing is observed.
    """

    measured: tuple[Measured, ...]
    event_size: float
    bits_offset: float | None

    def __getitem__(self, method: str) -> Measured:
        for one in self.measured:
            if one.method == method:
                return one
        raise InputError(f"method must be one of {', '.join(m.method for m in self.measured)}; got {method!r}")

    def bits_per_dimension(self, nats: float) -> float | None:
        if self.bits_offset is None:
            return None
        return self.bits_offset - nats / (self.event_size * math.log(2))

    @cached_property
    def best(self) -> Measured:
        """The largest mean: all are stochastic lower bounds on log p(x), so that the largest is the nearest."""
        return max(self.measured, key=lambda one: one.estimate.mean)

    @property
    def verdict(self) -> str:
        """What to make of the table, in a sentence or two."""
        text = f"all are lower bounds in expectation, and the best is {self.best.method}"
        importance = [m for m in self.measured if isinstance(m.estimate, MarginalLikelihood)]
        if importance:
            largest = max(importance, key=lambda one: one.estimate.num_samples)
            text += f"; {largest.method}: {largest.estimate.verdict}"
        return text

    def difference(self, other: "Evaluation", method: str) -> Estimate:
        """This model's estimate minus the other's on the same data, datum by datum: `.data_error` is the paired one.

        So is the Monte Carlo error (see `Estimate.minus`): from one seed, the default, two models share their draws,
        and near-equal ones are told apart by far less than either's error.
        """
        one, two = self[method].estimate, other[method].estimate
        require(
            len(one.value) == len(two.value),
            f"both must be of the same data, got {len(one.value)} and {len(two.value)}",
        )
        return one.minus(two)

    def rows(self) -> list[dict[str, float | str | None]]:
        """A dict for each method, of plain numbers; what is not known is None."""

        def known(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        return [
            {
                "method": one.method,
                "nats": one.estimate.mean,
                "monte_carlo_error": known(one.estimate.monte_carlo_error),
                "data_error": known(one.estimate.data_error) if len(one.estimate.value) > 1 else None,
                "bits_per_dimension": self.bits_per_dimension(one.estimate.mean),
                "seconds": one.seconds,
            }
            for one in self.measured
        ]

    def table(self, tablefmt: str = "simple") -> str:
        """As text, or `tablefmt="github"`."""

        def text(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        lines = [
            [
                row["method"], f"{row['nats']:.3f}", text(row["monte_carlo_error"], ".2g"),
                text(row["data_error"], ".2g"), text(row["bits_per_dimension"], ".4f"), f"{row['seconds']:.1f}",
            ]
            for row in self.rows()
        ]  # fmt: skip
        header = ["method", "nats", "Monte Carlo error", "data error", "bits/dim", "seconds"]
        if self.bits_offset is None:
            header, lines = header[:4] + header[5:], [line[:4] + line[5:] for line in lines]
        columns = ("left", *("right",) * (len(header) - 1))
        return tabulate(lines, header, tablefmt, disable_numparse=True, colalign=columns)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return self.table("html")


@evaluates
def evaluate(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    methods: Sequence[str] = ("elbo", "iwae_50", "is_5000"),
    num_chains: int = 16,
    dequantised: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Estimates of log p(x) for the same data by several methods, at beta = 1 whatever training used.

    - `"elbo"`: the mean of 100 draws per datum; `"iwae_50"`: L_50, the mean of 10 (see `importance_bound`);
    - `"is_5000"`: importance sampling with so many samples (see `log_marginal`);
    - `"ais_1000"`: annealed importance sampling over so many distributions with `num_chains` chains, from the guide
      (see `annealed_log_marginal`), and `"ais_prior_1000"` from the prior: it needs more distributions, and finds modes
      of the posterior that the guide has missed, of which no other method here can tell.

    `dequantised` says that the data are pixels of 256 levels with noise added, on [0, 1]: only then have continuous
    data bits per dimension. Each method has random numbers of its own, fixed by `seed`. As in every evaluation,
    modules run in `eval()` mode, and are in their own again afterwards (see `modes`).

    Raises `InputError` on an unknown method before any of them runs, and as they do.
    """
    require(
        isinstance(methods, Sequence) and not isinstance(methods, str),
        f"methods must be a sequence of names, got {methods!r}",
    )
    require_seed(seed)
    require(len(methods) > 0, "methods must name at least one method, got none")
    runs = [_parse(method, num_chains) for method in methods]
    check_args(args)
    device = device_of(model, args)
    # No zero weights under the ELBO, and a guide that reaches all of the prior under importance sampling.
    needs = Weights(zeros="elbo" not in methods, everywhere=any(str(method).startswith("is_") for method in methods))
    sizes, discrete = [], []

    def look(pair: Pair) -> None:
        sizes.append(_observed_dimensions(pair))
        discrete.append(all(site["fn"].support.is_discrete for site in pair.observed.values()))

    # All the data: of one grey image under a Bernoulli the "ELBO" is a cross-entropy, and its bits are none.
    for data in zip(*(arg.split(CHECKED) for arg in args), strict=True):
        check_in_parts(model, guide, [part.to(device) for part in data], needs, look)
    size = torch.cat(sizes).double().mean().item()
    offset = 0.0 if all(discrete) else 8.0 if dequantised else None
    measured = []
    for method, run in zip(methods, runs, strict=True):
        started = time.perf_counter()
        with local_seed(derived_seed(seed, method)):
            estimate = run(model, guide, *args, progress=progress)
        measured.append(Measured(method, estimate, time.perf_counter() - started))
    return Evaluation(tuple(measured), size, offset if size else None)


def _observed_dimensions(pair: Pair) -> Tensor:
    """How many numbers are observed of each datum, without those that are masked, `(batch,)`."""
    total = torch.zeros(pair.batch_shape)
    for site in pair.observed.values():
        mask = True if site["mask"] is None else site["mask"]
        total = total + _dimensions(site["fn"]) * torch.as_tensor(mask).cpu()
    return total[0]


def _dimensions(fn: TorchDistribution) -> Tensor:
    """How many numbers each element of a batch is made of, without those that are masked, of its batch shape."""
    match fn:
        case Independent():
            inner, num = _dimensions(fn.base_dist), fn.reinterpreted_batch_ndims
            return inner.flatten(-num).sum(-1) if num else inner
        case MaskedDistribution():
            return _dimensions(fn.base_dist) * torch.as_tensor(fn._mask).cpu()
        case ExpandedDistribution():
            return _dimensions(fn.base_dist).expand(fn.batch_shape)
    return torch.full(fn.batch_shape, fn.event_shape.numel())


def _parse(method: str, num_chains: int) -> Callable[..., Estimate]:
    match = re.fullmatch(r"(elbo)|(iwae|is|ais|ais_prior)_(\d+)", str(method))
    require(match is not None, f"methods must be {METHODS}, got {method!r}")
    kind, count = match[1] or match[2], int(match[3] or 1)
    require_count(method, count)

    def run(*pair: object, progress: bool | None) -> Estimate:
        match kind:
            case "elbo":
                return importance_bound(*pair, num_particles=1, num_repeats=ELBO_DRAWS, progress=progress)
            case "iwae":
                return importance_bound(*pair, num_particles=count, num_repeats=IWAE_REPEATS, progress=progress)
            case "is":
                return log_marginal(*pair, num_samples=count, progress=progress)
        start = "prior" if kind == "ais_prior" else "guide"
        settings = {"num_distributions": count, "num_chains": num_chains, "start": start}
        return annealed_log_marginal(*pair, **settings, progress=progress)

    return run
