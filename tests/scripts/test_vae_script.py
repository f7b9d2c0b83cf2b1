"""scripts/vae.py, which writes model and guide out, is the VAE of the package and measures what it trained."""

import re

import pyro
import pytest
import torch
from helpers import suite_seed
from running_scripts import names_of, run_here

import pyrovae as pv


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_script_s_vae_is_the_package_s(conditional, beta):
    written = names_of("vae.py")["VAE"](6, 2, 4, conditional, beta).double()
    settings = {"likelihood": pv.Bernoulli(), "condition": pv.OneHot(10) if conditional else ()}
    packaged = pv.VAE((6,), latent_dim=2, hidden=(4,), beta=beta, **settings).double()
    with torch.no_grad():
        for theirs, ours in zip(packaged.parameters(), written.parameters(), strict=True):
            theirs.copy_(ours)
    torch.manual_seed(suite_seed(0))
    x, y = torch.randint(2, (7, 6)).double(), torch.randint(10, (7,))
    args = (x, y) if conditional else (x,)
    for objective in (pyro.infer.Trace_ELBO(), pv.objectives.IWAE(3)) if beta == 1 else (pyro.infer.Trace_ELBO(),):
        losses = []
        for vae in (written, packaged):
            pyro.clear_param_store()
            torch.manual_seed(suite_seed(1))
            losses.append(objective.loss(vae.model, vae.guide, *args))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    values = []
    for vae in (written, packaged):
        pyro.clear_param_store()
        torch.manual_seed(suite_seed(2))
        values.append(pv.log_marginal(vae.model, vae.guide, *args, num_samples=50).log_px)
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)  # at beta = 1, whatever training used


@pytest.mark.parametrize("flags", [(), ("--conditional", "--beta", 2, "--num-particles", 3)])
def test_the_script_trains_measures_and_draws(tmp_path, mnist_root, flags, monkeypatch, sharp_figures):
    monkeypatch.setattr(pv, "CompiledSVI", pyro.infer.SVI)  # quicker for so few steps, with the same numbers
    small = ("--num-train", 512, "--hidden", 16, "--epochs", 2, "--num-data", 20, "--num-samples", 50, "--lr", 0.01)
    done = run_here("vae.py", "--data-root", mnist_root.resolve(), *small, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+) nats", done.stdout)]
    assert losses[1] < losses[0] < 784 * 0.8
    assert -losses[0] < float(re.search(r"images: (\S+) nats", done.stdout)[1]) < -100
    assert (tmp_path / "vae.png").stat().st_size > 5_000


BAD_FLAGS = {
    "dataset must be one of": ("--dataset", "nosuch"),
    "dataset must have grey images": ("--dataset", "ring"),
    "hidden must be a whole number": ("--hidden", -1),
    "beta must be a finite number": ("--beta", 0),
    "seed must be": ("--seed", 2**70),
    "out must be a .png": ("--out", "nowhere/vae.png"),
}


@pytest.mark.parametrize("message", BAD_FLAGS)
def test_the_script_refuses_bad_input(tmp_path, message):
    done = run_here("vae.py", *BAD_FLAGS[message], cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")
