"""The result of a comparison: a row for each estimator and number of particles, as a table, as dicts and as curves."""

import math
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from pyrovae.common import InputError, data_frame, require, require_choice, right_aligned, shown, with_lines_below
from pyrovae.evaluation import Estimate, MarginalLikelihood, doubt_of
from pyrovae.lab.comparison_figures import FIGURES, draw_comparison
from pyrovae.lab.comparison_row import Row
from pyrovae.programs import SIDES

NOISE = 2  # floors: a bias up to here may be noise
TOO_NEGATIVE, ROUNDING = 3, 1e-6  # standard errors, and of the bound: a gap below both is no noise
QUANTITIES_WITH_A_FLOOR = ("snr", "dsnr", "bias")


@dataclass(frozen=True)
class Comparison:
    """Holds the result of `compare`, a `Row` for each estimator and number of particles; prints as a table.

    `comparison["dreg", 8]` is the row of an objective and its K. Raises `InputError` if there is no such row.

    Attributes:
        rows: The rows, in the order of the objectives and then of K.
        log_px: The estimate of log p(x) that the gaps are measured from; None if the pair has no log p(x), for example
            because its pixels are grey.
        complete: True if every estimator had all its repeats, False if the time ran out.
        no_gap: The reason why no row has a gap to log p(x); None if rows have gaps.
        unreached: The names of parameters that neither log p(x, z) nor the draws nor log q(z|x) depend on. They belong
            to no side, and no objective trains them.
        num_data: The number of data that bounds and gradients are divided by. If `log_px` is the joint evidence of all
            of them, its one value is not divided.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        >>> settings = {"num_particles": [2, 4], "repeats": 4, "compile": False}
        >>> found = pv.compare(vae.model, vae.guide, torch.randn(5, 2), objectives=["elbo", "iwae"], **settings)
        >>> found["iwae", 4].num_draws
        4
        >>> sizes, ratios, floors = found.curves("guide", "snr")["iwae"]
        >>> sizes
        [2, 4]
        >>> found.plot("snr").axes[0].get_xlabel()
        'K, samples per datum'
        >>> print(found.to_markdown())
        | objective | K | bound | gap | ...
    """

    rows: tuple[Row, ...]
    log_px: Estimate | None
    complete: bool
    no_gap: str | None = None
    unreached: tuple[str, ...] = ()
    num_data: int = 1

    @property
    def log_px_per_datum(self) -> tuple[float, float] | None:
        """log p(x) per datum and its Monte Carlo error, in nats; None where `log_px` is None."""
        if self.log_px is None:
            return None
        count = len(self.log_px.value)
        share = 1 if count > 1 else 1 / self.num_data  # the evidence of all data has one value
        return self.log_px.mean * share, self.log_px.monte_carlo_error * share

    def __getitem__(self, key: tuple[str, int]) -> Row:
        for row in self.rows:
            if (row.objective, row.num_particles) == key:
                return row
        known = ", ".join(f"({shown(row.objective)}, {row.num_particles})" for row in self.rows)
        raise InputError(f"key must be one of {known}; got {shown(key)}")

    def to_dict(self) -> list[dict[str, object]]:
        """Returns a flat dict of plain numbers for each row; a number that is unknown or not finite is None."""
        flat = []
        for row in self.rows:
            values = {name: value for name, value in vars(row).items() if name not in SIDES}
            for side in SIDES:
                gradient = getattr(row, side)
                values |= {f"{side}_{name}": value for name, value in (gradient.to_dict() if gradient else {}).items()}
            values["variance_seconds"] = row.variance_seconds
            flat.append({n: v if not isinstance(v, float) or math.isfinite(v) else None for n, v in values.items()})
        return flat

    def curves(self, side: str, quantity: str) -> dict[str, tuple[list[int], list[float], list[float]]]:
        """Returns one quantity of one side's gradient against K, as `fitted_slope` and `plots.against_size` take it.

        Args:
            side: "model", "guide" or "shared".
            quantity: "snr", "dsnr" or "bias".

        Returns:
            For each objective the Ks, the values and their floors. Rows where the value is unknown or infinite are left
            out.
        """
        require_choice("side", side, SIDES)
        require_choice("quantity", quantity, QUANTITIES_WITH_A_FLOOR)
        found: dict[str, tuple[list, list, list]] = {}
        for row in self.rows:
            gradient = getattr(row, side)
            value = None if gradient is None else getattr(gradient, quantity)
            if value is not None and math.isfinite(value):
                point = (row.num_particles, value, getattr(gradient, f"{quantity}_floor"))
                for values, one in zip(found.setdefault(row.objective, ([], [], [])), point, strict=True):
                    values.append(one)
        return found

    def to_pandas(self) -> Any:
        """Returns `to_dict` as a `pandas.DataFrame`: a row for each estimator and K.

        Bounds and gaps are in nats per datum, times in seconds, memory in bytes; ratios have no unit; biases and
        variances are those of gradients per datum. Raises `InputError` if pandas is not installed.
        """
        return data_frame(self.to_dict())

    def plot(self, quantity: str = "bounds") -> Figure:
        """Returns a figure of one quantity for each estimator.

        Args:
            quantity: "bounds" against K; "snr" or "dsnr" of the gradients against K; "cost", the variance and the bias
                of the guide's gradient against the seconds of a step.

        Raises:
            InputError: If the quantity is not one of these, or is not known for any row.
        """
        require_choice("quantity", quantity, FIGURES)
        figures = draw_comparison(self, (quantity,))
        require(quantity in figures, f"quantity {quantity} is not known for any row")
        return figures[quantity]

    def table(self, tablefmt: str = "simple") -> str:
        """Returns the table as text: bounds, signal-to-noise ratios of each side, bias, time and memory.

        The floor of a ratio or a bias follows in brackets. A bias within twice its floor, which the noise of unbiased
        estimators explains, shows "none seen". A gradient that is the same in every repeat shows "no noise". A cell is
        empty if its value is unknown, and so is a ratio if all gradients are 0.

        Args:
            tablefmt: A table format of `tabulate`, for example "simple", "github" or "html".
        """
        return _comparison_table(self.rows, tablefmt)

    def to_markdown(self) -> str:
        """Returns the table as Markdown."""
        return self.table("github")

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.notes}"

    @property
    def notes(self) -> str:
        """The lines below the table: log p(x), the repeats, what brackets and empty columns are, what never trains."""
        fewest = min(row.repeats for row in self.rows)
        found = self.log_px_per_datum
        log_px = "" if found is None else f"log p(x) {found[0]:.3f} nats per datum{self._of_all}{self._doubt}; "
        notes = [f"{log_px}{fewest} repeats or more{'' if self.complete else ' (the time ran out)'}"]
        notes.append("in brackets: the error of a bound; beside a ratio or a bias its floor, which pure noise has")
        notes += [] if self.no_gap is None else [f"no gap: {self.no_gap}"]
        if found is not None:
            above = [row for row in self.rows if _is_above(row, found[1])][:1]
            notes += [f"log p(x) is too low: {row.objective} at K = {row.num_particles} is above it" for row in above]
        for side in ("model", "guide"):
            if all(getattr(row, side) is None for row in self.rows):
                notes.append(f"no SNR of the {side}: no parameter is trained that is the {side}'s alone")
        if self.unreached:
            more = f" and {len(self.unreached) - 5} more" if len(self.unreached) > 5 else ""
            notes.append(f"trained by none: {', '.join(self.unreached[:5])}{more}")
        return "\n".join(notes)

    @property
    def _of_all(self) -> str:
        """The joint evidence, where data have no log p(x) of their own and theirs is a share of it."""
        if self.log_px is None or len(self.log_px.value) > 1 or self.num_data == 1:
            return ""
        return f", the joint evidence {self.log_px.mean:.1f} of all {self.num_data:,} data divided by their number"

    @property
    def _doubt(self) -> str:
        log_px = self.log_px
        doubt = doubt_of(log_px.pareto_k, log_px.num_samples) if isinstance(log_px, MarginalLikelihood) else ""
        return f" ({doubt})" if doubt else ""

    def _repr_html_(self) -> str:
        return with_lines_below(self.table("html"), self.notes)


