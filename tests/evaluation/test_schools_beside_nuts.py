"""Latents that all data share: eight schools' posterior means from a fitted autoguide, beside NUTS and the exact ones.

`python tests/evaluation/test_schools_beside_nuts.py`, with the folder `tests` on the path, prints the means by
weighted draws and the exact ones, and after minutes those of NUTS, which stand here as constants.
"""

import pyro
import pyro.distributions as dist
import torch
from helpers import assert_within_standard_errors, suite_seed
from programs_of_users.hierarchies import EFFECTS, ERRORS
from pyro.infer import MCMC, NUTS, SVI
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.ops.stats import effective_sample_size

import pyrovae as pv

NUM_DRAWS = 20_000
NUTS_MEANS = torch.tensor([8.039, 6.693, 5.925, 6.585, 5.322, 5.877, 8.075, 6.817, 6.472, 3.557]).double()
NUTS_ERRORS = torch.tensor([0.044, 0.034, 0.040, 0.035, 0.035, 0.036, 0.037, 0.039, 0.030, 0.027]).double()


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def asked(site):
    """Each school's effect, and the mean and the spread of all."""
    mu, tau = (site[name].unsqueeze(-1) for name in ("mu", "tau"))
    return torch.cat([mu + tau * site["eta"], mu, tau], -1)


def exact_means():
    """By the trapezoidal rule over log tau, with mu and eta in closed form."""
    y, noise = EFFECTS.double(), ERRORS.double().square().diag()
    log_tau = torch.linspace(-12, 12, 4_001).double()
    effects = (2 * log_tau).exp()[:, None, None] * torch.eye(8).double() + 100  # their covariance, mu integrated out
    log_joint = dist.MultivariateNormal(torch.zeros(8).double(), effects + noise).log_prob(y)
    weights = (log_joint + log_tau - (25 + (2 * log_tau).exp()).log()).softmax(0)
    pull = torch.linalg.solve(effects + noise, y)
    each = (effects @ pull.unsqueeze(-1)).squeeze(-1)
    return torch.cat(
        [weights @ each, (weights @ (100 * pull.sum(-1))).reshape(1), (weights @ log_tau.exp()).reshape(1)]
    )


def fitted_guide(seed):
    pyro.clear_param_store()
    torch.manual_seed(seed)
    guide = AutoMultivariateNormal(schools, init_scale=0.5)
    settings = {"lr": 0.1, "lrd": 0.99}
    svi = SVI(schools, guide, pyro.optim.ClippedAdam(settings), pv.objectives.IWAE(64, joint=True))
    for _ in range(250):
        svi.step(EFFECTS, ERRORS)
    return guide


def weighted_means(guide):
    proposal = pv.proposals.widened(guide, 1.3)
    return pv.posterior(schools, proposal, EFFECTS, ERRORS, num_samples=40_000).expectation(asked)


def test_means_from_a_fitted_autoguide_are_those_of_nuts_and_the_exact_ones():
    guide = fitted_guide(suite_seed(0))
    found = weighted_means(guide)
    assert found.value.shape == (1, 10)
    assert found.weights_pareto_k.max() < 0.7
    assert found.ess.min() > 50
    value, error = found.value[0], found.standard_error[0]
    assert_within_standard_errors(value, NUTS_MEANS, (error.square() + NUTS_ERRORS.square()).sqrt())
    assert_within_standard_errors(value, exact_means(), error)
    assert_within_standard_errors(NUTS_MEANS, exact_means(), NUTS_ERRORS)
    narrow = pv.posterior(schools, pv.proposals.widened(guide, 0.5), EFFECTS, ERRORS, num_samples=4_000).mean("tau")
    assert narrow.is_unreliable.all()


def print_nuts():
    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(schools, jit_compile=True, ignore_jit_warnings=True), NUM_DRAWS, 1_000, disable_progbar=True)
    chain.run(EFFECTS, ERRORS)
    values = asked(chain.get_samples()).double()
    ess = effective_sample_size(values.unsqueeze(0), sample_dim=1)
    print("means:", [round(one, 3) for one in values.mean(0).tolist()])
    print("errors:", [round(one, 3) for one in (values.std(0) / ess.sqrt()).tolist()])
    print("draws:", NUM_DRAWS, "smallest effective sample size:", int(ess.min()))


def print_weighted():
    exact = exact_means()
    print("exact:", [round(one, 3) for one in exact.tolist()])
    print("NUTS, largest distance in errors:", round(((NUTS_MEANS - exact) / NUTS_ERRORS).abs().max().item(), 1))
    for seed in range(3):
        found = weighted_means(fitted_guide(seed))
        error, far = found.standard_error[0], ((found.value - exact) / found.standard_error).abs().max().item()
        print(f"seed {seed}: {found.value[0, 0]:.3f} ({error[0]:.3f}) in school A, at most {far:.1f} errors off,")
        print(f"        Pareto k {found.weights_pareto_k.max():.2f}")


if __name__ == "__main__":
    print_weighted()
    print_nuts()
