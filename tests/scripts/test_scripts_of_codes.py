"""Scripts with discrete latents, codes and missing labels, run in small and are checked by hand-made bounds."""

import json
import math
import re

import pytest
import torch
from helpers import write_images
from running_scripts import names_of, run_here

import pyrovae as pv


def test_a_vq_vae_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(100, 30))
    sizes = ["--num-tokens", 3, "--num-codes", 4, "--hidden", 8, "--epochs", 2, "--batch-size", 20]
    flags = ["--data-root", "data", "--num-train", 60, *sizes, "--out", "out"]
    result = run_here("papers/vqvae.py", *flags, cwd=tmp_path)
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


def test_bits_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(100, 30))
    flags = ["--data-root", "data", "--num-train", 60, "--num-bits", 3, "--hidden", 8, "--epochs", 1]
    flags += ["--num-samples", 10, "--num-data", 20, "--seeds", 0, 1, "--out", "out"]
    result = run_here("papers/bit_codes.py", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    ways = ["VIMCO", "leave-one-out", "wake-sleep", "straight-through", "relaxed"]
    assert [(run["seed"], run["way"]) for run in found] == [(seed, way) for seed in (0, 1) for way in ways]
    assert all(run["elbo"] <= run["log_px"] < 0 for run in found)
    # With too few draws for k, which JSON has no number for.
    assert all(run["share_pareto_k_above_0.7"] is None for run in found)
    by_way = {way: [run["log_px"] for run in found if run["way"] == way] for way in ways}
    assert len({tuple(values) for values in by_way.values()}) == 5
    gains = [one - other for one, other in zip(by_way["relaxed"], by_way["VIMCO"], strict=True)]
    expected = f"{sum(gains) / 2:.2f} ({abs(gains[0] - gains[1]) / 2:.2f})"
    rows = [line.split("  ") for line in result.stdout.splitlines() if line.startswith("relaxed ")]
    assert [cell.strip() for cell in rows[0] if cell.strip()][2] == expected
    assert "unknown" in result.stdout
    assert expected in (tmp_path / "out/report.md").read_text()


def test_relaxed_bits_are_measured_as_the_model_of_bits_that_their_networks_are(tmp_path):
    write_images(tmp_path / "data", nums=(100, 30))
    flags = ["--data-root", "data", "--num-train", 60, "--num-bits", 3, "--hidden", 8, "--epochs", 6, "--lr", 0.03]
    flags += ["--batch-size", 20, "--num-samples", 2_000, "--num-data", 20, "--seeds", 4, "--temperature", 2.0]
    assert run_here("papers/bit_codes.py", *flags, "--out", "out", cwd=tmp_path).returncode == 0
    found = {run["way"]: run for run in json.loads((tmp_path / "out/results.json").read_text())["runs"]}
    data = pv.load("mnist", data_root=tmp_path / "data", num_train=60)
    for way, posterior, objective in (
        ("relaxed", pv.posteriors.RelaxedBernoulli(3, 2.0), pv.objectives.ELBO(5)),
        ("VIMCO", pv.posteriors.Bernoulli(3), pv.objectives.VIMCO(5)),
    ):
        parts = {"latent_dim": 3, "hidden": (8,), "likelihood": pv.Bernoulli(), "data_mean": data.train_mean}
        torch.manual_seed(4)
        vae = pv.VAE(data.event_shape, **parts, posterior=posterior)
        settings = {"epochs": 6, "batch_size": 20, "lr": 0.03, "schedule": "cosine", "seed": 4}
        pv.fit(vae, data, objective=objective, **settings)
        bits = pv.VAE(data.event_shape, **parts, posterior="bernoulli")
        bits.load_state_dict(vae.state_dict())
        x = data.test_x[:20]
        exact = pv.enumerated_log_marginal(bits.model, x).mean().item()
        elbo = -pv.objectives.EnumeratedELBO().loss(bits.model, bits.guide, x) / 20
        assert found[way]["log_px"] == pytest.approx(exact, abs=5 * found[way]["log_px_error"] + 1e-3)
        assert found[way]["elbo"] == pytest.approx(elbo, abs=0.1)
    assert all(0 <= run["share_pareto_k_above_0.7"] <= 1 for run in found.values())


def test_semi_supervised_in_small(tmp_path):
    write_images(tmp_path / "data", nums=(300, 30))
    flags = ["--data-root", "data", "--num-train", 300, "--num-labelled", 20, "--hidden", 8]
    flags += ["--epochs", 2, "--warm-up", 1]
    result = run_here("papers/semi_supervised.py", *flags, "--seeds", 0, 1, "--out", "out", cwd=tmp_path)
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
    bad = run_here("papers/semi_supervised.py", *flags, "--hidden", 4, "--lr", 1e30, "--out", "out", cwd=tmp_path)
    assert bad.returncode == 2
    assert re.fullmatch(r"error: training diverged with seed 0 \(.+\)\n", bad.stderr), bad.stderr
    assert not (tmp_path / "out").exists()


def test_the_bound_of_m2_is_what_summing_over_labels_by_hand_gives(tmp_path):
    """A missing label is summed over under q(y|x); a known one is weighed at its own value, and trains q(y|x)."""
    script = names_of("papers/semi_supervised.py")
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