def _comparison_table(rows: tuple[Row, ...], tablefmt: str) -> str:
    """Returns the table of `Comparison.table`."""
    sides = [side for side in SIDES if side != "shared" or any(row.shared for row in rows)]
    biased = [side for side in sides[1:] if any(row.reference and getattr(row, side) for row in rows)]
    other_draws = any(row.num_draws != row.num_particles for row in rows)
    lines = []
    for row in rows:
        line = [row.objective, str(row.num_particles), *[str(row.num_draws)] * other_draws]
        line += [_cell(row.bound, row.bound_error, ".3f"), _cell(row.gap, None, ".3f")]
        for gradient in (getattr(row, side) for side in sides):
            line += ["", ""] if gradient is None else [
                _ratio_cell(gradient.snr, gradient.snr_floor), _ratio_cell(gradient.dsnr, gradient.dsnr_floor)
            ]  # fmt: skip
        for gradient in (getattr(row, side) for side in biased):
            line.append("" if gradient is None else _bias_cell(gradient.bias, gradient.bias_floor))
        milliseconds = [None if t is None else 1e3 * t for t in (row.seconds, row.compiled_seconds)]
        megabytes = None if row.saved_bytes is None else row.saved_bytes / 1e6
        lines.append(line + [_cell(value) for value in (*milliseconds, megabytes, row.variance_seconds)])
    header = ["objective", "K", *["draws"] * other_draws, "bound", "gap"]
    header += [f"{ratio} {side}" for side in sides for ratio in ("SNR", "DSNR")]
    header += [*(f"bias {side}" for side in biased), "ms", "ms compiled", "MB", "var x s"]
    return right_aligned(lines, header, tablefmt)


def _cell(value: float | None, floor: float | None = None, form: str = ".2g") -> str:
    """Returns a number with its floor or error in brackets; empty if the number is unknown."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:{form}}" if floor is None or math.isnan(floor) else f"{value:{form}} ({floor:.2g})"


def _bias_cell(value: float | None, floor: float | None) -> str:
    if value is None or floor is None or not value <= NOISE * floor:
        return _cell(value, floor)
    return f"none seen ({floor:.2g})"


def _is_above(row: Row, log_px_error: float) -> bool:
    """Returns True if a bound is above log p(x) by more than their noise."""
    noise = math.hypot(row.bound_error, 0.0 if math.isnan(log_px_error) else log_px_error)
    return row.gap is not None and row.gap < -(TOO_NEGATIVE * noise + ROUNDING * (1 + abs(row.bound)))


def _ratio_cell(value: float, floor: float) -> str:
    return "no noise" if value == math.inf else _cell(value, floor)
