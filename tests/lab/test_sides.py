"""A parameter belongs to the side that depends on it, not to the program that registers it."""

import json
from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyrovae as pv
from pyrovae.lab import comparing
from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison_report import draw_comparison
from pyrovae.programs import sides_of

SETTINGS = {"num_particles": [1, 8], "repeats": 4, "compile": False, "progress": False}


@pytest.fixture(autouse=True)
def _rough_log_px(monkeypatch):
    """These tests are of gradients alone."""
    monkeypatch.setattr(comparing, "LOG_PX_SAMPLES", 50)


class Pair(nn.Module):
    """Has the model and the guide as methods of one module; `registered` says how they register it."""

    def __init__(self, registered="halves", family=dist.Normal):
        super().__init__()
        torch.manual_seed(1)
        self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 2)
        self.registered, self.family = registered, family

    def register(self, half):
        match self.registered:
            case "halves":
                pyro.module(half, getattr(self, half))
            case "whole":
                pyro.module("pair", self)
            case "one by one":
                for name, parameter in getattr(self, half).named_parameters():
                    pyro.param(f"{half}.{name}", parameter)
            case "by the model alone":
                if half == "decoder":
                    pyro.module("pair", self)

    def prior(self):
        zeros = torch.zeros(2)
        return dist.Bernoulli(logits=zeros) if self.family is dist.Bernoulli else dist.Normal(zeros, 1.0)

    def model(self, x):
        self.register("decoder")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior().to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        self.register("encoder")
        outputs = self.encoder(x)
        q = dist.Bernoulli(logits=outputs) if self.family is dist.Bernoulli else dist.Normal(outputs, 0.7)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q.to_event(1))


class Decoder(PyroModule):
    """The model as a PyroModule of its own; the parameters of two modules need different names."""

    def __init__(self):
        super().__init__()
        part = Pair().decoder
        self.decoder_weight, self.decoder_bias = (PyroParam(p.detach().clone()) for p in part.parameters())

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.decoder_weight.T + self.decoder_bias, 0.5).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        part = Pair().encoder
        self.encoder_weight, self.encoder_bias = (PyroParam(p.detach().clone()) for p in part.parameters())

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ self.encoder_weight.T + self.encoder_bias, 0.7).to_event(1))


def numbers(found):
    """Returns everything that was measured but times and memory."""
    timed = ("seconds", "bytes")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in found.to_dict()]


def data():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(5))


def compared(pair, objectives, **settings):
    pyro.clear_param_store()
    return compare(pair.model, pair.guide, data(), objectives=objectives, **{**SETTINGS, **settings})


def trace_elbo(num_particles):
    return Trace_ELBO(num_particles=num_particles)


def mean_field(num_particles):
    return TraceMeanField_ELBO(num_particles=num_particles)


def graph(num_particles):
    return TraceGraph_ELBO(num_particles=num_particles)


CONTINUOUS = ("elbo", "iwae", "dreg", "elbo_analytic_kl", "reweighted_wake_sleep", trace_elbo, mean_field)
DISCRETE = ("score_function", "vimco", "elbo_enumerated", "thermodynamic", graph)


@cache
def compared_halves(family, objectives):
    return compared(Pair("halves", family), objectives, num_particles=[2])


@pytest.mark.parametrize(  # how they are registered does not meet what an objective does with the sides
    ("registered", "family", "objectives"),
    [
        ("whole", dist.Normal, CONTINUOUS),
        ("one by one", dist.Normal, CONTINUOUS[4:6]),
        ("by the model alone", dist.Normal, CONTINUOUS[1:2]),
        ("whole", dist.Bernoulli, DISCRETE[:1]),
        ("one by one", dist.Bernoulli, DISCRETE),
        ("by the model alone", dist.Bernoulli, DISCRETE[-1:]),
    ],
)
def test_the_sides_do_not_depend_on_how_parameters_are_registered(registered, family, objectives):
    halves = compared_halves(family, CONTINUOUS if family is dist.Normal else DISCRETE)
    other = compared(Pair(registered, family), objectives, num_particles=[2])
    rows = [halves[row.objective, row.num_particles] for row in other.rows]
    assert numbers(replace(halves, rows=tuple(rows))) == numbers(other)
    for one, same in zip(rows, other.rows, strict=True):
        assert one.shared is None
        for side, size in (("model", 9), ("guide", 8)):
            assert getattr(one, side).mean.shape == (size,)
            assert torch.equal(getattr(one, side).mean, getattr(same, side).mean)
    assert "shared" not in str(halves)
    assert not any(name.startswith("shared") for row in halves.to_dict() for name in row)
    assert halves.curves("shared", "snr") == {}


def test_pyro_modules_have_the_sides_that_their_parameters_have():
    halves = compared(Pair(), ["iwae"])
    found = compare(Decoder(), Encoder(), data(), objectives=["iwae"], **SETTINGS)
    for one, same in zip(halves.rows, found.rows, strict=True):
        for side in ("model", "guide"):
            torch.testing.assert_close(getattr(one, side).mean, getattr(same, side).mean, rtol=1e-5, atol=1e-6)


