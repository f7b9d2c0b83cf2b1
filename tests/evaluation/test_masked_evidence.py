"""log p(x) of sequences of different lengths, by each estimate that is defined for masked latents; others refuse."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from pyro import poutine
from ragged_pairs import MASKS, STEPS, A, Q, R, chain, log_px, sequences
from scalar_pairs import Pair, double

import pyrovae as pv
from pyrovae.evaluation.hmc import STARTS

X, L = sequences()
QUIET = {"progress": False}


def off_the_posterior() -> None:
    """Sets the guide of a chain to another one than the posterior."""
    pyro.param("shift", double(0.2))
    pyro.param("widening", double(0.2))


def whole(x, lengths):
    """The model of `chain` with one observed site for all steps."""
    z, states = double(0.0), []
    with pyro.plate("data", len(x), dim=-1):
        for t in range(STEPS):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(A * z, double(Q if t else 1.0) ** 0.5))
            states.append(z)
        seen = torch.arange(STEPS) < lengths[:, None]
        pyro.sample("x", dist.Normal(torch.stack(states, -1), double(R) ** 0.5).mask(seen).to_event(1), obs=x)


@pytest.mark.parametrize("mask", MASKS)
def test_importance_sampling_gives_the_density_of_the_sequence(mask):
    off_the_posterior()
    torch.manual_seed(suite_seed(1))
    found = pv.log_marginal(*chain(MASKS[mask]), X, L, num_samples=4_000, **QUIET)
    assert_within_standard_errors(found.value, log_px(X, L), found.standard_error)
    bound = pv.importance_bound(*chain(MASKS[mask]), X, L, num_particles=4, num_repeats=200, **QUIET)
    assert (bound.value < log_px(X, L) + 5 * bound.standard_error).all()


@pytest.mark.parametrize(("mask", "start"), list(zip(["handler", "event"], STARTS, strict=True)))
def test_annealed_chains_walk_over_what_is_masked_and_give_the_density_of_the_sequence(mask, start, monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.annealed_chains.PILOT_TRANSITIONS", 16)
    off_the_posterior()
    torch.manual_seed(suite_seed(2))
    settings = {"num_distributions": 8, "num_chains": 300, "num_leapfrog": 2, "start": start, **QUIET}
    found = pv.annealed_log_marginal(*chain(MASKS[mask]), X, L, **settings)
    assert_within_standard_errors(found.log_px, log_px(X, L), found.standard_error)
    assert found.standard_error.median() < 0.15


@pytest.mark.parametrize("start", STARTS)
def test_bounds_from_both_sides_enclose_the_density_of_sequences_that_the_model_draws(start):
    off_the_posterior()
    torch.manual_seed(suite_seed(3))
    lengths = L.repeat(20)
    zeros = torch.zeros(len(lengths), STEPS, dtype=torch.float64)
    settings = {"num_distributions": 6, "num_chains": 4, "num_leapfrog": 2, "start": start, **QUIET}
    result = pv.bidirectional_gap(whole, chain().guide, zeros, lengths, **settings)
    drawn, _ = result.args
    truth = log_px(drawn, lengths)
    below, above = ((bound.value - truth).mean() for bound in (result.lower, result.upper))
    errors = [(bound.value - truth).std() / math.sqrt(len(truth)) for bound in (result.lower, result.upper)]
    assert below < 5 * errors[0]
    assert above > -5 * errors[1]


def test_the_exact_guide_is_seen_to_be_exact():
    result = pv.bidirectional_gap(
        whole, chain().guide, X, L, num_distributions=2, num_chains=2, num_leapfrog=1, start="guide", **QUIET
    )
    truth = log_px(result.args[0], L)
    for bound in (result.lower, result.upper):
        torch.testing.assert_close(bound.value, truth, atol=1e-8, rtol=0)


def test_evaluate_counts_the_dimensions_that_are_seen():
    found = pv.evaluate(whole, chain().guide, X, L, methods=["elbo", "is_50"], dequantised=True, **QUIET)
    assert [one.estimate.mean for one in found.measured] == pytest.approx([log_px(X, L).mean().item()] * 2, abs=1e-8)
    assert found.event_size == pytest.approx(L.double().mean().item())


# Without draws: the model alone --------------------------------------------------------------------------------------


def present(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(x)) % 2 == 0


def test_quadrature_and_enumeration_leave_out_the_data_that_are_masked():
    x = X[:, :1]

    def model(prior, likelihood):
        def run(x):
            with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=present(x)):
                pyro.sample("x", likelihood(pyro.sample("z", prior.expand([1]).to_event(1))).to_event(1), obs=x)

        return run

    normal = model(dist.Normal(double(0.0), 1.0), lambda z: dist.Normal(z, 0.7))
    value, error = pv.quadrature_log_marginal(normal, x)
    truth = torch.where(present(x), dist.Normal(double(0.0), math.sqrt(1.49)).log_prob(x[:, 0]), 0.0)
    assert ((value - truth).abs() <= error + 1e-10).all()
    assert error.max() < 1e-2
    bits = model(dist.Bernoulli(double(0.3)), lambda z: dist.Normal(2 * z, 1.0))
    ends = [math.log(p) + dist.Normal(double(mean), 1.0).log_prob(x[:, 0]) for p, mean in ((0.7, 0.0), (0.3, 2.0))]
    truth = torch.where(present(x), torch.logaddexp(*ends), 0.0)
    torch.testing.assert_close(pv.enumerated_log_marginal(bits, x), truth, atol=1e-10, rtol=0)


def test_a_sum_over_states_is_that_of_each_sequence():
    """A hidden Markov model of two states: the sum over all paths of a sequence's own length."""

    def model(x, lengths, steps=STEPS, masks=True):
        state = torch.zeros(())
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                with poutine.mask(mask=t < lengths if masks else True):
                    state = pyro.sample(f"z_{t}", dist.Bernoulli(0.3 + 0.5 * state.double()))
                    pyro.sample(f"x_{t}", dist.Normal(2 * state - 1, double(0.8)), obs=x[:, t])

    found = pv.enumerated_log_marginal(model, X, L)
    for length in L.unique().tolist():
        rows = length == L

        def trimmed(x, lengths, steps=length):
            model(x, lengths, steps, masks=False)

        expected = pv.enumerated_log_marginal(trimmed, X[rows], L[rows])
        torch.testing.assert_close(found[rows], expected, atol=1e-10, rtol=0)


