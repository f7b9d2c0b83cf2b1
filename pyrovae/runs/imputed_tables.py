"""A table with missing cells, completed by the VAE of a run: the cells, how far each may be off, and whole draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import progress_bar, require, right_aligned
from pyrovae.data import Column, KnownTable, cell_text, number_text, read_known_table
from pyrovae.evaluation import IN_IMPUTE, RELIABLE_PARETO_K, Imputation, impute
from pyrovae.runs.run import Run

ROWS_AT_A_TIME = 1_000  # of which the draws are held at once
MOST_ROWS = 10  # that are named
DRAWS_FOR_NAMES = 500  # of a cell with names, of which the commonest is taken


@dataclass(frozen=True)
class ImputedTable:
    """Holds a table whose missing cells a run has filled in, in the units and the names of its file.

    Numbers are filled with their means, counts with whole ones, and what has names with the most probable one.

    Args:
        known: the table as it came
        rows: the indices of the rows with a missing cell
        filled: what was found for these rows, its draws those of the imputations that were asked for
        shares: of each cell with names, the share of the draws that have the name filled in; else nan
    """

    known: KnownTable
    rows: Tensor
    filled: Imputation
    shares: Tensor

    @property
    def verdict(self) -> str:
        """how far to believe the cells, in the words of the command, and where those are that are not to be believed"""
        lines = [self.filled.verdict_in(IN_IMPUTE)]
        for j, column in self._with_holes():
            is_bad = self.filled.pareto_k[:, j] > RELIABLE_PARETO_K  # nan where a cell was there
            rows = [self.known.table.row(index) for index in self.rows[is_bad.cpu()].tolist()]
            if rows:
                named = ", ".join([*rows[:MOST_ROWS], *(["..."] if len(rows) > MOST_ROWS else [])])
                of = int(self.filled.missing[:, j].sum())
                lines.append(f"Pareto k > {RELIABLE_PARETO_K} in {column.name}, {len(rows):,} of {of:,} cells: {named}")
        return "\n".join(lines)

    def text(self, suffix: str) -> str:
        """Returns the completed table as the text of a .csv or .tsv file, with a column for each that had holes.

        NAME_sd is the standard deviation of each filled cell, and NAME_p the probability of each filled name. It is
        empty where a cell was there. In a file without a header these columns have no names, either, and are the last.
        """
        more = {}
        for j, column in self._with_holes():
            by_row = [""] * self.known.table.num_rows
            for row, text in zip(self.rows.tolist(), self._spread(j, column), strict=True):
                by_row[row] = text
            more[_name_of_spread(column)] = by_row
        return self.known.text(self._cells(self.filled.value), more, suffix)

    def texts_of_draws(self, suffix: str) -> Iterator[str]:
        """Yields a completed table for each imputation that was drawn."""
        for draw in self.filled.draws:
            yield self.known.text(self._cells(draw), {}, suffix)

    def table(self) -> str:
        """Returns a table of the columns with holes: how many cells were filled in, and how far they may be off."""
        lines = []
        for j, column in self._with_holes():
            at = self.filled.missing[:, j]
            if _has_names(column):
                spread = f"probability {self.shares[at, j].mean().item():.2f} of the name"
            else:
                spread = f"sd {self.filled.standard_deviation[at, j].mean().item() * (column.sd or 1.0):.3g}"
            lines.append([column.name, column.kind, f"{int(at.sum()):,}", spread])
        table = right_aligned(lines, ["column", "kind", "filled in", "on average"], "simple", left=2)
        if self.known.table.has_header:
            return table
        spreads = ", ".join(_name_of_spread(column) for _, column in self._with_holes())
        return f"{table}\n\nThe file has no header, and the completed one neither: its last columns are {spreads}."

    def _with_holes(self) -> list[tuple[int, Column]]:
        holes = self.filled.missing.any(0).tolist()
        return [(j, column) for j, column in enumerate(self.known.columns) if holes[j]]

    def _cells(self, x: Tensor) -> Mapping[str, Sequence[str | None]]:
        """Returns what is written in the missing cells, by column, from values for the rows that have some."""
        found, spread = {}, self.filled.standard_deviation
        for j, column in self._with_holes():
            texts: list[str | None] = [None] * self.known.table.num_rows
            for i in self.filled.missing[:, j].nonzero().flatten().tolist():
                texts[int(self.rows[i])] = cell_text(column, x[i, j].item(), spread[i, j].item())
            found[column.name] = texts
        return found

    def _spread(self, j: int, column: Column) -> list[str]:
        scale = 1.0 if column.sd is None else column.sd
        values = self.shares[:, j] if _has_names(column) else self.filled.standard_deviation[:, j] * scale
        there = self.filled.missing[:, j].tolist()
        return [number_text(value) if hole else "" for value, hole in zip(values.tolist(), there, strict=True)]


def _has_names(column: Column) -> bool:
    return column.kind in ("binary", "category")


def _name_of_spread(column: Column) -> str:
    return f"{column.name}_{'p' if _has_names(column) else 'sd'}"


def impute_table(
    run: Run, path: Path, num_samples: int = 1_000, num_draws: int = 0, progress: bool | None = None
) -> ImputedTable:
    """Fills in the missing cells of a table with the VAE of a run, as `impute` does those of a tensor.

    Args:
        run: a run on a table, trained with missing mask
        path: the table, with the columns that the run was trained on
        num_samples: the number of draws of z for each row
        num_draws: the number of whole tables that are drawn, for multiple imputation
        progress: show a progress bar (default: on a terminal)

    Raises:
        InputError: the run or the table is another one, or no cell is missing
    """
    check_completes_tables(run)
    assert run.layout is not None
    label_column = run.config.label_column if run.config.conditional else None
    known = read_known_table(path, run.layout.columns, run.config.header, label_column)
    rows = known.x.isnan().any(1).nonzero().flatten()
    require(len(rows) > 0, f"{path} must have a missing cell in a column of the run, and has none")
    holes = known.x.isnan().any(0).tolist()
    known.require_free([_name_of_spread(one) for one, hole in zip(known.columns, holes, strict=True) if hole])
    y = [] if label_column is None else [known.classes(label_column, run.data.classes)[rows]]
    run.vae.check_data(known.x[rows], *y)
    named = torch.tensor([_has_names(column) for column in known.columns])
    parts, shares = [], []
    with progress_bar(progress, len(rows), "imputation", "row") as bar:
        for at in torch.arange(len(rows)).split(ROWS_AT_A_TIME):
            draws = max(num_draws, DRAWS_FOR_NAMES if bool(named.any()) else 1)
            args = known.x[rows[at]], *(value[at] for value in y)
            part = impute(run.vae, *args, num_samples=num_samples, num_draws=draws, progress=False)
            best, share = _commonest(part.draws, named)
            asked = part.draws[:num_draws].clone()  # the memory of the others is free again
            parts.append(replace(part, value=torch.where(named, best, part.value), draws=asked))
            shares.append(torch.where(part.missing & named, share, torch.nan))
            bar.update(len(at))
    return ImputedTable(known, rows, _joined(parts), torch.cat(shares))


def check_completes_tables(run: Run) -> None:
    """Raises `InputError` unless the run is on a table, takes missing cells, and reads its conditions from a column."""
    columns = () if run.layout is None else run.layout.columns
    require(bool(columns), f"impute completes tables, and the run in {run.folder} is on {run.config.dataset}")
    rule = f"impute needs a run that was trained with missing mask, and that in {run.folder} was not"
    require(run.vae.missing is not None, rule)
    in_table = not run.config.conditional or run.config.label_column is not None
    rule = "impute reads the labels of a conditional run from its label_column"
    require(in_table, f"{rule}, and the run in {run.folder} had them in an array y")


def _commonest(draws: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the commonest of the draws of each cell with names, `(rows, columns)`, and its share of them."""
    best, share = torch.full_like(draws[0], torch.nan), torch.full_like(draws[0], torch.nan)
    if bool(named.any()):
        value = draws[:, :, named].mode(0).values
        best[:, named], share[:, named] = value, (draws[:, :, named] == value).double().mean(0).to(share)
    return best, share


def _joined(parts: list[Imputation]) -> Imputation:
    """Returns the imputations of some rows after others as one."""
    names = [one.name for one in fields(Imputation) if isinstance(getattr(parts[0], one.name), Tensor)]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in parts], 1 if name == "draws" else 0) for name in names
    }
    return replace(parts[0], **joined)
