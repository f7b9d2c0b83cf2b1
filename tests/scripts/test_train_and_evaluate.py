"""train.py, evaluate.py and demo.py run as a user runs them."""

import json
import re

import pytest
import torch
from helpers import tree, write_first_images
from matplotlib.figure import Figure
from running_scripts import FOLDER, run_here, without_drawing

from pyrovae.runs import NOTE_ON_OTHER_OBJECTIVES, report


def test_train_then_evaluate_points(tmp_path, monkeypatch):
    flags = ["--dataset", "four_clusters", "--latent-dim", 1, "--hidden", 8, "--epochs", 3, "--out", "out"]
    trained = run_here("train.py", *flags, "--objective", "iwae", "--num-particles", 3, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    assert f"next: python {FOLDER / 'evaluate.py'} out" in trained.stdout
    assert json.loads((tmp_path / "out/config.json").read_text())["num_particles"] == 3
    evaluated = run_here("evaluate.py", "out", "--num-samples", 50, "--num-data", 30, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    keys = {"elbo", "iwae_50", "log_px", "log_px_standard_error", "num_samples", "num_data"}
    assert keys <= evaluation.keys()
    assert (evaluation["num_samples"], evaluation["num_data"]) == (50, 30)
    assert f"{evaluation['log_px']:.3f}" in evaluated.stdout
    assert f"{evaluation['log_px']:.3f}" in (tmp_path / "out/report.md").read_text()
    figures = sorted(p.name for p in (tmp_path / "out/figures").iterdir())
    assert figures == ["latent.png", "log_px.png", "samples.png", "training.png"]

    without_drawing(monkeypatch)
    before = (tmp_path / "out/evaluation.json").read_text()
    again = run_here("evaluate.py", "out", "--num-samples", 60, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "error: out/evaluation.json exists; say --overwrite to replace it\n"
    assert (tmp_path / "out/evaluation.json").read_text() == before
    again = run_here("evaluate.py", "out", "--num-samples", 60, "--num-data", 30, "--overwrite", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["num_samples"] == 60


def test_estimates_beside_each_other(tmp_path):
    flags = ["--dataset", "four_clusters", "--hidden", 4, "--epochs", 1, "--out", "out"]
    assert run_here("train.py", *flags, cwd=tmp_path).returncode == 0
    flags = ["out", "--num-data", 3, "--methods", "elbo", "is_100"]
    result = run_here("evaluate.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out/estimates.json").read_text())["estimates"]
    assert [row["method"] for row in rows] == ["elbo", "is_100"]
    for text in (result.stdout, (tmp_path / "out/estimates.md").read_text()):
        assert f"{rows[1]['nats']:.3f}" in text
    assert (tmp_path / "out/figures/estimates.png").exists()
    again = run_here("evaluate.py", *flags, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (2, "error: out/estimates.json exists; say --overwrite to replace it\n")
    bad = run_here("evaluate.py", "out", "--overwrite", "--methods", "magic", cwd=tmp_path)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: methods must be elbo, iwae_K, is_S, ais_T or ais_prior_T")


@pytest.mark.parametrize("binarize", ["dynamic", "none"])
def test_train_then_evaluate_mnist(tmp_path, mnist_root, binarize):
    write_first_images(mnist_root, tmp_path / "data", nums=(6_000, 100))  # 5,000 validate
    flags = ["--dataset", "mnist", "--data-root", "data", "--binarize", binarize, "--hidden", 16, "--latent-dim", 4]
    trained = run_here("train.py", *flags, "--epochs", 1, "--batch-size", 100, "--out", "out", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    evaluated = run_here("evaluate.py", "out", "--num-samples", 20, "--num-data", 50, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert -500 < evaluation["elbo"] < -100
    assert (evaluation["log_px"] is None) == (binarize == "none")
    assert "reconstructions.png" in tree(tmp_path / "out/figures")


def test_the_demo_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figures", lambda run: {"samples": Figure(figsize=(1, 1))})  # the tests above do
    result = run_here("demo.py", "--epochs", 1, "--num-samples", 30, "--num-data", 10, "--out", "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["ELBO"]["data_log_density"] == results["IWAE-50"]["data_log_density"]
    for value in (results["ELBO"]["log_px_quadrature"], results["IWAE-50"]["iwae_50"]):
        assert f"{value:.3f}" in result.stdout
        assert f"{value:.3f}" in (tmp_path / "demo/report.md").read_text()
    assert result.stdout.count(NOTE_ON_OTHER_OBJECTIVES) == 1
    reports = [(tmp_path / "demo" / run / "report.md").read_text() for run in (".", "elbo", "iwae-50")]
    told = [report.count(NOTE_ON_OTHER_OBJECTIVES) for report in reports]
    assert told == [1, 0, 1]  # the ELBO of a model that was trained with the ELBO travels
    assert {"demo/demo.png", "demo/elbo/evaluation.json", "demo/iwae-50/figures/samples.png"} <= tree(tmp_path).keys()


def test_a_training_that_diverges_is_one_line_and_a_config_repeats_a_run_here(tmp_path):
    bad = run_here("train.py", "--lr", 1e10, "--epochs", 30, "--out", "bad", cwd=tmp_path)
    assert bad.returncode == 2
    assert re.fullmatch(r"error: training diverged: .* at epoch \d+, step \d+ .*\n", bad.stderr)
    assert (tmp_path / "bad/checkpoint.pt").exists()  # that of before the first step
    small = ["--dataset", "pinwheel", "--hidden", 7, "--epochs", 2, "--batch-size", 500, "--conditional"]
    assert run_here("train.py", *small, "--out", "one", cwd=tmp_path).returncode == 0
    again = run_here("train.py", "--config", "one/config.json", "--out", "two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "one/config.json").read_text() == (tmp_path / "two/config.json").read_text()
    states = [torch.load(tmp_path / name / "checkpoint.pt")["state"] for name in ("one", "two")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    other = run_here("train.py", "--config", "one/config.json", "--no-conditional", "--out", "three", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert json.loads((tmp_path / "three/config.json").read_text())["conditional"] is False
    with pytest.warns(UserWarning, match="the training in one is finished, so nothing was trained"):
        resumed = run_here("train.py", "--out", "one", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    changed = run_here("train.py", "--out", "one", "--resume", "--lr", 0.5, cwd=tmp_path)
    message = "error: the run in one was begun with lr 0.001, and lr is now 0.5\n"
    assert (changed.returncode, changed.stderr) == (2, message)


def test_a_finished_run_is_trained_longer_from_its_folder(tmp_path):
    """Two epochs and two more are four, in every file of the folder; fewer are refused in one line."""
    small = ["--hidden", 7, "--batch-size", 1000]
    for name, epochs in (("run", 2), ("whole", 4)):
        assert run_here("train.py", *small, "--epochs", epochs, "--out", name, cwd=tmp_path).returncode == 0
    first = (tmp_path / "run/metrics.jsonl").read_text()
    longer = run_here("train.py", "--out", "run", "--resume", "--epochs", 4, cwd=tmp_path)
    assert (longer.returncode, longer.stderr) == (0, "")
    assert "4 epochs in" in longer.stdout
    assert (tmp_path / "run/config.json").read_text() == (tmp_path / "whole/config.json").read_text()
    assert (tmp_path / "run/metrics.jsonl").read_text().startswith(first)
    histories = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "whole")
    ]
    assert histories[0] == histories[1]
    states = [torch.load(tmp_path / name / "checkpoint.pt")["state"] for name in ("run", "whole")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    shorter = run_here("train.py", "--out", "run", "--resume", "--epochs", 3, cwd=tmp_path)
    message = "error: the checkpoint in run has done 4 epochs: epochs must be >= 4, got 3\n"
    assert (shorter.returncode, shorter.stderr) == (2, message)
    assert json.loads((tmp_path / "run/config.json").read_text())["epochs"] == 4
