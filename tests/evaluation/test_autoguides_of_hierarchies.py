"""Pyro's autoguides for a program with local and global latents: their weights, bounds and evidence."""

import pyro
import pytest
import torch
from exact import hierarchical
from exact.hierarchical import LATENT_SD, NOISE_SD, PRIOR_MEAN, PRIOR_SD, Hierarchy, normal
from helpers import assert_within_standard_errors, mean_and_error, refusal, suite_seed
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG
from pyrovae.programs import run_pair

X = hierarchical.data(3)
MODEL = Hierarchy().model
SHIFT = hierarchical.OFF["shift"]


def joint_posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and covariance of (theta, z_1 ... z_N) given x: the prior of all of them, conditioned."""
    num = len(x)
    # theta, z and x as a linear map of independent standard normal numbers
    root = torch.zeros(2 * num + 1, 2 * num + 1, dtype=torch.float64)
    root[:, 0] = PRIOR_SD
    for n in range(num):
        root[1 + n, 1 + n] = root[1 + num + n, 1 + n] = LATENT_SD
        root[1 + num + n, 1 + num + n] = NOISE_SD
    covariance = root @ root.T
    mean = torch.full((2 * num + 1,), PRIOR_MEAN + SHIFT, dtype=torch.float64)
    mean[0] = PRIOR_MEAN
    latent, observed = slice(0, num + 1), slice(num + 1, None)
    gain = covariance[latent, observed] @ torch.linalg.inv(covariance[observed, observed])
    return mean[latent] + gain @ (x - mean[observed]), covariance[latent, latent] - gain @ covariance[observed, latent]


def exact_guide(x: Tensor) -> AutoMultivariateNormal:
    guide = AutoMultivariateNormal(MODEL)
    guide(x)
    mean, covariance = joint_posterior(x)
    root = torch.linalg.cholesky(covariance)
    guide.loc = torch.nn.Parameter(mean)
    guide.scale = root.diagonal().clone()
    guide.scale_tril = root / root.diagonal()[:, None]
    return guide


def test_auto_normal_keeps_a_latent_of_each_datum_local():
    guide = AutoNormal(MODEL, init_scale=0.4)
    pair = run_pair(MODEL, guide, X, num_particles=4)
    draws = pair.draws()
    theta, z = draws["theta"], draws["z"]
    assert theta.dim() == 0
    assert z.shape == (4, 3)
    with torch.no_grad():
        q_theta, q_z = (pyro.get_param_store()[f"AutoNormal.locs.{name}"] for name in ("theta", "z"))
        local = normal(z, theta + SHIFT, LATENT_SD) + normal(X, z, NOISE_SD) - normal(z, q_z, 0.4)
        outer = normal(theta, PRIOR_MEAN, PRIOR_SD), normal(theta, q_theta, 0.4)
        # Pyro keeps init_scale in float32.
        assert_close(pair.terms().log_weights.detach(), local, rtol=0, atol=1e-5)
        assert_close(tuple(one.detach() for one in pair.global_terms(scaled=False)), outer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", [IWAE(4), DReG(4)], ids=str)
def test_auto_normal_is_trained_below_the_evidence(objective):
    guide = AutoNormal(MODEL)
    svi = pyro.infer.SVI(MODEL, guide, pyro.optim.Adam({"lr": 0.1}), objective)
    for _ in range(60):
        svi.step(X)
    with torch.no_grad():
        bounds = [-objective.loss(MODEL, guide, X) for _ in range(40)]
    mean, error = mean_and_error(torch.tensor(bounds, dtype=torch.float64))
    evidence = Hierarchy().log_evidence(X)
    assert mean < evidence + 5 * error
    assert mean > evidence - 1.5
    result = pv.log_marginal(MODEL, guide, X, num_samples=5_000)
    assert result.log_px.shape == (1,)
    assert_within_standard_errors(result.log_px[0], evidence, result.standard_error[0] + 0.01)


def test_one_joint_latent_makes_the_data_one_datum():
    guide = exact_guide(X)
    evidence = Hierarchy().log_evidence(X)
    assert -ELBO().loss(MODEL, guide, X) == pytest.approx(evidence.item(), abs=1e-8)
    assert -IWAE(4, joint=True).loss(MODEL, guide, X) == pytest.approx(evidence.item(), abs=1e-8)
    result = pv.log_marginal(MODEL, guide, X, num_samples=50)
    assert_close(result.log_px, evidence[None], rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", [AutoMultivariateNormal, AutoIAFNormal])
@pytest.mark.parametrize("objective", [IWAE(4), DReG(4)], ids=str)
def test_several_particles_of_one_joint_latent_need_joint(family, objective):
    """The local part has no randomness of its own, and IWAE would silently be the ELBO."""
    assert "joint=True" in refusal(objective.loss, MODEL, family(MODEL), X)


def mean_field(x: Tensor) -> AutoNormal:
    mean, covariance = joint_posterior(x)
    values, scale = {"theta": mean[0], "z": mean[1:]}, covariance.diagonal().sqrt().mean().item()
    return AutoNormal(MODEL, init_loc_fn=init_to_value(values=values), init_scale=scale)


@pytest.mark.parametrize("guide", [exact_guide, mean_field])
def test_a_widened_autoguide_has_the_evidence(guide):
    """The site that is drawn is widened, and the points that are functions of it move along."""
    wide = pv.proposals.widened(guide(X), 1.3)
    torch.manual_seed(suite_seed(3))
    result = pv.log_marginal(MODEL, wide, X, num_samples=6_400)
    assert_within_standard_errors(result.log_px[0], Hierarchy().log_evidence(X), result.standard_error[0])
    assert result.pareto_k.item() < 0.7
