"""Losses of users' own under `CompiledSVI`: each is replayed, or runs eagerly and says why."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from any_losses import Pair, States, X, assert_is_svi, reals, simple_elbo, trained
from compiled_steps import CompiledExactly
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.ops.provenance import ProvenanceTensor
from torch import nn


class Averaging(Trace_ELBO):
    mean = 0.0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.mean = 0.9 * self.mean + 0.1 * super().loss_and_grads(model, guide, *args, **kwargs)
        return self.mean


class Listing(Trace_ELBO):
    def __init__(self):
        super().__init__()
        self.all = []

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.all.append(super().loss_and_grads(model, guide, *args, **kwargs))
        return sum(self.all)


class Clipping(Trace_ELBO):
    """Clips gradients that are far too small for it at the first steps, at which a graph is compared."""

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        nn.utils.clip_grad_norm_([value.unconstrained() for value in pyro.get_param_store().values()], 1e9)
        return loss


class Backwards(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch.autograd.backward([loss])
        return loss.item()


class ByHand(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        parameters = [value.unconstrained() for value in pyro.get_param_store().values()]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = 3 * gradient
        return loss.item()


class Asking(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        return loss if loss > 60 else 60.0


class Regularised(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = super().loss_and_grads(model, guide, *args, **kwargs)
        penalty = sum(value.unconstrained().square().sum() for value in pyro.get_param_store().values())
        penalty.backward()
        return loss + penalty.item()


class AsTensor(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        return torch.tensor(super().loss_and_grads(model, guide, *args, **kwargs))


def loss_of_shape_1(model, guide, x):
    return simple_elbo(model, guide, x).reshape(1)


def nothing(model, guide, x):
    return 0.0


@pytest.mark.parametrize(
    "loss",
    [
        Regularised,
        AsTensor,
        lambda: Trace_ELBO().differentiable_loss,
        lambda: loss_of_shape_1,
        lambda: lambda model, guide, x: (simple_elbo(model, guide, x), 1.0),
        lambda: nothing,
    ],
    ids=["regularised", "as a tensor", "differentiable_loss", "of shape (1,)", "a tuple", "nothing"],
)
def test_a_loss_of_the_users_own_is_replayed(loss):
    assert_is_svi(reals, loss, evaluations=1)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (Averaging, "it changes mean as it runs"),
        (Listing, "it changes a list as it runs"),
        (Clipping, "it works on gradients by other means than backward() (test_losses_of_users.py, line "),
        (Backwards, "it works on gradients by other means than backward() (test_losses_of_users.py, line "),
        (ByHand, "it works on gradients by other means than backward() (test_losses_of_users.py, line "),
        (Asking, "it looks at the value of a tensor (test_losses_of_users.py, line "),
    ],
)
def test_a_loss_that_cannot_be_replayed_runs_eagerly_and_says_why(loss, reason):
    stocks = trained(SVI, reals, loss())
    with pytest.warns(match="steps run eagerly") as caught:
        ours = trained(CompiledExactly, reals, loss())
    assert len(caught) == 1
    assert ours[2].reason.startswith(reason)
    assert ours[0] == stocks[0]
    assert all(torch.equal(value, stocks[1][name]) for name, value in ours[1].items())


def test_steps_are_replayed_where_only_the_evaluation_of_a_loss_cannot_be():
    class Floats(Trace_ELBO):
        def loss(self, model, guide, *args, **kwargs):
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    results = []
    for kind in (SVI, CompiledExactly):
        pyro.set_rng_seed(5)
        pyro.clear_param_store()
        pair = Pair()
        svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Floats())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append([one(X) for one in (*[svi.step] * 2, *[svi.evaluate_loss] * 2, *[svi.step] * 2)])
    assert [str(one.message) for one in caught] == [
        "losses are evaluated eagerly, because the program cannot be replayed: it looks at the value of a tensor "
        f"(test_losses_of_users.py, line {Floats.loss.__code__.co_firstlineno + 1})"
    ]
    assert results[1] == results[0]
    assert svi.reason is None


def test_a_decaying_baseline_runs_eagerly_and_is_named():
    make = lambda: Pair(bits=True, baseline={"use_decaying_avg_baseline": True})  # noqa: E731
    with pytest.warns(match="it changes __baseline_avg_downstream_cost_z as it runs"):
        ours = trained(CompiledExactly, make, TraceGraph_ELBO())
    assert ours[0] == trained(SVI, make, TraceGraph_ELBO())[0]


def test_a_baseline_of_a_network_is_replayed():
    class WithBaseline(Pair):
        def __init__(self):
            super().__init__(bits=True)
            self.baseline = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
            self.infer = {"baseline": {"nn_baseline": self.baseline, "nn_baseline_input": X}}

        def guide(self, x):
            pyro.module("baseline", self.baseline)
            super().guide(x)

    assert_is_svi(WithBaseline, TraceGraph_ELBO)


def test_a_state_of_probability_0_is_left_out_eagerly():
    """Its cost is infinite, and a graph would multiply the two."""

    class Impossible(States):
        def __init__(self):
            super().__init__(in_guide=True)

        def guide(self, x):
            pyro.module("states", self)
            logits = self.encoder(x) + torch.where(x[:, :1] > 0, torch.tensor([0.0, -torch.inf]), 0.0)
            q_k = dist.Categorical(logits=logits, validate_args=False)
            with pyro.plate("data", len(x)):
                pyro.sample("k", q_k, infer={"enumerate": "parallel"})

    stocks = trained(SVI, Impossible, TraceEnum_ELBO())
    with pytest.warns(match="its value is off by nan"):
        ours = trained(CompiledExactly, Impossible, TraceEnum_ELBO())
    assert ours[0] == stocks[0]


def test_a_program_may_assert_and_print_what_it_sees(capsys):
    class Printing(Pair):
        def model(self, x):
            assert (x.abs() < 100).all(), "x is too large"
            assert x.mean().item() < 100
            print("the mean", x.mean())
            super().model(x)

    assert_is_svi(Printing, Trace_ELBO)
    assert "the mean" in capsys.readouterr().out


def test_a_number_that_a_program_takes_from_a_tensor_is_read_at_every_step():
    class Reading(Pair):
        def model(self, x):
            super().model(x * (self.decoder.bias.mean().item() + 1))

    assert_is_svi(Reading, Trace_ELBO)


def test_sparse_gradients_are_stepped():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 2, sparse=True)

        def model(self, words):
            with pyro.plate("data", len(words)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=words.float())

        def guide(self, words):
            pyro.module("words", self)
            with pyro.plate("data", len(words)):
                pyro.sample("z", dist.Normal(self.table(words), 1.0).to_event(1))

    assert_is_svi(
        Words, Trace_ELBO, args=(torch.tensor([0, 1, 1, 3]),), optim=lambda: pyro.optim.SparseAdam({"lr": 0.1})
    )


def test_an_error_in_the_middle_of_a_trace_leaves_nothing_behind():
    kept = ProvenanceTensor.__new__, pyro.util.torch_isnan, torch.autograd.backward

    class Failing(Trace_ELBO):
        def loss_and_grads(self, model, guide, *args, **kwargs):
            if torch.overrides._get_current_function_mode() is not None:
                raise ValueError("not while a graph is traced")
            return super().loss_and_grads(model, guide, *args, **kwargs)

    with pytest.warns(match="not while a graph is traced"):
        ours = trained(CompiledExactly, reals, Failing())
    assert ours[0] == trained(SVI, reals, Failing())[0]
    assert kept == (ProvenanceTensor.__new__, pyro.util.torch_isnan, torch.autograd.backward)
