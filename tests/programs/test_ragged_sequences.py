"""Sequences of several lengths, padded and masked: the log-weights of trimmed ones, and the Kalman likelihood."""

import pyro
import pytest
import torch
from exact import state_space
from helpers import assert_within_standard_errors, mean_and_error, refusal
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG
from pyrovae.programs import pair_at, run_pair

X, LENGTHS = state_space.sequences()
WIDE = state_space.SmoothingGuide(widen=1.3)
SITES = [f"z_{t}" for t in range(X.shape[1])]


def masked_run(num_particles: int):
    return run_pair(state_space.masked, WIDE.masked, X, LENGTHS, num_particles=num_particles)


def trimmed_log_weights(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    """The log-weights of each sequence alone, at the same draws without those after its end."""
    columns = []
    for n, length in enumerate(LENGTHS.tolist()):
        latents = {name: draws[name][:, n : n + 1] for name in SITES[:length]}
        alone = X[n : n + 1], LENGTHS[n : n + 1]
        columns.append(pair_at(state_space.trimmed, WIDE.trimmed, latents, *alone).terms().log_weights)
    return torch.cat(columns, dim=1)


def test_masked_sequences_have_the_log_weights_of_trimmed_ones():
    pair = masked_run(6)
    log_w = pair.terms().log_weights
    assert log_w.shape == (6, len(X))
    assert_close(log_w, trimmed_log_weights(pair.draws()), rtol=0, atol=1e-10)


def test_what_lies_after_a_sequences_end_has_no_part_in_its_weights():
    pair = masked_run(3)
    padded = {name: torch.where(t < LENGTHS, pair.draws()[name], 7.0) for t, name in enumerate(SITES)}
    moved = pair_at(state_space.masked, WIDE.masked, padded, X, LENGTHS, like=pair)
    assert_close(moved.terms().log_weights, pair.terms().log_weights, rtol=0, atol=1e-10)


def test_log_marginal_is_the_kalman_likelihood():
    truth = state_space.log_evidence(X, LENGTHS)
    result = pv.log_marginal(state_space.masked, WIDE.masked, X, LENGTHS, num_samples=4_000)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    assert result.standard_error.max() < 0.05
    exact = pv.log_marginal(state_space.masked, state_space.SmoothingGuide().masked, X, LENGTHS, num_samples=20)
    assert_close(exact.log_px, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", [ELBO(4), IWAE(4), DReG(4)], ids=str)
def test_the_exact_guide_is_trained_by_nothing(objective):
    """Every bound is tight there, in each sequence."""
    guide = state_space.SmoothingGuide().masked
    loss = objective.loss(state_space.masked, guide, X, LENGTHS)
    assert loss == pytest.approx(-state_space.log_evidence(X, LENGTHS).sum().item(), abs=1e-9)


def test_a_bound_of_masked_sequences_lies_between_the_elbo_and_the_likelihood():
    found, copies = {}, 5
    args = X.repeat(copies, 1), LENGTHS.repeat(copies)
    for objective in (ELBO(8), IWAE(8)):
        losses = [-objective.loss(state_space.masked, WIDE.masked, *args) / copies for _ in range(40)]
        found[type(objective).__name__] = mean_and_error(torch.tensor(losses, dtype=torch.float64))
    (elbo, elbo_error), (iwae, iwae_error) = found["ELBO"], found["IWAE"]
    assert iwae - elbo > 5 * (elbo_error + iwae_error)
    assert iwae < state_space.log_evidence(X, LENGTHS).sum() + 5 * iwae_error


@pytest.mark.parametrize("call", [
    lambda *pair: pv.log_marginal(*pair, num_samples=10), IWAE(4).loss, DReG(4).loss,
], ids=["log_marginal", "iwae", "dreg"])  # fmt: skip
def test_a_likelihood_that_reads_a_masked_state_is_refused(call):
    """It depends on a value that no density accounts for: the weights would be of no model."""
    why = refusal(call, state_space.masked_and_read_at_its_end, WIDE.masked, X, LENGTHS)
    assert "mask" in why
    assert "end" in why


def test_a_guide_with_another_mask_is_refused():
    def guide(x, lengths):
        WIDE.masked(x, lengths - 1)

    pyro.clear_param_store()
    assert "mask" in refusal(IWAE(4).loss, state_space.masked, guide, X, LENGTHS)
