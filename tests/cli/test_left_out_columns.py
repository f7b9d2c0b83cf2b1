"""Columns that are no data to model: those that number the rows are pointed out, and any can be left out."""

import re
from dataclasses import replace

import pytest
from helpers import refusal
from running_scripts import command_here

import pyrovae as pv
from pyrovae.runs import columns_table, load_data, train_run


def test_a_column_that_numbers_the_rows_is_pointed_out(tmp_path):
    """Beside it are counts that only might: some are equal, or all differ and leave numbers out."""
    rows = [f"{17 + i},{i % 3},{(i * 37) % 101}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,visits,score", *rows]) + "\n")
    said = "rows.csv, column 'id': numbers the rows: an identifier? leave it out with exclude="
    with pytest.warns(match=re.escape(said)) as caught:
        data = pv.load(tmp_path / "rows.csv")
    assert len(caught) == 1
    table = {line.split()[0]: line for line in columns_table(data).splitlines()[2:]}
    assert {name for name, line in table.items() if "an identifier?" in line} == {"id"}
    assert "17 to 56, all different: an identifier? --exclude leaves it out" in table["id"]
    printed = {line.split()[0]: line for line in repr(data.columns).splitlines()[2:]}
    assert {name for name, line in printed.items() if "an identifier? leave it out with exclude=['id']" in line} == {
        "id"
    }
    asked = (
        pv.load(tmp_path / "rows.csv", kinds={"id": "count"}),
        pv.load(tmp_path / "rows.csv", columns=["id", "score"]),
    )
    assert [data.columns[0].name for data in asked] == ["id", "id"], "what was asked for is not warned of"
    assert [one.name for one in pv.load(tmp_path / "rows.csv", exclude=["id"]).columns] == ["visits", "score"]


def test_it_is_pointed_out_once_whatever_it_is_modelled_as(tmp_path):
    """Under a Gaussian it is a real number: the warning called it a count, and nothing marked it."""
    rows = [f"{1_000_017 + (i * 7) % 40},{i * 0.37 % 1:.2f},{2.0 * i},{i - 3.0},{i % 39}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,a,even,below,twice", *rows]) + "\n")
    config = pv.RunConfig(dataset=str(tmp_path / "rows.csv"), likelihood="gaussian")
    with pytest.warns(match="'id': numbers the rows: an identifier?") as caught:
        data = load_data(config)
    assert (len(caught), data.columns[0].kind, data.columns[0].sd is None) == (1, "continuous", False)
    table = {line.split()[0]: line for line in columns_table(data).splitlines()[2:]}
    assert {name for name, line in table.items() if "an identifier?" in line} == {"id"}
    with pytest.warns(match="'id': numbers the rows"):
        assert load_data(replace(config, standardise=False)).columns.numbering_rows == {"id"}


def test_a_column_left_out_of_a_run_may_hold_anything_and_stays_out(tmp_path):
    rows = [f"2024-01-{1 + i % 28:02d}T{i},{i * 0.37 % 1:.2f},{i * 0.71 % 1:.2f}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["date,a,b", *rows]) + "\n")
    config = pv.RunConfig(dataset=str(tmp_path / "rows.csv"), exclude=("date",), hidden=(4,), epochs=1)
    train_run(config, tmp_path / "run")
    assert [one.name for one in pv.load_run(tmp_path / "run").data.columns] == ["a", "b"]


def test_what_is_left_out_is_left_out_of_the_columns_that_are_chosen(tmp_path):
    """So the advice to leave out a column holds whatever else was said."""
    path = tmp_path / "rows.csv"
    path.write_text("a,b,c,d\n" + "".join(f"{i * 0.37 % 1:.2f},,{i % 5},{'xyz'[i % 3]}\n" for i in range(60)))
    columns, kinds = ["d", "b", "a"], {"d": "category", "a": "continuous", "b": "count"}
    assert refusal(pv.load, path, columns=columns).endswith("leave it out with exclude=['b']")
    data = pv.load(path, columns=columns, exclude=["b"], kinds=kinds)
    assert [(one.name, one.kind) for one in data.columns] == [("d", "category"), ("a", "continuous")]


def test_the_command_that_began_a_run_resumes_it_and_others_left_out_are_another_run(tmp_path):
    """Its config.json names the columns that were left, which `--exclude` was refused beside."""
    rows = [f"{i},{i * 0.37 % 1:.2f},{i * 0.71 % 1:.2f},{'xyz'[i % 3]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,a,b,town", *rows]) + "\n")
    begin = ("train", "--dataset", "rows.csv", "--exclude", "id", "--hidden", 4, "--epochs", 1, "--out", "run")

    def columns_after(*flags, out="run"):
        done = command_here(*flags, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return pv.load_run(tmp_path / out).config.columns

    assert columns_after(*begin) == columns_after(*begin, "--resume", "--epochs", 2) == ("a", "b", "town")
    other = command_here(*begin, "--resume", "--epochs", 3, "--exclude", "town", cwd=tmp_path)
    said = "error: the run in run was begun with columns ['a', 'b', 'town'], and columns is now ['a', 'b']\n"
    assert (other.returncode, other.stderr) == (2, said)
    again = ("train", "--config", "run/config.json", "--exclude", "town", "--out", "again")
    assert columns_after(*again, out="again") == ("a", "b")
