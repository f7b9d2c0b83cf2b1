"""`pyrovae impute`: a table completed in its own units and names, and what it refuses in one line."""

import csv
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import suite_seed
from own_files import MIXED, write_table
from running_scripts import command_here

import pyrovae as pv
from pyrovae import runs
from pyrovae.common import local_seed
from pyrovae.runs import imputed_tables

SMALL = ("--latent-dim", 2, "--hidden", 8, "--epochs", 2, "--batch-size", 50)
FEW = ("--num-samples", 60)


def done(*arguments, cwd):
    result = command_here(*arguments, cwd=cwd)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def rows_of(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def write_rows(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Two runs on a table of every kind of column, of which a tenth of the cells are missing; one has conditions."""
    folder = tmp_path_factory.mktemp("impute")
    write_table(folder / "people.csv", MIXED, missing=0.1, seed=suite_seed())
    flags = ("--dataset", "people.csv", "--label-column", "group", "--missing", "mask", *SMALL)
    done("train", *flags, "--out", "run", cwd=folder)
    done("train", *flags, "--conditional", "--out", "conditional", cwd=folder)
    done("train", "--hidden", 4, "--epochs", 1, "--batch-size", 1_000, "--out", "ring", cwd=folder)
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "here")
    return tmp_path / "here"


def test_cells_are_filled_in_in_the_units_and_names_of_the_file(folder):
    shown = done("impute", "run", "--data", "people.csv", "--out", "filled.csv", *FEW, cwd=folder)
    before, after = rows_of(folder / "people.csv"), rows_of(folder / "filled.csv")
    assert list(after[0]) == [*MIXED, "group", "income_sd", "smoker_p", "visits_sd", "town_p"]
    run = pv.load_run(folder / "run")
    columns = {column.name: column for column in run.layout.columns}
    data = pv.load(folder / "people.csv", label_column="group", missing="mask", standardise=True)
    # the rows of the file again, standardised by hand with the numbers of the run
    holes = [i for i, row in enumerate(before) if not all(row[name] for name in MIXED)]
    index = {name: {text: i for i, text in enumerate(column.categories)} for name, column in columns.items()}
    x = torch.full((len(holes), len(MIXED)), math.nan)
    for i, row in enumerate(holes):
        for j, name in enumerate(MIXED):
            cell, column = before[row][name], columns[name]
            if cell:
                value = index[name][cell] if column.categories else float(cell)
                x[i, j] = value if column.sd is None else (value - column.mean) / column.sd
    with local_seed(0):
        found = pv.impute(run.vae, x, num_samples=60, num_draws=500)
    sd = columns["income"].sd
    assert sd > 100
    for i, row in enumerate(holes):
        for j, (name, kind) in enumerate(MIXED.items()):
            new, was = after[row], before[row]
            spread = new[f"{name}_{'p' if kind in ('binary', 'category') else 'sd'}"]
            if was[name]:
                assert (new[name], spread) == (was[name], "")
            elif kind == "continuous":
                assert float(new[name]) == pytest.approx(found.value[i, j].item() * sd + columns[name].mean, rel=1e-5)
                assert float(spread) == pytest.approx(found.standard_deviation[i, j].item() * sd, rel=1e-4)
            elif kind == "count":
                assert new[name] == str(round(found.value[i, j].item()))
                assert float(spread) == pytest.approx(found.standard_deviation[i, j].item(), rel=1e-4)
            else:
                draws = [columns[name].categories[int(v)] for v in found.draws[:, i, j]]
                assert new[name] in columns[name].categories
                assert float(spread) == pytest.approx(max(map(draws.count, set(draws))) / 500, abs=1e-5)
                assert draws.count(new[name]) / 500 == pytest.approx(float(spread), abs=1e-5)
    whole = [i for i in range(len(before)) if i not in holes]
    assert [after[i][name] for i in whole for name in before[0]] == [before[i][n] for i in whole for n in before[0]]
    again = pv.load(folder / "filled.csv", columns=list(MIXED))
    assert [column.kind for column in again.columns] == list(MIXED.values()) == [c.kind for c in data.columns]
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["visits"][1:3] == ["count", str(sum(not row["visits"] for row in before))]
    assert "Pareto k" in shown
    assert shown.endswith("people.csv completed: filled.csv\n")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "filled"))) == ["filled.csv"]


def test_whole_tables_are_drawn(folder):
    flags = ("--data", "people.csv", "--out", "filled.csv", "--draws", 10, *FEW)
    assert done("impute", "run", *flags, cwd=folder).endswith("completed: filled.csv and 10 drawn\n")
    before = rows_of(folder / "people.csv")
    tables = [rows_of(folder / f"filled_{index:02}.csv") for index in range(1, 11)]
    for table in tables:
        assert list(table[0]) == list(before[0])
        assert all(
            new[name] == (was[name] or new[name]) != "" for new, was in zip(table, before, strict=True) for name in was
        )
        assert {row["town"] for row in table} == {"Basel", "Bern", "Chur"}
    hole = next(i for i, row in enumerate(before) if not row["income"])
    assert len({table[hole]["income"] for table in tables}) == 10


def test_the_cells_that_are_not_to_be_relied_on_are_named(folder):
    """The verdict counted them, and nothing said which they were."""
    run = pv.load_run(folder / "run")
    found = imputed_tables.impute_table(run, folder / "people.csv", num_samples=60, progress=False)
    before = list(enumerate(rows_of(folder / "people.csv"), 2))  # below the header
    missing = {name: [number for number, row in before if not row[name]] for name in MIXED}
    k = torch.where(found.filled.missing, 0.1, torch.nan)
    first = [
        found.rows.tolist().index(missing["visits"][0] - 2),
        *found.filled.missing[:, 3].nonzero()[:11, 0].tolist(),
    ]
    k[first, [2, *[3] * 11]] = 0.8
    bad = replace(found, filled=replace(found.filled, pareto_k=k))
    some = ", ".join(f"row {number}" for number in missing["town"][:10])
    assert bad.verdict.splitlines()[1:] == [
        f"Pareto k > 0.7 in visits, 1 of {len(missing['visits'])} cells: row {missing['visits'][0]}",
        f"Pareto k > 0.7 in town, 11 of {len(missing['town'])} cells: {some}, ...",
    ]
    assert "or, if they do not help, a run trained for longer" in bad.verdict
    good = replace(found, filled=replace(found.filled, pareto_k=torch.where(found.filled.missing, 0.1, torch.nan)))
    assert "\n" not in good.verdict


def test_two_imputations_go_into_one_folder_at_once(folder, monkeypatch):
    """One folder's lock was held over the whole computation, whatever its files were called."""
    real, flags = runs.impute_table, ("--data", "people.csv", *FEW)

    def meanwhile(*arguments):
        monkeypatch.setattr(runs, "impute_table", real)
        done("impute", "run", *flags, "--out", "other.csv", cwd=folder)
        refused = command_here("impute", "run", *flags, "--out", "out.csv", cwd=folder)
        assert (refused.returncode, "another process is writing" in refused.stderr) == (2, True)
        return real(*arguments)

    monkeypatch.setattr(runs, "impute_table", meanwhile)
    done("impute", "run", *flags, "--out", "out.csv", cwd=folder)
    assert rows_of(folder / "out.csv") == rows_of(folder / "other.csv")


def test_draws_of_a_call_before_are_named(folder):
    flags = ("--data", "people.csv", "--out", "out.csv", *FEW, "--overwrite")
    shutil.copy(folder / "people.csv", folder / "out_7.csv")
    told = "not of this imputation, but named as its draws: "
    assert told not in done("impute", "run", "--data", "out_7.csv", *flags[2:], "--draws", 2, cwd=folder)
    (folder / "out_7.csv").unlink()
    assert done("impute", "run", *flags, "--draws", 1, cwd=folder).endswith(f"{told}out_2.csv\n")
    assert done("impute", "run", *flags, "--draws", 10, cwd=folder).endswith(f"{told}out_1.csv, out_2.csv\n")


def test_what_is_held_does_not_grow_with_the_draws_behind_the_names(folder, monkeypatch):
    """500 draws of each cell decide on its name: of 1,000 rows at a time, and not of the whole table."""
    monkeypatch.setattr(imputed_tables, "ROWS_AT_A_TIME", 10)
    parts, joined = [], imputed_tables._joined
    monkeypatch.setattr(imputed_tables, "_joined", lambda some: parts.extend(some) or joined(some))
    run = pv.load_run(folder / "run")
    found = imputed_tables.impute_table(run, folder / "people.csv", num_samples=60, num_draws=2, progress=False)
    assert found.filled.draws.shape[:2] == (2, len(found.rows))
    assert len(parts) > 2
    assert all(one.draws.untyped_storage().nbytes() == one.draws.nbytes for one in parts)
    written = found.texts_of_draws(".csv")
    assert next(written) != next(written), "each is made when it is to be written"


def test_other_tables_with_the_columns_of_the_run(folder):
    """In another order, beside other columns, by semicolons or tabs, with a row and a column of holes alone."""
    rows = [
        {"id": "007", "town": "NA", "visits": "?", "income": "", "note": "a; b", "smoker": ""},
        {"id": "008", "town": "Chur", "visits": "3", "income": "", "note": "", "smoker": "yes"},
    ]
    for name, delimiter, out in (("a.csv", ";", "a_out.csv"), ("b.tsv", "\t", "b_out.tsv"), ("c.csv", ",", "c.tsv")):
        write_rows(folder / name, rows, delimiter)
        done("impute", "run", "--data", name, "--out", out, *FEW, cwd=folder)
        found = rows_of(folder / out, "\t" if out.endswith(".tsv") else delimiter)
        assert list(found[0])[:6] == list(rows[0])
        assert [(row["id"], row["note"]) for row in found] == [("007", "a; b"), ("008", "")]
        assert (found[1]["town"], found[1]["visits"], found[1]["town_p"]) == ("Chur", "3", "")
        assert all(float(row["income"]) > 0 and float(row["income_sd"]) > 0 for row in found)
        assert found[0]["smoker"] in ("yes", "no")


def test_a_file_without_a_header_stays_without(folder):
    rows = [f"{i % 7 + 0.50:.2f}, {i * 37 % 11 + 0.25}" for i in range(60)]
    (folder / "plain.csv").write_text("\n".join([*rows, "2.50,", ""]))
    done("train", "--dataset", "plain.csv", "--missing", "mask", *SMALL, "--out", "plain", cwd=folder)
    shown = done("impute", "plain", "--data", "plain.csv", "--out", "out.csv", "--draws", 1, *FEW, cwd=folder)
    assert "The file has no header, and the completed one neither: its last columns are x2_sd.\n" in shown
    *same, last = (folder / "out.csv").read_text().splitlines()
    assert same == [f"{row}," for row in rows]
    assert last.startswith("2.50,")
    assert all(math.isfinite(float(cell)) for cell in last.split(","))
    *same, last = (folder / "out_1.csv").read_text().splitlines()
    assert (same, last.count(",")) == (rows, 1)


def test_a_conditional_run_reads_the_labels(folder, monkeypatch):
    given = []
    real = imputed_tables.impute
    monkeypatch.setattr(imputed_tables, "impute", lambda vae, x, *y, **k: given.append(y) or real(vae, x, *y, **k))
    rows = [dict.fromkeys(MIXED, "") | {"income": "2500", "group": label} for label in ("c", "a", "b")]
    write_rows(folder / "holes.csv", rows)
    done("impute", "conditional", "--data", "holes.csv", "--out", "out.csv", *FEW, cwd=folder)
    assert [y.tolist() for (y,) in given] == [[2, 0, 1]]
    for label, said in (("", "a label must not be missing"), ("d", "must be one of a, b, c; got 'd'")):
        write_rows(folder / "holes.csv", [*rows, {**rows[0], "group": label}])
        refused = command_here("impute", "conditional", "--data", "holes.csv", "--out", "no.csv", cwd=folder)
        assert refused.stderr == f"error: holes.csv, row 5, column 'group': {said}\n"


# Bad input ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_completed_is_refused_in_one_line(folder):
    row = {"income": "2500", "smoker": "yes", "visits": "", "town": "Bern"}
    (folder / "text.txt").write_text("a,b\n1,2\n")
    (folder / "there.csv").write_text("mine\n")
    write_rows(folder / "good.csv", [row])
    write_rows(folder / "good_1.csv", [row])
    for name, change in {
        "whole.csv": {"visits": "3"},
        "town.csv": {"town": "Brn"},
        "income.csv": {"income": "much"},
        "visits.csv": {"visits": "2.5"},
        "infinite.csv": {"income": "inf"},
        "taken.csv": {"visits_sd": "1"},
    }.items():
        write_rows(folder / name, [row, {**row, **change}] if name != "taken.csv" else [{**row, **change}])
        if name == "whole.csv":
            write_rows(folder / name, [{**row, **change}])
    write_rows(folder / "fewer.csv", [{"income": "1", "visit": ""}])
    before = sorted(path.name for path in folder.iterdir())
    usual = {"--data": "good.csv", "--out": "out.csv"}
    for run, flags, said in (
        ("run", {"--data": "nowhere.csv"}, f"'nowhere.csv' is no file or folder in {folder}"),
        ("nowhere", {}, "run folder nowhere does not exist"),
        ("ring", {}, "impute completes tables, and the run in ring is on ring"),
        ("run", {"--data": "text.txt"}, "the table must be in a file of kind .csv, .tsv, .parquet, got text.txt"),
        ("run", {"--out": "out.xlsx"}, "out must be a file .csv or .tsv, got out.xlsx"),
        (
            "run",
            {"--out": "good.csv", "--overwrite": None},
            "out and its draws must be other files than data, got good.csv",
        ),
        (
            "run",
            {"--data": "good_1.csv", "--out": "good.csv", "--draws": 1, "--overwrite": None},
            "out and its draws must be other files than data, got good_1.csv",
        ),
        ("run", {"--out": "there.csv"}, "there.csv exists; say --overwrite to replace it"),
        ("run", {"--out": "there.csv/out.csv"}, "out must be a folder, got the file there.csv"),
        ("run", {"--num-samples": 0}, "num_samples must be a whole number >= 1, got 0"),
        ("run", {"--draws": -1}, "draws must be a whole number >= 0, got -1"),
        ("run", {"--draws": 1_001}, "draws must be <= 1,000, as each is a file, got 1,001"),
        ("run", {"--seed": -1}, "seed must be a whole number >= 0, got -1"),
        ("run", {"--data": "whole.csv"}, "whole.csv must have a missing cell in a column of the run, and has none"),
        (
            "run",
            {"--data": "town.csv"},
            "town.csv, row 3, column 'town': must be one of Basel, Bern, Chur; got 'Brn': did you mean Bern?",
        ),
        ("run", {"--data": "income.csv"}, "income.csv, row 3, column 'income': must be a number, got 'much'"),
        (
            "run",
            {"--data": "visits.csv"},
            "visits.csv, row 3, column 'visits': must be a whole number of 0 or more as a count, got 2.5",
        ),
        ("run", {"--data": "infinite.csv"}, "infinite.csv, row 3, column 'income': must be finite, got inf"),
        ("run", {"--data": "taken.csv"}, "taken.csv has a column 'visits_sd' already: rename it"),
        (
            "run",
            {"--data": "fewer.csv"},
            "fewer.csv must have the column 'smoker', and has income, visit",
        ),
    ):
        words = [word for flag, value in {**usual, **flags}.items() for word in (flag, value) if word is not None]
        refused = command_here("impute", run, *words, cwd=folder)
        assert (refused.returncode, refused.stderr) == (2, f"error: {said}\n")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert (folder / "there.csv").read_text() == "mine\n"


def test_a_run_without_missing_cells_completes_none(folder):
    write_table(folder / "full.csv", {"a": "continuous", "b": "continuous"}, seed=suite_seed())
    done("train", "--dataset", "full.csv", "--label-column", "group", *SMALL, "--out", "plain", cwd=folder)
    refused = command_here("impute", "plain", "--data", "full.csv", "--out", "out.csv", cwd=folder)
    said = "impute needs a run that was trained with missing mask, and that in plain was not"
    assert (refused.returncode, refused.stderr) == (2, f"error: {said}\n")


def test_a_run_whose_labels_are_in_an_array_is_refused(folder):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(suite_seed())).numpy()
    np.savez(folder / "arrays.npz", x=x, y=np.arange(60) % 2)
    flags = ("--dataset", "arrays.npz", "--conditional", "--missing", "mask", *SMALL)
    done("train", *flags, "--out", "arrays", cwd=folder)
    (folder / "x.csv").write_text("x1,x2\n1.5,\n")
    refused = command_here("impute", "arrays", "--data", "x.csv", "--out", "out.csv", cwd=folder)
    said = "impute reads the labels of a conditional run from its label_column"
    assert (refused.returncode, refused.stderr) == (2, f"error: {said}, and the run in arrays had them in an array y\n")
