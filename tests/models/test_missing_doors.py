"""Every door takes a pair that takes NaN: training, compiled steps, estimates, comparisons, data drawn anew."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import assert_same, run_both
from families import table, table_data, with_holes
from helpers import (
    OF_MIXTURES,
    HalfPrior,
    assert_within_standard_errors,
    every_objective,
    refusal,
    small_vae,
    suite_seed,
)

import pyrovae as pv

FAMILIES = {
    "age": pv.Gaussian(0.8, learn_scale=True), "income": pv.LogNormal(0.7), "share": pv.Beta(), "sex": pv.Bernoulli(),
    "visits": pv.ZeroInflatedNegativeBinomial(), "town": pv.Categorical(4),
}  # fmt: skip


def people(num: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    unit = torch.rand(num, 5, dtype=dtype) * 0.98 + 0.01
    columns = torch.randn(num, dtype=dtype), unit[:, 0] * 3, unit[:, 1], unit[:, 2].round(), (9 * unit[:, 3]).floor()
    return with_holes(torch.stack((*columns, (4 * unit[:, 4]).floor()), -1))


def people_vae(**settings) -> pv.VAE:
    return small_vae((6,), likelihood=pv.Columns(FAMILIES), missing="mask", **settings)


def test_compiled_steps_are_eager_steps_with_every_family():
    def make():
        vae = small_vae((20,), likelihood=table(), missing="mask", hidden=(4,)).double()
        return vae.model, vae.guide, vae

    batches = [(with_holes(table_data(6, torch.float64)),) for _ in range(2)]
    eager, compiled, svi = run_both(make, batches)
    assert_same(eager, compiled, svi)
    assert all(torch.tensor(eager[0]).isfinite())


@pytest.mark.parametrize("name", every_objective())
def test_every_objective_trains_on_missing_cells(name):
    posteriors = {"elbo_enumerated": "bernoulli", **dict.fromkeys(OF_MIXTURES, pv.posteriors.Mixture(2, 2))}
    posterior = posteriors.get(name, "diagonal")
    vae, x = people_vae(posterior=posterior), people(12)
    history = pv.fit(vae, x, validation=x, epochs=1, objective=every_objective()[name], compile=False)
    assert all(map(torch.isfinite, map(torch.tensor, history.loss)))
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


def test_plain_svi_with_losses_of_pyro_gives_the_elbo_of_the_observed_cells():
    vae, x, num = people_vae(), people(10), 2_000
    loss = pyro.infer.Trace_ELBO(num, max_plate_nesting=1, vectorize_particles=True)
    losses = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.0}), loss)
    ours = pv.importance_bound(vae, x, num_particles=1, num_repeats=num)
    error = ours.standard_error.square().sum().sqrt() * 2**0.5
    assert_within_standard_errors(-losses.step(x), ours.value.sum(), error, dtype=torch.float32)


def test_every_estimate_of_log_px_agrees_with_quadrature():
    vae, x = people_vae().double(), people(7, torch.float64)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x), vae.prior))

    exact, error = pv.quadrature_log_marginal(vae, x, num_points=101)
    assert exact[0].abs() < 1e-6  # no cell
    for settings in ({}, {"chunk_size": 3_000}):
        found = pv.log_marginal(vae.model, guide, x, num_samples=1_000, **settings)
        assert_within_standard_errors(found.log_px, exact, found.standard_error + error)
    annealed = pv.annealed_log_marginal(vae, x, num_distributions=4, num_chains=30, num_leapfrog=1)
    assert_within_standard_errors(annealed.value, exact, annealed.standard_error + error + 0.01)
    evaluated = pv.evaluate(vae.model, guide, x, methods=("elbo", "is_200"))
    assert evaluated.event_size == pytest.approx((~x.isnan()).sum(1).double().mean().item())
    compared = pv.compare(vae.model, vae.guide, x, objectives=("iwae",), num_particles=[2], repeats=10, compile=False)
    assert len(compared.rows) == 1


def test_data_drawn_anew_keep_the_missing_cells():
    vae, x = people_vae(), people(100)
    bounds = pv.bidirectional_gap(vae, x[:5], num_distributions=2, num_chains=2, num_leapfrog=1)
    assert torch.equal(bounds.args[0].isnan(), x[:5].isnan())
    assert pv.simulation_based_calibration(vae, x).ranks.shape == (100, 2)
    asleep = pv.objectives.ReweightedWakeSleep(2, sleep_weight=0.5)
    pv.fit(vae, x, epochs=1, objective=asleep, compile=False)


def test_a_calibrated_guide_of_a_masked_model_passes_and_one_that_ignores_the_mask_does_not():
    """Linear and Gaussian: the exact posterior given the observed cells, and that given zeros in their place."""
    torch.manual_seed(suite_seed(3))
    vae = small_vae((3,), hidden=(), latent_dim=1, likelihood=pv.Gaussian(0.5), missing="mask")
    with torch.no_grad():
        vae.decoder.output.weight.copy_(torch.tensor([[1.0], [2.0], [-1.5]]))
    weight, bias = vae.decoder.output.weight.detach()[:, 0], vae.decoder.output.bias.detach()
    x = torch.zeros(400, 3).masked_fill(torch.rand(400, 3) < 0.5, torch.nan)

    def guide_of(respects_mask):
        def guide(x):
            seen = (~x.isnan()).float() if respects_mask else torch.ones_like(x)
            precision = 1 + (seen * weight**2).sum(-1) / 0.25
            loc = (torch.where(x.isnan(), 0.0, x - bias) * weight).sum(-1) / 0.25 / precision
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc[:, None], precision[:, None] ** -0.5).to_event(1))

        return guide

    assert not pv.simulation_based_calibration(vae.model, guide_of(True), x).rejected.any()
    assert pv.simulation_based_calibration(vae.model, guide_of(False), x).rejected.all()


def own_model(x):
    seen = ~x.isnan()
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        fn = dist.Normal(z.unsqueeze(-1), 0.5).mask(seen).to_event(1)
        pyro.sample("x", fn, obs=torch.where(seen, x, 0.0))


def own_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_a_program_of_ones_own_takes_nan_if_it_says_so():
    x = torch.tensor([[0.3, torch.nan], [torch.nan, torch.nan], [1.0, -0.5]])

    def model(x):
        own_model(x)

    assert "if it is a missing cell" in refusal(pv.log_marginal, model, own_guide, x)
    model.missing = "mask"
    found = pv.log_marginal(model, own_guide, x, num_samples=4_000)
    covariance = torch.ones(2, 2) + 0.25 * torch.eye(2)
    expected = [dist.Normal(0.0, 1.25**0.5).log_prob(x[0, 0]), torch.zeros(()),
                dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x[2])]  # fmt: skip
    assert_within_standard_errors(found.log_px, torch.stack(expected), found.standard_error, dtype=torch.float32)

    class Pair:
        missing = "mask"
        model, guide = staticmethod(own_model), staticmethod(own_guide)

    assert pv.log_marginal(Pair.model, own_guide, x.nan_to_num(0)).log_px.isfinite().all()
