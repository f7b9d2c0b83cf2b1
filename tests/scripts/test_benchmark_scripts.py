"""The benchmarks run in small."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which torch's optimisers import: once, and not in each fork
from forked import called
from helpers import suite_seed
from matplotlib.figure import Figure
from running_scripts import FOLDER, names_of, run_here, run_in_fork, with_quick_measures, without_drawing
from torch.distributed.run import main as torchrun

import pyrovae as pv
from pyrovae.runs import report


def write_numbers(figure, target, **settings):
    """Stands in for a figure's pixels, which every fork would find fonts and symbols for: what it shows, as numbers."""
    shown = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    shown += [patch.get_verts().tolist() for axes in figure.axes for patch in axes.patches]
    target.write(repr(shown).encode())


def test_runs_that_are_killed_go_on_to_the_bit(tmp_path, monkeypatch):
    """Short; `python scripts/benchmarks/kill_test.py --kills 20 --compile-too` is long, and has all figures."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Figure, "savefig", write_numbers)
    monkeypatch.setattr(report, "draw_figures", lambda run: {"training": Figure(figsize=(1, 1))})
    with_quick_measures(monkeypatch)
    result = run_in_fork("benchmarks/kill_test.py", "--kills", 3, "--epochs", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()[2:]] == ["yes"] * 4
    assert result.stderr.count("File too large") == 1


def test_processes_beside_threads_in_small(tmp_path):
    """The whole benchmark takes a minute; its launches and its arithmetic do not."""
    scaling = names_of("benchmarks/scaling.py")
    tells, refuses = tmp_path / "tells.py", tmp_path / "refuses.py"
    tells.write_text(
        "import os, pathlib, sys\n"
        "number, *of = (os.environ.get(name, '-') for name in ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS'))\n"
        "pathlib.Path(sys.argv[1], number).write_text(' '.join(of))\n"
    )
    found = {}
    for layout in ((2, 1), (1, 3)):
        folder = tmp_path / str(layout)
        folder.mkdir()
        scaling["launch"](tells, layout, folder)
        found[layout] = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {(2, 1): {"0": "2 1", "1": "2 1"}, (1, 3): {"-": "- 3"}}
    refuses.write_text("import sys\nprint('error: run folder nowhere does not exist', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(pv.InputError, match=r"refuses.py failed: error: run folder nowhere does not exist"):
        scaling["launch"](refuses, (1, 1), "nowhere")
    text = scaling["table"]({"epoch": {"one": [9.0], "threads": [6.0, 5.0, 90.0], "several": [3.0, 1.0, 4.0]}})
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")] == ["", "epoch", "9", "6", "3", "2.00", ""]


def test_scripts_under_torchrun_train_and_measure_once(tmp_path, monkeypatch):
    """In forks, which have everything imported. One call runs both scripts."""
    without_drawing(monkeypatch)
    with_quick_measures(monkeypatch)
    train = ("train.py", "--latent-dim", 1, "--hidden", 4, "--epochs", 2, "--batch-size", 500, "--out", "run")
    evaluate = ("evaluate.py", "run", "--num-samples", 30, "--num-data", 300)
    commands = [[str(FOLDER / script), *map(str, flags)] for script, *flags in (train, evaluate)]
    both = tmp_path / "both.py"
    both.write_text(
        f"import runpy, sys\nfor sys.argv in {commands}:\n    runpy.run_path(sys.argv[0], None, '__main__')\n"
    )
    how = ("--standalone", "--nproc-per-node=2", "--start-method=fork", "--run-path")
    status, _, said = called(torchrun, ("torchrun", *how, both), tmp_path)
    assert status == 0, said
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    one = run_here("evaluate.py", "run", "--num-samples", 30, "--num-data", 300, "--overwrite", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    alone = json.loads((tmp_path / "run/evaluation.json").read_text())
    for row, same in zip(evaluation.pop("bounds"), alone.pop("bounds"), strict=True):
        assert row == pytest.approx(same, abs=1e-5)
    assert {k: v for k, v in evaluation.items() if k != "seconds"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "seconds"}, abs=1e-5
    )


def test_differentiable_ais_has_numpyros_bound_and_gradient_on_the_same_noise():
    pytest.importorskip("numpyro")
    ours, theirs = names_of("benchmarks/dais_in_numpyro.py")["compared"](num_transitions=3, seed=suite_seed())
    assert ours.bound == pytest.approx(theirs.bound, abs=1e-10)
    for name, gradient in ours.gradient.items():
        torch.testing.assert_close(gradient, theirs.gradient[name], rtol=1e-9, atol=1e-9)


def test_without_numpyro_the_comparison_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    result = run_here("benchmarks/dais_in_numpyro.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: this script needs NumPyro: pip install 'pyrovae[benchmark]'\n"


@pytest.fixture
def usual_cache(monkeypatch):
    """What is compiled once in the suite is loaded here; the benchmarks themselves compile anew."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir())


@pytest.mark.usefixtures("usual_cache")
def test_the_benchmark_in_small(tmp_path):
    result = run_here("benchmarks/speed.py", "--only", "ring", "--rounds", 1, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    row = json.loads((tmp_path / "out/results.json").read_text())["rows"][0]
    assert {"stock Pyro", "plain PyTorch", "ours eager", "ours", "floor"} <= row["ms"].keys()
    assert all(ms > 0 for ms in row["ms"].values())
    assert row["loss_difference"] < 1e-5  # a fast wrong answer must not look good
    assert row["gradient_difference"] < 1e-4
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{row['ms']['ours']:.2f}" in text
    assert (tmp_path / "out/benchmark.png").exists()


def test_the_cost_of_the_check_in_small(tmp_path):
    result = run_here("benchmarks/gate.py", "--steps", 2, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all(re.search(r": \d+\.\d\d ms with, \d+\.\d\d ms without, ratio \d+\.\d{3};", line) for line in lines)


@pytest.mark.usefixtures("usual_cache")
def test_programs_of_users_in_small(tmp_path):
    result = run_here("benchmarks/programs.py", "--only", "item response", "--turns", 2, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert row["reason"] is None
    assert max(row["loss_difference"], row["gradient_difference"], row["losses_difference"]) < 1e-5
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{row['ours_ms']:.2f}" in text


def test_the_parts_for_a_gpu_are_stopped_in_time_and_reported(tmp_path):
    """On the CPU: the tests for a GPU begin and are stopped, and no part begins after them."""
    settings = ("--device", "cpu", "--parts", "tests", "speed", "--total", 1)
    result = run_here("benchmarks/gpu.py", *settings, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = (tmp_path / "out/report.md").read_text()
    assert "## tests: stopped by the time limit" in report
    assert "## speed\n\nnot begun: the time was over" in report


def test_compilations_are_timed_without_those_of_earlier_runs(monkeypatch, tmp_path):
    first_compilations = names_of("benchmarks/cases.py")["first_compilations"]
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with first_compilations():
        assert list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).iterdir()) == []
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with first_compilations():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("question", ["posterior", "impute", "conditional", "check"])
def test_the_memory_of_a_question_in_small(question, tmp_path):
    flags = ("--question", question, "--num-samples", 30, "--num-data", 20)
    result = run_here("benchmarks/answers.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(
        rf"{question}: 30 draws of 20 data: peak [\d,]+ MB \(before [\d,]+ MB\), \d+ CPU seconds\n", result.stdout
    )
