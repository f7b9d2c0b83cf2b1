"""What a run's reports say of the run: on which data, and which of its parameters were measured."""

import csv
import json
import os
import signal
from functools import cache

import pytest
from reading_pages import Page, markdown_rows
from running_scripts import command_here

import pyrovae as pv
from pyrovae.lab import COMPARISON_FILES
from pyrovae.runs import ESTIMATES_FILES, EVALUATION_FILES, train_run
from pyrovae.runs.figures import draw_log_px
from pyrovae.training.steps import Steps

SMALL = {"hidden": (4,), "batch_size": 500}
COLUMNS = ("<script>alert(1)</script>", "say \"hi\" & 'bye'|", "plain")
MEASURES = {
    EVALUATION_FILES: ("--num-samples", 30, "--num-data", 6),
    ESTIMATES_FILES: ("--methods", "elbo", "is_30", "--num-data", 6),
    COMPARISON_FILES: ("--objectives", "iwae", "--num-particles", 2, "--repeats", 4, "--num-data", 6, "--no-compile"),
}


@cache
def measured(folder, files):
    """What the JSON says, the report as Markdown and as a page, and what the command prints."""
    command = "compare" if files is COMPARISON_FILES else "evaluate"
    done = command_here(command, folder.name, *MEASURES[files], "--overwrite", cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    for name in files[1:3]:
        assert name in done.stdout.splitlines()[-1]
    content, *texts = ((folder / name).read_text() for name in files[:3])
    return json.loads(content), *texts, done.stdout


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a run on a table whose columns have names that are markup."""
    folder = tmp_path_factory.mktemp("table")
    with (folder / "rows<b>.csv").open("w", newline="") as file:
        rows = [[f"{i * 37 % 101 / 7:.2f}", f"{i * 53 % 97 / 9:.2f}", f"{i * 29 % 89}.5"] for i in range(60)]
        csv.writer(file).writerows([COLUMNS, *rows])
    train_run(pv.RunConfig(dataset=str(folder / "rows<b>.csv"), epochs=2, **SMALL), folder / "run", progress=False)
    return folder / "run"


@pytest.mark.parametrize("files", MEASURES, ids=lambda files: files[0])
def test_both_forms_say_the_same_and_which_epoch_they_are_of(table, files):
    content, markdown, html, _ = measured(table, files)
    page = Page(html)
    assert (content["epoch"], content["steps_beyond"], content["num_data"]) == (2, 0, 6)
    assert page.texts["h1"][0].startswith("rows<b>, elbo, epoch 2")
    assert markdown.startswith("# rows\\<b>, elbo, epoch 2")
    assert page.rows == markdown_rows(markdown)
    assert len(page.named("script")) == 1
    assert not [tag for tag, _ in page.elements if tag == "b"]
    tags = [tag for tag, _ in page.elements]
    assert tags.index("strong") < tags.index("table")  # the verdict
    assert page.texts["strong"][0] == "Verdict on log p(x)"
    assert page.texts["p"][0].strip()[1:40] in markdown
    pictures = [line[line.index("](") + 2 : -1] for line in markdown.splitlines() if line.startswith("![")]
    assert len(pictures) == len(page.named("img")) > 0
    assert set(pictures) <= set(files)
    assert all((table / name).is_file() for name in pictures)


def test_the_report_of_a_table_has_its_columns_and_the_verdict_that_is_printed(table):
    content, markdown, html, printed = measured(table, EVALUATION_FILES)
    assert {row[0] for row in Page(html).rows} >= set(COLUMNS)
    assert content["verdict"][1:] in markdown
    assert content["bounds"][-1][0] == 10
    assert content["bounds"][0][1] < content["log_px"]
    assert content["verdict"] in printed


def test_the_parameters_of_a_run_that_was_interrupted_in_an_epoch_are_not_called_those_of_the_epoch(
    tmp_path, monkeypatch
):
    """They are written down in the middle of the epoch, and evaluated as they are."""
    take, count = Steps.take, iter(range(100))

    def take_and_stop(*args):
        if next(count) == 5:  # an epoch has four steps
            os.kill(os.getpid(), signal.SIGINT)
        return take(*args)

    config = pv.RunConfig(epochs=3, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", take_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "run", progress=False)
    run = pv.load_run(tmp_path / "run")
    assert run.place == {"epoch": 1, "steps_beyond": 2}
    assert run.title == "ring, elbo, epoch 1 and 2 steps"
    done = train_run(config, tmp_path / "run", resume=True, progress=False)
    for run in (done, pv.load_run(tmp_path / "run")):
        assert run.title == "ring, elbo, epoch 3"


def test_the_parameters_of_a_run_that_stopped_early_are_those_of_its_best_epoch(tmp_path):
    config = pv.RunConfig(epochs=30, patience=1, lr=0.3, **SMALL)
    done = train_run(config, tmp_path / "run", progress=False)
    best, last = done.history.best_epoch, len(done.history.epoch)
    assert best == last - 1
    assert done.history.elbo[best - 1] == max(done.history.elbo)
    for run in (done, pv.load_run(tmp_path / "run")):
        assert run.place == {"epoch": best, "steps_beyond": 0}
        assert run.title == f"ring, elbo, epoch {best}, the best of {last}"


def test_an_epoch_whose_elbo_is_not_a_number_is_never_the_best():
    history = pv.History(epoch=[1, 2, 3], elbo=[float("nan"), -2.0, -2.0])
    assert history.best_epoch == 2
    assert pv.History(epoch=[1], elbo=[float("nan")]).best_epoch is None
    assert pv.History(epoch=[1], elbo=[None]).best_epoch is None


def test_a_bound_that_is_unknown_is_a_gap_of_the_figure():
    """`measure` says None of a bound of -inf, which one draw of weight 0 makes of the ELBO."""
    others = dict.fromkeys(("log_px_quadrature", "log_px_quadrature_error", "log_px_enumeration"))
    figure = draw_log_px({**others, "bounds": [[1, None, None], [5, -2.0, 0.1], [10, -1.9, 0.1]]})
    figure.canvas.draw()
    assert list(figure.axes[0].lines[0].get_ydata())[1:] == [-2.0, -1.9]
