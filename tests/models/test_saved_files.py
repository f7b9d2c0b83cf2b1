"""`save` and `load`: every built-in part comes back equal to the bit, and parts of the user's own are given again."""

import pickle
from functools import partial

import helpers
import numpy as np
import pyro
import pytest
import torch
from helpers import perturbed, small_vae
from test_saving import MODELS, log_weights, trained
from torch import nn

import pyrovae as pv
from pyrovae.models.construction import known_kinds, made
from pyrovae.models.param_store import Module

X = torch.linspace(-2, 2, 8).view(4, 2)
UNIT = X.abs().clamp(0.1, 0.9)


def levels(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape) % 256 / 255


POSTERIORS = {
    "Categorical": partial(pv.posteriors.Categorical, 2, 3, temperature=0.4),
    "RelaxedCategorical": partial(pv.posteriors.RelaxedCategorical, 2, num_classes=3),
    "RelaxedBernoulli": partial(pv.posteriors.RelaxedBernoulli, 2, 0.3),
    "autoregressive flow": partial(pv.posteriors.Flow, 2, kind="autoregressive"),
    "delta": lambda: "delta",
}
COUNTS = torch.arange(8.0).view(4, 2) + 1
FAMILIES = {
    "Poisson": pv.Poisson,
    "negative binomial": pv.NegativeBinomial,
    "zero-inflated": pv.ZeroInflatedNegativeBinomial,
    "Student": lambda: pv.StudentT(4.0, 0.5, learn_scale=True),
    "log-normal": lambda: pv.LogNormal(0.5),
    "digits": lambda: pv.Categorical(10),
}
MORE = {
    **{f"posterior {name}": (lambda make=make: small_vae(posterior=make()), (X,)) for name, make in POSTERIORS.items()},
    "unit pseudo-inputs": (lambda: small_vae(prior=pv.priors.Vamp(UNIT, "unit_interval")), (UNIT,)),
    "another temperature": (
        lambda: small_vae(posterior="relaxed_bernoulli", prior=pv.priors.RelaxedBernoulli(2, 0.8)),
        (X,),
    ),
    "grey": (lambda: small_vae(likelihood=pv.Bernoulli(allow_grey=True)), (UNIT,)),
    "continuous Bernoulli": (lambda: small_vae(likelihood=pv.ContinuousBernoulli()), (UNIT,)),
    "shares": (lambda: small_vae(likelihood=pv.Beta()), (UNIT,)),
    "categorical": (lambda: small_vae(likelihood=pv.Categorical()), (levels(4, 2),)),
    "discretized logistic": (lambda: small_vae(likelihood=pv.DiscretizedLogistic(0.2)), (levels(4, 2),)),
    **{
        f"likelihood {name}": (lambda make=make: small_vae(likelihood=make()), (COUNTS,))
        for name, make in FAMILIES.items()
    },
    "size factor": (
        lambda: small_vae(likelihood=pv.NegativeBinomial(), condition=pv.SizeFactor()),
        (COUNTS, torch.tensor([1.0, 2.0, 0.5, 1.5])),
    ),
    "missing cells": (
        lambda: small_vae(missing="mask", likelihood=pv.Columns({"a": pv.Gaussian(0.3), "b": pv.Poisson()})),
        (torch.tensor([[1.5, 2.0], [torch.nan, 1.0], [0.3, torch.nan], [-1.0, 0.0]]),),
    ),
    "mean of the data": (lambda: small_vae(data_mean=X.mean(0)), (X,)),
    "beta": (lambda: small_vae(beta=0.3), (X,)),
    "two conditions": (
        lambda: small_vae(condition=[pv.OneHot(3), pv.Embedding((2,), (4,), 5, "tanh")]),
        (X, torch.tensor([0, 1, 2, 0]), X),
    ),
    "resnet": (
        lambda: small_vae((3, 8, 8), network="resnet", hidden=[3, 4], likelihood=pv.DiscretizedLogistic()),
        (levels(4, 3, 8, 8),),
    ),
    "networks by hand": (
        lambda: small_vae(hidden=None, encoder=pv.MLP((2,), (4,), (5,)), decoder=partial(pv.MLP, hidden=(3,))),
        (X,),
    ),
}
ALL = {**MODELS, **MORE}


def through_a_file(vae, path, **own):
    vae.save(path / "vae.pt")
    return type(vae).load(path / "vae.pt", **own)


