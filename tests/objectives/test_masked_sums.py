"""Masked latents under objectives that sum or integrate over latents themselves, against programs trimmed by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceMeanField_ELBO
from ragged_pairs import MASKS, STEPS, chain, log_px, sequences
from scalar_pairs import Pair, double

import pyrovae as pv
from pyrovae.objectives import ELBO, AnalyticKLELBO, EnumeratedELBO, ReweightedWakeSleep

X, L = sequences()


def by_lengths(pair_of, objective, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns loss and gradients, summed over the lengths, of the programs of as many steps without masks."""
    total = 0.0
    for length in L.unique().tolist():
        rows = length == L
        total = total + objective.differentiable_loss(*pair_of(length, masks=False), X[rows], L[rows])
    return total.detach(), torch.stack(torch.autograd.grad(total, [pyro.param(name).unconstrained() for name in names]))


def of_masks(pair_of, objective, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    loss = objective.differentiable_loss(*pair_of(STEPS, masks=True), X, L)
    return loss.detach(), torch.stack(torch.autograd.grad(loss, [pyro.param(name).unconstrained() for name in names]))


# Enumeration ----------------------------------------------------------------------------------------------------------


def hidden_markov(steps: int, masks: bool) -> Pair:
    """Returns a pair of two hidden states for each step, and a guide of its own transitions."""

    def model(x, lengths):
        stay = pyro.param("stay", double(0.7), constraint=constraints.unit_interval)
        state = double(0.0)
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                with poutine.mask(mask=t < lengths if masks else True):
                    state = pyro.sample(f"z_{t}", dist.Bernoulli(stay * state + (1 - stay) * (1 - state)))
                    pyro.sample(f"x_{t}", dist.Normal(2 * state - 1, double(0.8)), obs=x[:, t])

    def guide(x, lengths):
        slope, before = pyro.param("slope", double(0.4)), pyro.param("before", double(0.6))
        state = double(0.5)
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                with poutine.mask(mask=t < lengths if masks else True):
                    logits = slope * x[:, t].clamp(-3, 3) + before * (state - 0.5)
                    state = pyro.sample(f"z_{t}", dist.Bernoulli(logits=logits))

    return Pair(model, guide)


def test_the_enumerated_elbo_is_that_of_each_sequence_and_so_is_its_gradient():
    names = "stay", "slope", "before"
    expected = by_lengths(hidden_markov, EnumeratedELBO(), *names)
    found = of_masks(hidden_markov, EnumeratedELBO(), *names)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    log_px = pv.enumerated_log_marginal(hidden_markov(STEPS, True).model, X, L).sum()
    assert -found[0] < log_px


def test_an_enumerated_autoencoder_is_refused():
    def code(x):
        logits = pyro.param("logits", double(0.1)).expand(x.shape)
        with poutine.mask(mask=False):
            return pyro.sample("z", dist.Bernoulli(logits=logits), infer={"is_autoencoder": True})

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            code(x)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(code(x), 1.0), obs=x)

    with pytest.raises(pv.InputError, match='enumeration needs latents without a mask, and site "z" has one'):
        EnumeratedELBO().loss(model, guide, X[:, 0])


# The KL in closed form ------------------------------------------------------------------------------------------------


def apart(steps: int, masks: bool, mask=MASKS["handler"]) -> Pair:
    """Returns a pair of latents that depend on nothing, whose loss therefore has no noise."""

    def sample(t: int, fn: dist.Normal, lengths: torch.Tensor) -> None:
        masked, outside = mask(fn, t < lengths) if masks else (fn, True)
        with poutine.mask(mask=outside):
            pyro.sample(f"z_{t}", masked)

    def model(x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                sample(t, dist.Normal(double(0.0).expand(len(x)), double(1.0)), lengths)
            pyro.sample("x", dist.Normal(double(0.0), double(1.0)), obs=x[:, 0])

    def guide(x, lengths):
        slope, scale = pyro.param("slope", double(0.4)), pyro.param("scale", double(0.6), constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                sample(t, dist.Normal(slope * x[:, t].clamp(-3, 3), scale), lengths)

    return Pair(model, guide)


@pytest.mark.parametrize("mask", MASKS)
def test_a_kl_in_closed_form_is_masked_element_by_element(mask):
    expected = by_lengths(apart, AnalyticKLELBO(), "slope", "scale")
    found = of_masks(lambda steps, masks: apart(steps, masks, MASKS[mask]), AnalyticKLELBO(), "slope", "scale")
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    pyros = of_masks(lambda steps, masks: apart(steps, masks, MASKS[mask]), TraceMeanField_ELBO(), "slope", "scale")
    torch.testing.assert_close(found, pyros, atol=1e-10, rtol=1e-10)


def test_on_a_chain_the_kl_in_closed_form_has_the_mean_of_the_elbo():
    torch.manual_seed(suite_seed(1))
    pyro.param("shift", double(0.3))
    pair, objectives = chain(), (AnalyticKLELBO(), ELBO())
    copies, num = 4, 50
    args = X.repeat(copies, 1), L.repeat(copies)
    losses = torch.tensor([[objective.loss(*pair, *args) / copies for _ in range(num)] for objective in objectives])
    mean, error = losses.mean(1), losses.std(1) / math.sqrt(num)
    assert_within_standard_errors(mean[0], mean[1], error.square().sum().sqrt(), dtype=torch.float32)
    assert mean[0] > -log_px(X, L).sum()


def test_a_floor_under_the_kl_of_data_without_the_latent_is_refused():
    def around(fn):
        def run(x):
            with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=torch.arange(len(x)) < 3):
                fn(x)

        return run

    def model(x):
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0).expand([1]).to_event(1))
        pyro.sample("x", dist.Normal(z, double(1.0)).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x, pyro.param("scale", double(0.7))).to_event(1))

    with pytest.raises(pv.InputError, match='free_bits needs latents that every datum has, and site "z" is masked'):
        AnalyticKLELBO(free_bits=0.5).loss(around(model), around(guide), X[:, :1])


# Sleep ----------------------------------------------------------------------------------------------------------------


def test_sleep_leaves_the_guides_density_of_masked_latents_out():
    """Where all is masked, sleep gives the guide no gradient."""

    def model(x, there):
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=there):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, double(1.0)).to_event(1), obs=x)

    def guide(x, there):
        loc = pyro.param("loc", double(0.5))
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=there):
            pyro.sample("z", dist.Normal(loc.expand(x.shape), 1.0).to_event(1))

    for there, is_zero in ((torch.zeros(6, dtype=torch.bool), True), (torch.arange(6) < 3, False)):
        pyro.clear_param_store()
        ReweightedWakeSleep(3, sleep_weight=1.0).loss_and_grads(model, guide, X[:, :1], there)
        gradient = pyro.param("loc").grad
        assert (gradient is None or bool(gradient == 0)) == is_zero