def test_the_encoder_of_a_vamp_prior_is_shared():
    torch.manual_seed(0)
    x = torch.randn(6, 2)
    vae = small_vae(prior=pv.priors.Vamp(torch.randn(3, 2)))
    found = compare(vae.model, vae.guide, x, objectives=["iwae", "dreg"], **SETTINGS)
    names = {id(parameter): name for name, parameter in vae.named_parameters()}
    sides = sides_of(vae.model, vae.guide, (x,))
    of_guide = {name for name in names.values() if name.startswith(("encoder", "posterior_family"))}
    assert {names[id(p)] for p in sides.shared} == of_guide
    assert {names[id(p)] for p in sides.model} == set(names.values()) - of_guide
    assert sides.guide == []
    row = found["dreg", 8]
    assert row.guide is None
    assert len(row.shared.mean) == sum(p.numel() for p in sides.shared)
    assert row.variance_seconds == row.shared.variance * row.seconds
    # The table, the dicts, the curves and the figures all have the shared side.
    assert [name for name in ("SNR shared", "DSNR shared", "bias shared") if name not in str(found)] == []
    assert f"{row.shared.snr:.2g} ({row.shared.snr_floor:.2g})" in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))[-1]["shared_bias"] == row.shared.bias
    sizes, values, _ = found.curves("shared", "snr")["dreg"]
    assert (sizes, values[1]) == ([1, 8], row.shared.snr)
    figures = draw_comparison(found)
    labels = [axes.get_ylabel() for axes in figures["snr"].axes]
    assert labels == ["SNR of the model's gradient", "SNR of the gradient of what both share"]
    assert [axes.get_ylabel() for axes in figures["cost"].axes] == [
        "variance of the gradient of what both share", "bias of the gradient of what both share",
    ]  # fmt: skip
    plain = small_vae()
    assert sides_of(plain.model, plain.guide, (x,)).shared == []


def test_tied_weights_are_shared_and_each_part_keeps_its_own():
    class Tied(Pair):
        def __init__(self, registered):
            super().__init__(registered)
            del self.encoder.weight
            self.register_parameter("weight", None)

        def guide(self, x):
            self.register("encoder")
            if self.registered == "halves":
                pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x @ self.decoder.weight + self.encoder.bias, 0.7).to_event(1))

    for how in ("halves", "whole"):
        pair = Tied(how)
        pyro.clear_param_store()
        sides = sides_of(pair.model, pair.guide, (data(),))
        assert [[id(p) for p in side] for side in (sides.model, sides.guide, sides.shared)] == [
            [id(pair.decoder.bias)], [id(pair.encoder.bias)], [id(pair.decoder.weight)],
        ]  # fmt: skip
        row = compared(pair, ["elbo"])["elbo", 8]
        assert [len(getattr(row, side).mean) for side in ("model", "guide", "shared")] == [3, 2, 6]
        trained = row.guide.variance + row.shared.variance
        assert row.variance_seconds == pytest.approx(trained * row.seconds)


def test_unreached_parameters_are_named_and_frozen_ones_are_left_out():
    pair = Pair("whole")
    pair.unused = nn.Linear(4, 4)
    pair.eval().decoder.bias.requires_grad_(False)  # in training mode Pyro would warn
    found = compared(pair, ["elbo"])
    assert found.unreached == ("pair$$$unused.weight", "pair$$$unused.bias")
    assert "trained by none: pair$$$unused.weight, pair$$$unused.bias" in str(found)
    assert [len(getattr(found["elbo", 8], side).mean) for side in ("model", "guide")] == [6, 8]
    assert not pair.decoder.bias.requires_grad
    assert compared(Pair("whole"), ["elbo"]).unreached == ()
    assert "trained by none" not in str(compared(Pair(), ["elbo"]))


def test_a_parameter_whose_gradient_is_always_zero_has_a_side():
    class Dead(Pair):
        def __init__(self):
            super().__init__("whole")
            self.dead = nn.Parameter(torch.ones(5))

        def model(self, x):
            super().model(x + 0 * self.dead.sum())

    pair = Dead()
    sides = sides_of(pair.model, pair.guide, (data(),))
    assert any(p is pair.dead for p in sides.model)
    assert sides.unreached == ()


def test_sides_are_the_same_if_the_caller_has_switched_gradients_off():
    with torch.no_grad():
        off = compared(Pair("whole"), ["elbo"])
    assert numbers(off) == numbers(compared(Pair("whole"), ["elbo"]))
    assert off["elbo", 8].model.norm > 0


def test_a_pair_without_parameters_is_refused():
    pair = Pair().eval().requires_grad_(False)
    with pytest.raises(pv.InputError, match="model and guide must register a parameter that the loss depends on"):
        compared(pair, ["elbo"])
