"""Scripts that reproduce published tables run in small, and show what they measured beside it."""

import importlib
import json
import math
import re
import sys

import pytest
import torch
from helpers import suite_seed, tree, write_images
from own_files import write_photos
from running_scripts import FOLDER, names_of, run_here, with_scikit_learn, without_drawing

import pyrovae as pv
from pyrovae.common import kept_parts, read_checked as measured
from pyrovae.evaluation import annealed_chains


def test_the_tutorials_in_small(tmp_path, monkeypatch):
    log_marginal = pv.log_marginal
    few = {"num_samples": 50}
    without_drawing(monkeypatch, most_axes=4)  # those of all runs; test_scripts_of_tutorials.py draws those of one
    monkeypatch.syspath_prepend(FOLDER / "papers")
    monkeypatch.setattr(importlib.import_module("tutorials_published"), "VARIANCES", (0.1, 2.0))
    monkeypatch.setattr(
        pv, "log_marginal", lambda *pair, **kwargs: log_marginal(*pair[:-1], pair[-1][:100], **{**kwargs, **few})
    )
    result = run_here("papers/tutorials.py", "--epochs", 1, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    ring = runs["ring"][0]
    assert ring["loss"] == pytest.approx(ring["reconstruction"] + ring["kl"])
    # The true ELBO has the Gaussian's normaliser, two dimensions of variance 0.1.
    assert ring["elbo"] == pytest.approx(-ring["loss"] - math.log(2 * math.pi * 0.1), abs=1e-4)
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert f"{ring['loss']:.3f}" in text
        assert "3.758" in text
        assert f"{ring['plain_loss']:.3f}" in text
    assert {"out/points.png", "out/variance.png"} <= tree(tmp_path).keys()


def test_priors_layers_and_posteriors_in_small(tmp_path, entrants_unchecked):
    write_images(tmp_path / "data", nums=(80, 30))  # 40 validate
    small = ["--data-root", tmp_path / "data", "--hidden", 8, "--latent-dim", 2, "--num-components", 4]
    small += ["--epochs", 1, "--num-samples", 20, "--num-data", 10, "--out", "out"]
    result = run_here("papers/beyond_gaussian.py", *small, "--seeds", 0, 1, cwd=tmp_path)
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
                measured(tmp_path / f"out/{row['race']}/{name}-seed{seed}-1epochs/log_px_10x20.pt")["value"].double()
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
    again = run_here("papers/beyond_gaussian.py", *small, "--seeds", 0, 1, "--only", "layers", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "out/results.json").read_text()) == rows[3:]
    verdict = names_of("papers/beyond_gaussian.py")["verdict"]
    for low, high, said in (
        (0.1, 2, "reproduced in direction"),
        (-2, -0.1, "the other way round"),
        (-1, 1, "not resolved"),
    ):
        row = {**rows[0], "low": low, "high": high}
        assert verdict(row).endswith(said)


def test_burdas_table_in_small(tmp_path, entrants_unchecked):
    write_images(tmp_path / "data", nums=(50, 30))
    small = ["--data-root", tmp_path / "data", "--schedule", "smoke", "--num-samples", 30, "--num-data", 10]
    small += ["--seeds", 0, "--k", 1, 50, "--swap", "--out", "out"]
    result = run_here("papers/burda2016.py", *small, cwd=tmp_path)
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
    script = names_of("papers/burda2016.py")
    assert sum(script["EPOCHS_OF_STAGES"]["full"]) == 3_280
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=script["LEARNING_RATE"])
    schedule, rates = script["stages"](optimizer, script["EPOCHS_OF_STAGES"]["full"]), []
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


def test_tighter_bounds_in_small(tmp_path, monkeypatch):
    """With those estimators that the claims are about; test_interrupted_scripts.py runs the others."""
    monkeypatch.syspath_prepend(FOLDER / "papers")
    experiment = importlib.import_module("rainforth2018_experiment")
    beside = ("sticking_the_landing", "dreg", experiment.naive_path)
    for name, fewer in {"EXTRA_REPEATS": 2, "BESIDE_IWAE": beside, "IN_BATCHES": (experiment.miwae,)}.items():
        monkeypatch.setattr(experiment, name, fewer)
    without_drawing(monkeypatch)  # the next test looks at what the figures show
    sizes = {16: [1, 4, 16], 4: [1, 2, 4]}
    monkeypatch.setattr(experiment, "powers_of_two", sizes.__getitem__)
    flags = ["--num-data", 1_024, "--repeats", 12, "--max-particles", 16, "--out", "out"]
    result = run_here("papers/rainforth2018.py", *flags, cwd=tmp_path)
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


