"""Models that Pyro has registered can be saved, pickled and copied; the copy is equal, and trains on its own."""

import copy
import io
import pickle
from functools import partial

import pyro
import pytest
import torch
from helpers import linear_gaussian, parameters_of, ring, small_vae
from torch import nn

import pyrovae as pv
from pyrovae.models.posteriors import Layered

X = torch.linspace(-2, 2, 8).view(4, 2)


def through_torch(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


WAYS = {"torch.save": through_torch, "pickle": through_pickle, "deepcopy": copy.deepcopy}
PLAIN = {
    **{f"posterior {name}": {"posterior": name} for name in pv.posteriors.POSTERIORS if name != "delta"},
    **{f"prior {name}": {"prior": name} for name in pv.priors.PRIORS if name not in ("standard", "vamp")},
    "prior vamp": {"prior": pv.priors.Vamp(X)},
    "layers": {"posterior": Layered((2, 2), [(8, 8)])},
    "predicted scales": {"likelihood": pv.HeteroscedasticGaussian(0.1)},
}
MODELS = {
    **{name: (lambda s=settings: small_vae(**s), (X,)) for name, settings in PLAIN.items()},
    "labels": (lambda: small_vae(condition=pv.OneHot(3)), (X, torch.tensor([0, 1, 2, 0]))),
    "values": (lambda: small_vae(condition=pv.Embedding()), (X, X[:, :1])),
    "images": (
        lambda: small_vae((1, 8, 8), network="conv", hidden=(3, 4), likelihood=pv.Bernoulli()),
        (torch.ones(4, 1, 8, 8),),
    ),
    "codes of a book": (
        lambda: pv.VQVAE((2,), num_tokens=2, num_codes=3, code_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5)),
        (X,),
    ),
    "linear and Gaussian": (lambda: linear_gaussian(0, data_dim=2), (X.double(),)),
}


def log_weights(vae: nn.Module, batch: tuple) -> torch.Tensor:
    vae.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        return pv.log_weights(vae.model, vae.guide, *batch, num_particles=3)


def trained(vae: nn.Module, batch: tuple, **settings) -> torch.Tensor:
    discrete = "Bernoulli" in type(getattr(vae, "posterior_family", None)).__name__
    objective = pv.objectives.VIMCO(2) if discrete else pv.objectives.ELBO(2)
    fit = {"epochs": 1, "seed": 0, "progress": False, "optimizer": torch.optim.SGD, "objective": objective}
    pv.fit(vae, [batch], **{**fit, **settings})
    return parameters_of(vae)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_trained_comes_back_the_same_and_trains_on_its_own(name):
    make, batch = MODELS[name]
    torch.manual_seed(3)
    vae = make()
    trained(vae, batch)
    state, weights = {key: value.clone() for key, value in vae.state_dict().items()}, log_weights(vae, batch)
    moved = {}
    for way in ("deepcopy", "pickle" if list(MODELS).index(name) % 2 else "torch.save"):  # which pickles, too
        found = WAYS[way](vae)
        assert torch.equal(log_weights(found, batch), weights), way
        assert found.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items()), way
        moved[way] = trained(found, batch)
        assert all(torch.equal(value, state[key]) for key, value in vae.state_dict().items()), way  # it did not move
    after = trained(vae, batch)  # the first goes on as if it had never been saved
    assert [way for way, one in moved.items() if not torch.equal(one, after)] == []
    found.load_state_dict(state)
    assert torch.equal(trained(found, batch), after)


def test_a_part_can_be_saved_by_itself():
    for name, (make, batch) in MODELS.items():
        vae = make()
        trained(vae, batch)
        for part_name, part in vae.named_children():
            found = through_pickle(part)
            pairs = zip(found.state_dict().values(), part.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), (name, part_name)


def test_saving_a_model_during_training_does_not_change_the_training(monkeypatch):
    monkeypatch.setattr(
        pv.training.gradients, "CompiledLoss", partial(pv.training.gradients.CompiledLoss, inductor=False)
    )
    results = []
    for save in (False, True):
        vae, kept = small_vae(), []
        keep = (lambda _, vae=vae, kept=kept: kept.append(through_torch(vae))) if save else None
        compiled = pv.fit(vae, ring(), epochs=3, batch_size=25, seed=1, compile=True, on_epoch=keep)
        results.append((parameters_of(vae), compiled.loss))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert torch.equal(parameters_of(kept[-1]), parameters_of(vae))


def test_a_model_can_be_saved_after_plain_svi_and_compiled_steps():
    for make in (pyro.infer.SVI, lambda *args: pv.CompiledSVI(*args, inductor=False)):
        vae = small_vae()
        svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.ELBO())
        svi.step(X)
        found = through_torch(vae)
        svi.step(X)
        before = parameters_of(found)
        assert not torch.equal(before, parameters_of(vae))
        make(found.model, found.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.ELBO()).step(X)
        assert not torch.equal(before, parameters_of(found))
