"""The result of a race: log p(x) under each objective, paired differences and their intervals."""

import math
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae.plots as plots
from pyrovae.common import data_frame, require_choice, right_aligned, with_lines_below
from pyrovae.evaluation import RELIABLE_PARETO_K, are_few
from pyrovae.lab.race_run import RaceRun


class Difference(TypedDict):
    """The result of `Race.difference`."""

    value: float
    seed_error: float | None
    data_error: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Race:
    """Holds the result of `race`; prints as a table.

    `race["dreg"]` is the list of an objective's runs, one for each seed. Raises `InputError` if there is no such
    objective.

    Attributes:
        runs: The runs, in the order of the objectives and then of the seeds.
        budget: "epochs", "seconds" or "decoder_calls", whichever the objectives had an equal number of.

    Example:
        >>> def run(objective, seed, log_px):
        ...     estimate = pv.Estimate(torch.tensor(log_px), torch.zeros(2))
        ...     return pv.RaceRun(objective, seed, 1, estimate, 0.0, 2, 1.0, (), None)
        >>> runs = [run("elbo", 0, [-3.0, -2.0]), run("elbo", 1, [-3.0, -1.0])]
        >>> runs += [run("iwae", 0, [-2.5, -1.5]), run("iwae", 1, [-2.5, -0.5])]
        >>> race = pv.Race(tuple(runs), "epochs")
        >>> race.difference("iwae")["value"]
        0.5
        >>> race.verdict
        'against elbo, 2 seeds, equal epochs: iwae is better'
    """

    runs: tuple[RaceRun, ...]
    budget: str

    @property
    def objectives(self) -> list[str]:
        """The names of the objectives; the first is the one that the others are compared with."""
        return list(dict.fromkeys(run.objective for run in self.runs))

    def __getitem__(self, objective: str) -> list[RaceRun]:
        require_choice("objective", objective, self.objectives)
        return [run for run in self.runs if run.objective == objective]

    def difference(self, objective: str, other: str | None = None) -> Difference:
        """Returns the mean difference of log p(x) between two objectives, paired by seed and by datum.

        The 95% interval combines the error over seeds, with Student's t of their degrees of freedom, with that over
        data:

            value -+ sqrt((t seed_error)^2 + (1.96 data_error)^2)

        Args:
            objective: The name of the objective.
            other: The name of the objective whose log p(x) is subtracted; by default the first.

        Returns:
            A dict in nats per datum: `value`, its standard error `seed_error` over seeds, its standard error
            `data_error` over held-out data, and the ends `low` and `high` of the interval. With one seed `seed_error`,
            `low` and `high` are None.
        """
        ours, theirs = self[objective], self[self.objectives[0] if other is None else other]
        difference = torch.stack(
            [a.log_px.value.double() - b.log_px.value.double() for a, b in zip(ours, theirs, strict=True)]
        )
        value, data_error = difference.mean().item(), difference.mean(0).std().item() / math.sqrt(difference.shape[1])
        seed_error = _over_seeds(difference.mean(1))
        low = high = None
        if seed_error is not None:
            from scipy.special import ndtri, stdtrit  # imported here so that `import pyrovae` is quicker

            reach = math.hypot(stdtrit(len(ours) - 1, 0.975) * seed_error, ndtri(0.975) * data_error)
            low, high = value - reach, value + reach
        return {"value": value, "seed_error": seed_error, "data_error": data_error, "low": low, "high": high}

    def curves(self, against: str = "epochs") -> dict[str, tuple[Tensor, Tensor]]:
        """Returns the learning curves, as `plots.race_curves` takes them.

        Args:
            against: "epochs" or "seconds".

        Returns:
            For each objective the epochs or the seconds, `(points,)`, averaged over seeds, and log p(x) along the
            training, `(seeds, points)`, in nats per datum.
        """
        require_choice("against", against, ("epochs", "seconds"))
        column, found = ("epochs", "seconds").index(against), {}
        for name in self.objectives:
            points = torch.tensor([run.curve for run in self[name]], dtype=torch.float64)
            found[name] = points[:, :, column].mean(0), points[:, :, 2]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Returns a dict of plain numbers for each objective: means over seeds, errors, the difference to the first."""
        return [_row(self, name) for name in self.objectives]

    def table(self, tablefmt: str = "simple") -> str:
        """Returns the table as text: log p(x), the paired difference to the first objective, active units, time.

        Args:
            tablefmt: A table format of `tabulate`, for example "simple", "github" or "html".
        """
        return _table(self, tablefmt)

    @property
    def verdict(self) -> str:
        """A sentence that says which differences to the first objective are resolved, that is differ from 0.

        It warns where a difference may be one of the guides and not of the models, as Pareto k is above 0.7 at more
        than 5% of the data.
        """
        first, *others = self.objectives
        seeds = len(self[first])
        if seeds == 1:
            return "one seed cannot tell a difference from chance" + self._doubt()
        differences = {name: self.difference(name) for name in others}
        intervals = {name: _ends(difference) for name, difference in differences.items()}
        resolved = [
            f"{name} is {'better' if differences[name]['value'] > 0 else 'worse'}"
            for name, (low, high) in intervals.items()
            if low > 0 or high < 0
        ]
        rest = [name for name, (low, high) in intervals.items() if low <= 0 <= high]
        return (
            f"against {first}, {seeds} seeds, equal {self.budget.replace('_', ' ')}: "
            + ("; ".join(resolved) or "no difference is resolved")
            + (f"; not resolved: {'; '.join(rest)}" if resolved and rest else "")
            + self._doubt()
        )

    def _doubt(self) -> str:
        """Returns what the verdict must add where the guide is bad at more than a few data of an objective."""
        shares = {name: share for name in self.objectives if not math.isnan(share := _share_unreliable(self[name]))}
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is None or are_few(shares[worst], 1):
            return ""
        return (
            f"; Pareto k > {RELIABLE_PARETO_K} at {shares[worst]:.0%} of the data under {worst}: log p(x) is a lower "
            "bound there, and a difference may be one of the guides alone"
        )

    def to_dict(self) -> dict[str, object]:
        """Returns plain numbers for JSON: the budget, the verdict, `rows`, and each run with its curve."""
        runs = [
            {
                "objective": run.objective, "seed": run.seed, "epochs": run.epochs, "log_px": run.log_px.mean,
                "monte_carlo_error": run.log_px.monte_carlo_error, "active_units": run.active_units,
                "seconds": run.seconds, "curve": [list(point) for point in run.curve],
            }
            for run in self.runs
        ]  # fmt: skip
        return {"budget": self.budget, "verdict": self.verdict, "rows": self.rows(), "runs": runs}

    def to_markdown(self) -> str:
        """Returns the table as Markdown."""
        return self.table("github")

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with a row for each run, an objective with a seed.

        `log_px` is the mean log p(x) of the held-out data in nats per datum, `monte_carlo_error` and `data_error` are
        its standard errors in nats, `active_units` and `share_pareto_k_above_0.7` have no unit, `seconds` are those of
        the training. Raises `InputError` if pandas is not installed.
        """
        return data_frame([
            {
                "objective": run.objective, "seed": run.seed, "epochs": run.epochs, "log_px": run.log_px.mean,
                "monte_carlo_error": run.log_px.monte_carlo_error, "data_error": run.log_px.data_error,
                "active_units": run.active_units, "share_pareto_k_above_0.7": run.share_unreliable,
                "seconds": run.seconds,
            }
            for run in self.runs
        ])  # fmt: skip

    def plot(self) -> Figure:
        """Returns a figure of the learning curves, log p(x) of held-out data against epochs and against seconds."""
        figure, axes = plots.figure_row(2, width=5.0, height=4.0)
        for each, against in zip(axes, ("epochs", "seconds"), strict=True):
            plots.race_curves(self.curves(against), against, each)
        return figure

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return with_lines_below(self.table("html"), self.verdict)