def assert_same(found, vae, batch):
    assert type(found) is type(vae)
    for ours, theirs in (
        (found.named_parameters(), vae.named_parameters()),
        (found.named_buffers(), vae.named_buffers()),
    ):
        for (name, a), (other, b) in zip(ours, theirs, strict=True):
            assert (name, a.dtype, a.requires_grad) == (other, b.dtype, b.requires_grad)
            assert torch.equal(a, b), name
    modules = zip(found.named_modules(), vae.named_modules(), strict=True)
    assert all((name, a.training) == (other, b.training) for (name, a), (other, b) in modules)
    if getattr(vae, "posterior_family", None) is None or vae.posterior_family.has_density:
        assert torch.equal(log_weights(found, batch), log_weights(vae, batch))


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_built_in_part_comes_back_equal_to_the_bit(name, tmp_path):
    make, batch = ALL[name]
    torch.manual_seed(3)
    vae = perturbed(make()).eval()
    start = torch.get_rng_state()
    found = through_a_file(vae, tmp_path)
    assert torch.equal(torch.get_rng_state(), start)
    assert_same(found, vae, batch)
    if hasattr(vae, "sample"):
        draws = []
        for model in (vae, found):
            torch.manual_seed(1)
            draws.append(model.sample(len(X), *([batch[1:]] if batch[1:] else [])))
        assert torch.equal(*draws)
    assert not set(found.parameters()) & set(vae.parameters())


def test_no_likelihood_posterior_prior_condition_or_network_is_left_out_here():
    tested = {type(part) for make, _ in ALL.values() for part in make().modules()}
    bases = pv.Likelihood, pv.posteriors.Posterior, pv.priors.Prior, pv.Condition, pv.models.networks.Network
    public = {kind for kind in known_kinds(Module).values() if issubclass(kind, bases) and kind not in bases}
    assert {kind for kind in public - tested if not kind.__name__.startswith("_")} == set()


def test_classes_have_different_names_in_a_file():
    def of(base):
        return {
            kind for sub in base.__subclasses__() for kind in ({sub} if sub.__module__ > "pyrovae" else set()) | of(sub)
        }

    ours = {kind for kind in of(Module) if kind.__module__.startswith("pyrovae.")}
    assert set(known_kinds(Module).values()) == ours


def test_it_trains_on_as_if_it_had_never_been_saved(tmp_path):
    vae = small_vae(posterior="flow")
    trained(vae, (X,))
    found = through_a_file(vae, tmp_path)
    assert torch.equal(trained(found, (X,)), trained(vae, (X,)))


def test_dtypes_modes_frozen_parameters_and_changed_attributes_come_back(tmp_path):
    vae = small_vae(posterior="relaxed_bernoulli", prior=pv.priors.Mixture(2)).double().train()
    vae.likelihood.log_scale.requires_grad_(False)
    vae.encoder.eval()
    vae.posterior_family.temperature = 0.123
    found = through_a_file(vae, tmp_path)
    assert found.posterior_family.temperature == 0.123
    assert_same(found, vae, (X.double(),))


def test_a_view_of_a_data_set_does_not_take_the_data_set_along(tmp_path):
    vae = small_vae(prior=pv.priors.Vamp(torch.randn(100_000, 2)[:3]))
    vae.save(tmp_path / "vae.pt")
    assert (tmp_path / "vae.pt").stat().st_size < 20_000
    assert len(pickle.dumps(vae)) < 40_000


def test_numbers_and_sequences_of_any_type_are_plain_in_a_file(tmp_path):
    settings = {"hidden": [4, 4], "likelihood": pv.Gaussian(np.float64(0.5)), "prior": pv.priors.Flow(2, hidden=[3])}
    vae = small_vae(torch.Size((2,)), **settings)
    assert_same(through_a_file(vae, tmp_path), vae, (X,))


def test_a_new_part_of_the_package_needs_no_registration(tmp_path, monkeypatch):
    """Nested in a dict, as the columns of a table are."""

    class Table(pv.Likelihood):
        def __init__(self, columns, *names):
            super().__init__()
            self.columns, self.names = nn.ModuleDict(columns), names

        def forward(self, outputs, event_dim):
            return self.columns["a"](outputs, event_dim)

    Table.__module__ = "pyrovae.models.likelihoods.tables"
    vae = small_vae(likelihood=Table({"a": pv.Gaussian(0.3), "b": pv.Bernoulli()}, "a", "b"))
    found = through_a_file(vae, tmp_path)
    assert_same(found, vae, (X,))
    assert found.likelihood.names == ("a", "b")


# Parts of the user's own ----------------------------------------------------------------------------------------------


class Wide(nn.Linear):
    def __init__(self, units=4):
        super().__init__(2, units)


class Laplace(pv.Likelihood):
    def forward(self, outputs, event_dim):
        return pyro.distributions.Laplace(outputs, 0.5).to_event(event_dim)


