"""`compare` on programs of other kinds than a VAE: numbers where they are known, reasons where there is no gap."""

import math
from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from compared_pairs import FEW, poorly_guided
from helpers import assert_within_standard_errors, draw
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scalar_pairs import Pair, double
from torch import nn

import pyrovae as pv

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ELBO, IWAE = pv.objectives.ELBO, pv.objectives.IWAE
SETTINGS = {**FEW, "repeats": 24}


@pytest.fixture(autouse=True)
def _rough_log_px(monkeypatch):
    monkeypatch.setattr("pyrovae.lab.comparing.LOG_PX_SAMPLES", 1_000)


# Eight schools --------------------------------------------------------------------------------------------------------

EFFECTS, ERRORS = double([28, 8, -3, 7, -1, 1, 18, 12]), double([15, 10, 16, 11, 9, 11, 10, 18])


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(double(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(double(5.0)))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


@cache
def log_evidence_of_schools() -> float:
    """By quadrature over tau = 5 tan(u), for which u is uniform; given tau the effects are jointly normal."""
    u = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000 * math.pi / 2
    covariance = torch.diag_embed(ERRORS**2 + (5 * u.tan()[:, None]) ** 2) + 25.0
    log_p = dist.MultivariateNormal(torch.zeros_like(EFFECTS), covariance).log_prob(EFFECTS)
    return (log_p.logsumexp(0) - math.log(len(u))).item()


def schools_guide(y, s):
    """The schools' own posterior given mu and tau, which come from wide distributions."""
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", double(4.0)), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(double(5.0)))
    with pyro.plate("schools", len(y)):
        precision = tau**-2 + s**-2
        pyro.sample("theta", dist.Normal((mu * tau**-2 + y * s**-2) / precision, precision**-0.5))


def test_eight_schools_lie_below_their_evidence_which_is_per_school():
    pyro.clear_param_store()
    settings = {"objectives": ["elbo", "iwae"], "num_particles": [1, 4], **SETTINGS}
    found = pv.compare(schools, schools_guide, EFFECTS, ERRORS, **settings)
    assert found.num_data == 8
    value, error = found.log_px_per_datum
    assert_within_standard_errors(value, log_evidence_of_schools() / 8, error)
    for row in found.rows:
        assert row.gap == pytest.approx(value - row.bound, abs=1e-12)
        assert row.gap > 0


def test_eight_schools_with_an_autoguide_have_gaps_to_a_known_evidence():
    pyro.clear_param_store()
    known = pv.Estimate(double([log_evidence_of_schools()]), torch.zeros(1))
    settings = {"objectives": ["elbo", "iwae"], "num_particles": [4], **SETTINGS}
    found = pv.compare(schools, AutoNormal(schools, init_scale=1.0), EFFECTS, ERRORS, log_px=known, **settings)
    for row in found.rows:
        assert row.gap == pytest.approx(known.value.item() / 8 - row.bound, abs=1e-12)
    assert found["elbo", 4].gap > found["iwae", 4].gap > 0


def test_an_evidence_from_draws_that_are_too_narrow_is_doubted():
    pyro.clear_param_store()
    narrow = AutoNormal(schools, init_scale=0.02)
    found = pv.compare(schools, narrow, EFFECTS, ERRORS, objectives=["elbo"], num_particles=[1], **FEW)
    assert found.log_px.pareto_k > 0.7
    assert "divided by their number (a lower bound: Pareto k > 0.7); " in found.notes
    k = torch.full((50,), 0.2)
    k[3] = 0.9  # one in 50, which its verdict calls no bound either
    few = replace(
        found, log_px=replace(found.log_px, value=k, standard_error=k, pareto_k=k, influences=None, num_samples=5_000)
    )
    assert "nats per datum (Pareto k > 0.7 at 1 of 50 data, which may be far off); " in few.notes
    assert "a lower bound" not in few.log_px.verdict


def test_a_guide_that_draws_all_at_once_is_compared_under_joint_bounds_of_all_data():
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(schools)
    objectives = ["elbo(joint=True)", "iwae(joint=True)"]
    found = pv.compare(schools, guide, EFFECTS, ERRORS, objectives=objectives, num_particles=[4], **SETTINGS)
    assert found.num_data == 1
    assert found.rows[0].gap > found.rows[1].gap > 0
    with pytest.raises(pv.InputError, match="IWAE with 4 particles needs latents that the guide draws for each datum"):
        pv.compare(schools, guide, EFFECTS, ERRORS, objectives=["iwae"], num_particles=[4], **SETTINGS)


# Plates and arguments -------------------------------------------------------------------------------------------------


def nested() -> Pair:
    """x_ni ~ N(z_n + u_ni, 1) with z_n ~ N(0, 1) and u_ni ~ N(0, 0.25)."""

    def model(x):
        shift = pyro.param("shift", double(0.0))
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            with pyro.plate("entries", 3, dim=-2):
                u = pyro.sample("u", dist.Normal(double(0.0), 0.5))
                pyro.sample("x", dist.Normal(shift + z + u, 1.0), obs=x.T)

    def guide(x):
        slope = pyro.param("slope", double(0.2))
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(slope * x.sum(-1), 0.7))
            with pyro.plate("entries", 3, dim=-2):
                pyro.sample("u", dist.Normal(slope * (x.T - z), 0.45))

    return Pair(model, guide)


def test_rows_with_plates_inside_them_have_the_gap_to_their_exact_log_px():
    pyro.clear_param_store()
    found = pv.compare(*nested(), X, objectives=["elbo", "iwae"], num_particles=[4], **SETTINGS)
    covariance = torch.ones(3, 3, dtype=torch.float64) + 1.25 * torch.eye(3, dtype=torch.float64)
    exact = dist.MultivariateNormal(X.new_zeros(3), covariance).log_prob(X)
    assert_within_standard_errors(found.log_px.value, exact, found.log_px.standard_error)
    for row in found.rows:
        assert row.gap == pytest.approx(found.log_px.mean - row.bound, abs=1e-12)
        assert row.gap > 0


