"""Which mixture guides have no stratified bound: each is refused in one line."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, refusal
from mixture_guides import LOC, mixture, observe

import pyrovae as pv
from pyrovae.objectives import ELBO, MISELBO, SIWAE

KINDS = [SIWAE, MISELBO]


def pair_of(guide_site, prior=None, more=()):
    """Returns a pair of a latent z, and of further ones, that are functions of the number of data."""
    prior = dist.Normal(0.0, 1.0) if prior is None else prior

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.expand((len(x),)) if not prior.event_shape else prior)
            for name, fn in more:
                pyro.sample(name, fn.expand((len(x),)))
            observe(z.sum(-1) if prior.event_shape else z.to(x), x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_site(len(x)))
            for name, fn in more:
                pyro.sample(name, fn.expand((len(x),)))

    return Pair(model, guide)


def global_pair():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            observe(z + pyro.sample("u", dist.Normal(0.0, 1.0)), x)

    def guide(x):
        pyro.sample("z", mixture())
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(0.0, 1.0))

    return Pair(model, guide)


def nested_pair():
    def model(x):
        data, parts = pyro.plate("data", 3, dim=-1), pyro.plate("parts", 2, dim=-2)
        with data, parts:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with data:
            observe(z.sum(-2, keepdim=True), x)

    def guide(x):
        with pyro.plate("data", 3, dim=-1), pyro.plate("parts", 2, dim=-2):
            pyro.sample("z", mixture(2, 3))

    return Pair(model, guide)


PLANE = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
REFUSED = {
    "no mixture": (pair_of(lambda n: dist.Normal(0.0, 1.0).expand((n,))), {}, "one site that is a .+, got none"),
    "two": (pair_of(mixture, more=[("u", mixture())]), {}, 'one site that is a MixtureSameFamily, got "z" and "u"'),
    "outside": (pair_of(lambda n: mixture(n, 2).to_event(1), PLANE), {}, "to_event belongs inside its components"),
    "discrete": (
        pair_of(lambda n: mixture(n, components=dist.Poisson(LOC + 1)), dist.Poisson(1.0)),
        {},
        'at site "z" components have no rsample: use elbo or vimco',
    ),
    "another site": (pair_of(mixture, more=[("c", dist.Bernoulli(0.5))]), {}, 'site "c" has no rsample: use vimco'),
    "number": (pair_of(mixture), {"num_particles": 3}, "num_particles must be a multiple of the 2 .+, got 3"),
    "chunks": (pair_of(mixture), {"chunk_size": 1}, 'chunk_size must be a .+ of the 2 components of site "z", got 1'),
    "global": (global_pair(), {}, 'one draw of site "z" for each datum of one data plate, .+ lies in no plate'),
    "parts": (nested_pair(), {}, "of one data plate, and it lies in 'data' and 'parts'|'parts' and 'data'"),
    "joint": (pair_of(mixture), {"joint": True}, "and it lies in 'data'"),
    "zero weights": (pair_of(mixture, dist.HalfNormal(1.0)), {}, "."),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_pairs_that_have_no_such_bound_are_refused_in_one_line(name, kind):
    pair, settings, said = REFUSED[name]
    x = torch.tensor([0.3, -0.2, 1.0])
    with pytest.raises(pv.InputError, match=said) as caught:
        kind(**{"num_particles": 4, **settings}).loss(pair.model, pair.guide, x)
    assert "\n" not in str(caught.value)


def test_weights_that_depend_on_another_draw_are_for_siwae_or_one_draw_of_each_component():
    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            observe(u + pyro.sample("z", dist.Normal(0.0, 1.0)), x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.2 * x, 1.0))
            logits = torch.stack((u, -u), -1)
            components = dist.Normal(LOC.expand(*u.shape, 2), 1.0)
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))

    x = torch.tensor([0.3, -0.2]).repeat_interleave(5_000)
    assert 'needs weights of them that depend on no other draw, and at site "z" they do: use siwae' in refusal(
        MISELBO(4).loss, model, guide, x
    )
    elbo = -ELBO(8).loss(model, guide, x) / len(x)
    assert -MISELBO(2).loss(model, guide, x) / len(x) == pytest.approx(elbo, abs=0.05)
    log_px = dist.Normal(0.0, math.sqrt(3.0)).log_prob(x).mean().item()
    assert elbo < -SIWAE(2).loss(model, guide, x) / len(x) < -SIWAE(32).loss(model, guide, x) / len(x) < log_px


def test_weights_that_come_to_depend_on_another_draw_give_no_number():
    """At its first look the head of the weights is 0, as some networks begin."""
    head = torch.zeros(())

    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            observe(u + pyro.sample("z", dist.Normal(0.0, 1.0)), x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.2 * x, 1.0))
            components = dist.Normal(LOC.expand(*u.shape, 2), 1.0)
            logits = head * torch.stack((u, -u), -1)
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))

    x = torch.tensor([0.3, -0.2])
    assert math.isfinite(MISELBO(4).loss(model, guide, x))
    head.fill_(1.0)
    assert math.isnan(MISELBO(4).loss(model, guide, x))
    assert math.isfinite(MISELBO(2).loss(model, guide, x))
    assert math.isfinite(SIWAE(4).loss(model, guide, x))
