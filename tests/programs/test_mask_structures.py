"""Masks that depend on a latent, and masks that differ between batches: what is checked, and when it is again."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from ragged_pairs import chain, log_px, sequences
from scalar_pairs import Pair, double

import pyrovae as pv
from pyrovae.objectives import IWAE, VIMCO, ReweightedWakeSleep
from pyrovae.programs import pair_at

X, L = sequences()


# Masks that depend on a latent ----------------------------------------------------------------------------------------


def switched() -> Pair:
    """Returns a pair whose z is there only if a coin says so: x ~ N(z, 0.7) or N(-1, 0.7)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(double(0.4))).bool()
            with poutine.mask(mask=on):
                z = pyro.sample("z", dist.Normal(double(0.5), 1.0))
            pyro.sample("x", dist.Normal(torch.where(on, z, -1.0), double(0.7)), obs=x)

    def guide(x):
        logit, loc = pyro.param("logit", double(0.3)), pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(logits=logit.expand(x.shape))).bool()
            with poutine.mask(mask=on):
                pyro.sample("z", dist.Normal(loc, double(1.2)))

    return Pair(model, guide)


def test_a_mask_that_depends_on_a_latent_is_that_of_each_particle():
    on = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)  # (particles, data)
    z, x = torch.randn(3, 3, dtype=torch.float64), X[:3, 0]
    found = pair_at(*switched(), {"on": on, "z": z}, x).terms()
    there = on.bool()
    prior = dist.Bernoulli(double(0.4)).log_prob(on) + there * dist.Normal(double(0.5), 1.0).log_prob(z)
    proposal = dist.Bernoulli(logits=double(0.3)).log_prob(on) + there * dist.Normal(double(0.2), 1.2).log_prob(z)
    likelihood = dist.Normal(torch.where(there, z, -1.0), 0.7).log_prob(x)
    torch.testing.assert_close(found.log_prior, prior, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.log_posterior.detach(), proposal, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.log_likelihood, likelihood, atol=1e-12, rtol=0)


def test_log_px_under_a_mask_that_depends_on_a_latent_is_that_of_the_mixture():
    torch.manual_seed(suite_seed(3))
    x = X[:, 0]
    truth = torch.logaddexp(
        math.log(0.4) + dist.Normal(double(0.5), math.sqrt(1 + 0.49)).log_prob(x),
        math.log(0.6) + dist.Normal(double(-1.0), 0.7).log_prob(x),
    )
    pair = switched()
    found = pv.log_marginal(*pair, x, num_samples=20_000, progress=False)
    assert_within_standard_errors(found.value, truth, found.standard_error)
    for objective in (VIMCO(3), ReweightedWakeSleep(3), pv.objectives.ScoreFunction(3)):
        losses = torch.tensor([objective.loss(*pair, x) for _ in range(40)])
        assert -losses.mean() < truth.sum() + 5 * losses.std() / math.sqrt(40)


def test_data_that_a_latent_masks_have_no_normalised_joint():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(double(0.4))).bool()
            with poutine.mask(mask=on):
                pyro.sample("x", dist.Normal(double(0.5), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logit", double(0.3)).expand(x.shape)))

    x = X[:, 0].repeat(20)
    assert math.isfinite(VIMCO(3).loss(model, guide, x))
    with pytest.raises(pv.InputError, match='site "x" has a mask that differs between draws of the latents'):
        pv.log_marginal(model, guide, x, num_samples=10)


# Once for each structure ----------------------------------------------------------------------------------------------


def test_other_lengths_are_checked_again_only_if_they_show_something_new():
    ragged, runs = chain(), [0]

    def model(x, lengths):
        runs[0] += 1
        ragged.model(x, lengths)

    svi = SVI(model, ragged.guide, Adam({"lr": 1e-6}), IWAE(3))
    counts = []
    for lengths in ([4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4], [4, 2, 1, 3, 4, 2], [1, 2, 1, 3, 4, 4], [4, 4, 4, 4, 3, 2]):
        runs[0] = 0
        svi.step(X, torch.tensor(lengths))
        counts.append(runs[0])
    assert counts[1] == counts[3] == counts[4] == 1  # the step's own
    assert counts[0] > 1
    assert counts[2] > counts[0]  # with the runs for new values


def test_a_fault_that_only_a_later_batch_shows_is_found_there():
    read = chain(masks_data=False)
    svi = SVI(*read, Adam({"lr": 1e-6}), IWAE(3))
    for _ in range(2):
        svi.step(X, torch.full_like(L, 4))  # nothing is masked
    with pytest.raises(pv.InputError, match='site "x_3" of the model must not read the latent "z_3"'):
        svi.step(X, torch.full_like(L, 3))


def test_a_compiled_step_takes_other_lengths_and_is_checked_again_from_time_to_time():
    step = pv.CompiledSVI(*chain(), Adam({"lr": 1e-6}), IWAE(3), inductor=False).step
    for lengths in (L, L, L.flip(0), torch.full_like(L, 1)):
        x, _ = sequences(lengths)
        assert step(x, lengths) == pytest.approx(-log_px(x, lengths).sum().item(), abs=1e-3)
    step = pv.CompiledSVI(*chain(masks_data=False), Adam({"lr": 1e-6}), IWAE(3), inductor=False).step
    for _ in range(16):
        step(X, torch.full_like(L, 4))  # nothing is masked
    with pytest.raises(pv.InputError, match='site "x_3" of the model must not read the latent "z_3"'):
        step(X, torch.full_like(L, 3))


def test_the_check_leaves_random_numbers_alone():
    objective, losses = IWAE(3), []
    pyro.param("shift", double(0.3))
    pair = chain()
    for _ in range(2):
        torch.manual_seed(suite_seed(4))
        losses.append(objective.loss(*pair, X, L))  # the first goes through the gate
        losses.append(torch.rand(()).item())
    assert losses[:2] == losses[2:]


def test_programs_that_draw_more_than_latents_are_checked_at_the_same_random_choices():
    ragged = chain()

    def model(x, lengths):
        ragged.model(x + 0.1 * torch.rand(x.shape), lengths)

    assert math.isfinite(IWAE(3).loss(model, ragged.guide, X, L))
    own = torch.Generator().manual_seed(0)

    def of_its_own(x, lengths):
        ragged.model(x + 0.1 * torch.rand(x.shape, generator=own), lengths)

    with pytest.raises(pv.InputError, match='masks of latents cannot be checked: site "x_0" of the model draws from a'):
        IWAE(3).loss(of_its_own, ragged.guide, X, L)


def test_a_latent_of_few_values_is_redrawn_until_it_differs():
    """Bits that are masked and read, one of them in all data."""

    def program(observe):
        def run(x):
            last = torch.arange(len(x)) < len(x) - 1
            with pyro.plate("data", len(x), dim=-1):
                with poutine.mask(mask=last):
                    fn = dist.Bernoulli(double(0.5)) if observe else dist.Bernoulli(logits=pyro.param("l", double(0.1)))
                    z = pyro.sample("z", fn)
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    refused = 0
    for seed in range(20):
        torch.manual_seed(suite_seed(seed))
        try:
            VIMCO(2).loss(program(True), program(False), X[:, 0])
        except pv.InputError:
            refused += 1
    assert refused >= 18  # each of four rounds leaves both particles with a chance of 1/4
