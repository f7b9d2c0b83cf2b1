"""Data, pairs and objectives that `fit` refuses, and trainings that it stops."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_pairs import ROWS, guide, model
from compiled_steps import plain_guide, plain_model
from helpers import refusal, ring, small_vae

import pyrovae as pv


def test_pixels_outside_the_support_are_refused_wherever_they_are():
    vae = pv.VAE((1, 28, 28), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
    x = torch.zeros(300, 1, 28, 28)
    x[299, 0, 5, 7] = 0.5
    for data in (x, list(x.split(100)) and [x[200:]]):
        with pytest.raises(pv.InputError, match=r"x must be 0 or 1 under Bernoulli, got 0.5 at index \(\d+, 0, 5, 7\)"):
            pv.fit(vae, data, epochs=1, batch_size=300)


def test_a_parameter_that_would_never_train_is_refused_by_name():
    """Trap 8: a plain module that nothing registers gets no gradient, without a word."""

    class Forgotten(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    with pytest.raises(
        pv.InputError, match=r"parameter decoder.weight would never train: neither model nor guide registers"
    ):
        pv.fit(Forgotten(), torch.zeros(4, 2), epochs=1)


@pytest.mark.parametrize("pair", [(model, guide), model])
def test_a_pair_that_is_none_is_told_how_to_be_one(pair):
    said = refusal(pv.fit, pair, ROWS, epochs=1)
    assert said.startswith("vae must have a model and a guide as attributes, got ")
    assert said.endswith("; SimpleNamespace(model=model, guide=guide) has both")
    pv.fit(SimpleNamespace(model=plain_model, guide=plain_guide), ROWS[:, :2], epochs=1, progress=False)


def test_a_name_that_the_param_store_holds_already_is_refused():
    """Trap 8: the second model of a notebook, under the first one's names."""

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(2, 2)

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("net", self.net)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))

    pv.fit(Named(), torch.ones(4, 2), epochs=1)
    said = r"net.weight is not in Pyro's param store, which holds another tensor of that name \(of an earlier model"
    with pytest.raises(pv.InputError, match=said):
        pv.fit(Named(), torch.ones(4, 2), epochs=1)


def test_a_loss_that_is_no_longer_finite_stops_with_epoch_and_step():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        rate = pyro.param("rate", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(1e30 * rate, 1.0).expand([len(x), 2]).to_event(1))

    pair = type("Pair", (), {"model": staticmethod(model), "guide": staticmethod(guide)})()
    with pytest.raises(FloatingPointError, match="loss or gradient is not finite at epoch 1, step 1"):
        pv.fit(pair, torch.zeros(4, 2), epochs=1)


def pair_of(model, guide):
    return type("Pair", (), {"model": staticmethod(model), "guide": staticmethod(guide)})()


def unit_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1))


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is_finite():
    def model(x):
        a = pyro.param("a", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z + a.square().sum().sqrt(), 1.0).to_event(1), obs=x)

    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        pv.fit(pair_of(model, unit_guide), torch.zeros(4, 2), epochs=1)
    assert pyro.get_param_store()["a"].tolist() == [0.0, 0.0]


def test_a_distribution_that_diverges_is_said_in_one_line():
    with pytest.raises(FloatingPointError, match="training diverged") as caught:
        pv.fit(small_vae(), ring(), epochs=20, lr=1e10)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_comes_later_is_refused():
    def model(x):
        a = pyro.param("a", torch.zeros(2))
        if x.mean() > 0:
            a = a + pyro.param("b", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z + a, 1.0).to_event(1), obs=x)

    batches = [-torch.ones(4, 2), torch.ones(4, 2)]
    with pytest.raises(pv.InputError, match=r"registered at the first batch; later came \['b'\]"):
        pv.fit(pair_of(model, unit_guide), batches, epochs=1)


@pytest.mark.parametrize("scale", [4.0, 0.01])
def test_a_scale_of_the_whole_is_the_users_and_multiplies_the_loss(scale):
    vae = small_vae()
    pair = type("Pair", (), {})()
    pair.model, pair.guide = pyro.poutine.scale(vae.model, scale), pyro.poutine.scale(vae.guide, scale)
    losses = [pv.fit(one, ring(), epochs=1, lr=1e-12, seed=0).loss[0] for one in (vae, pair)]
    assert losses[1] == pytest.approx(scale * losses[0], rel=1e-4)


def test_beta_changed_in_the_midst_of_an_iwae_run_is_refused():
    vae, objective = small_vae(), pyro.infer.RenyiELBO(alpha=0, num_particles=2)
    with pytest.raises(pv.InputError, match="needs scale 1 at every site"):
        pv.fit(vae, ring(), epochs=3, objective=objective, on_epoch=lambda _: vae.set_beta(50.0))


def test_an_objective_whose_weights_are_joint_over_the_batch_is_refused():
    for objective in (pyro.infer.ReweightedWakeSleep(), pyro.infer.TraceTailAdaptive_ELBO(num_particles=2)):
        with pytest.raises(pv.InputError, match="is not for data in a plate"):
            pv.fit(small_vae(), ring(), epochs=1, objective=objective)


def test_an_analytic_kl_of_latents_in_another_order_is_refused():
    """Trap 4: the guide's z1 -> z2 against the model's z2 -> z1: the sum of the conditionals' KLs is not the KL."""
    net = torch.nn.Linear(2, 2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(net(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(0.5 * z1, 1.0).to_event(1))

    with pytest.raises(pv.InputError, match=r"in one order, got \['z2', 'z1'\] in the model and \['z1', 'z2'\]"):
        pv.fit(pair_of(model, guide), torch.zeros(4, 2), epochs=1, objective="elbo_analytic_kl")
