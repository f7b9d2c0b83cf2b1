"""`compare` on a hierarchy with a global mean: bounds and the evidence per datum against their exact values."""

import math

import pyro
import pytest
import torch
from exact import hierarchical, hierarchical_gradients
from exact.hierarchical import Hierarchy
from helpers import assert_within_standard_errors

import pyrovae as pv

NUM = 10
X = hierarchical.data(NUM)
PAIR = Hierarchy({**hierarchical.OFF, "log_sd": -1.0, "log_scale": -0.8, "mu": 1.0})
ORDER = ("mu", "log_sd", "on_x", "on_theta", "bias", "log_scale")  # as the guide comes to them


@pytest.fixture(scope="module")
def found():
    settings = {"objectives": ["elbo", "iwae", "dreg", "vimco"], "num_particles": [2], "repeats": 40}
    pyro.clear_param_store()
    return pv.compare(PAIR.model, PAIR.guide, X, **settings, compile=False, progress=False)


def test_bounds_are_those_by_quadrature_per_datum(found):
    elbo, bound = PAIR.elbo(X).item() / NUM, PAIR.bound(X, 2).item() / NUM
    for row in found.rows:
        truth = elbo if row.objective == "elbo" else bound
        assert_within_standard_errors(row.bound, truth, row.bound_error, note=row.objective)


def test_gaps_are_to_the_evidence_per_datum(found):
    evidence, error = PAIR.log_evidence(X).item(), found.log_px.standard_error.item()
    assert_within_standard_errors(found.log_px.value[0], evidence, error)
    for row in found.rows:
        assert_within_standard_errors(row.gap, evidence / NUM - row.bound, error / NUM, note=row.objective)


def test_the_notes_say_whether_log_px_is_a_share_of_the_joint_evidence(found):
    per_datum, _ = found.log_px_per_datum
    share = (
        f"log p(x) {per_datum:.3f} nats per datum, the joint evidence {found.log_px.mean:.1f} of all 10 data divided"
    )
    assert found.notes.startswith(share)


def test_mean_gradients_are_those_by_quadrature(found):
    """On the side of the guide; the shift belongs to the model."""
    exact = {"elbo": hierarchical_gradients.of_elbo(PAIR, X)}
    exact["iwae"] = exact["dreg"] = exact["vimco"] = hierarchical_gradients.of_bound(PAIR, X)
    for row in found.rows:
        for side, names in ((row.guide, ORDER), (row.model, ("shift",))):
            truth = torch.stack([exact[row.objective][name] for name in names]) / NUM
            error = math.sqrt(side.variance / row.repeats)
            assert_within_standard_errors(torch.linalg.vector_norm(side.mean - truth), 0.0, error, note=row.objective)
        assert row.shared is None


def test_dreg_has_no_bias_against_iwae(found):
    gradient = found["dreg", 2].guide
    assert found["dreg", 2].reference == "IWAE"
    assert gradient.bias < 5 * gradient.bias_floor
