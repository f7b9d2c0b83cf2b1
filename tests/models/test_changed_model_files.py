"""Files of models with one value changed: refused in one line, or what is loaded works and can be saved again."""

import warnings

import pytest
import torch
from changed_values import an_end, assert_one_line, changed
from helpers import small_vae
from test_saving import log_weights

import pyrovae as pv
from pyrovae.models import saving

NUM_CHANGES = 40
X = torch.linspace(-2, 2, 8).view(4, 2)
MODELS = {
    "labels": (lambda: small_vae(condition=pv.OneHot(3), prior="mixture"), (X, torch.tensor([0, 1, 2, 0]))),
    "relaxed": (lambda: small_vae(posterior="relaxed_bernoulli"), (X,)),
    "codes": (
        lambda: pv.VQVAE((2,), num_tokens=2, num_codes=3, code_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5)),
        (X,),
    ),
    "a flow": (lambda: small_vae(posterior="flow", missing="mask", likelihood=pv.HeteroscedasticGaussian(0.1)), (X,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_changed_value_is_refused_or_the_model_works(name, tmp_path, monkeypatch):
    make, batch = MODELS[name]
    vae, path, num_refused = make(), tmp_path / "vae.pt", 0
    vae.save(path)
    content = torch.load(path, weights_only=True)
    for seed in range(NUM_CHANGES):
        found, words = changed(content, f"{name} {seed}")
        try:
            with warnings.catch_warnings(action="ignore"), an_end():
                with monkeypatch.context() as patch:
                    patch.setattr(saving, "load_tensors", lambda source, found=found: found)
                    loaded = type(vae).load(path)
                loaded.save(tmp_path / "again.pt")
                if not any(value.isnan().any() for value in (*loaded.parameters(), *loaded.buffers())):
                    log_weights(loaded, batch)
        except pv.InputError as error:
            assert_one_line(error)
            num_refused += 1
        except Exception as error:
            raise AssertionError(words) from error
    assert NUM_CHANGES / 2 < num_refused < NUM_CHANGES