def _row(race: Race, objective: str) -> dict[str, Any]:
    """Returns the row of one objective in `Race.rows`."""
    runs = race[objective]
    log_px = torch.tensor([run.log_px.mean for run in runs], dtype=torch.float64)
    share = _share_unreliable(runs)
    units = [run.active_units for run in runs if run.active_units is not None]
    return {
        "objective": objective,
        "seeds": [run.seed for run in runs],
        "epochs": runs[0].epochs,
        "log_px": log_px.mean().item(),
        "log_px_error": _over_seeds(log_px),
        "monte_carlo_error": max(run.log_px.monte_carlo_error for run in runs),
        "data_error": max(run.log_px.data_error for run in runs),
        **{f"difference_{key}": value for key, value in race.difference(objective).items()},
        "active_units": sum(units) / len(units) if units else None,
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "share_pareto_k_above_0.7": None if math.isnan(share) else share,
    }


def _share_unreliable(runs: list[RaceRun]) -> float:
    """Returns the share of data with a Pareto k above 0.7, over all seeds; nan if the draws are too few to tell."""
    known = [run.share_unreliable for run in runs if not math.isnan(run.share_unreliable)]
    return round(sum(known) / len(known), 9) if known else math.nan  # 5% must not be more than 5% by rounding


def _table(race: Race, tablefmt: str) -> str:
    """Returns the text of `Race.table`."""
    lines = []
    for row in race.rows():
        first, share = row["objective"] == race.objectives[0], row["share_pareto_k_above_0.7"]
        units = row["active_units"]
        lines.append([
            row["objective"], str(row["epochs"]), _with_error(row["log_px"], row["log_px_error"]),
            "" if first else _with_error(row["difference_value"], row["difference_seed_error"]),
            "" if first else _interval(row["difference_low"], row["difference_high"]),
            "" if units is None else f"{units:.3g}",
            "unknown" if share is None else f"{share:.0%}", f"{row['seconds']:.3g}",
        ])  # fmt: skip
    header = ["objective", "epochs", "log p(x)", f"minus {race.objectives[0]}", "95% interval", "active"]
    return right_aligned(lines, [*header, "k > 0.7", "seconds"], tablefmt)


def _ends(difference: Difference) -> tuple[float, float]:
    """Returns the ends of the 95% interval, which two seeds or more have."""
    low, high = difference["low"], difference["high"]
    assert low is not None
    assert high is not None
    return low, high


def _over_seeds(values: Tensor) -> float | None:
    """Returns the standard error of the mean over seeds; None with one seed."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ({error:.2g})"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:.3f} to {high:.3f}"
