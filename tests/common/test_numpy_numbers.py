"""Settings that come as NumPy's numbers and flags, as those of a grid of settings do, are those of Python."""

import numpy as np
import torch
from helpers import refusal

import pyrovae as pv
from pyrovae.common import require_count, require_flag, require_number

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def small(whole, real):
    torch.manual_seed(0)
    return pv.VAE((whole(3),), latent_dim=whole(2), hidden=(whole(4),), likelihood=pv.Gaussian(real(0.5)), beta=real(2))


def test_a_training_and_its_estimate_are_the_same():
    found = []
    for whole, real, flag in ((int, float, bool), (np.int64, np.float32, np.bool_)):
        vae = small(whole, real)
        settings = {"epochs": whole(2), "batch_size": whole(8), "seed": whole(3), "lr": real(0.25)}
        kept = pv.fit(vae, X, compile=flag(False), progress=flag(False), **settings).loss
        result = pv.log_marginal(vae, X, num_samples=whole(30), progress=flag(False))
        found.append((kept, result.num_samples, result.log_px.shape))
    assert found[0] == found[1]


def test_what_is_written_can_be_read(tmp_path):
    small(np.int64, np.float32).save(tmp_path / "vae.pt")
    assert pv.VAE.load(tmp_path / "vae.pt").latent_dim == 2
    config = pv.RunConfig(epochs=np.int64(3), hidden=(np.int32(4),), lr=np.float32(0.25), seed=np.uint8(1))
    config.save(tmp_path / "config.json")
    assert pv.RunConfig.load(tmp_path / "config.json") == config
    assert (config.hidden, type(config.lr)) == ((4,), float)


def test_numbers_of_numpy_keep_the_same_rules():
    assert refusal(require_count, "n", np.int64(0)).startswith("n must be a whole number >= 1, got ")
    for value in (np.float64(2), np.bool_(True), np.array([2]), np.timedelta64(2), np.uint8(2)):
        assert refusal(require_count, "n", value).startswith("n must be a whole number >= 1, got ")
    for value in (
        np.float32("nan"),
        np.float32("inf"),
        np.complex64(1),
        np.timedelta64(1),
        np.bool_(True),
        np.array([2.0]),
    ):
        assert refusal(require_number, "lr", value, 0).startswith("lr must be a finite number > 0, got ")
    for value in (np.int64(1), np.array(True)):
        assert refusal(require_flag, "compile", value).startswith("compile must be true or false, got ")
