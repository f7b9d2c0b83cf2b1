"""The tables of a run: its measures with their errors, and its history."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae.common import right_aligned
from pyrovae.data import Column, Dataset
from pyrovae.runs.measures import IWAE_PARTICLES

MOST_COLUMNS = 50
IDENTIFIER = ", all different: an identifier? --exclude leaves it out"


def results_table(results: Mapping[str, Mapping], tablefmt: str = "simple") -> str:
    """Returns a table of `mean (Monte Carlo error)` in nats per datum: a row for each measure, a column for each run.

    Args:
        results: what `measure` returned, by the name of the run; all of the same number of data and draws
        tablefmt: `simple` for a terminal, `github` for Markdown
    """
    first = next(iter(results.values()))
    rows = {
        first["measure"]: ("elbo", "elbo_standard_error"),
        f"IWAE-{IWAE_PARTICLES} bound": (f"iwae_{IWAE_PARTICLES}", f"iwae_{IWAE_PARTICLES}_standard_error"),
        f"log p(x), importance sampling, {first['num_samples']:,}": ("log_px", "log_px_standard_error"),
        "log p(x), in the units of the file": ("log_px_in_file_units", "log_px_standard_error"),
        "log p(x), quadrature": ("log_px_quadrature", "log_px_quadrature_error"),
        "log p(x), enumeration": ("log_px_enumeration", None),
        "exact log-density of the data": ("data_log_density", None),
    }
    lines = []
    for label, (name, error) in rows.items():
        if any(r.get(name) is not None for r in results.values()):
            lines.append([label, *(_with_error(r.get(name), r[error] if error else None) for r in results.values())])
    if first["log_px"] is not None:
        over_data = {"standard error over data": "log_px_data_error"}
        if any(r.get("log_px_in_file_units") is not None for r in results.values()):
            over_data["standard error over data, in the units of the file"] = "log_px_in_file_units_data_error"
        for label, name in over_data.items():
            errors = (r.get(name) for r in results.values())
            lines.append([label, *("unknown" if e is None else f"{e:.3f}" for e in errors)])
        shares = (r["share_pareto_k_above_0.7"] for r in results.values())
        lines.append(["share with Pareto k > 0.7", *("unknown" if s is None else f"{s:.1%}" for s in shares)])
    if first["active_units"] is not None:
        lines.append(["active latent units", *(str(r["active_units"]) for r in results.values())])
    header = [f"{first['num_data']:,} test data, nats per datum", *results]
    return right_aligned(lines, header, tablefmt)


def _with_error(value: float | None, error: float | None) -> str:
    """Returns 1.2345 and 0.0021 as `1.234 (0.0021)`: the value with three decimals, the error with two figures."""
    if value is None:
        return "unknown"
    if error is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({error:.2g})"


def columns_table(data: Dataset, tablefmt: str = "simple") -> str:
    """Returns a table of the first 50 columns of a data set: what each was taken for, its values, its missing cells."""
    x = torch.cat((data.train_x, data.validation_x, data.test_x))
    lines = []
    for column, values in list(zip(data.columns, x.unbind(1), strict=True))[:MOST_COLUMNS]:
        missing = values.isnan()
        is_identifier = column.name in getattr(data.columns, "numbering_rows", ())
        lines.append(
            [
                column.name,
                column.kind,
                _values_of(column, values[~missing]) + (IDENTIFIER if is_identifier else ""),
                f"{missing.double().mean():.1%}",
            ]
        )
    table = right_aligned(lines, ["column", "kind", "values", "missing"], tablefmt, left=3)
    more = len(data.columns) - MOST_COLUMNS
    return f"{table}\n\n... and {more:,} more columns" if more > 0 else table


def _values_of(column: Column, values: Tensor) -> str:
    if column.categories:
        shown = ", ".join(column.categories[:4])
        return shown + (f", ... ({len(column.categories)})" if len(column.categories) > 4 else "")
    if column.sd is not None:
        return f"mean {column.mean:.4g}, sd {column.sd:.4g}: standardised"
    least, most = values.min().item(), values.max().item()
    if column.kind == "count":
        least, most = int(least), int(most)
    return f"{least} to {most}" if column.kind == "count" else f"{least:.4g} to {most:.4g}"
