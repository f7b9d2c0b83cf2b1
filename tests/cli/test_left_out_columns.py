"""Columns that are no data to model: those that number the rows are pointed out, and any can be left out."""

import re

import pytest

import pyrovae as pv
from pyrovae.runs import columns_table, train_run


def test_a_column_that_numbers_the_rows_is_pointed_out(tmp_path):
    """Beside it are counts that only might: some are equal, or all differ and leave numbers out."""
    rows = [f"{17 + i},{i % 3},{(i * 37) % 101}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,visits,score", *rows]) + "\n")
    said = (
        "rows.csv, column 'id': numbers the rows, and is modelled as a count: an identifier? leave it out with exclude="
    )
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


def test_a_column_left_out_of_a_run_may_hold_anything_and_stays_out(tmp_path):
    rows = [f"2024-01-{1 + i % 28:02d}T{i},{i * 0.37 % 1:.2f},{i * 0.71 % 1:.2f}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["date,a,b", *rows]) + "\n")
    config = pv.RunConfig(dataset=str(tmp_path / "rows.csv"), exclude=("date",), hidden=(4,), epochs=1)
    train_run(config, tmp_path / "run")
    assert [one.name for one in pv.load_run(tmp_path / "run").data.columns] == ["a", "b"]
