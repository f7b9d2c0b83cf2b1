"""Every estimate and diagnosis takes pairs whose plates lie otherwise, and gives what the plain pair gives.

x = W z + noise with orthogonal columns of W, so that the latents of a datum are independent under the posterior.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact.hierarchical import Hierarchy, data
from helpers import assert_within_standard_errors, refusal, suite_seed

import pyrovae as pv

SCALE, NUM = 0.7, 24
W = torch.tensor([[1.2, 0.0], [0.0, 0.8], [0.0, 0.0]]).double()
PRECISION = 1 + W.square().sum(0) / SCALE**2
ZERO = torch.zeros(2).double()


def posterior_mean(x):
    return x @ W / SCALE**2 / PRECISION


def prior(*batch):
    return dist.Normal(ZERO.expand(*batch, 2), 1.0)


class Form:
    """One way to write the pair; `factor` makes the guide wider than the posterior."""

    takes_particles = True
    shaped = staticmethod(lambda x: x)
    """Returns the data in the shape in which the model observes them."""

    def __init__(self, factor=1.0):
        self.scale = factor * PRECISION.rsqrt()

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior().to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, SCALE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(posterior_mean(x), self.scale).to_event(1))


class OtherDim(Form):
    shaped = staticmethod(lambda x: x.reshape(len(x), 1, 1, 3))

    def model(self, x):
        with pyro.plate("everything", len(x), dim=-3):
            z = pyro.sample("z", prior(1, 1).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, SCALE).to_event(1), obs=x if x.dim() == 4 else self.shaped(x))

    def guide(self, x):
        with pyro.plate("everything", len(x), dim=-3):
            pyro.sample("z", dist.Normal(posterior_mean(self.shaped(x)), self.scale).to_event(1))


class NoSize(Form):
    def model(self, x):
        with pyro.plate("data"):
            z = pyro.sample("z", prior(len(x)).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, SCALE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(posterior_mean(x), self.scale).to_event(1))


class Nested(Form):
    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("units", 2, dim=-1):
                z = pyro.sample("z", prior())
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z @ W.T, SCALE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", 2, dim=-1):
            pyro.sample("z", dist.Normal(posterior_mean(x), self.scale))


class Transposed(Form):
    """The data lie along the last dimension, and inner plates to the left of them."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("units", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("pixels", 3, dim=-2):
                pyro.sample("x", dist.Normal(W @ z, SCALE), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 2, dim=-2):
            pyro.sample("z", dist.Normal(posterior_mean(x).T, self.scale[:, None]))


