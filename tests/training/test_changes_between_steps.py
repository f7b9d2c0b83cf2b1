"""What users do between steps has the effect under `CompiledSVI` that it has under `pyro.infer.SVI`."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from any_losses import Pair, X, assert_is_svi, mmd, reals, trained
from compiled_steps import CompiledExactly
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn


class Scaled(Pair):
    """Has a dropout, a batch normalisation and a beta."""

    def __init__(self, beta=1.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 4))
        self.beta = beta

    def model(self, x):
        with poutine.scale(scale=self.beta):
            super().model(x)


class Late(Pair):
    """Has one parameter more from some step on."""

    is_late = False

    def model(self, x):
        super().model(x * pyro.param("gain", torch.ones(())) if self.is_late else x)


def set_beta(step, pair):
    pair.beta = 1.0 if step < 2 else 0.3


def write_beta(step, pair):
    pair.beta.fill_(0.1 + step)


def set_mode(step, pair):
    pair.train(step % 4 < 2)


def clear_store(step, pair):
    if step == 2:
        pyro.clear_param_store()


def freeze(step, pair):
    pair.decoder.bias.requires_grad_(step < 2 or step > 3)


def come_late(step, pair):
    pair.is_late = step >= 2


def add_a_penalty(step, pair):
    sum(parameter.square().sum() for parameter in pair.parameters()).backward()


@pytest.mark.filterwarnings("ignore:bias was not registered")
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (Scaled, set_beta),
        (lambda: Scaled(torch.tensor(1.0)), write_beta),
        (Scaled, set_mode),
        (Pair, clear_store),
        (Pair, freeze),
        (Late, come_late),
        (Pair, add_a_penalty),
    ],
    ids=lambda part: part.__name__,
)
def test_what_the_user_does_between_steps_has_the_effect_that_it_has_under_svi(make, change):
    assert_is_svi(make, Trace_ELBO, num_steps=5, change=change)


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (Trace_ELBO, "num_particles", 3),
        (lambda: infer.RenyiELBO(alpha=0.5, num_particles=2), "alpha", 0.2),
        (mmd, "mmd_scale", 3.0),
    ],
)
def test_an_attribute_of_the_loss_may_be_changed(loss, name, value):
    results = []
    for kind in (SVI, CompiledExactly):
        one = loss()
        change = lambda step, pair, one=one: setattr(one, name, value) if step == 2 else None  # noqa: E731
        results.append(trained(kind, reals, one, num_steps=4, change=change))
    assert results[1][2].reason is None
    assert results[1][0] == results[0][0]


def test_an_attribute_of_a_loss_that_compiles_itself_may_be_changed():
    one, results = infer.JitTrace_ELBO(), []
    for kind, loss in ((SVI, Trace_ELBO()), (CompiledExactly, one)):
        change = lambda step, pair, loss=loss: setattr(loss, "num_particles", 3) if step == 2 else None  # noqa: E731
        results.append(trained(kind, reals, loss, num_steps=4, change=change)[0])
    assert results[1] == results[0]
    assert type(one) is infer.JitTrace_ELBO


def test_a_parameter_that_only_some_batches_train_goes_on_by_its_momentum():
    """As a classifier of which the labels are given for some batches."""

    class Labelled(Pair):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(3, 2)

        def model(self, x, y=None):
            pyro.module("classifier", self.classifier)
            super().model(x)
            if y is not None:
                with pyro.plate("labels", len(x)):
                    pyro.sample("y", dist.Categorical(logits=self.classifier(x)), obs=y)

        def guide(self, x, y=None):
            super().guide(x)

    labels, results = torch.tensor([0, 1, 0, 1, 1, 0]), []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        pair = Labelled()
        svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses = [svi.step(X, labels) if step % 3 == 0 else svi.step(X) for step in range(5)]
        results.append((losses, [parameter.detach().clone() for parameter in pair.parameters()]))
    assert svi.reason is None
    assert results[1][0] == results[0][0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[1][1], results[0][1], strict=True))


@pytest.mark.parametrize(
    "optim", [lambda: pyro.optim.Adam({"lr": 0.05}), lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9})]
)
def test_two_that_share_parameters_and_optimiser_step_in_turn(optim):
    """As in Pyro's semi-supervised VAE: each step moves all parameters that are registered, by their momentum."""

    class Classified(Pair):
        def aux_model(self, x):
            pyro.module("decoder", self.decoder)
            pyro.module("encoder", self.encoder)
            loc = self.decoder(x.new_zeros(len(x), 2))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    results = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        pair, one = Classified(), optim()
        svis = kind(pair.model, pair.guide, one, Trace_ELBO()), kind(pair.aux_model, lambda x: None, one, Trace_ELBO())
        losses = [svi.step(X) for _ in range(3) for svi in svis]
        results.append((losses, [parameter.detach().clone() for parameter in pair.parameters()]))
    assert [svi.reason for svi in svis] == [None, None]
    assert results[1][0] == results[0][0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[1][1], results[0][1], strict=True))
