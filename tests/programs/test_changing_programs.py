"""A program that changes between steps: each run gives what it would have given as the first one.

The kind of fault: what was found out in one run (plates, sizes, checks that passed) is taken to hold in the next.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyrovae.common import InputError
from pyrovae.objectives import ELBO, IWAE
from pyrovae.programs import run_pair

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ZERO = X.new_zeros(2)


class Changing(nn.Module):
    """p(z) = N(0, 1), p(x|z) = N(z, 1), q(z|x) = N(x / 2, 1), and one change of the programs, which can be switched."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.shift = nn.Parameter(ZERO.clone())
        self.change, self.is_changed = change, False

    def has(self, change: str) -> bool:
        return self.is_changed and change in self.change

    def data(self, x) -> pyro.plate:
        return pyro.plate("data", 30 if self.has("subsample") else len(x), subsample=torch.arange(len(x)), dim=-1)

    def model(self, x) -> None:
        if self.has("shared latent"):
            pyro.sample("theta", dist.Normal(ZERO, 1.0).to_event(1))
        with self.data(x):
            with poutine.mask(mask=x[:, 0] > 0) if self.has("mask") else poutine.scale(scale=1.0):
                prior = dist.Normal(ZERO + self.has("prior"), 1.0)
                if self.has("point"):
                    prior = dist.StudentT(3.0, ZERO, 1.0)
                if self.has("event shape"):
                    prior = dist.Normal(ZERO[:1], 1.0)
                z = pyro.sample("z", prior.to_event(1))
            if self.has("beta of both"):
                z = z + 0.1
            likelihood = dist.Normal(z + self.shift, 1.0)
            if self.has("inner subsample") or self.has("inner plate"):
                with pyro.plate("inner", 8 if self.has("inner subsample") else 2, subsample=torch.arange(2), dim=-2):
                    pyro.sample("w", dist.Normal(z[..., 0], 1.0), obs=x.mT)
            likelihood = likelihood if self.has("no to_event") else likelihood.to_event(1)
            if self.has("repeated"):
                likelihood = likelihood.expand([4, *likelihood.batch_shape[-2:]])
            pyro.sample("x", likelihood, obs=x)
            if self.has("factor"):
                pyro.factor("penalty", -z.pow(2).sum(-1))
        if self.has("outside"):
            pyro.sample("mean", dist.Normal(self.shift.sum(), 1.0), obs=x.mean())

    def guide(self, x) -> None:
        if self.has("shared latent"):
            pyro.sample("theta", dist.Normal(self.shift + 0.5, 1.0).to_event(1))
        with self.data(x), poutine.scale(scale=0.5 if self.has("beta of one") else 1.0):
            if self.has("none drawn"):
                return
            with poutine.mask(mask=x[:, 0] > 0) if self.has("mask") else poutine.scale(scale=1.0):
                proposal = dist.Delta(0.5 * x) if self.has("point") else dist.Normal(0.5 * x + self.shift, 1.0)
                pyro.sample("z", proposal.to_event(1))


def outcome(pair: Changing, objective) -> tuple:
    """Returns the loss of a step, its gradient and where a run finds the data, or the error instead."""
    torch.manual_seed(1)
    pair.shift.grad = None
    try:
        loss = objective.loss_and_grads(pair.model, pair.guide, X)
    except Exception as error:
        return type(error).__name__, str(error)
    found = run_pair(pair.model, pair.guide, X, num_particles=2)
    return loss, found.layout, found.plates, *([] if pair.shift.grad is None else pair.shift.grad.tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [ELBO, partial(IWAE, 3)], ids=["elbo", "iwae"])
@pytest.mark.parametrize(
    "change",
    ["shared latent", "subsample", "mask", "prior", "point", "no to_event", "factor", "outside", "beta of one",
     "none drawn", "event shape", "repeated", "shared latent, outside", "mask, subsample", "beta of both"],
)  # fmt: skip
def test_a_step_of_a_changed_program_is_that_of_a_new_one(change, make):
    pair, new, objective = Changing(change), Changing(change), make()
    plain = outcome(pair, objective)
    assert outcome(pair, objective) == plain  # a step by what is known gives what the first one gave
    pair.is_changed = new.is_changed = True
    changed = outcome(new, make())
    assert changed != plain
    assert outcome(pair, objective) == changed
    assert outcome(pair, objective) == changed
    pair.is_changed = False
    assert outcome(pair, objective) == plain


@pytest.mark.filterwarnings("ignore")
def test_a_plate_that_becomes_a_subsample_is_checked_again():
    pair, new = Changing("inner plate"), Changing("inner subsample")
    pair.is_changed = new.is_changed = True
    outcome(pair, IWAE(2))
    pair.change = "inner subsample"
    assert outcome(new, IWAE(2))[0] == "InputError"
    assert outcome(pair, IWAE(2)) == outcome(new, IWAE(2))


def test_a_mixture_whose_components_become_counts_is_no_density_any_more():
    def model(x):
        weights = dist.Categorical(torch.ones(len(x), 2))
        own = torch.ones(len(x), 2)
        with pyro.plate("data", len(x), dim=-1):
            parts = dist.Poisson(own) if counts else dist.Normal(own, 1.0)
            z = pyro.sample("z", dist.MixtureSameFamily(weights, parts))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    x, counts = torch.randn(4), False
    with pyro.validation_enabled(False):
        for _ in range(3):  # the first is checked with two particles, the third goes by what is known
            ELBO().loss(model, guide, x)
        counts = True
        with pytest.raises(InputError, match="must be of one kind"):
            ELBO().loss(model, guide, x)


@pytest.mark.parametrize("scale", [0.5, 0.25, 1.0])
def test_subsamples_of_two_plates_keep_their_scale_when_it_comes_out_at_1(scale):
    """N / B is 2, and under poutine.scale(0.5) a site's own scale is 1."""

    def both(draw):
        with poutine.scale(scale=scale):
            for name, size in (("a", 3), ("b", 4)):
                with pyro.plate(name, 2 * size, subsample=torch.arange(size), dim=-1):
                    draw(name, X[:size, 0])

    def likelihood(name, x):
        z = pyro.sample(f"z_{name}", dist.Normal(ZERO[0], 1.0).expand([len(x)]))
        pyro.sample(f"x_{name}", dist.Normal(z, 1.0), obs=x)

    def proposal(name, x):
        pyro.sample(f"z_{name}", dist.Normal(0.5 * x, 1.0))

    losses = []
    for loss in (ELBO(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(loss.loss(lambda: both(likelihood), lambda: both(proposal)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
