"""compare.py and race.py run as a user runs them."""

import io
import json
import os
import re
import sys
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from helpers import tree
from running_scripts import FOLDER, names_of, run_here, without_drawing

import pyrovae as pv
from pyrovae.cli import helper_processes
from pyrovae.lab import costs, draw_comparison, racing


class Forked(get_context("fork").Process):
    """The second process of a race, whose command is the script by its path: everything is imported in a fork."""

    def __init__(self, command, env, **_):
        def work():
            os.environ.update(env)
            sys.argv = command[1:]
            sys.stdout = sys.stderr = io.StringIO()
            names_of(sys.argv[0], run_name="__main__")

        super().__init__(target=work)
        self.start()

    wait = get_context("fork").Process.join


def test_a_race_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(helper_processes.subprocess, "Popen", Forked)
    without_drawing(monkeypatch)
    flags = ["--dataset", "pinwheel", "--hidden", 4, "--latent-dim", 1, "--epochs", 3, "--batch-size", 1_000]
    flags += ["--objectives", "elbo", "miwae(num_batches=3)", "--num-particles", 2, "--seeds", 0, 1]
    flags += ["--num-samples", 30, "--num-data", 20, "--out", "out"]
    result = run_here(FOLDER / "race.py", *flags, "--processes", 2, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    races = json.loads((tmp_path / "out/race.json").read_text())
    assert list(races) == ["epochs", "seconds"]
    for budget, race in races.items():
        assert [row["objective"] for row in race["rows"]] == ["elbo", "miwae(num_batches=3)"]
        for row in race["rows"]:
            epochs, runs = row["epochs"], [r for r in race["runs"] if r["objective"] == row["objective"]]
            assert epochs == 3 or (budget, row["objective"]) == ("seconds", "miwae(num_batches=3)")
            for one in runs:  # against the run's own file
                folder_name = one["objective"].replace("(", "_").rstrip(")")
                name = f"{folder_name}-seed{one['seed']}-{epochs}epochs"
                value = torch.load(tmp_path / "out" / name / "log_px_20x30.pt")["content"]["value"]
                assert one["log_px"] == pytest.approx(value.mean().item(), abs=1e-6)
            assert row["log_px"] == pytest.approx(sum(r["log_px"] for r in runs) / 2)
            for text in (result.stdout, (tmp_path / "out/race.md").read_text()):
                assert f"{row['log_px']:.3f} ({row['log_px_error']:.2g})" in text
    assert {"out/race_epochs.png", "out/race_seconds.png"} <= tree(tmp_path).keys()
    monkeypatch.setattr(racing, "check_entrant", lambda *args: None)  # which the first call has seen to
    again = run_here("race.py", *flags, "--budget", "epochs", cwd=tmp_path)  # nothing is run a second time
    assert json.loads((tmp_path / "out/race.json").read_text())["epochs"] == races["epochs"]
    assert again.stdout.startswith(result.stdout[: result.stdout.index("equal seconds")].rstrip())
    calls = run_here("race.py", *flags, "--budget", "decoder_calls", cwd=tmp_path)
    assert calls.stdout.startswith("equal decoder calls\n")
    raced = json.loads((tmp_path / "out/race.json").read_text())["decoder_calls"]
    assert [row["epochs"] for row in raced["rows"]] == [3, 1]  # the second makes three times the calls
    assert (tmp_path / "out/race_decoder_calls.png").exists()
    other = run_here("race.py", *flags, "--lr", 0.5, cwd=tmp_path)
    assert other.returncode == 2
    where = "the checkpoint in out/elbo-seed0-3epochs was written with"
    assert other.stderr == f"error: {where} lr 0.001, and lr is now 0.5\n"
    alone = run_here("race.py", "--objectives", "iwae", "--num-particles", 0, cwd=tmp_path)
    assert alone.stderr == "error: num_particles must be a whole number >= 1, got 0\n"


def test_seeds_of_a_race_start_apart_and_objectives_together(tmp_path, entrants_unchecked):
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


def test_estimators_compared_on_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "CompiledLoss", partial(costs.CompiledLoss, inductor=False))  # of which there are two
    without_drawing(monkeypatch)  # what the figures show is compared with the rows below
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
    figures, row = draw_comparison(exact), exact["dreg", 2]
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
        (["--objectives", "miwae(batches=2)"], "batches must be one of num_particles, .+ with objective miwae; got 2"),
        (["--objectives", "elbo", "elbo"], "objectives must differ, got elbo, elbo"),
        (["--max-seconds", 0], "max_seconds must be a finite number > 0, got 0.0"),
    ):
        bad = run_here("compare.py", *flags, "--overwrite", *wrong, cwd=tmp_path)
        assert bad.returncode == 2
        assert re.fullmatch(f"error: {message}\n", bad.stderr), bad.stderr
    assert tree(tmp_path) == before
    flags = ["out", "--objectives", "miwae(num_batches=3)", "--num-particles", 2, "--num-data", 20]
    flags += ["--repeats", 100_000, "--max-seconds", 0.2, "--overwrite"]
    short = run_here("compare.py", *flags, cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert not found["complete"]
    assert found["rows"][0]["objective"] == "miwae(num_batches=3)"
    assert "bias guide" not in short.stdout
    assert 4 <= found["rows"][0]["repeats"] < 100_000
    assert "the time ran out" in (tmp_path / "out/comparison.md").read_text()
