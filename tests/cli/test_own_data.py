"""Data of one's own from file to report, by the command and from Python."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import suite_seed
from own_files import MIXED, write_photos, write_table
from running_scripts import command_here, without_drawing

import pyrovae as pv
from pyrovae.runs import columns_table, train_run
from pyrovae.runs.own_data import check_same_layout, check_same_values, data_told
from pyrovae.training import told_of_dataset

SMALL = ("--latent-dim", 1, "--hidden", 8, "--epochs", 2, "--batch-size", 50)
FEW = ("--num-samples", 20)
MEASURED = shutil.ignore_patterns("evaluation*", "report*", "figures")


@pytest.fixture(autouse=True)
def _two_tests_draw_their_figures(request, monkeypatch):
    if not {"mixed", "photos"} & set(request.function.__name__.split("_")):
        without_drawing(monkeypatch)


def done(*arguments, cwd):
    """Returns what the command printed, which must have ended well and without a warning."""
    result = command_here(*arguments, cwd=cwd)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A run on a table of continuous, binary, count and category columns of which a tenth of the cells are missing."""
    folder = tmp_path_factory.mktemp("people")
    write_table(folder / "people.csv", MIXED, missing=0.1, seed=suite_seed())
    flags = ("--dataset", "people.csv", "--label-column", "group", "--missing", "mask")
    shown = done("train", *flags, *SMALL, "--out", "runs/people", cwd=folder)
    return folder, shown


@pytest.mark.parametrize(("scale", "side"), [(100.0, "lower"), (0.01, "higher")])
def test_the_units_of_the_file_make_log_px_lower_or_higher(scale, side, tmp_path):
    """It said "-4.605 nats lower" of a column whose numbers are small."""
    np.savetxt(tmp_path / "one.csv", scale * np.random.default_rng(0).normal(size=(60, 1)))
    done("train", "--dataset", "one.csv", *SMALL, "--out", "run", cwd=tmp_path)
    said = done("evaluate", "run", "--methods", "is_5", cwd=tmp_path)
    sd = pv.load_run(tmp_path / "run", dataset=tmp_path / "one.csv").data.columns[0].sd
    assert f"in the units of the file, each is {abs(math.log(sd)):.3f} nats {side}\n" in said