class Steps(Form):
    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = [pyro.sample(f"z{j}", dist.Normal(ZERO[0], 1.0)) for j in pyro.plate("units", 2)]
            pyro.sample("x", dist.Normal(torch.stack(z, -1) @ W.T, SCALE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            for j in pyro.plate("units", 2):
                pyro.sample(f"z{j}", dist.Normal(posterior_mean(x)[:, j], self.scale[j]))


class FixedBatch(Form):
    """Has the number of data written into the program, which takes no dimension of particles."""

    takes_particles = False

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior().to_event(1)).reshape(len(x), 2)
            pyro.sample("x", dist.Normal(z @ W.T, SCALE).to_event(1), obs=x)


class TwoPlates(Form):
    """The first third of the data has a plate of its own."""

    def model(self, x):
        for name, part in zip(("first", "rest"), (x[: len(x) // 3], x[len(x) // 3 :]), strict=True):
            with pyro.plate(name, len(part), dim=-1):
                z = pyro.sample(f"z_{name}", prior().to_event(1))
                pyro.sample(f"x_{name}", dist.Normal(z @ W.T, SCALE).to_event(1), obs=part)

    def guide(self, x):
        for name, part in zip(("first", "rest"), (x[: len(x) // 3], x[len(x) // 3 :]), strict=True):
            with pyro.plate(name, len(part), dim=-1):
                pyro.sample(f"z_{name}", dist.Normal(posterior_mean(part), self.scale).to_event(1))


FORMS = {form.__name__: form for form in (OtherDim, NoSize, Nested, Transposed, Steps, FixedBatch, TwoPlates)}
SAME_DRAWS = ("OtherDim", "NoSize", "Nested")  # in the same order as the plain pair makes them


@pytest.fixture
def x():
    torch.manual_seed(suite_seed(1))
    z = torch.randn(NUM, 2).double()
    return z @ W.T + SCALE * torch.randn(NUM, 3).double()


def log_px(x):
    return dist.MultivariateNormal(torch.zeros(3).double(), W @ W.T + SCALE**2 * torch.eye(3).double()).log_prob(x)


def looped(form):
    """The line that a pair gives whose particles run one after another, if it is one."""
    if form.takes_particles:
        return pytest.MonkeyPatch.context()
    return pytest.warns(UserWarning, match="particles run one after another")


@pytest.mark.parametrize("name", FORMS)
def test_log_px_is_exact_under_the_exact_posterior_in_any_chunks(name, x):
    pair = FORMS[name]()
    with looped(pair):
        results = [pv.log_marginal(pair, x, num_samples=30)]
    if name != "TwoPlates":
        results.append(pv.log_marginal(pair, x, num_samples=30, chunk_size=7))
    results.append(pv.importance_bound(pair, x, num_particles=3))
    for result in results:
        torch.testing.assert_close(result.value, log_px(x), rtol=0, atol=1e-10)


def test_data_in_two_plates_are_run_whole_and_a_line_says_so(x):
    with pytest.warns(UserWarning, match="all 24 data are taken at once, and not in chunks of 7: they lie in several"):
        result = pv.log_marginal(TwoPlates(), x, num_samples=30, chunk_size=7)
    torch.testing.assert_close(result.value, log_px(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*FORMS, "Form"])
def test_out_of_memory_takes_pieces_with_the_same_draws(name, x, monkeypatch):
    pair = (FORMS | {"Form": Form})[name](1.3)
    with looped(pair):
        pv.log_marginal(pair, x, num_samples=20)

    def estimate():
        torch.manual_seed(suite_seed(2))
        return pv.log_marginal(pair, x, num_samples=64).log_px

    whole, failed = estimate(), []
    log_prob = dist.Normal.log_prob

    def with_little_memory(self, value):
        found = log_prob(self, value)
        if found.numel() > 1_000:
            failed.append(found.numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(dist.Normal, "log_prob", with_little_memory)
    torch.testing.assert_close(estimate(), whole, rtol=0, atol=1e-10)
    assert pair.takes_particles == bool(failed)


DOORS = {
    "log_marginal": lambda pair, x: pv.log_marginal(pair, x, num_samples=60, chunk_size=300).log_px,
    "importance_bound": lambda pair, x: pv.importance_bound(pair, x, num_particles=4).value,
    "evaluate": lambda pair, x: torch.stack(
        [one.estimate.value for one in pv.evaluate(pair, x, methods=("elbo", "iwae_5")).measured]
    ),
    "dimensions": lambda pair, x: torch.tensor(pv.evaluate(pair, x, methods=("elbo",)).event_size),
    "elbo_terms": lambda pair, x: torch.stack(list(pv.diagnostics.elbo_terms(pair, x, num_particles=5).values())),
    "active_units": lambda pair, x: torch.tensor(pv.diagnostics.active_units(pair, x)),
    "elbo_surgery": lambda pair, x: pv.elbo_surgery(pair, x).mutual_information.value,
    "calibration": lambda pair, x: pv.simulation_based_calibration(pair, pair.shaped(x), num_draws=9, num_bins=2).ranks,
    "annealed": lambda pair, x: (
        pv.annealed_log_marginal(pair, x, num_distributions=3, num_chains=3, num_leapfrog=2, start="prior").log_px
    ),
}


def result_of(form, door, x):
    torch.manual_seed(suite_seed(3))
    return DOORS[door](form(1.3), x)


@pytest.fixture(scope="module")
def of_the_plain_pair():
    return {}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", SAME_DRAWS)
def test_the_result_is_that_of_the_plain_pair(name, door, x, of_the_plain_pair):
    if door not in of_the_plain_pair:  # the data are the same in every test
        of_the_plain_pair[door] = result_of(Form, door, x)
    torch.testing.assert_close(result_of(FORMS[name], door, x), of_the_plain_pair[door], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["Transposed", "Steps"])
def test_estimates_of_other_orders_are_right_too(name, x):
    pair = FORMS[name]()
    settings = {"start": "guide", "num_distributions": 2, "num_leapfrog": 1}
    truth = log_px(x)
    torch.testing.assert_close(pv.annealed_log_marginal(pair, x, **settings).log_px, truth, rtol=0, atol=1e-9)
    surgery = pv.elbo_surgery(pair, x)
    torch.testing.assert_close(surgery.elbo.value, truth, rtol=0, atol=1e-9)
    split = surgery.mutual_information.value + surgery.marginal_kl.value
    torch.testing.assert_close(split, surgery.kl.value, rtol=0, atol=1e-9)
    torch.manual_seed(suite_seed(4))
    wide, plain = pv.elbo_surgery(FORMS[name](1.4), x, num_draws=64), pv.elbo_surgery(Form(1.4), x, num_draws=64)
    apart = plain.mutual_information.minus(wide.mutual_information)
    assert_within_standard_errors(apart.value.mean(), 0.0, apart.monte_carlo_error)
    assert pv.diagnostics.active_units(pair, x) == pv.diagnostics.active_units(Form(), x) == 2


@pytest.mark.parametrize("name", ["OtherDim", "NoSize", "Nested", "FixedBatch"])
def test_calibration_knows_the_posterior_from_a_narrow_guide(name, x):
    found = {}
    for factor in (1.0, 0.4):
        pair = FORMS[name](factor)
        torch.manual_seed(suite_seed(5))
        with looped(pair):
            data = pair.shaped(torch.zeros(300, 3).double())
            found[factor] = pv.simulation_based_calibration(pair, data, num_draws=9, num_bins=5)
    assert found[1.0].ranks.shape == (300, 2)
    assert not found[1.0].rejected.any()
    assert found[0.4].rejected.all()
    assert "too narrow" in found[0.4].verdict


@pytest.mark.parametrize("name", ["OtherDim", "NoSize"])
def test_inference_gaps_are_those_of_the_plain_pair(name, x):
    settings = {"num_steps": 25, "num_final_draws": 50, "log_px": log_px(x)}
    results = []
    for form in (Form, FORMS[name]):
        torch.manual_seed(suite_seed(6))
        with pytest.warns(UserWarning, match="still improving"):
            results.append(pv.inference_gaps(form(1.3), x, **settings))
    for field in ("amortisation", "approximation"):
        ours, theirs = (getattr(result, field).value for result in results)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert results[0].amortisation.mean > 0.02


@pytest.mark.parametrize("name", ["OtherDim", "NoSize", "Nested"])
def test_both_bounds_meet_where_there_is_nothing_to_bridge(name, x):
    pair = FORMS[name]()
    settings = {"start": "guide", "num_distributions": 2, "num_leapfrog": 1}
    bounds = pv.bidirectional_gap(pair, pair.shaped(x), **settings)
    assert bounds.gap.value.abs().max() < 1e-9
    assert bounds.args[0].shape == pair.shaped(x).shape
    assert not torch.equal(bounds.args[0], pair.shaped(x))


# Shared latents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealed_chains_walk_over_the_latents_of_all_data(start):
    x = data(4)
    pair = Hierarchy().with_exact_local_guide().with_exact_global_guide(x)
    torch.manual_seed(suite_seed(8))
    found = pv.annealed_log_marginal(pair, x, start=start, num_distributions=15, num_chains=500, num_leapfrog=3)
    assert found.log_px.shape == (1,)
    assert_within_standard_errors(found.log_px, pair.log_evidence(x), found.standard_error)
    assert found.standard_error < 0.1


def test_bounds_from_both_sides_for_data_that_share_latents():
    x = data(3)
    pair = Hierarchy().with_exact_local_guide()
    torch.manual_seed(suite_seed(9))
    found = pv.bidirectional_gap(pair, x, num_distributions=30, num_chains=64, num_leapfrog=4)
    truth = pair.log_evidence(found.args[0])
    error = 5 * found.gap.standard_error.item() + 0.2  # z* itself, of which there is one
    assert found.lower.log_px.item() - error < truth < found.upper.log_px.item() + error


REFUSED = {
    "elbo_terms": lambda pair, x: pv.diagnostics.elbo_terms(pair, x),
    "active_units": lambda pair, x: pv.diagnostics.active_units(pair, x),
    "elbo_surgery": lambda pair, x: pv.elbo_surgery(pair, x),
    "inference_gaps": lambda pair, x: pv.inference_gaps(pair, x),
    "simulation_based_calibration": lambda pair, x: pv.simulation_based_calibration(pair, x, num_draws=9, num_bins=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_measured_for_each_datum_is_refused_by_name_where_the_data_share_latents(name):
    said = refusal(REFUSED[name], Hierarchy(), data(20))
    assert said.startswith(f"{name} needs latents that are drawn for each datum, and the data share some: ")


@pytest.mark.parametrize("name", ["elbo_surgery", "inference_gaps", "annealed"])
def test_what_needs_many_particles_at_once_is_refused_for_programs_that_take_none(name, x):
    call = REFUSED.get(name, DOORS.get(name))
    said = []
    with pytest.warns(UserWarning, match="one after another") if name != "annealed" else pytest.MonkeyPatch.context():
        said.append(refusal(call, FixedBatch(), x))
    assert "particles" in said[0]
