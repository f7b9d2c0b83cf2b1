"""What readers of tutorials look for, in small: interpolation, disentanglement, curves while training."""

import json
import math
import sys

import pytest
import torch
from helpers import tree, write_images
from running_scripts import names_of, run_here, with_scikit_learn, without_drawing

import pyrovae as pv

TERMS = {"loss": 1.0, "reconstruction": 2.0, "kl": 3.0}  # and what a made-up curve of each is multiplied by


def test_disentanglement_in_small(tmp_path, monkeypatch):
    with_scikit_learn(monkeypatch)
    small = ["--epochs", 1, "--seeds", 0, 1, "--betas", 1, 4, "--num-train", 300, "--num-data", 200, "--hidden", 8]
    result = run_here("papers/disentanglement.py", *small, "--latent-dim", 3, "--out", "out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert [(run["seed"], run["beta"]) for run in runs] == [(0, 1.0), (0, 4.0), (1, 1.0), (1, 4.0)]
    for run in runs:
        assert run["MIG"] == pytest.approx(sum(run["gaps"].values()) / 5)
        assert run["elbo"] == pytest.approx(run["reconstruction"] - run["kl"], abs=1e-3)
        assert list(run["R2"]) == ["shape", "scale", "orientation", "x", "y"]
    means = [sum(run["MIG"] for run in runs if run["beta"] == beta) / 2 for beta in (1, 4)]
    correlations = [(run["total_correlation"], run["total_correlation_by_chance"]) for run in runs if run["beta"] == 1]
    above_chance = sum(found - by_chance for found, by_chance in correlations) / 2
    for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
        assert all(f"{mean:.3f} ± " in text for mean in means)
        assert f"{means[1] - means[0]:.3f} ± " in text
        assert f" {above_chance:.3f} ± " in text
    assert {"out/traversals.png", "out/gaps.png"} <= tree(tmp_path).keys()
    again = run_here("papers/disentanglement.py", *small, "--latent-dim", 3, "--out", "out", cwd=tmp_path)
    assert again.stdout == result.stdout  # from the parts that were kept


def test_betas_of_disentanglement_differ_and_near_ones_are_told_apart(tmp_path, monkeypatch):
    """Runs of `--betas 1 1` were counted twice, and 1 and 1.0000001 were one run."""
    with_scikit_learn(monkeypatch)
    twice = run_here("papers/disentanglement.py", "--betas", 1, 4, 1, cwd=tmp_path)
    assert (twice.returncode, twice.stdout) == (2, "")
    assert twice.stderr == "error: betas must differ, got (1.0, 4.0, 1.0): runs would count twice\n"
    told = names_of("papers/disentanglement.py")["told"]
    assert list(map(told, (1.0, 1.0000001, 4.0, 0.1, 0.1 + 2**-50))) == [
        "1",
        "1.0000001",
        "4",
        "0.1",
        "0.1000000000000009",
    ]


def without_training(patch):
    def fit(*args, **settings):
        raise AssertionError("this was trained before")

    patch.setattr(pv, "fit", fit)


@pytest.mark.parametrize("script", ["draws", "interpolation"])
def test_digits_are_added_to_a_plain_run_and_its_trainings_are_kept(script, tmp_path, monkeypatch):
    """`--images` after a plain run was refused: `begun with image_epochs None`, or `with other data`."""
    without_drawing(monkeypatch)
    write_images(tmp_path / "data", nums=(80, 30))  # 40 validate
    small = {"draws": ["--repeats", 2, "--num-samples", 9], "interpolation": ["--seeds", 0, "--num-pairs", 5]}[script]
    flags = [f"papers/{script}.py", *small, "--epochs", 1, "--out", "out"]
    images = ["--images", "--image-epochs", 1, "--num-images", 40, "--data-root", tmp_path / "data"]
    plain = run_here(*flags, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (0, "")
    kept = tree(tmp_path / "out/parts")
    done = run_here(*flags, *images, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert kept.items() < tree(tmp_path / "out/parts").items()
    with monkeypatch.context() as patch:
        without_training(patch)
        for more in ([], images):
            assert run_here(*flags, *more, cwd=tmp_path).returncode == 0
    longer = run_here(*flags, *images, "--image-epochs", 2, cwd=tmp_path)
    assert (longer.returncode, longer.stderr) == (0, "")


def test_draws_compares_as_many_test_data_as_samples(tmp_path):
    """`--num-samples 5000` took the 2,000 test data of the ring for as many."""
    refused = run_here("papers/draws.py", "--num-samples", 2_001, cwd=tmp_path)
    assert (refused.returncode, list(tmp_path.iterdir())) == (2, [])
    assert refused.stderr.startswith("error: num_samples must be <= 2,000, as so many test and ")
    assert refused.stderr.endswith("; got 2,001\n")


def test_r_squared_is_of_the_half_that_was_not_fitted_and_a_category_is_an_indicator(monkeypatch):
    with_scikit_learn(monkeypatch)
    r_squared = names_of("papers/disentanglement.py")["r_squared"]
    factor = torch.arange(200) % 4
    codes = torch.stack((2.0 * factor + 1, torch.randn(200)), 1)
    assert r_squared(codes, factor, "scale") == pytest.approx(1, abs=1e-6)
    assert r_squared(codes, factor, "shape") < 0.6  # of four indicators a line tells the outer two best
    assert r_squared(torch.nn.functional.one_hot(factor).float(), factor, "shape") == pytest.approx(1, abs=1e-6)
    codes[100:] = torch.randn(100, 2)
    assert r_squared(codes, factor, "scale") < 0.1


def test_disentanglement_says_what_to_install_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run_here("papers/disentanglement.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: this script needs scikit-learn: pip install 'pyrovae[digits]'\n"


def test_interpolation_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(80, 30))  # 40 validate
    small = ["--epochs", 1, "--seeds", 0, 1, "--num-pairs", 20, "--steps", 5, "--image-epochs", 1, "--num-images", 40]
    flags = (*small, "--images", "--data-root", tmp_path / "data", "--out", "out")
    result = run_here("papers/interpolation.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())["found"]
    ways = names_of("papers/interpolation.py")["WAYS"]
    for way in ways:
        assert all(0 <= one[way]["hole"] <= 1 and 0 <= one[way]["off"] <= 1 for one in found)
        assert f"{sum(one[way]['off'] for one in found) / 2:.3f} ± " in result.stdout
    assert found[0]["line in x"]["off"] > 0.4
    assert {"out/ring.png", "out/digits.png"} <= tree(tmp_path).keys()


def test_shares_of_the_way_are_those_of_points_whose_place_is_known():
    """On a straight way through the middle a third of the inner points is in the hole, and all are off the data."""
    names = names_of("papers/interpolation.py")
    data = pv.load("ring")
    one = torch.tensor([[3.0, 0.0]])
    names["measure"].__globals__["pairs_of"] = lambda data, num: (one, -one)
    names["measure"].__globals__["WAYS"] = {"line in x": None}
    found = names["measure"]({}, data, 1, 13)["line in x"]  # x = 3, 2.5, ..., -3: of 11 inner points 7 are within 2
    assert found["hole"] == pytest.approx(7 / 11)
    assert found["off"] == pytest.approx(9 / 11)  # 2.5 is two standard deviations from a mode, which is on the data


def test_a_tutorial_prints_its_epochs_with_the_terms_of_their_batches(tmp_path):
    flags = ("--epochs", 2, "--only", "twice", "--out", "out")
    result = run_here("papers/tutorials.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]["pinwheel, twice the size"]
    of = run["curves"]
    assert len(of["loss"]) == len(of["reconstruction"]) == len(of["kl"]) == 2
    for loss, reconstruction, kl in zip(of["loss"], of["reconstruction"], of["kl"], strict=True):
        assert loss == pytest.approx(reconstruction + 0.25 * kl, abs=1e-4)
    lines = [line.split() for line in result.stdout.splitlines()]
    row = ["2", *(f"{of[term][1]:.3f}" for term in ("loss", "reconstruction", "kl")), f"{of['diversity']['2']:.3f}"]
    assert row in lines
    assert math.isfinite(run["diversity"])
    assert "out/curves.png" in tree(tmp_path)


def test_medians_over_seeds_are_of_the_epochs_that_they_name():
    names = names_of("papers/tutorials.py")
    (row,) = [row for row in names["POINTS"] if "twice" in row.name]
    curves = [
        {term: [factor * (epoch + shift) for epoch in range(1, 51)] for term, factor in TERMS.items()}
        for shift in (0, 5, -2)
    ]
    lines = [line.split() for line in names["medians_by_epoch"](row, [{"curves": of} for of in curves]).splitlines()]
    assert lines[3:] == [
        *([str(epoch), *(f"{factor * epoch:.2f}" for factor in TERMS.values())] for epoch in (10, 40, 50)),
        ["published", "1.672", "0.303", "5.476"],
    ]


def test_a_seed_fixes_the_initial_parameters_of_a_condition_as_well():
    names = names_of("papers/tutorials.py")
    (row,) = [row for row in names["POINTS"] if row.name == "ring, radius"]
    features = []
    for elsewhere, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(elsewhere)
        features.append(names["make"](row, seed)[0].encoder_features([torch.tensor([[1.0], [2.0]])]))
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[1], features[2])


def test_the_plain_loss_is_a_scaled_squared_error_and_beta_kl():
    """At weights of 0 the biases alone are q(z|x) and the decoded mean, whose loss is known."""
    names = names_of("papers/tutorials.py")
    plain = names["plain_loss"].__globals__["PlainVAE"]
    (row,) = [row for row in names["POINTS"] if row.name == "ring"]
    vae = plain(row, 2, None, False)
    x, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([0.5, -1.0, 0.3, -0.2]))
        vae.decoder[-1].bias.fill_(1.0)
    posterior = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([0.3, -0.2]).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
    expected = (1 + 5) / 2 / (2 * 0.1) + 0.25 * kl.item()
    assert vae.loss(x, y, 0.1, 0.25).item() == pytest.approx(expected)


def test_draws_in_small_agree_with_theory_and_no_datum_is_its_own_neighbour(tmp_path):
    write_images(tmp_path / "data", nums=(80, 30))  # 40 validate
    small = ["--epochs", 1, "--repeats", 400, "--num-samples", 20, "--image-epochs", 1, "--num-images", 40]
    flags = (*small, "--images", "--data-root", tmp_path / "data", "--out", "out")
    result = run_here("papers/draws.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())["found"]
    assert found.keys() == {"ring", "digits"}
    for _, mean, theory, square, its_theory in found["ring"]["moments"]:
        assert mean == pytest.approx(theory, rel=0.25)
        assert square == pytest.approx(its_theory, rel=0.35)
    for one in found.values():
        assert min(one["median"].values()) > 0
    assert "out/nearest.png" in tree(tmp_path)


def test_the_nearest_datum_is_found_and_a_training_datum_is_not_its_own():
    nearest = names_of("papers/draws.py")["nearest"]
    others = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    distance, index = nearest(torch.tensor([[0.0, 0.9], [3.0, 5.0]]), others)
    torch.testing.assert_close(distance, torch.tensor([0.1, 1.0]))
    assert index.tolist() == [2, 1]
    distance, index = nearest(others[:2], others, True)
    torch.testing.assert_close(distance, torch.tensor([1.0, math.sqrt(18.0)]))
    assert index.tolist() == [2, 2]