def test_a_mixed_table_with_missing_cells_is_shown_trained_and_measured(people):
    folder, shown = people
    assert "people: 96 data to train on, 12 to validate on, 12 to test on; likelihood columns, network mlp" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert {name: rows[name].split()[1] for name in MIXED} == MIXED
    assert "standardised" in rows["income"]
    assert "Basel, Bern, Chur" in rows["town"]
    assert shown.index("Basel") < shown.index("epoch")  # before training
    assert shown.endswith("next: pyrovae evaluate runs/people\n")
    config = json.loads((folder / "runs/people/config.json").read_text())
    assert config["dataset"] == str(folder / "people.csv")
    assert config["columns"] == list(MIXED)
    assert config["kinds"] == [f"{name}={kind}" for name, kind in MIXED.items()]
    assert config["likelihood"] == "columns"

    measured = done("evaluate", "runs/people", *FEW, cwd=folder)
    found = json.loads((folder / "runs/people/evaluation.json").read_text())
    data = pv.load(folder / "people.csv", label_column="group", missing="mask", standardise=True)
    # By hand: each observed cell of a standardised column takes off the log of its column's standard deviation.
    cells = np.genfromtxt(folder / "people.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    log_sd = torch.tensor([math.log(column.sd) if column.sd else 0.0 for column in data.columns])
    shift = ((~data.test_x.isnan()) * log_sd).sum(1).mean().item()
    assert shift > 1
    assert found["log_px_in_file_units"] == pytest.approx(found["log_px"] - shift, abs=1e-4)
    train = np.nanstd([float(cell) for cell in cells["income"]])
    assert next(column.sd for column in data.columns if column.name == "income") == pytest.approx(train, rel=0.2)
    for text in (measured, (folder / "runs/people/report.md").read_text()):
        assert "log p(x), in the units of the file" in text
        assert f"{found['log_px_in_file_units']:.3f}" in text
    assert "| town " in (folder / "runs/people/report.md").read_text()
    figures = sorted(path.name for path in (folder / "runs/people/figures").iterdir())
    assert figures == ["latent.png", "log_px.png", "samples.png", "training.png"]


def test_a_run_on_a_table_is_trained_longer_and_compared(people):
    folder, _ = people
    shutil.copytree(folder / "runs/people", folder / "longer", ignore=MEASURED)
    again = done("train", "--out", "longer", "--resume", "--epochs", 4, cwd=folder)
    assert "4 epochs in" in again
    flags = ("--dataset", "people.csv", "--label-column", "group", "--missing", "mask", *SMALL)
    done("train", *flags, "--epochs", 4, "--out", "at once", cwd=folder)
    states = [pv.load_run(folder / name).vae.state_dict() for name in ("longer", "at once")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    flags = ("--objectives", "iwae", "dreg", "--num-particles", 2, 4, "--repeats", 4, "--no-compile")
    assert "12 test data of longer" in done("compare", "longer", *flags, cwd=folder)
    rows = json.loads((folder / "longer/comparison.json").read_text())["rows"]
    assert [(row["objective"], row["num_particles"]) for row in rows] == [
        ("iwae", 2),
        ("iwae", 4),
        ("dreg", 2),
        ("dreg", 4),
    ]


def test_a_folder_of_photos_from_the_command_and_from_python(tmp_path):
    write_photos(tmp_path / "photos", num=30, seed=suite_seed())
    shown = done("train", "--dataset", "photos/", *SMALL, "--out", "run", cwd=tmp_path)
    assert "photos: 24 data to train on, 3 to validate on, 3 to test on" in shown
    assert "likelihood discretized_logistic, network resnet" in shown
    done("evaluate", "run", *FEW, cwd=tmp_path)
    figures = sorted(path.name for path in (tmp_path / "run/figures").iterdir())
    assert figures == ["latent.png", "log_px.png", "reconstructions.png", "samples.png", "training.png"]
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["log_px_in_file_units"] is None
    assert found["log_px"] < 0
    data = pv.load(tmp_path / "photos")
    likelihood = pv.DiscretizedLogistic(0.3)
    vae = pv.VAE(data.event_shape, latent_dim=2, hidden=(8,), likelihood=likelihood, network="resnet")
    pv.fit(vae, data, epochs=1, seed=0, progress=False)
    assert vae.sample(2).shape == (2, 3, 8, 8)


def test_a_table_of_one_kind_has_the_usual_family_and_takes_others(tmp_path):
    kinds = {"continuous": "gaussian_learned", "count": "negative_binomial", "binary": "bernoulli"}
    for kind, usual in kinds.items():
        write_table(tmp_path / f"{kind}.csv", {"a": kind, "b": kind, "c": kind}, seed=suite_seed())
        shown = done(
            "train", "--dataset", f"{kind}.csv", "--label-column", "group", "--out", kind, *SMALL, cwd=tmp_path
        )
        assert f"likelihood {usual}," in shown
        assert json.loads((tmp_path / kind / "config.json").read_text())["kinds"] == [kind]
    flags = ("--dataset", "count.csv", "--kinds", "count", "--likelihood", "gaussian", "--label-column", "group")
    refused = command_here("train", *flags, "--out", "bad", cwd=tmp_path)
    fitting = "negative_binomial, poisson, zero_inflated_negative_binomial, columns"
    assert refused.stderr == f"error: likelihood must be one of {fitting} for count data, got 'gaussian'\n"
    assert not (tmp_path / "bad").exists()
    flags = ("--dataset", "count.csv", "--likelihood", "poisson", "--conditional", "--label-column", "group")
    done("train", *flags, *SMALL, "--out", "poisson", cwd=tmp_path)
    done("evaluate", "poisson", *FEW, cwd=tmp_path)
    flags = ("--dataset", "binary.csv", *SMALL, "--epochs", 1, "--objectives", "elbo", "iwae", "--budget", "epochs")
    done("race", *flags, "--seeds", 0, 1, *FEW, "--out", "race", cwd=tmp_path)


def test_whole_numbers_are_real_numbers_under_a_gaussian(tmp_path):
    kinds = {"alcohol": "continuous", "proline": "count", "magnesium": "count", "organic": "binary"}
    write_table(tmp_path / "wine.csv", kinds, seed=suite_seed())
    rows = (tmp_path / "wine.csv").read_text().replace("yes", "1").replace("no", "0").splitlines()
    (tmp_path / "wine.csv").write_text("\n".join([rows[0].replace("group", "class"), *rows[1:]]) + "\n")
    flags = ("--dataset", "wine.csv", "--label-column", "class", "--likelihood", "gaussian", *SMALL)
    shown = done("train", *flags, "--out", "runs/wine", cwd=tmp_path)
    assert shown.count(": standardised") == len(rows[0].split(",")) - 1
    assert json.loads((tmp_path / "runs/wine/config.json").read_text())["kinds"] == ["continuous"]
    done("evaluate", "runs/wine", *FEW, cwd=tmp_path)
    assert {column.kind for column in pv.load_run(tmp_path / "runs/wine").data.columns} == {"continuous"}


@pytest.mark.parametrize(
    ("kinds", "given", "said"),
    [
        ({"a": "continuous", "town": "category", "n": "count"}, (), "'town' is of kind category"),
        ({"a": "continuous", "n": "count"}, ("n=count",), "'n' is of kind count"),
    ],
)
def test_a_gaussian_refuses_categories_and_kinds_that_were_given(kinds, given, said, tmp_path):
    write_table(tmp_path / "a.csv", kinds, seed=suite_seed())
    config = pv.RunConfig(
        dataset=str(tmp_path / "a.csv"), label_column="group", likelihood="student_t", kinds=given, hidden=(4,)
    )
    with pytest.raises(
        pv.InputError, match=f"likelihood student_t is for continuous columns, and {said}: leave it out"
    ):
        train_run(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize("others", [("validation", "train"), ("train",), ("validation", "train", "test")])
def test_without_test_data_a_run_is_drawn_and_not_measured(others, tmp_path):
    splits, row = (*others, *("train",) * 7), "{0}.5,{0}.25,{0}.75,{1}\n"
    rows = [row.format(index, splits[index % 10 % len(splits)]) for index in range(60)]
    if "test" in others:  # of which every cell is missing
        rows = [",,,test\n" if line.endswith("test\n") else line for line in rows]
    (tmp_path / "a.csv").write_text("a,b,c,split\n" + "".join(rows))
    flags = ("--dataset", "a.csv", "--split-column", "split", "--missing", "mask", "--tensorboard", *SMALL)
    done("train", *flags, "--out", "run", cwd=tmp_path)
    assert list((tmp_path / "run/tensorboard").iterdir())
    if "test" not in others:
        for command in ("evaluate", "compare"):
            refused = command_here(command, "run", cwd=tmp_path)
            num_train = sum(line.endswith("train\n") for line in rows)
            said = f"error: a has no test data to measure on, and {num_train} to train on\n"
            assert (refused.returncode, refused.stderr) == (2, said)


def test_a_header_that_cannot_be_guessed_is_said(tmp_path):
    rng = np.random.default_rng(suite_seed())
    texts = [f"{rng.normal():.3f},{'ab'[index % 2]}\n" for index in range(40)]
    numbers = ["2023,2024\n", *(f"{one:.3f},{other:.3f}\n" for one, other in rng.normal(size=(40, 2)))]
    for name, rows, flag, columns in (
        ("texts", texts, "--no-header", ["x1", "x2"]),
        ("years", numbers, "--header", ["2023", "2024"]),
    ):
        (tmp_path / f"{name}.csv").write_text("".join(rows))
        shown = done("train", "--dataset", f"{name}.csv", flag, *SMALL, "--out", name, cwd=tmp_path)
        assert f"{name}: 32 data to train on" in shown
        done("evaluate", name, *FEW, cwd=tmp_path)
        done("train", "--out", name, "--resume", "--epochs", 3, cwd=tmp_path)
        run = pv.load_run(tmp_path / name)
        assert [column.name for column in run.data.columns] == columns
        assert run.config.header is (flag == "--header")
    refused = command_here("train", "--dataset", "ring", "--header", "--out", "bad", cwd=tmp_path)
    assert refused.stderr == "error: header is for data of your own, and ring is built in; got True\n"


def test_a_file_that_moved_is_found_and_one_that_changed_is_refused(people, tmp_path):
    folder, _ = people
    shutil.copytree(folder / "runs/people", tmp_path / "run", ignore=MEASURED)
    shutil.copy(folder / "people.csv", tmp_path / "moved.csv")
    lines = (folder / "people.csv").read_text().splitlines()
    done("evaluate", tmp_path / "run", *FEW, cwd=tmp_path)  # from another working folder
    flags = ("run", *FEW, "--overwrite", "--dataset")
    done("evaluate", *flags, "moved.csv", cwd=tmp_path)
    gone = command_here("evaluate", *flags, "gone.csv", cwd=tmp_path)
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert "gone.csv" in gone.stderr
    rule = f"error: {tmp_path}/changed.csv must be as it was when the run was trained"
    for changed, said in (
        (lines[:-1], ": number of train data was 96, and is 95\n"),
        ([line.replace("Basel", "Basle") for line in lines], ": the categories of column 'town' was "),
        ([*lines[:-1], lines[-1].rsplit(",", 1)[0] + ",z"], ": num_classes was 3, and is 4\n"),
    ):
        (tmp_path / "changed.csv").write_text("\n".join(changed) + "\n")
        refused = command_here("evaluate", *flags, "changed.csv", cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.startswith(rule + said)
    done("train", "--out", "run", "--resume", "--epochs", 3, "--dataset", "moved.csv", cwd=tmp_path)
    assert pv.load_run(tmp_path / "run").config.dataset == str(tmp_path / "moved.csv")


def test_data_that_differ_by_rounding_are_the_same(people):
    folder, _ = people
    data = pv.load_run(folder / "runs/people").data
    for factor, same in ((1 + 1e-13, True), (1.001, False)):
        told = data_told(data)
        (income,) = [column for column in told["layout"]["columns"] if column["name"] == "income"]
        income["mean"] *= factor
        if same:
            check_same_layout("people.csv", told, data)
        else:
            with pytest.raises(pv.InputError, match="the mean of column 'income' was"):
                check_same_layout("people.csv", told, data)


def test_a_changed_cell_of_the_test_data_is_seen(people):
    """The means that standardise are those of the training data."""
    folder, _ = people
    data = pv.load_run(folder / "runs/people").data
    row = int((~data.test_x[:, 0].isnan()).nonzero()[0])
    for change, same in ((1e-7, True), (0.01, False)):
        test_x = data.test_x.clone()
        test_x[row, 0] += change
        changed = replace(data, test_x=test_x)
        if same:
            check_same_values("people.csv", told_of_dataset(data), changed)
        else:
            with pytest.raises(pv.InputError, match="was trained, and holds other test data"):
                check_same_values("people.csv", told_of_dataset(data), changed)


def test_a_function_of_ones_own_gives_the_data(tmp_path):
    (tmp_path / "of_mine.py").write_text(
        "import torch, pyrovae as pv\n"
        "def make():\n"
        "    x = torch.randn(60, 4, 3, generator=torch.Generator().manual_seed(0))\n"
        "    return pv.Dataset('series', 'real', x[:40], (), x[40:50], (), x[50:], ())\n"
    )
    shown = done("train", "--dataset", "of_mine:make", *SMALL, "--out", "run", cwd=tmp_path)
    assert "series: 40 data to train on" in shown
    done("evaluate", "run", *FEW, cwd=tmp_path)
    assert pv.load_run(tmp_path / "run").config.dataset == "of_mine:make"
    refused = command_here("train", "--dataset", "of_mine:make", "--conditional", "--out", "bad", cwd=tmp_path)
    said = "conditional needs a label for each datum, found none: name their column with label_column"
    assert refused.stderr == f"error: {said}\n"


def test_a_function_of_ones_own_may_give_data_with_missing_cells(tmp_path):
    (tmp_path / "with_holes.py").write_text(
        "import torch, pyrovae as pv\n"
        "def holes():\n"
        "    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))\n"
        "    x[::7, 1] = torch.nan\n"
        "    return pv.Dataset('holes', 'real', x[:40], (), x[40:50], (), x[50:], ())\n"
    )
    done("train", "--dataset", "with_holes:holes", "--missing", "mask", *SMALL, "--out", "run", cwd=tmp_path)
    done("evaluate", "run", *FEW, cwd=tmp_path)


def test_the_table_of_columns_says_what_they_were_taken_for():
    x = torch.tensor([[1.0, 0.0, 7.0], [3.0, 1.0, float("nan")], [5.0, 1.0, 2.0], [7.0, 0.0, 3.0]])
    data = pv.load(x, kinds={"x1": "continuous"}, missing="mask", standardise=True, shares=(1, 0, 0))
    lines = [line.split() for line in columns_table(data).splitlines()[2:]]
    assert lines == [
        ["x1", "continuous", "mean", "4,", "sd", "2.236:", "standardised", "0.0%"],
        ["x2", "binary", "0", "to", "1", "0.0%"],
        ["x3", "count", "2", "to", "7", "25.0%"],
    ]


def test_the_guide_to_the_command_runs(tmp_path, monkeypatch):
    """Its code and its commands, in small."""
    page = (Path(__file__).parents[2] / "docs/command.md").read_text()
    monkeypatch.chdir(tmp_path)
    scope = {}
    for kind, text in re.findall(r"```(python|bash)\n(.*?)```", page, re.DOTALL):
        if kind == "python":
            exec(re.sub(r"range\(\d+\)", "range(40)", text).replace("epochs=50", "epochs=1"), scope)
            continue
        for line in text.splitlines():
            few_epochs = line.replace("--epochs 50", "--epochs 1").replace("--epochs 80", "--epochs 2")
            program, command, *flags = shlex.split(few_epochs)
            small = {"evaluate": FEW, "compare": ("--repeats", 4, "--no-compile")}.get(command, ())
            if command == "train" and "--resume" not in flags:
                small = ("--hidden", 8)
            assert program == "pyrovae"
            done(command, *flags, *small, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"people", "photos"}
    assert (tmp_path / "runs/people/comparison.md").exists()
    assert scope["history"].epoch == [1]


def test_errors_of_the_command_spell_settings_as_its_flags(tmp_path):
    """They said `missing="mask"`, which is no flag."""
    for body, flags, said in (
        ("1.5,2.5\n,3.5\n" * 9, (), "the cell is missing; --missing mask keeps such cells"),
        ("1.5,2.5\nabc,3.5\n1.5,2\n3.5,1\n", (), "say --kinds a=category"),
        (",1\n" * 9, ("--missing", "mask"), "leave it out with --exclude a"),
    ):
        (tmp_path / "cells.csv").write_text(f"a,b\n{body}")
        done = command_here("train", "--dataset", "cells.csv", *flags, cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