def test_parts_of_ones_own_are_given_again_and_get_the_weights_of_the_file(tmp_path):
    encoder = nn.Sequential(Wide(6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    settings = {"latent_dim": 2, "likelihood": Laplace()}
    vae = pv.VAE((2,), encoder=encoder, decoder=lambda *_: nn.Linear(2, 2), **settings)
    pv.fit(vae, X, epochs=2, progress=False)
    path = tmp_path / "vae.pt"
    call = f'VAE.load("{path}", likelihood=..., encoder=..., decoder=...)'
    with pytest.warns(UserWarning, match="holds no code") as said:
        vae.save(path)
    assert [str(warning.message) for warning in said] == [f"{path} holds no code of your own; to load it say {call}"]
    own = {"encoder": nn.Sequential(Wide(6), nn.BatchNorm1d(6), nn.Linear(6, 4)), "decoder": nn.Linear(2, 2)}
    found = pv.VAE.load(path, **own, likelihood=Laplace())
    assert found.encoder is own["encoder"]
    assert_same(found, vae, (X,))

    refused = partial(helpers.refusal, pv.VAE.load, path)
    needed = "it holds no code of likelihood (Laplace), encoder (Sequential), decoder (<lambda>)"
    assert refused() == f"{path} cannot be loaded: {needed}: say {call}"
    assert refused(**own).endswith(f'of likelihood (Laplace): say VAE.load("{path}", likelihood=...)')
    wrong = nn.Sequential(Wide(5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    message = refused(**{**own, "encoder": wrong}, likelihood=Laplace())
    assert message == f"{path} cannot be loaded: its encoder.0.bias is (6,), and that of the model (5,)"
    message = refused(**{**own, "encoder": nn.Linear(2, 4)}, likelihood=Laplace())
    assert message == f"{path} cannot be loaded: its encoder.0.bias is (6,), and that of the model not there"
    assert refused(**own, likelihood=Laplace(), prior="flow").endswith("prior is in the file and cannot be given")


def test_a_subclass_of_the_users_own_loads_itself(tmp_path):
    class Mine(pv.VAE):
        def __init__(self, width):
            super().__init__((2,), latent_dim=2, hidden=(width,), likelihood=pv.Gaussian(0.5))
            scale = torch.full((), float(width)).requires_grad_()
            self.register_buffer("scale", scale, persistent=False)  # which was written and could not be loaded

    vae = Mine(5)
    assert_same(through_a_file(vae, tmp_path), vae, (X,))
    message = helpers.refusal(pv.VAE.load, tmp_path / "vae.pt")
    assert message == f"{tmp_path / 'vae.pt'} cannot be loaded: it holds a Mine and not a VAE"


def test_a_part_that_was_replaced_is_refused_and_the_file_stays(tmp_path):
    vae, path = small_vae(), tmp_path / "vae.pt"
    vae.save(path)
    before = path.read_bytes()
    vae.likelihood = pv.Bernoulli()
    message = (
        f"{path} cannot be written: its likelihood is a Bernoulli, and a model made with the same arguments has a "
    )
    assert helpers.refusal(vae.save, path) == f"{message}Gaussian"
    vae = small_vae()
    vae.encoder = nn.Linear(2, 4)
    assert helpers.refusal(vae.save, path).startswith(f"{path} cannot be written: its encoder is a module of your own")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["vae.pt"]


def test_arguments_are_kept_by_name_whatever_way_they_were_given():
    def of(likelihood):
        return dict(likelihood.made_with.arguments)

    assert (
        of(pv.Gaussian(0.5, True))
        == of(pv.Gaussian(learn_scale=True, scale=0.5))
        == {"scale": 0.5, "learn_scale": True}
    )
    assert made(pv.Gaussian, {"scale": 0.25}).scale == 0.25


def test_a_layer_that_was_replaced_in_a_built_in_network_is_refused(tmp_path):
    vae = small_vae()
    vae.encoder.layers[1] = nn.Tanh()
    message = helpers.refusal(vae.save, tmp_path / "vae.pt")
    assert message.endswith("its encoder.layers.1 is a Tanh, and a model made with the same arguments has a ReLU")


def test_saving_runs_nothing_of_the_model(tmp_path):
    """`vae.prior` is a property, which for a Vamp prior runs the encoder, and for one of several layers raises."""
    encoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    settings = {"latent_dim": 1, "likelihood": pv.Gaussian(0.5), "prior": pv.priors.Vamp(torch.randn(5, 2))}
    vae = pv.VAE((2,), encoder=encoder, hidden=(4,), **settings).train()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.warns(UserWarning, match="no code of your own"):
        vae.save(tmp_path / "vae.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())


def test_a_prior_of_several_layers_that_was_given_comes_back(tmp_path):
    posterior = pv.posteriors.Layered((2, 1), [(4, 4)], "tanh")
    settings = {"latent_dim": 2, "hidden": (4,), "likelihood": pv.Gaussian(0.5), "posterior": posterior}
    vae = pv.VAE((2,), **settings, prior=posterior.usual_prior())
    vae.save(tmp_path / "vae.pt")
    x = torch.randn(3, 2)
    assert torch.equal(pv.VAE.load(tmp_path / "vae.pt").reconstruct(x), vae.reconstruct(x))
