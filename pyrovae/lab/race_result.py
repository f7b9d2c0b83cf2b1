"""How a race of objectives has ended: log p(x) under each, paired differences and what they are worth."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import norm
from scipy.stats import t as student_t
from tabulate import tabulate
from torch import Tensor, nn

from pyrovae.common import require, require_choice
from pyrovae.evaluation import Estimate
from pyrovae.training import Checkpoints


@dataclass(frozen=True)
class RaceRun:
    """One training: under `objective` from the start that `seed` gives, for `epochs`, in `folder`.

    `log_px` is of the held-out data, per datum; `seconds` are those of training; `curve` has, along the training, the
    epoch, the seconds so far, and log p(x) of the first 500 held-out data by 100 draws, a lower bound, with its Monte
    Carlo error.
    """

    objective: str
    seed: int
    epochs: int
    log_px: Estimate
    share_unreliable: float
    active_units: int
    seconds: float
    curve: tuple[tuple[int, float, float, float], ...]
    folder: Path

    def restore(self, vae: nn.Module) -> None:
        """Gives `vae`, which `make_vae` has made, the parameters that the run ended with."""
        require(isinstance(vae, nn.Module), f"vae must be a module, got {type(vae).__name__}")
        state = Checkpoints(self.folder).load()
        require(state is not None, f"{self.folder} holds no checkpoint: a race without a folder keeps none")
        vae.load_state_dict(state["state"])


@dataclass(frozen=True)
class Race:
    """What `race` returns; prints as a table."""

    runs: tuple[RaceRun, ...]
    budget: str

    @property
    def objectives(self) -> list[str]:
        return list(dict.fromkeys(run.objective for run in self.runs))

    def __getitem__(self, objective: str) -> list[RaceRun]:
        """An objective's runs, one for each seed."""
        require_choice("objective", objective, self.objectives)
        return [run for run in self.runs if run.objective == objective]

    def difference(self, objective: str, other: str | None = None) -> dict[str, float | None]:
        """Mean log p(x) under `objective` minus that under `other` (None: the first), seed by seed and datum by datum.

        `value`, its standard error `seed_error` over seeds (None with one), `data_error` over held-out data, and
        `low` and `high` of its 95% interval, value -+ sqrt((t seed_error)^2 + (1.96 data_error)^2) with Student's t for
        the seeds' degrees of freedom; with one seed they are None.
        """
        ours, theirs = self[objective], self[self.objectives[0] if other is None else other]
        difference = torch.stack(
            [a.log_px.value.double() - b.log_px.value.double() for a, b in zip(ours, theirs, strict=True)]
        )
        value, data_error = difference.mean().item(), difference.mean(0).std().item() / math.sqrt(difference.shape[1])
        seed_error = _over_seeds(difference.mean(1))
        low = high = None
        if seed_error is not None:
            reach = math.hypot(student_t.ppf(0.975, len(ours) - 1) * seed_error, norm.ppf(0.975) * data_error)
            low, high = value - reach, value + reach
        return {"value": value, "seed_error": seed_error, "data_error": data_error, "low": low, "high": high}

    def curves(self, against: str = "epochs") -> dict[str, tuple[Tensor, Tensor]]:
        """For each objective the epochs or the seconds (means over seeds), `(points,)`, and log p(x) along the
        training, `(seeds, points)`."""
        require_choice("against", against, ("epochs", "seconds"))
        column, found = ("epochs", "seconds").index(against), {}
        for name in self.objectives:
            points = torch.tensor([run.curve for run in self[name]], dtype=torch.float64)
            found[name] = points[:, :, column].mean(0), points[:, :, 2]
        return found

    def rows(self) -> list[dict[str, object]]:
        """A dict for each objective, of plain numbers: means over seeds, errors, the difference to the first."""
        rows = []
        for name in self.objectives:
            runs = self[name]
            log_px = torch.tensor([run.log_px.mean for run in runs], dtype=torch.float64)
            share = sum(run.share_unreliable for run in runs) / len(runs)  # nan where draws are too few to tell
            units = torch.tensor([float(run.active_units) for run in runs])
            rows.append({
                "objective": name,
                "seeds": [run.seed for run in runs],
                "epochs": runs[0].epochs,
                "log_px": log_px.mean().item(),
                "log_px_error": _over_seeds(log_px),
                "monte_carlo_error": max(run.log_px.monte_carlo_error for run in runs),
                "data_error": max(run.log_px.data_error for run in runs),
                **{f"difference_{key}": value for key, value in self.difference(name).items()},
                "active_units": units.mean().item(),
                "seconds": sum(run.seconds for run in runs) / len(runs),
                "share_pareto_k_above_0.7": None if math.isnan(share) else share,
            })  # fmt: skip
        return rows

    def table(self, tablefmt: str = "simple") -> str:
        """As text: log p(x), the paired difference to the first objective with its 95% interval, units, time."""
        lines = []
        for row in self.rows():
            first, share = row["objective"] == self.objectives[0], row["share_pareto_k_above_0.7"]
            lines.append([
                row["objective"], str(row["epochs"]), _with_error(row["log_px"], row["log_px_error"]),
                "" if first else _with_error(row["difference_value"], row["difference_seed_error"]),
                "" if first else _interval(row["difference_low"], row["difference_high"]),
                f"{row['active_units']:.3g}", "unknown" if share is None else f"{share:.0%}", f"{row['seconds']:.3g}",
            ])  # fmt: skip
        header = ["objective", "epochs", "log p(x)", f"minus {self.objectives[0]}", "95% interval", "active"]
        columns = ("left", *("right",) * 7)
        return tabulate(lines, [*header, "k > 0.7", "seconds"], tablefmt, disable_numparse=True, colalign=columns)

    @property
    def verdict(self) -> str:
        """Which differences to the first objective are told from 0, in a sentence."""
        first, *others = self.objectives
        seeds = len(self[first])
        if seeds == 1:
            return "one seed cannot tell a difference from chance"
        differences = {name: self.difference(name) for name in others}
        told = [
            f"{name} is {'better' if d['value'] > 0 else 'worse'}"
            for name, d in differences.items()
            if d["low"] > 0 or d["high"] < 0
        ]
        rest = [name for name, d in differences.items() if d["low"] <= 0 <= d["high"]]
        return (
            f"against {first}, {seeds} seeds, equal {self.budget}: "
            + ("; ".join(told) or "no difference is resolved")
            + (f"; not resolved: {'; '.join(rest)}" if told and rest else "")
        )

    def to_dict(self) -> dict[str, object]:
        """Plain numbers for JSON: `rows`, and each run with its curve."""
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
        return self.table("github")

    def __str__(self) -> str:
        return f"{self.table()}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return self.table("html")


def _over_seeds(values: Tensor) -> float | None:
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ({error:.2g})"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:.3f} to {high:.3f}"
