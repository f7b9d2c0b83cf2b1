"""The tutorials' images in small: the gallery, sharpness, and a decoder that sees the pixels before each."""

import json

import pytest
import torch
from helpers import IMAGE_FILES, idx, tree, write_images
from running_scripts import names_of, run_here, without_drawing

import pyrovae as pv
from pyrovae.evaluation import diagnostics


@pytest.fixture
def images(tmp_path):
    raw = write_images(tmp_path / "data", nums=(40, 20))
    for num, file in zip((40, 20), IMAGE_FILES, strict=True):
        (raw / file).write_bytes(idx(torch.randint(256, (num, 28, 28), dtype=torch.uint8).numpy()))
    return ("--data-root", tmp_path / "data", "--num-train", 40, "--epochs", 1, "--out", "out")


def test_the_gallery_in_small(tmp_path, images, monkeypatch):
    result = run_here("papers/tutorial_gallery.py", *images, "--only", "784-400-2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found) == ["784-400-20", "784-400-2"]
    for run in found.values():
        loss, reconstruction, kl = (run["curves"][name][-1] for name in ("elbo", "reconstruction", "kl"))
        assert loss == pytest.approx(reconstruction - kl)
        for text in (result.stdout, (tmp_path / "out/report.md").read_text()):
            assert f"{-loss:.2f}" in text
            assert "106.66" in text
    assert {"out/784-400-20.png", "out/784-400-2.png"} <= tree(tmp_path).keys()
    without_drawing(monkeypatch)
    again = run_here("papers/tutorial_gallery.py", *images, "--only", "784-400-2", cwd=tmp_path)
    assert again.stdout == result.stdout  # from the parts that were kept
    refused = run_here("papers/tutorial_gallery.py", *images[:-1], "new", "--only", "vit", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "error: only must be a part of some run's name, got 'vit'\n")


def test_ten_epochs_by_flag_are_the_usual_ten_of_the_gallery(tmp_path, images, monkeypatch):
    """`--epochs 10` was refused in the folder of a call without: `begun with epochs None, and epochs is now 10`."""
    settings = []

    def refuse(folder, told):
        settings.append(told)
        raise pv.InputError("that is all")

    monkeypatch.setattr("pyrovae.common.kept_parts", refuse)
    flags = images[: images.index("--epochs")]
    for more in ([], ["--epochs", 10]):
        done = run_here("papers/tutorial_gallery.py", *flags, *more, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, "error: that is all\n")
    assert settings[0] == settings[1]


def test_the_published_loss_stands_beside_ours_after_as_many_epochs():
    script = names_of("papers/tutorial_gallery.py")
    for epochs, after in ((10, "107.00"), (7, "107.00"), (6, "-")):
        curves = {name: [-100.0 - epoch for epoch in range(1, epochs + 1)] for name in ("elbo", "loss", "kl", "epoch")}
        curves["reconstruction"] = curves["elbo"]
        first, *_ = script["ARCHITECTURES"]
        lines = script["table"]([first], {first.name: {"curves": curves, "active": 20}}, "github").splitlines()
        header, _, row = ([cell.strip() for cell in line.split("|")] for line in lines)
        found = dict(zip(header, row, strict=True))
        assert (found["after epoch 7"], found["published"]) == (after, "106.66")
        assert found["test loss"] == f"{100 + epochs}.00"


def test_the_convolutions_of_the_gallery_have_3_x_3_kernels():
    script = names_of("papers/tutorial_gallery.py")
    (conv,) = [of for of in script["ARCHITECTURES"] if "conv" in of.name]
    vae = conv.make(0)
    kinds = torch.nn.Conv2d, torch.nn.ConvTranspose2d
    kernels = [layer.kernel_size for layer in vae.modules() if isinstance(layer, kinds)]
    assert kernels == [(3, 3)] * 4
    assert vae.sample(3).shape == (3, 1, 28, 28)
    assert [of.latent_dim for of in script["ARCHITECTURES"]] == [20, 20, 32, 2]


def test_sharpness_in_small(tmp_path, images):
    result = run_here("papers/sharpness.py", *images, "--num-test", 10, "--seeds", 0, 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert list(found) == list(names_of("papers/sharpness.py")["MODELS"])
    for runs in found.values():
        mean = sum(run["reconstructions"] for run in runs) / 2
        assert f"{mean:.3f} (" in result.stdout
        assert len({run["samples"] for run in runs}) == 2


def test_the_sharpness_of_images_that_are_known():
    power = names_of("papers/sharpness.py")["laplacian_power"]
    ramp = torch.arange(8.0).expand(2, 1, 8, 8)
    checkers = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(2, 1, 8, 8)
    assert power(ramp) == 0
    assert power(checkers) == 16
    blurred = torch.nn.functional.avg_pool2d(torch.rand(2, 1, 20, 20), 3, stride=1)
    assert power(blurred) < 0.1 * power(torch.rand(2, 1, 20, 20))


def test_a_powerful_decoder_in_small(tmp_path, images):
    result = run_here("papers/powerful_decoder.py", *images, "--num-test", 12, "--seeds", 0, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert len(found) == 6
    for (run,) in found.values():
        assert run["elbo"] == pytest.approx(run["reconstruction"] - run["kl"])
        assert f"{run['elbo']:.2f}" in (tmp_path / "out/report.md").read_text()
    assert "out/powerful_decoder.png" in tree(tmp_path)


@pytest.mark.parametrize(("sees_pixels", "as_bias"), [(True, False), (True, True), (False, False)])
def test_a_logit_depends_on_the_pixels_before_it_and_on_no_other(sees_pixels, as_bias):
    script = names_of("papers/powerful_decoder.py")
    side = script["SIDE"]
    vae = script["PixelVAE"](sees_pixels, as_bias)
    x, z = (
        torch.rand(1, 1, side, side, requires_grad=True),
        torch.randn(50, 1, script["LATENT_DIM"]),
    )  # at one z all relus may be 0
    for place in (0, 5 * side + 6, side * side - 1):
        logit = vae.logits(x, z).flatten(1)[:, place].sum()
        (gradient,) = torch.autograd.grad(logit, x, allow_unused=True)
        seen = torch.zeros(side * side) if gradient is None else gradient.flatten()
        assert not seen[place:].any()
        assert bool(seen[:place].any()) == (sees_pixels and place > 0)


def test_particles_of_the_powerful_decoder_are_run_at_once():
    vae = names_of("papers/powerful_decoder.py")["PixelVAE"](True)
    x = torch.rand(3, 1, 14, 14).round()
    torch.manual_seed(0)
    terms = pv.diagnostics.elbo_terms(vae.model, vae.guide, x, num_particles=4)
    torch.manual_seed(0)
    z = vae.encode(x).rsample((4,))
    by_hand = torch.stack([torch.distributions.Bernoulli(logits=vae.logits(x, one)).log_prob(x) for one in z])
    assert torch.allclose(terms["reconstruction"], by_hand.sum((-1, -2, -3)).mean(0), atol=1e-4)


def test_an_encoder_ahead_of_its_decoder_in_small(tmp_path, images, monkeypatch):
    monkeypatch.setattr(diagnostics, "DRAWS_PER_DATUM", 2)
    flags = ("--num-train", 12, "--num-test", 12, "--num-samples", 5, "--seeds", 0, 1, "--guide-steps", 2)
    result = run_here("papers/lagging_encoders.py", *images, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())["results"]
    by_steps, ahead, as_long = (found[way] for way in ("step by step", "guide ahead", "step by step, as long"))
    assert by_steps != ahead != as_long != by_steps
    kl = [one["kl"] for one in ahead]
    assert all(one["mutual_information"] <= one["kl"] for one in ahead)
    text = (tmp_path / "out/report.md").read_text()
    assert f"{sum(kl) / 2:.2f} ({abs(kl[0] - kl[1]) / 2:.2f})" in text
    assert f"{sum(kl) / 2 - sum(one['kl'] for one in by_steps) / 2:+.2f} (" in text