def bounds_of(pair, *args):
    pyro.clear_param_store()
    found = pv.compare(*pair, *args, objectives=["elbo", "dreg"], num_particles=[2], **FEW)
    return [(row.bound, row.gap, row.guide.norm) for row in found.rows]


@cache
def of_a_tensor():
    return bounds_of(nested(), X)


@pytest.mark.parametrize("kind", ["a dict", "none"])
def test_arguments_of_any_kind_give_the_numbers_of_a_tensor(kind):
    model, guide = nested()
    other, args = {
        "a dict": (Pair(lambda batch: model(batch["x"]), lambda batch: guide(batch["x"])), ({"x": X},)),
        "none": (Pair(lambda: model(X), lambda: guide(X)), ()),
    }[kind]
    assert bounds_of(other, *args) == of_a_tensor()


class Convolutional(nn.Module):
    """A VAE whose networks take one dimension of data, and with `leading` any number."""

    def __init__(self, leading: bool) -> None:
        super().__init__()
        self.leading = leading
        self.decoder, self.encoder = nn.ConvTranspose2d(2, 1, 3).double(), nn.Conv2d(1, 4, 3).double()

    def decode(self, z):
        logits = self.decoder(z.reshape(-1, 2, 1, 1) if self.leading else z[..., None, None])
        return logits.reshape(*z.shape[:-1], 1, 3, 3) if self.leading else logits

    def model(self, x):
        pyro.module("convolutional", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(double([0.0, 0.0]), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("convolutional", self)
        mean, log_scale = self.encoder(x).flatten(1).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def test_particles_one_after_another_give_the_numbers_of_all_at_once(monkeypatch):
    """With one particle their draws are the same; with more they come in another order."""
    monkeypatch.setattr("pyrovae.lab.comparing.LOG_PX_SAMPLES", 20)  # each in a run of its own
    images = (torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    found = []
    torch.manual_seed(0)
    vae = Convolutional(leading=False)
    twin = Convolutional(leading=True)
    twin.load_state_dict(vae.state_dict())
    with pytest.warns(UserWarning, match="particles run one after another"):
        found.append(pv.compare(vae.model, vae.guide, images, objectives=["iwae"], num_particles=[1, 4], **SETTINGS))
    pyro.clear_param_store()
    found.append(pv.compare(twin.model, twin.guide, images, objectives=["iwae"], num_particles=[1, 4], **SETTINGS))
    looped, vectorized = found
    assert looped["iwae", 1].bound == pytest.approx(vectorized["iwae", 1].bound, abs=1e-12)
    one, other = looped["iwae", 4], vectorized["iwae", 4]
    assert_within_standard_errors(one.bound, other.bound, math.hypot(one.bound_error, other.bound_error))


# Gaps -----------------------------------------------------------------------------------------------------------------


def test_joint_bounds_alone_are_per_datum_and_so_are_their_gaps():
    vae = poorly_guided()
    x = draw(vae, 6)
    found = pv.compare(vae, x, objectives=["elbo", "elbo(joint=True)"], num_particles=[2], **SETTINGS)
    alone = pv.compare(vae, x, objectives=["elbo(joint=True)"], num_particles=[2], **SETTINGS)
    assert alone.num_data == 6
    assert alone.rows[0].gap == pytest.approx(alone.log_px.mean - alone.rows[0].bound, abs=1e-12)
    assert found["elbo(joint=True)", 2].bound == pytest.approx(alone.rows[0].bound, abs=1e-12)


def subsampled(known: torch.Tensor) -> Pair:
    def model():
        shift = pyro.param("shift", double(0.1))
        with pyro.plate("rows", 8, subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=known[rows])

    def guide():
        slope = pyro.param("slope", double(0.4))
        with pyro.plate("rows", 8, subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(slope * known[rows], 0.8))

    return Pair(model, guide)


def test_a_subsample_has_no_log_px_of_its_own_and_a_gap_to_a_known_one():
    pair, settings = subsampled(X[:, 0]), {"objectives": ["elbo", "iwae"], "num_particles": [4], **SETTINGS}
    found = pv.compare(*pair, **settings)
    assert found.no_gap.startswith('log_marginal needs the same data in every run, and the plate "rows" holds')
    assert all(row.gap is None for row in found.rows)
    exact = dist.Normal(0.1, math.sqrt(2)).log_prob(X[:, 0])
    known = pv.compare(*pair, log_px=pv.Estimate(exact, torch.zeros(8)), **settings)
    assert known.no_gap is None
    for row in known.rows:
        assert row.gap == pytest.approx(exact.mean().item() - row.bound, abs=1e-12)
    assert known["elbo", 4].gap > -5 * known["elbo", 4].bound_error


def test_data_that_read_each_others_latents_have_no_log_px_each():
    def model(x):
        shift = pyro.param("shift", double(0.1))
        with pyro.plate("nodes", len(x)):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(shift + z.unsqueeze(-1) * z.unsqueeze(-2), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("nodes", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", double(0.1)) * x.mean(-1), 0.8))

    found = pv.compare(model, guide, X @ X.T, objectives=["elbo"], num_particles=[2], **FEW)
    assert "depends on the latents of other data" in found.no_gap
    with pytest.raises(pv.InputError, match="IWAE weighs each datum alone"):
        pv.compare(model, guide, X @ X.T, objectives=["elbo", "iwae"], num_particles=[2], **FEW)