def test_the_parts_of_rainforths_experiment(tmp_path):
    script = names_of("papers/rainforth2018.py")
    vae, x = script["perturbed_optimum"](20_000, 0)
    assert x.var(0).mean().item() == pytest.approx(2, rel=0.02)
    q = vae.encode(x)
    torch.testing.assert_close(q.variance, torch.full_like(q.variance, 2 / 3), rtol=1e-6, atol=1e-12)
    best = vae.posterior(x)  # under the model's mu, itself 0.01 off
    noise = (vae.guide_weight - torch.eye(20) / 2, vae.guide_bias - x.mean(0) / 2, vae.prior_mean - x.mean(0))
    assert all(part.std().item() == pytest.approx(0.01, rel=0.5) for part in noise)
    assert (q.mean - best.mean).std().item() == pytest.approx(0.01 * math.sqrt(20 * 3), rel=0.5)  # 0.01 x, E[x^2] = 3
    names = {name for name, parameter in vae.named_parameters() if parameter.requires_grad}
    assert names == {"prior_mean", "guide_weight", "guide_bias"}

    x = x[:64]
    with kept_parts(tmp_path, {}) as parts:
        found = script["measure"](vae, x, 4, 4, 0, parts)
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


def test_missing_cells_in_small(tmp_path, monkeypatch):
    """In a table of one factor, what is observed tells a row's missing cells, which the column's mean does not."""
    with_scikit_learn(monkeypatch)
    flags = ("--table", "iris", "--share", 0.3, "--seeds", 0, "--epochs", 100, "--latent-dim", 1, "--num-samples", 50)
    result = run_here("papers/missing_cells.py", *flags, "--out", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    (found,) = json.loads((tmp_path / "out/results.json").read_text())["found"]
    assert found["imputation error (RMSE)"] < 0.6 * found["of the column's mean"]
    assert found["log p(x observed), nats"] > found["of independent Gaussians"] + 0.5
    assert f"{found['imputation error (RMSE)']:.3f}" in (tmp_path / "out/report.md").read_text()
    few = run_here("papers/missing_cells.py", *flags, "--epochs", 1, "--num-samples", 5, "--out", "few", cwd=tmp_path)
    assert (few.returncode, few.stderr) == (0, "")  # too few for k, which JSON has no number for
    assert "share of rows with Pareto k > 0.7 unknown" in few.stdout


def test_the_iris_data_of_miwae_in_small(tmp_path, monkeypatch):
    """The holes are those of numpy's old generator, and the error that of the holes alone."""
    with_scikit_learn(monkeypatch)
    flags = ("--seeds", 0, "--epochs", 45, "--num-samples", 50, "--out", "out")
    result = run_here("papers/miwae2019.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    content = json.loads((tmp_path / "out/results.json").read_text())
    (found,) = content["found"]
    names = names_of("papers/miwae2019.py")
    x, seen = names["iris"]()
    assert x.square().mean(0).tolist() == pytest.approx([1] * 5)
    assert seen.isnan().sum() == 375
    assert seen.flatten().isnan().nonzero().flatten()[:5].tolist() == [6, 7, 8, 9, 11]
    assert content["others"]["the column's mean"] == pytest.approx(x[seen.isnan()].square().mean().item())
    assert found[names["MEANS"]] < 0.5 * content["others"]["the column's mean"]
    report = (tmp_path / "out/report.md").read_text()
    assert f"{found[names['TEN']]:.3f}" in report
    assert "0.40 to 0.52" in report


def test_lower_halves_of_images_in_small(tmp_path, sharp_figures):
    write_images(tmp_path / "data", nums=(100, 30))
    flags = ["--data-root", tmp_path / "data", "--num-images", 60, "--hidden", 8, "--epochs", 1, "--num-samples", 30]
    result = run_here("papers/half_images.py", *flags, "--num-data", 8, "--out", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert (
        f"mean square error given the upper half: {found['mean square error given the upper half']:.3f}"
        in result.stdout
    )
    assert "out/half_images.png" in tree(tmp_path)
    names, x = names_of("papers/half_images.py"), torch.rand(4_000, 1, 6, 4)
    upper = names["is_upper"](x)
    assert upper[0, 0].tolist() == [[True] * 4] * 3 + [[False] * 4] * 3
    shares = names["with_parts_missing"](x).isnan().double().flatten(1)
    top, bottom = shares[:, :12].mean(1), shares[:, 12:].mean(1)
    for above, below in ((0, 0), (0, 1), (1, 0)):  # and a quarter with holes at random
        assert ((top == above) & (bottom == below)).double().mean().item() == pytest.approx(0.25, abs=0.04)


def test_differentiable_ais_beside_iwae_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(annealed_chains, "PILOT_WARMUP", 2)
    monkeypatch.setattr(annealed_chains, "PILOT_TRANSITIONS", 5)  # most of the time otherwise
    write_images(tmp_path / "data", nums=(100, 30))
    flags = ["--data-root", "data", "--num-train", 30, "--epochs", 1, "--num-data", 3, "--num-distributions", 3]
    flags += ["--num-transitions", 1, "--seeds", 0, "--no-compile", "--out", "out"]
    result = run_here("papers/differentiable_ais.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())["found"]
    assert list(found) == ["IWAE, K = 16", "DAIS, T = 1, K = 8"]
    (iwae,), (dais,) = found.values()
    assert result.stdout.splitlines()[-3].split("|")[-2].strip() == f"{dais['log_px'] - iwae['log_px']:.2f}"
    refused = run_here("papers/differentiable_ais.py", "--num-transitions", 2, cwd=tmp_path)
    said = "error: num_transitions must be one less than a divisor of 16, got 2\n"
    assert (refused.returncode, refused.stderr) == (2, said)


@pytest.mark.parametrize("script", ["missing_cells", "miwae2019"])
def test_missing_cells_without_scikit_learn_say_what_to_install(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run_here(f"papers/{script}.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: this script needs scikit-learn: pip install 'pyrovae[digits]'\n"


def test_the_picture_of_the_readme_has_images_and_ratios_of_all_estimators(tmp_path, sharp_figures):
    write_photos(tmp_path / "photos", num=100, seed=suite_seed())
    flags = ("--hidden", 8, "--latent-dim", 2, "--epochs", 1, "--out", "run")
    trained = run_here("train.py", "--dataset", "photos/", *flags, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    drawn = run_here("papers/front_picture.py", "run", "--num-data", 5, "--repeats", 4, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    estimators = names_of("papers/front_picture.py")["ESTIMATORS"]
    rows = [line.split() for line in drawn.stdout.splitlines() if line.startswith(estimators)]
    assert [(name, size) for name, size, *_ in rows] == [(e, k) for e in estimators for k in ("1", "4", "16", "64")]
    assert (tmp_path / "front.png").stat().st_size > 20_000
    refused = run_here("papers/front_picture.py", "run", "--out", "nowhere/front.png", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: out must be a .png in a folder that exists, got nowhere/front.png\n",
    )


def test_a_mean_is_shown_with_its_standard_error_and_without_for_one_seed():
    with_error = names_of("papers/interpolation.py")["with_error"]
    values = [1.0, 2.0, 3.0, 4.0]  # whose standard deviation is sqrt(5 / 3), over 2
    assert with_error(values) == "2.500 ± 0.645"
    assert with_error(values, 2, in_brackets=True) == "2.50 (0.65)"
    assert with_error([2.5]) == "2.500"


def test_mixture_guides_in_small(tmp_path):
    small = ["--num-train", 60, "--num-test", 12, "--epochs", 1, "--num-particles", 4, "--num-components", 2]
    result = run_here("papers/mixture_guides.py", *small, "--seeds", 0, 1, "--repeats", 4, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    (of_gaussian, *_) = found["runs"].values()
    for name, runs in found["runs"].items():
        differences = [ours["log p(x)"] - theirs["log p(x)"] for ours, theirs in zip(runs, of_gaussian, strict=True)]
        mean = sum(differences) / 2
        line = next(line for line in (tmp_path / "out/report.md").read_text().splitlines() if name in line)
        assert f"{mean:.3f} (" in line or name == "Gaussian, iwae"
    assert {row["num_draws"] for row in found["compared"]} == {4}
