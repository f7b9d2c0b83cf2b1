"""Every script runs as a user runs it; a bad flag is one line and exit status 2, and nothing is written."""

import contextlib
import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tree, write_images

import pyrovae as pv
from pyrovae.lab.reports import _draw_comparison
from pyrovae.runs.report import ANOTHER_BOUND

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd, **environment):
    # One thread each: the suite's machines have two cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning", **environment}
    command = [sys.executable, str(ROOT / "scripts" / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def run_here(*arguments, cwd):
    """The same in this process, which has everything imported: for what has been seen to start by itself."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", list(map(str, arguments)))
        patch.chdir(cwd)
        try:
            runpy.run_path(str(ROOT / "scripts" / arguments[0]), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
    return subprocess.CompletedProcess(arguments, status or 0, out.getvalue(), error.getvalue())


def test_every_script_is_run_by_a_test():
    tested = {"train.py", "evaluate.py", "demo.py", "reproduce_tutorials.py", "race.py"}
    tested |= {"reproduce_burda2016.py", "reproduce_beyond_gaussian.py", "reproduce_rainforth2018.py", "compare.py"}
    tested |= {"benchmark.py", "kill_test.py", "scaling.py", "semi_supervised.py", "train_vq.py", "train_bits.py"}
    assert {p.name for p in (ROOT / "scripts").glob("*.py")} == tested


def test_train_then_evaluate_points(tmp_path):
    flags = ["--dataset", "four_clusters", "--hidden", 8, "--epochs", 3, "--out", "out"]
    trained = run("train.py", *flags, "--objective", "iwae", "--num-particles", 3, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    assert "next: python scripts/evaluate.py out" in trained.stdout
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
    assert figures == ["latent.png", "samples.png", "training.png"]

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
    assert run("train.py", *flags, cwd=tmp_path).returncode == 0
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
    root = Path(mnist_root).resolve()
    flags = ["--dataset", "mnist", "--data-root", root, "--binarize", binarize, "--hidden", 16, "--latent-dim", 4]
    trained = run_here("train.py", *flags, "--epochs", 1, "--batch-size", 1000, "--out", "out", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    evaluated = run_here("evaluate.py", "out", "--num-samples", 20, "--num-data", 50, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert -500 < evaluation["elbo"] < -100
    assert (evaluation["log_px"] is None) == (binarize == "none")
    assert "reconstructions.png" in tree(tmp_path / "out/figures")


def test_the_demo_in_small(tmp_path):
    result = run("demo.py", "--epochs", 2, "--num-samples", 30, "--num-data", 50, "--out", "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["ELBO"]["data_log_density"] == results["IWAE-50"]["data_log_density"]
    for value in (results["ELBO"]["log_px_quadrature"], results["IWAE-50"]["iwae_50"]):
        assert f"{value:.3f}" in result.stdout
        assert f"{value:.3f}" in (tmp_path / "demo/report.md").read_text()
    assert result.stdout.count(ANOTHER_BOUND) == 1
    told = [
        (tmp_path / "demo" / run / "report.md").read_text().count(ANOTHER_BOUND) for run in (".", "elbo", "iwae-50")
    ]
    assert told == [1, 0, 1]  # of a model that was trained with the ELBO its ELBO travels
    assert {"demo/demo.png", "demo/elbo/evaluation.json", "demo/iwae-50/figures/samples.png"} <= tree(tmp_path).keys()


def test_the_tutorials_in_small(tmp_path):
    result = run_here("reproduce_tutorials.py", "--epochs", 1, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    ring = runs["ring"][0]
    assert ring["loss"] == pytest.approx(ring["reconstruction"] + ring["kl"])
    # The true ELBO has the Gaussian's normaliser, two dimensions of variance 0.1.
    assert ring["elbo"] == pytest.approx(-ring["loss"] - math.log(2 * math.pi * 0.1), abs=1e-4)
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{ring['loss']:.3f}" in text
        assert "3.758" in text
    assert {"out/points.png", "out/variance.png"} <= tree(tmp_path).keys()


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
    with pytest.warns(UserWarning, match="the training in one had ended: it was loaded, and nothing was trained"):
        resumed = run_here("train.py", "--out", "one", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    changed = run_here("train.py", "--out", "one", "--resume", "--lr", 0.5, cwd=tmp_path)
    message = "error: the run in one was begun with lr 0.001, and lr is now 0.5\n"
    assert (changed.returncode, changed.stderr) == (2, message)


def test_runs_that_are_killed_go_on_to_the_bit(tmp_path):
    """Short; `python scripts/benchmarks/kill_test.py --kills 20 --compile-too` is long."""
    result = run("kill_test.py", "--kills", 3, "--epochs", 12, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()[2:]] == ["yes"] * 3
    assert result.stderr.count("File too large") == 1


def test_processes_beside_threads_in_small(tmp_path):
    """The whole takes a minute; what it launches and how it counts do not."""
    scaling = runpy.run_path(str(ROOT / "scripts/benchmarks/scaling.py"))
    small = ("--dataset", "ring", "--hidden", 4, "--epochs", 2, "--batch-size", 500)
    scaling["launch"]("train.py", (2, 1), *small, "--out", tmp_path / "run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    scaling["launch"]("evaluate.py", (2, 1), tmp_path / "run", "--num-samples", 30, "--num-data", 300)
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    one = run_here("evaluate.py", "run", "--num-samples", 30, "--num-data", 300, "--overwrite", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    alone = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert {k: v for k, v in evaluation.items() if k != "seconds"} == pytest.approx(
        {k: v for k, v in alone.items() if k != "seconds"}, abs=1e-5
    )
    with pytest.raises(pv.InputError, match=r"evaluate.py failed: error: run folder nowhere does not exist"):
        scaling["launch"]("evaluate.py", (1, 1), "nowhere")
    text = scaling["table"]({"epoch": {"one": [9.0], "threads": [6.0, 5.0, 90.0], "several": [3.0, 1.0, 4.0]}})
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")] == ["", "epoch", "9", "6", "3", "2.00", ""]


def test_a_race_in_small(tmp_path):
    flags = ["--dataset", "pinwheel", "--hidden", 4, "--epochs", 4, "--objectives", "elbo", "miwae:num_batches=3"]
    flags += ["--num-particles", 2, "--seeds", 0, 1, "--num-samples", 30, "--num-data", 20, "--out", "out"]
    result = run("race.py", *flags, "--processes", 2, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    races = json.loads((tmp_path / "out/race.json").read_text())
    assert list(races) == ["epochs", "seconds"]
    for budget, race in races.items():
        assert [row["objective"] for row in race["rows"]] == ["elbo", "miwae:num_batches=3"]
        for row in race["rows"]:
            epochs, runs = row["epochs"], [r for r in race["runs"] if r["objective"] == row["objective"]]
            assert epochs == 4 or (budget, row["objective"]) == ("seconds", "miwae:num_batches=3")
            for one in runs:  # against the run's own file
                name = f"{one['objective'].replace(':', '_')}-seed{one['seed']}-{epochs}epochs"
                value = torch.load(tmp_path / "out" / name / "log_px_20x30.pt")["value"]
                assert one["log_px"] == pytest.approx(value.mean().item(), abs=1e-6)
            assert row["log_px"] == pytest.approx(sum(r["log_px"] for r in runs) / 2)
            for text in (result.stdout, (tmp_path / "out/race.md").read_text()):
                assert f"{row['log_px']:.3f} ({row['log_px_error']:.2g})" in text
    assert {"out/race_epochs.png", "out/race_seconds.png"} <= tree(tmp_path).keys()
    again = run_here("race.py", *flags, "--budget", "epochs", cwd=tmp_path)  # nothing is run a second time
    assert json.loads((tmp_path / "out/race.json").read_text())["epochs"] == races["epochs"]
    assert again.stdout.startswith(result.stdout[: result.stdout.index("equal seconds")].rstrip())
    other = run_here("race.py", *flags, "--lr", 0.5, cwd=tmp_path)
    assert other.returncode == 2
    where = "the checkpoint in out/elbo-seed0-4epochs was written with"
    assert other.stderr == f"error: {where} lr 0.001, and lr is now 0.5\n"
    alone = run_here("race.py", "--objectives", "iwae", "--num-particles", 0, cwd=tmp_path)
    assert alone.stderr == "error: num_particles must be a whole number >= 1, got 0\n"


def test_seeds_of_a_race_start_apart_and_objectives_together(tmp_path):
    flags = ["--hidden", 4, "--epochs", 1, "--batch-size", 2000, "--lr", 1e-12, "--objectives", "elbo", "iwae"]
    flags += ["--num-particles", 2, "--seeds", 0, 1, "--num-samples", 2, "--num-data", 5, "--budget", "epochs"]
    assert run_here("race.py", *flags, "--out", "out", cwd=tmp_path).returncode == 0
    weights = {
        (name, seed): torch.load(tmp_path / f"out/{name}-seed{seed}-1epochs/checkpoint.pt")["state"][
            "encoder.output.weight"
        ]
        for name in ("elbo", "iwae")
        for seed in (0, 1)
    }
    assert torch.allclose(weights["elbo", 1], weights["iwae", 1], atol=1e-9)
    assert not torch.allclose(weights["elbo", 0], weights["elbo", 1], atol=0.01)


def test_priors_layers_and_posteriors_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(5_040, 30))  # 5,000 validate
    small = ["--data-root", tmp_path / "data", "--hidden", 8, "--latent-dim", 2, "--num-components", 4]
    small += ["--epochs", 1, "--num-samples", 20, "--num-data", 10, "--out", "out"]
    result = run_here("reproduce_beyond_gaussian.py", *small, "--seeds", 0, 1, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["race"], row["variant"], row["against"]) for row in rows] == [
        ("static", "Vamp prior", "standard"),
        ("dynamic", "Vamp prior", "standard"),
        ("dynamic", "flow posterior", "standard"),
        ("layers", "two layers", "one layer"),
    ]
    assert [row["published"] for row in rows] == pytest.approx([2.99, 2.12, None, 1.43])
    for row in rows:  # against the runs' own files, and not the same model twice
        runs = [
            [
                torch.load(tmp_path / f"out/{row['race']}/{name}-seed{seed}-1epochs/log_px_10x20.pt")["value"].double()
                for seed in (0, 1)
            ]
            for name in (row["variant"].replace(" ", "_"), row["against"].replace(" ", "_"))
        ]
        value = (torch.stack(runs[0]) - torch.stack(runs[1])).mean().item()
        assert row["value"] == pytest.approx(value)
        assert value != 0
        for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
            assert f"ours {value:+.2f} (" in text
    state = torch.load(tmp_path / "out/dynamic/Vamp_prior-seed0-1epochs/checkpoint.pt")["state"]
    assert state["prior_family.unconstrained"].shape[0] == 4
    two = torch.load(tmp_path / "out/layers/two_layers-seed0-1epochs/checkpoint.pt")["state"]
    units = [len(two[key]) for key in two if key.startswith("posterior_family") and key.endswith("weight")]
    assert units == [100, 100, 2 * 50]
    again = run_here("reproduce_beyond_gaussian.py", *small, "--seeds", 0, 1, "--only", "layers", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "out/results.json").read_text()) == rows[3:]
    verdict = runpy.run_path(str(ROOT / "scripts/papers/beyond_gaussian.py"))["verdict"]
    for low, high, said in (
        (0.1, 2, "reproduced in direction"),
        (-2, -0.1, "the other way round"),
        (-1, 1, "not resolved"),
    ):
        row = {**rows[0], "low": low, "high": high}
        assert verdict(row).endswith(said)


def test_burdas_table_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(50, 30))
    small = ["--data-root", tmp_path / "data", "--schedule", "smoke", "--num-samples", 30, "--num-data", 10]
    small += ["--seeds", 0, 1, "--k", 1, 50, "--swap", "--out", "out"]
    result = run_here("reproduce_burda2016.py", *small, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    content = json.loads((tmp_path / "out/smoke/results.json").read_text())
    cells = ["VAE k=1", "VAE k=50", "IWAE k=50", "VAE k=1, then IWAE k=50", "IWAE k=50, then VAE k=1"]
    assert [row["cell"] for row in content["rows"]] == cells
    assert [row["published"] for row in content["rows"]] == [86.76, 86.35, 84.78, 84.88, 86.02]
    assert [row["pair"] for row in content["differences"]] == ["IWAE k=50 over VAE k=50"]
    assert content["differences"][0]["published"] == pytest.approx(86.35 - 84.78)
    nll = {row["cell"]: row["nll"] for row in content["rows"]}
    assert content["differences"][0]["value"] == pytest.approx(nll["VAE k=50"] - nll["IWAE k=50"])
    for row in content["rows"]:
        for text in (result.stdout, (tmp_path / "out/smoke/report.md").read_text()):
            assert f"{row['nll']:.2f}" in text
    # The second stage starts where the first ended, at the last learning rate.
    first = torch.load(tmp_path / "out/smoke/VAE_k=1-seed0-2epochs/checkpoint.pt", weights_only=True)
    second = tmp_path / "out/smoke/swap/VAE_k=1_then_IWAE_k=50-seed0-1epochs/checkpoint.pt"
    second = torch.load(second, weights_only=True)
    moved = max((second["state"][n] - v).abs().max().item() for n, v in first["state"].items())
    assert second["settings"]["lr"] == pytest.approx(1e-3 * 10 ** (-1 / 7))
    assert 0 < moved < 10 * second["settings"]["lr"]  # Adam's steps, of which there were three


def test_burdas_learning_rates_and_the_floor_of_adam():
    script = runpy.run_path(str(ROOT / "scripts/papers/burda2016.py"))
    assert sum(script["SCHEDULES"]["full"]) == 3_280
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=script["LEARNING_RATE"])
    schedule, rates = script["stages"](optimizer, script["SCHEDULES"]["full"]), []
    for _ in range(3_280):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    for i, (start, stop) in enumerate([(0, 1), (1, 4), (4, 13), (13, 40), (40, 121), (121, 364), (364, 1093)]):
        assert rates[start:stop] == pytest.approx([1e-3 * 10 ** (-i / 7)] * (stop - start))
    assert rates[1093:] == pytest.approx([1e-4] * 2187)
    # A step on the mean over 20 data with this eps is one on their sum with 1e-4.
    gradient, steps = torch.tensor([2e-4]), []
    for factor, eps in ((20, 1e-4), (1, script["EPS"])):
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = factor * gradient
        torch.optim.Adam([parameter], lr=1e-3, eps=eps).step()
        steps.append(parameter.item())
    assert steps[0] == pytest.approx(steps[1])


def test_estimators_compared_on_a_run(tmp_path):
    flags = ["--dataset", "four_clusters", "--hidden", 4, "--epochs", 1, "--out", "out"]
    assert run_here("train.py", *flags, cwd=tmp_path).returncode == 0
    flags = ["out", "--objectives", "dreg", "--num-particles", 2, "--num-data", 20]
    result = run_here("compare.py", *flags, "--repeats", 8, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    rows = found["rows"]
    assert [(row["objective"], row["num_particles"]) for row in rows] == [("dreg", 2)]
    assert found["complete"]
    one = pv.load_run(tmp_path / "out")
    settings = {"objectives": ["dreg"], "num_particles": [2], "repeats": 8, "compile": False}
    exact = pv.compare(one.vae.model, one.vae.guide, one.data.test_x[:20], **settings)
    assert found["log_px"] == pytest.approx(exact.log_px.mean, abs=1e-6)
    for name in ("bound", "guide_snr", "guide_variance", "guide_bias", "model_dsnr"):
        assert rows[0][name] == pytest.approx(exact.to_dict()[0][name], rel=1e-4)
    for text in (result.stdout, (tmp_path / "out/comparison.md").read_text()):
        assert f"{rows[0]['guide_snr']:.2g} ({rows[0]['guide_snr_floor']:.2g})" in text
        assert f"log p(x) {found['log_px']:.3f} nats" in text
    names = {"comparison_bounds.png", "comparison_snr.png", "comparison_dsnr.png", "comparison_cost.png"}
    assert tree(tmp_path / "out/figures").keys() == names
    figures, row = _draw_comparison(exact), exact["dreg", 2]
    (bounds,), snr, cost = (figures[name].axes for name in ("bounds", "snr", "cost"))
    assert bounds.containers[0].lines[0].get_xydata().tolist() == [[2, row.bound]]
    for axes, side in zip(snr, ("model", "guide"), strict=True):
        assert axes.get_ylabel() == f"SNR of the {side}'s gradient"
        assert axes.lines[0].get_xydata().tolist() == [[2, getattr(row, side).snr]]
    for axes, value, what in zip(cost, (row.guide.variance, row.guide.bias), ("variance", "bias"), strict=True):
        assert axes.get_ylabel() == f"{what} of the guide's gradient"
        assert axes.lines[0].get_xydata().tolist() == [[row.seconds, value]]

    before = tree(tmp_path)
    again = run_here("compare.py", *flags, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "error: out/comparison.json exists; say --overwrite to replace it\n"
    for wrong, message in (
        (["--repeats", 3], "repeats must be a whole number >= 4, got 3"),
        (["--num-data", 2_001], "num_data must be <= 2000, the number of test data; got 2001"),
        (["--objectives", "magic"], "objective must be one of elbo, .+; got 'magic'"),
        (["--objectives", "miwae:batches=2"], "batches must be one of num_particles, .+ with objective miwae; got 2"),
        (["--objectives", "elbo", "elbo"], "objectives must differ, got elbo, elbo"),
        (["--max-seconds", 0], "max_seconds must be a finite number > 0, got 0.0"),
    ):
        bad = run_here("compare.py", *flags, "--overwrite", *wrong, cwd=tmp_path)
        assert bad.returncode == 2
        assert re.fullmatch(f"error: {message}\n", bad.stderr), bad.stderr
    assert tree(tmp_path) == before
    flags = ["out", "--objectives", "miwae:num_batches=3", "--num-particles", 2, "--num-data", 20]
    flags += ["--repeats", 100_000, "--max-seconds", 0.2, "--overwrite"]
    short = run_here("compare.py", *flags, cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert not found["complete"]
    assert found["rows"][0]["objective"] == "miwae:num_batches=3"
    assert "bias guide" not in short.stdout
    assert 4 <= found["rows"][0]["repeats"] < 100_000
    assert "the time ran out" in (tmp_path / "out/comparison.md").read_text()


def test_an_objective_with_settings_is_left_out_where_it_needs_more_particles_as_by_its_name():
    maker = runpy.run_path(str(ROOT / "scripts/compare.py"))["maker"]
    for text, fewest in (("vimco:chunk_size=2", 2), ("miwae:num_batches=3", 1)):
        assert [maker(text)(number) is None for number in (1, 2)] == [fewest > 1, False]
        assert maker(text).__name__ == text


def test_tighter_bounds_in_small(tmp_path):
    flags = ["--num-data", 1_024, "--repeats", 12, "--max-particles", 16, "--out", "out"]
    result = run_here("reproduce_rainforth2018.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    powers = {(p["quantity"], p["side"], p["estimator"]): p["power"] for p in found["powers"]}
    for ratio in ("snr", "dsnr"):
        assert powers[ratio, "guide", "iwae"] < -0.3
        assert powers[ratio, "guide", "sticking_the_landing"] == pytest.approx(0.5, abs=0.1)
        assert powers[ratio, "guide", "dreg"] > 0.05
        for side in ("model", "guide"):
            assert powers[ratio, side, "miwae_in_m"] == pytest.approx(0.5, abs=0.25)
    assert powers["bias", "model", "iwae"] == pytest.approx(-1, abs=0.25)
    sizes, naive, floors = found["biases"]["guide"]["naive_path"]
    assert sizes[-1] == 16
    assert naive[-1] > 4 * floors[-1]
    _, unbiased, floors = found["biases"]["guide"]["dreg"]
    assert all(bias < 2 * floor for bias, floor in zip(unbiased, floors, strict=True))
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{powers['snr', 'guide', 'iwae']:+.2f}" in text
        assert f"{naive[-1]:.2g} (" in text
    assert {"out/snr.png", "out/dsnr.png", "out/bias.png", "out/cost.png"} <= tree(tmp_path).keys()


def test_the_parts_of_rainforths_experiment():
    script = runpy.run_path(str(ROOT / "scripts/papers/rainforth2018.py"))
    vae, x = script["perturbed_optimum"](20_000, 0)
    assert x.var(0).mean().item() == pytest.approx(2, rel=0.02)
    q = vae.encode(x)
    assert q.variance.flatten().tolist() == pytest.approx([2 / 3] * q.variance.numel())
    best = vae.posterior(x)  # under the model's mu, itself 0.01 off
    noise = (vae.guide_weight - torch.eye(20) / 2, vae.guide_bias - x.mean(0) / 2, vae.prior_mean - x.mean(0))
    assert all(part.std().item() == pytest.approx(0.01, rel=0.5) for part in noise)
    assert (q.mean - best.mean).std().item() == pytest.approx(0.01 * math.sqrt(20 * 3), rel=0.5)  # 0.01 x, E[x^2] = 3
    names = {name for name, parameter in vae.named_parameters() if parameter.requires_grad}
    assert names == {"prior_mean", "guide_weight", "guide_bias"}

    x = x[:64]
    found = script["measure"](vae, x, 4, 4, 0)
    exact, elbo = (torch.autograd.grad(-f(x).mean(), vae.prior_mean)[0].double() for f in (vae.log_px, vae.elbo))
    bias = script["model_bias"](found["iwae"], exact)
    (_, (value, *_), (floor, *_)) = bias["iwae"]
    assert abs(value - (elbo - exact).norm().item()) < 3 * floor < value  # IWAE of one draw is the ELBO
    signals = {(q, side): script["curves"](found, side, q) for q in ("snr", "dsnr") for side in ("model", "guide")}
    biases = {"model": bias, "guide": script["curves"](found, "guide", "bias")}
    figures = script["draw"](signals, biases, found)
    for quantity in ("snr", "dsnr"):
        for axes, side in zip(figures[quantity].axes, ("model", "guide"), strict=False):
            assert axes.get_title() == f"gradient of the {side}"
            lines = {re.split("[:,]", line.get_label())[0]: line.get_xydata().tolist() for line in axes.lines}
            rows = [getattr(row, side) for row in found["iwae"].rows]
            assert [y for _, y in lines["iwae"]] == [getattr(row, quantity) for row in rows]
            assert ("dreg" in lines) == (side == "guide")  # whose model has IWAE's gradient
            assert any("iwae" in text.get_text() for text in axes.get_legend().get_texts())


def test_a_vq_vae_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(5_060, 30))
    sizes = ["--num-tokens", 3, "--num-codes", 4, "--hidden", 8, "--epochs", 2, "--batch-size", 20]
    flags = ["--data-root", "data", "--num-train", 60, *sizes, "--out", "out"]
    result = run_here("train_vq.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["rate"] == pytest.approx(3 * math.log(4), abs=1e-5)
    assert -20 * math.log(2) - 10 < found["bound"] + found["rate"] < 0  # of 20 pixels
    assert 0 < found["squared_error"] < 2 * found["of_mean_image"]
    assert f"bound on log p(x): {found['bound']:.2f} nats" in result.stdout
    assert f"perplexity {found['perplexity']:.1f} of 4" in result.stdout
    assert 0.25 <= found["share"] <= 1
    assert 1 <= found["perplexity"] <= 4 * found["share"] + 1e-9
    assert (tmp_path / "out/reconstructions.png").exists()
    again = run_here("train_vq.py", *flags, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2, "error: out must be a new or empty folder, and out holds files\n",
    )  # fmt: skip


def test_bits_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(5_060, 30))
    flags = ["--data-root", "data", "--num-train", 60, "--num-bits", 3, "--hidden", 8, "--epochs", 1]
    flags += ["--num-samples", 40, "--num-data", 20, "--seeds", 0, 1, "--out", "out"]
    result = run_here("train_bits.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    ways = ["VIMCO", "leave-one-out", "wake-sleep", "straight-through", "relaxed"]
    assert [(run["seed"], run["way"]) for run in found] == [(seed, way) for seed in (0, 1) for way in ways]
    assert all(run["elbo"] <= run["log_px"] < 0 for run in found)
    by_way = {way: [run["log_px"] for run in found if run["way"] == way] for way in ways}
    assert len({tuple(values) for values in by_way.values()}) == 5
    gains = [one - other for one, other in zip(by_way["relaxed"], by_way["VIMCO"], strict=True)]
    expected = f"{sum(gains) / 2:.2f} ({abs(gains[0] - gains[1]) / 2:.2f})"
    rows = [line.split("  ") for line in result.stdout.splitlines() if line.startswith("relaxed ")]
    assert [cell.strip() for cell in rows[0] if cell.strip()][2] == expected
    assert expected in (tmp_path / "out/report.md").read_text()


def test_relaxed_bits_are_measured_as_the_model_of_bits_that_their_networks_are(tmp_path):
    write_images(tmp_path / "data", nums=(5_060, 30))
    flags = ["--data-root", "data", "--num-train", 60, "--num-bits", 3, "--hidden", 8, "--epochs", 20, "--lr", 0.01]
    flags += ["--batch-size", 20, "--num-samples", 2_000, "--num-data", 20, "--seeds", 4, "--temperature", 2.0]
    assert run_here("train_bits.py", *flags, "--out", "out", cwd=tmp_path).returncode == 0
    found = {run["way"]: run for run in json.loads((tmp_path / "out/results.json").read_text())["runs"]}
    data = pv.load("mnist", data_root=tmp_path / "data", num_train=60)
    for way, posterior, objective in (
        ("relaxed", pv.posteriors.RelaxedBernoulli(3, 2.0), pv.objectives.ELBO(5)),
        ("VIMCO", pv.posteriors.Bernoulli(3), pv.objectives.VIMCO(5)),
    ):
        parts = {"latent_dim": 3, "hidden": (8,), "likelihood": pv.Bernoulli(), "data_mean": data.train_mean}
        torch.manual_seed(4)
        vae = pv.VAE(data.event_shape, **parts, posterior=posterior)
        settings = {"epochs": 20, "batch_size": 20, "lr": 0.01, "schedule": "cosine", "seed": 4}
        pv.fit(vae, data, objective=objective, **settings)
        bits = pv.VAE(data.event_shape, **parts, posterior="bernoulli")
        bits.load_state_dict(vae.state_dict())
        x = data.test_x[:20]
        exact = pv.enumerated_log_marginal(bits.model, x).mean().item()
        elbo = -pv.objectives.EnumeratedELBO().loss(bits.model, bits.guide, x) / 20
        assert found[way]["log_px"] == pytest.approx(exact, abs=5 * found[way]["log_px_error"] + 1e-3)
        assert found[way]["elbo"] == pytest.approx(elbo, abs=0.1)
    few = run_here("train_bits.py", *flags, "--num-samples", 10, "--epochs", 1, "--out", "few", cwd=tmp_path)
    assert (few.returncode, few.stderr) == (0, "")  # too few for k, which JSON has no number for
    assert "unknown" in few.stdout
    assert json.loads((tmp_path / "few/results.json").read_text())["runs"][0]["share_pareto_k_above_0.7"] is None


def test_semi_supervised_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(300, 30))
    flags = ["--data-root", "data", "--num-train", 300, "--num-labelled", 20, "--hidden", 8]
    flags += ["--epochs", 2, "--warm-up", 1]
    result = run_here("semi_supervised.py", *flags, "--seeds", 0, 1, "--out", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["seed"] for row in found["runs"]] == [0, 1]
    for row in found["runs"]:
        for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
            assert f"{row['m2_accuracy']:.4f}" in text
            assert f"{row['elbo']:.2f}" in text
        assert -30 < row["elbo"] < -5  # of 20 pixels, 20 log 2 nats at a guess
    gain = sum(row["m2_accuracy"] - row["supervised_accuracy"] for row in found["runs"]) / 2
    assert f"gain of M2 in accuracy: {gain:.4f}, standard error" in result.stdout


def test_labels_that_diverge_are_one_line(tmp_path):
    write_images(tmp_path / "data", nums=(200, 30))
    flags = ["--data-root", tmp_path / "data", "--num-train", 200, "--num-labelled", 10, "--epochs", 2, "--seeds", 0]
    bad = run_here("semi_supervised.py", *flags, "--hidden", 4, "--lr", 1e30, "--out", "out", cwd=tmp_path)
    assert bad.returncode == 2
    assert re.fullmatch(r"error: training diverged with seed 0 \(.+\)\n", bad.stderr), bad.stderr
    assert not (tmp_path / "out").exists()


def test_the_bound_of_m2_is_what_summing_over_labels_by_hand_gives(tmp_path):
    """A missing label is summed over under q(y|x); a known one is weighed at its own value, and trains q(y|x)."""
    script = runpy.run_path(str(ROOT / "scripts/papers/semi_supervised.py"))
    torch.manual_seed(0)
    m2 = script["M2"]((1, 2, 3), latent_dim=2, hidden=5, alpha=3.0)
    with torch.no_grad():
        for parameter in m2.parameters():
            parameter.mul_(3)  # or no label would matter
    x, labels = torch.bernoulli(torch.full((4, 1, 2, 3), 0.5)), torch.tensor([3, 0, 9, 3])
    y, classes = torch.eye(10)[labels], torch.eye(10).unsqueeze(1)
    with_labels = script["SVI"](m2.model, m2.guide, script["Adam"]({}), script["Trace_ELBO"]())
    without = script["SVI"](m2.model, m2.guide, script["Adam"]({}), script["TraceEnum_ELBO"](max_plate_nesting=1))

    def joint(y, noise):
        """log p(x, y, z) - log q(z|x, y), at z = loc + scale noise."""
        normal, loc, log_variance = torch.distributions.Normal, *m2.encoder(x, y).unbind(-2)
        z = loc + (0.5 * log_variance).exp() * noise
        log_px = -torch.nn.functional.softplus((1 - 2 * x) * m2.decoder(z, y)).flatten(-3).sum(-1)
        log_pz = normal(0.0, 1.0).log_prob(z).sum(-1) - normal(loc, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
        return log_px + log_pz - math.log(10)

    with torch.no_grad():
        log_q = m2.classifier(x).log_softmax(-1)
        torch.manual_seed(1)
        by_hand = (log_q.exp() * (joint(classes, torch.randn(10, 4, 2)).T - log_q)).sum()
        torch.manual_seed(1)
        assert -without.evaluate_loss(x) == pytest.approx(by_hand.item(), rel=1e-4)
        torch.manual_seed(1)
        by_hand = (joint(y, torch.randn(4, 2)) + 3 * log_q[torch.arange(4), labels]).sum()
        torch.manual_seed(1)
        assert -with_labels.evaluate_loss(x, y) == pytest.approx(by_hand.item(), rel=1e-4)
    for warming_up in (True, False):  # in which the classifier learns from labels alone
        m2.warming_up = warming_up
        m2.zero_grad()
        without.loss_and_grads(m2.model, m2.guide, x)
        assert (m2.classifier.output.weight.grad is None) is warming_up
        assert m2.decoder.output.weight.grad.abs().max() > 0
    rows = script["labelled_rows"](torch.arange(200) % 10, 50)
    assert (rows % 10).bincount().tolist() == [5] * 10
    assert len(set(rows.tolist())) == 50


def test_the_benchmark_in_small(tmp_path):
    result = run("benchmark.py", "--only", "ring", "--rounds", 1, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    row = json.loads((tmp_path / "out/results.json").read_text())["rows"][0]
    assert {"stock Pyro", "plain PyTorch", "ours eager", "ours", "floor"} <= row["ms"].keys()
    assert all(ms > 0 for ms in row["ms"].values())
    assert row["loss_difference"] < 1e-5  # a fast wrong answer must not look good
    assert row["gradient_difference"] < 1e-4
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{row['ms']['ours']:.2f}" in text
    assert (tmp_path / "out/benchmark.png").exists()


def test_bad_input_exits_with_2_from_the_shell_too(tmp_path):
    result = run("evaluate.py", "nowhere", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: run folder nowhere does not exist\n"
