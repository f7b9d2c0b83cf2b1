"""Posterior expectations of pairs of every kind: codes, shared latents, conditions, masks, plates within a datum."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import conjugate, hierarchical, state_space
from helpers import assert_within_standard_errors, conditional_vae, draw, linear_gaussian, suite_seed

import pyrovae as pv
from pyrovae.programs import log_joint


def test_a_discrete_latent_has_its_enumerated_posterior():
    """x ~ N(shift_c, 1) beside a prior of three states, and a guide of others; also as a probability."""
    shift, prior = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([0.5, 0.2, 0.3]).double()
    x = torch.tensor([-0.5, 1.0, 3.0]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(prior))
            pyro.sample("x", dist.Normal(shift[c], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.full((len(x), 3), 1 / 3).double()))

    torch.manual_seed(suite_seed(4))
    post = pv.posterior(model, guide, x, num_samples=4_000)
    exact = (prior.log() + dist.Normal(shift, 1.0).log_prob(x[:, None])).softmax(-1)
    shares = post.expectation(lambda site: site["c"].unsqueeze(-1) == torch.arange(3))
    assert shares.value.shape == (3, 3)
    assert_within_standard_errors(shares.value, exact, shares.standard_error)
    torch.testing.assert_close(shares.value.sum(-1), torch.ones(3).double())
    mean = post.mean("c")
    assert_within_standard_errors(mean.value, exact @ torch.arange(3).double(), mean.standard_error)
    assert post.sample(10)["c"].dtype == torch.int64


def test_latents_that_all_data_share_have_one_answer():
    x = conjugate.tosses(7, 3)
    torch.manual_seed(suite_seed(5))
    post = pv.posterior(conjugate.coin, conjugate.coin_guide, x, num_samples=5_000)
    exact = dist.Beta(*(torch.tensor(value).double() for value in conjugate.coin_posterior(x)))
    mean, squares = post.mean("f"), post.expectation(lambda site: site["f"].square())
    assert mean.value.shape == (1,)
    assert_within_standard_errors(mean.value, exact.mean, mean.standard_error)
    assert_within_standard_errors(squares.value, exact.mean**2 + exact.variance, squares.standard_error)
    assert "draws of all latents of 10 data that share some" in repr(post)


def test_shared_latents_beside_those_of_each_datum_are_drawn_together():
    """theta ~ N(0, 1), z_n ~ N(theta, 1), x_n ~ N(z_n, 1): all jointly normal."""
    x = hierarchical.data(6)
    num = len(x)

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", num):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(theta, 1.0)), 1.0), obs=x)

    def guide(x):
        theta = pyro.sample("theta", dist.Normal(x.sum() / 2 / (1 + num / 2), 1.2 * (1 + num / 2) ** -0.5))
        with pyro.plate("data", num):
            pyro.sample("z", dist.Normal((x + theta) / 2, 0.8))

    torch.manual_seed(suite_seed(6))
    post = pv.posterior(model, guide, x, num_samples=5_000, num_particles=1)
    assert post.shapes == {"theta": (), "z": (num,)}
    theta, z = post.mean("theta"), post.mean("z")
    exact = x.sum() / 2 / (1 + num / 2)
    assert_within_standard_errors(theta.value, exact, theta.standard_error)
    assert z.value.shape == (1, num)
    assert_within_standard_errors(z.value[0], (x + exact) / 2, z.standard_error[0])
    both = post.expectation(lambda site: site["theta"].unsqueeze(-1) * site["z"])  # E[theta (x + theta) / 2]
    square = exact**2 + 1 / (1 + num / 2)
    assert_within_standard_errors(both.value[0], (x * exact + square) / 2, both.standard_error[0])


def test_a_conditional_vae_has_the_posterior_of_its_grid():
    torch.manual_seed(suite_seed(7))
    vae, x, y = conditional_vae(pv.OneHot(2), latent_dim=1).double(), torch.randn(4, 3).double(), torch.arange(4) % 2
    post = pv.posterior(vae, x, y, num_samples=4_000)
    grid = torch.linspace(-8, 8, 2_001).double()
    log_p = log_joint(vae.model, {"z": grid[:, None, None].expand(-1, 4, 1)}, x, y)
    exact = (log_p.softmax(0) * grid[:, None]).sum(0)
    mean = post.mean("z")
    assert_within_standard_errors(mean.value[:, 0], exact, mean.standard_error[:, 0])


def test_what_a_mask_leaves_out_of_a_datum_has_no_answer():
    x, lengths = state_space.sequences()
    guide = state_space.SmoothingGuide(1.1).masked
    post = pv.posterior(state_space.masked, guide, x, lengths, num_samples=300)
    for t in range(max(state_space.LENGTHS)):
        there = lengths > t
        found = (post.mean(f"z_{t}"), post.quantile(f"z_{t}", 0.5))
        for part in (part for one in found for part in (one.value, one.standard_error, one.pareto_k)):
            assert torch.equal(~part.isnan(), there)
    assert "nan" not in repr(found[0])
    short = lengths < 3
    nobody = pv.posterior(state_space.masked, guide, x[short], lengths[short], num_samples=30).mean("z_4")
    assert nobody.verdict == "no value: a mask leaves the latent out of every datum"
    ends = pv.posterior(state_space.masked, state_space.SmoothingGuide().masked, x, lengths, num_samples=300)
    assert ends.sample(2)["z_4"][:, lengths > 4].isfinite().all()


def test_plates_within_a_datum_come_before_its_events():
    """m ~ N(0, 1), z_i ~ N(m, I), x_i ~ N(z_i, I), for three i within each of four data, and two elements of each."""
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def program(observes):
        def run(x):
            with pyro.plate("data", 4, dim=-1):
                loc = torch.zeros(4).double() if observes else x.mean((0, 2)) * 0.75
                m = pyro.sample("m", dist.Normal(loc, 1.0 if observes else 0.6))
                with pyro.plate("inner", 3, dim=-2):
                    mean = m.unsqueeze(-1).expand(*m.shape, 2)
                    q = dist.Normal(mean, 1.0) if observes else dist.Normal((x + mean) / 2, 0.75)
                    z = pyro.sample("z", q.to_event(1))
                    if observes:
                        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return run

    torch.manual_seed(suite_seed(12))
    post = pv.posterior(program(True), program(False), x, num_samples=4_000)
    assert post.shapes == {"m": (), "z": (3, 2)}
    m, z = post.mean("m"), post.mean("z")
    exact = x.sum((0, 2)) / 2 / (1 + 6 / 2)
    assert_within_standard_errors(m.value, exact, m.standard_error)
    assert_within_standard_errors(z.value.movedim(1, 0), (x + exact[:, None]) / 2, z.standard_error.movedim(1, 0))


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_programs_that_take_one_particle_at_a_time():
    x = torch.tensor([0.5, -1.0, 2.0]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    torch.manual_seed(suite_seed(13))
    mean = pv.posterior(model, guide, x, num_samples=200).mean("z")
    assert_within_standard_errors(mean.value, x / 2, mean.standard_error)


def test_many_data_keep_their_order():
    vae = linear_gaussian(0, pinned=True)
    x = draw(vae, 300)
    torch.manual_seed(suite_seed(8))
    mean = pv.posterior(vae, x, num_samples=200).mean("z")
    assert_within_standard_errors(mean.value, vae.posterior(x).mean, mean.standard_error, most=6)
