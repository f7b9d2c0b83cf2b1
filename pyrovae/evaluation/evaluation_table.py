"""The table of one model's evaluation: every method's estimate of log p(x), its errors, bits and time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from matplotlib.figure import Figure

from pyrovae.common import data_frame, require, require_choice, right_aligned, with_lines_below
from pyrovae.evaluation.annealed_estimate import AnnealedEstimate
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood
from pyrovae.evaluation.evaluation_figure import draw_estimates
from pyrovae.evaluation.remedy_words import IN_PYTHON


@dataclass(frozen=True)
class Measured:
    """Holds one method's estimate, in nats per datum, and the seconds that it took."""

    method: str
    estimate: Estimate
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Holds the estimates of log p(x) by several methods, as `evaluate` returns them; prints as a table.

        bits per dimension = -sum_n log p(x_n) / (log 2 sum_n D_n) + bits_offset

    D_n is the number of observed dimensions of datum n. Those that a mask leaves out have no part in log p(x_n) and do
    not count.

    Args:
        measured: The estimate of each method, in the order asked for.
        event_size: The mean of D_n.
        bits_offset: 0 for discrete data, 8 for pixels of 256 levels dequantised to [0, 1], and None if there are no
            bits per dimension, as for other continuous data or if nothing is observed.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> evaluation = pv.evaluate(vae.model, vae.guide, torch.zeros(4, 3), methods=("elbo", "is_100"))
        >>> evaluation["is_100"].estimate.value.shape
        torch.Size([4])
        >>> [row["method"] for row in evaluation.rows()]
        ['elbo', 'is_100']
    """

    measured: tuple[Measured, ...]
    event_size: float
    bits_offset: float | None

    def __getitem__(self, method: str) -> Measured:
        """Returns the method of this name; raises `InputError` if it was not asked for."""
        by_name = {one.method: one for one in self.measured}
        require_choice("method", method, by_name)
        return by_name[method]

    def bits_per_dimension(self, nats: float) -> float | None:
        """Returns the bits per dimension of a mean log p(x) of `nats` per datum, or None if there are none."""
        if self.bits_offset is None:
            return None
        return self.bits_offset - nats / (self.event_size * math.log(2))

    @cached_property
    def best(self) -> Measured:
        """The method with the largest mean, which is the nearest: all are stochastic lower bounds on log p(x)."""
        return max(self.measured, key=lambda one: one.estimate.mean)

    @property
    def verdict(self) -> str:
        """What to make of the table: a line on the best, and one on each estimate that its own draws can judge.

        Of several by importance sampling, it is the one with the most draws.
        """
        return self.verdict_in(IN_PYTHON)

    def verdict_in(self, words: Mapping[str, str]) -> str:
        """Returns the verdict; `words` has what is to be done, as it is called where the verdict is read."""
        lines = [f"all are lower bounds in expectation, and the best is {self.best.method}"]
        lines = lines if len(self.measured) > 1 else ["a lower bound in expectation"]
        sampled = [one for one in self.measured if isinstance(one.estimate, MarginalLikelihood)]
        largest = max(sampled, key=lambda one: cast(MarginalLikelihood, one.estimate).num_samples, default=None)
        for one in self.measured:
            if one is largest or isinstance(one.estimate, AnnealedEstimate):
                estimate = cast(MarginalLikelihood | AnnealedEstimate, one.estimate)
                lines.append(f"{one.method}: {estimate.verdict_in(words)}")
        return "\n".join(lines)

    def difference(self, other: "Evaluation", method: str) -> Estimate:
        """Returns this model's estimate minus another's on the same data, datum by datum.

        Its `data_error` is the paired one, and so is its Monte Carlo error (see `Estimate.minus`). Two models that are
        evaluated with one seed, as by default, share their draws, so that differences far smaller than the error of
        either can be seen.

        Args:
            other: The evaluation of the other model, on the same data in the same order.
            method: The method whose estimates are compared.

        Raises:
            InputError: If a method is missing, or the numbers of data differ.
        """
        one, two = self[method].estimate, other[method].estimate
        require(
            len(one.value) == len(two.value),
            f"both must be of the same data, got {len(one.value)} and {len(two.value)}",
        )
        return one.minus(two)

    def rows(self) -> list[dict[str, float | str | None]]:
        """Returns a dict of plain numbers for each method, with None for what is not known."""

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
        """Returns the table as text, or in another format of `tabulate`, such as "github"."""

        def text(value: float | str | None, form: str) -> str:
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
        return right_aligned(lines, header, tablefmt)

    def to_pandas(self) -> Any:
        """Returns `rows` as a `pandas.DataFrame`: a row for each method.

        `nats` is the mean log p(x) per datum, `monte_carlo_error` and `data_error` are its standard errors in nats,
        `bits_per_dimension` is in bits, `seconds` in seconds. Raises `InputError` if pandas is not installed.
        """
        return data_frame(self.rows())

    def plot(self) -> Figure:
        """Returns a figure: the bounds against K, and how far each method is below the best, against its seconds.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> evaluation = pv.evaluate(vae.model, vae.guide, torch.zeros(4, 3), methods=("elbo", "is_100"))
            >>> [axes.get_xlabel() for axes in evaluation.plot().axes]
            ['K, samples per datum', 'seconds']
        """
        return draw_estimates({one.method: (one.estimate, one.seconds) for one in self.measured})

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return with_lines_below(self.table("html"), self.verdict)
