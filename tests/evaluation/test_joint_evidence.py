"""log p of all data together, where a program has global latents: nested importance weights against exact evidence."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import conjugate, hierarchical
from exact.hierarchical import Hierarchy
from helpers import assert_within_standard_errors, linear_gaussian, refusal, suite_seed
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE

# Regressions of a product `x @ w`, which they keep: draws one after another have their evidence, too.
pytestmark = pytest.mark.filterwarnings("ignore:particles run one after another")


def assert_is(result, truth, most_error: float) -> None:
    """One estimate for all data, within its own error of the truth, and no error larger than asked for."""
    assert result.log_px.shape == (1,)
    assert result.standard_error.item() < most_error
    assert_within_standard_errors(result.log_px[0], truth, result.standard_error[0], note=result.verdict)


# The hierarchy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "wider", "num_samples", "most_error"),
    [(10, 0.3, 10_000, 0.05), (100, 0.3, 10_000, 0.1), (400, 0.1, 2_500, 0.15)],
)
def test_weights_are_nested(num, wider, num_samples, most_error):
    """p(theta) / q(theta) prod_n (1/K sum_k w_nk): flat weights p(theta, z) / q(theta, z) would have an ESS of 1."""
    x = hierarchical.data(num)
    near = Hierarchy().with_exact_local_guide().with_exact_global_guide(x)
    off = {"log_sd": near.parameters["log_sd"] + 0.3, "log_scale": near.parameters["log_scale"] + wider}
    pair = Hierarchy({**near.parameters, **off})
    assert_is(pv.log_marginal(pair.model, pair.guide, x, num_samples=num_samples), pair.log_evidence(x), most_error)


def test_the_evidence_of_a_part_is_that_of_the_data_given():
    x = hierarchical.data(20)
    near = Hierarchy().with_exact_local_guide().with_exact_global_guide(x[:10])
    pair = Hierarchy({**near.parameters, "log_sd": near.parameters["log_sd"] + 0.2})
    assert_is(pv.log_marginal(pair.model, pair.guide, x[:10], num_samples=4_000), pair.log_evidence(x[:10]), 0.08)
    why = refusal(pv.log_marginal, pair.model, partial(pair.guide, subsample_size=5), x, num_samples=100)
    assert "subsample of 5 of the 20" in why


ALL = hierarchical.data(129)
PRECISION = 1 + len(ALL) / 2  # of theta's posterior: each datum tells of it by N(theta, 2)


def centred_pair(plate):
    """Returns a pair whose guide is the posterior but for a wider theta."""

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with plate(x):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        theta = pyro.sample("theta", dist.Normal(ALL.sum() / 2 / PRECISION, 1.2 * PRECISION**-0.5))
        with plate(x):
            pyro.sample("z", dist.Normal((x + theta) / 2, 0.5**0.5))

    return model, guide


def test_a_plate_that_would_take_a_subsample_of_fewer_rows_is_given_all(monkeypatch):
    """`plate("data", N, subsample_size=len(x))`: the first 128 rows, by which a pair is looked at, are a subsample."""
    monkeypatch.setattr("pyrovae.evaluation.annealed_chains.PILOT_TRANSITIONS", 2)
    monkeypatch.setattr("pyrovae.evaluation.annealed_chains.PILOT_WARMUP", 1)
    own = centred_pair(lambda x: pyro.plate("data", len(ALL), subsample_size=len(x)))
    usual = centred_pair(lambda x: pyro.plate("data", len(x)))
    covariance = torch.ones(len(ALL), len(ALL)).double() + 2 * torch.eye(len(ALL)).double()
    truth = dist.MultivariateNormal(torch.zeros(len(ALL)).double(), covariance).log_prob(ALL)
    for settings in ({}, {"chunk_size": 1_000}):  # with it rows are cut, which these programs allow
        assert_is(pv.log_marginal(*own, ALL, num_samples=500, **settings), truth, 0.08)

    def annealed_and_evaluated(pair):
        torch.manual_seed(suite_seed(0))
        annealed = pv.annealed_log_marginal(*pair, ALL, num_distributions=2, num_chains=1, num_leapfrog=1)
        table = pv.evaluate(*pair, ALL, methods=("elbo", "is_200"))
        return [annealed.value, *(one.estimate.value for one in table.measured)]

    torch.testing.assert_close(annealed_and_evaluated(own), annealed_and_evaluated(usual))
    assert "subsample of 128 of the 129" in refusal(pv.log_marginal, *own, ALL[:128], num_samples=100)


def test_the_exact_guides_have_no_error():
    x = hierarchical.data(10)
    pair = Hierarchy().with_exact_local_guide().with_exact_global_guide(x)
    result = pv.log_marginal(pair.model, pair.guide, x, num_samples=200)
    torch.testing.assert_close(result.log_px[0], pair.log_evidence(x), rtol=0, atol=1e-9)
    assert result.standard_error.item() < 1e-9


def test_without_globals_there_is_one_value_per_datum_as_ever():
    vae = linear_gaussian(0)
    x = torch.randn(3, 5).double()
    assert pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=10).log_px.shape == (3,)


# The coin -------------------------------------------------------------------------------------------------------------

TOSSES = conjugate.tosses(7, 3)


def test_the_evidence_of_a_coin():
    truth = conjugate.coin_log_evidence(TOSSES)
    assert_is(pv.log_marginal(conjugate.coin, conjugate.coin_guide, TOSSES, num_samples=5_000), truth, 0.05)
    pyro.clear_param_store()
    for name, value in zip("ab", conjugate.coin_posterior(TOSSES), strict=True):
        pyro.param(name, torch.tensor(value, dtype=torch.float64), constraint=dist.constraints.positive)
    exact = pv.log_marginal(conjugate.coin, conjugate.coin_guide, TOSSES, num_samples=50)
    torch.testing.assert_close(exact.log_px[0].item(), truth, rtol=0, atol=1e-9)


def test_the_elbo_of_a_coin_is_that_in_closed_form():
    found = torch.tensor([-ELBO().loss(conjugate.coin, conjugate.coin_guide, TOSSES) for _ in range(200)])
    error = found.std() / len(found) ** 0.5
    assert_within_standard_errors(found.mean(), conjugate.coin_elbo(TOSSES, 4.0, 5.0), error, dtype=torch.float32)


def test_an_autoguide_of_a_coin():
    guide = AutoNormal(conjugate.coin, init_loc_fn=init_to_value(values={"f": torch.tensor(0.65).double()}))
    train(conjugate.coin, guide, TOSSES, steps=60, lr=0.1)
    result = pv.log_marginal(conjugate.coin, guide, TOSSES, num_samples=5_000)
    assert_is(result, conjugate.coin_log_evidence(TOSSES), 0.02)


def test_a_point_is_the_maximum_a_posteriori_and_has_no_evidence():
    guide = AutoDelta(conjugate.coin, init_loc_fn=init_to_value(values={"f": torch.tensor(0.5).double()}))
    train(conjugate.coin, guide, TOSSES, steps=150, lr=0.05)
    at = guide.median()["f"].item()
    assert at == pytest.approx(conjugate.coin_map(TOSSES), abs=1e-3)
    loss = ELBO().loss(conjugate.coin, guide, TOSSES)
    assert -loss == pytest.approx(conjugate.coin_joint_at(TOSSES, at), abs=1e-6)
    for call in (
        partial(pv.log_marginal, conjugate.coin, guide, TOSSES, num_samples=10),
        partial(IWAE(4, joint=True).loss, conjugate.coin, guide, TOSSES),
    ):
        assert "Delta" in refusal(call)


def test_several_particles_without_a_local_latent_are_refused():
    """IWAE(4) would silently be the ELBO: theta is drawn once."""
    why = refusal(IWAE(4).loss, conjugate.coin, conjugate.coin_guide, TOSSES)
    assert "joint=True" in why
    found = torch.tensor([-IWAE(4, joint=True).loss(conjugate.coin, conjugate.coin_guide, TOSSES) for _ in range(100)])
    assert conjugate.coin_elbo(TOSSES, 4.0, 5.0) < found.mean() < conjugate.coin_log_evidence(TOSSES)


def train(model, guide, *args: Tensor, steps: int, lr: float) -> None:
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": lr}), ELBO())
    for _ in range(steps):
        svi.step(*args)


# The regression -------------------------------------------------------------------------------------------------------


def test_the_exact_autoguide_of_a_regression_gives_its_evidence_without_error():
    x, y = conjugate.measurements()
    result = pv.log_marginal(conjugate.regression, exact_guide(x, y), x, y, num_samples=20)
    torch.testing.assert_close(result.log_px[0], conjugate.regression_log_evidence(x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", [AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_a_trained_autoguide_of_a_regression_gives_its_evidence(family):
    x, y = conjugate.measurements()
    start = init_to_value(values={"w": conjugate.regression_posterior(x, y)[0]})
    guide = family(conjugate.regression, init_loc_fn=start, init_scale=0.1)
    train(conjugate.regression, guide, x, y, steps=40, lr=0.03)
    result = pv.log_marginal(conjugate.regression, guide, x, y, num_samples=200)
    assert_is(result, conjugate.regression_log_evidence(x, y), 0.1)


def test_two_regressions_are_compared_in_three_lines():
    """The truth does not depend on the last column, and the evidence says so."""
    x, y = conjugate.measurements()
    large = pv.log_marginal(conjugate.regression, exact_guide(x, y), x, y, num_samples=20)
    small = pv.log_marginal(conjugate.regression, exact_guide(x[:, :2], y), x[:, :2], y, num_samples=20)
    difference = small.minus(large)
    truth = conjugate.regression_log_evidence(x[:, :2], y) - conjugate.regression_log_evidence(x, y)
    assert truth > 0.5
    torch.testing.assert_close(difference.value[0], truth, rtol=0, atol=1e-8)


def exact_guide(x: Tensor, y: Tensor) -> AutoMultivariateNormal:
    """An `AutoMultivariateNormal` that is p(w | x, y); Pyro's store would give it the parameters of the last one."""
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(conjugate.regression)
    guide(x, y)
    mean, covariance = conjugate.regression_posterior(x, y)
    root = torch.linalg.cholesky(covariance)
    guide.loc = torch.nn.Parameter(mean)
    guide.scale = root.diagonal().clone()
    guide.scale_tril = root / root.diagonal()[:, None]
    return guide