def test_a_sum_over_states_that_the_data_read_where_they_are_masked_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=present(x)):
                z = pyro.sample("z", dist.Bernoulli(double(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    torch.manual_seed(suite_seed(4))
    with pytest.raises(pv.InputError, match='site "x" of the model must not read the latent "z" where only "z" is'):
        pv.enumerated_log_marginal(model, X[:, 0].repeat(20))


# Diagnoses ------------------------------------------------------------------------------------------------------------


def test_what_needs_a_latent_of_every_datum_says_so():
    many = X.repeat(40, 1), L.repeat(40)
    vector = one_vector()
    for use, said in (
        (lambda: pv.elbo_surgery(*chain(), X, L, **QUIET), "q(z) needs latents that every datum has"),
        (
            lambda: pv.simulation_based_calibration(whole, chain().guide, *many, num_draws=9, num_bins=2, **QUIET),
            'the observed site "x" must not be masked',
        ),
        (lambda: pv.inference_gaps(*vector, X[:, :1], **QUIET), "inference gaps need a latent that every datum has"),
        (
            lambda: pv.simulation_based_calibration(*unread(), many[0][:, 0], num_draws=9, num_bins=2, **QUIET),
            "ranks need latents that every datum has",
        ),
    ):
        with pytest.raises(pv.InputError) as caught:
            use()
        assert str(caught.value).startswith(said)
        assert len(str(caught.value).splitlines()) == 1


def one_vector() -> Pair:
    def around(fn):
        def run(x):
            with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=present(x)):
                fn(x)

        return run

    def model(x):
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0).expand([1]).to_event(1))
        pyro.sample("x", dist.Normal(z, double(1.0)).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, double(0.7)).to_event(1))

    return Pair(around(model), around(guide))


def unread(far: float = 0.0) -> Pair:
    """Returns a pair whose latent is masked in half of the data, where its guide has a mean of `far`."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=present(x)):
                z = pyro.sample("z", dist.Normal(double(0.0), 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(torch.where(present(x), z[..., 0], 0.0), double(1.0)), obs=x)

    def guide(x):
        loc = torch.where(present(x), 0.0, double(far))[:, None]
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=present(x)):
            pyro.sample("z", dist.Normal(loc, double(1.0)).to_event(1))

    return Pair(model, guide)


def test_active_units_are_counted_over_the_data_that_have_them():
    torch.manual_seed(suite_seed(5))
    assert pv.diagnostics.active_units(*unread(far=100.0), X[:, 0]) == 0
    assert pv.diagnostics.active_units(*chain(), *sequences(L.repeat(10))) == 4
    one_is_long = torch.tensor([4] + [1] * 59)  # a variance over one datum is none
    assert pv.diagnostics.active_units(*chain(), *sequences(one_is_long)) == 1
