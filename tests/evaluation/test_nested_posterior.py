"""Answers about latents that the data share beside others: nested weights, one of K draws of each datum."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import hierarchical
from exact.hierarchical import LATENT_SD, NOISE_SD, Hierarchy
from helpers import assert_within_standard_errors, mean_and_error, refusal, suite_seed
from test_nested_evidence import near

import pyrovae as pv
from pyrovae.evaluation import joint_evidence
from pyrovae.evaluation.joint_evidence import one_of_each

SHARE = LATENT_SD**2 / (LATENT_SD**2 + NOISE_SD**2)
SHIFT = hierarchical.OFF["shift"]


def truth(x):
    """Mean and variance of theta, and of each z_n, given x."""
    at = Hierarchy().with_exact_global_guide(x).parameters
    mean, variance = at["mu"], torch.tensor(2 * at["log_sd"]).exp().item()
    local = LATENT_SD**2 * NOISE_SD**2 / (LATENT_SD**2 + NOISE_SD**2)
    return (mean, variance), (SHARE * x + (1 - SHARE) * (mean + SHIFT), local + (1 - SHARE) ** 2 * variance)


def test_with_the_exact_guide_every_draw_has_the_same_weight():
    x = hierarchical.data(10)
    exact = Hierarchy().with_exact_local_guide().with_exact_global_guide(x)
    post = pv.posterior(exact, x, num_samples=50, num_particles=3)
    assert post.shapes == {"theta": (), "z": (10,)}
    torch.testing.assert_close(post.ess, torch.tensor([50.0]).double())
    torch.testing.assert_close(post.log_marginal.log_px[0], exact.log_evidence(x), rtol=0, atol=1e-10)
    said = "50 draws of all latents of 10 data that share some, nested: 3 draws of those of each datum"
    assert repr(post).splitlines()[0] == said


def test_errors_are_calibrated_and_weights_vary_less_than_those_of_draws_of_everything():
    """Of 60 data, over 20 calls: theta, one z_n, their squares and a function of several data."""
    x = hierarchical.data(60)
    pair, ((mean, variance), (z_mean, z_variance)) = near(x), truth(x)
    torch.manual_seed(suite_seed(1))
    exact = torch.tensor([mean, mean**2 + variance, z_mean[0], z_mean[0] ** 2 + z_variance, z_mean.sum()]).double()

    def f(site):
        theta, z = site["theta"], site["z"]
        return torch.stack([theta, theta.square(), z[..., 0], z[..., 0].square(), z.sum(-1)], -1)

    found, ess = [], []
    for _ in range(20):
        post = pv.posterior(pair, x, num_samples=25, num_particles=8)
        answer = post.expectation(f)
        found.append((answer.value[0] - exact) / answer.standard_error[0])
        ess.append(post.ess)
    z = torch.stack(found)
    for power, expected in ((z, 0.0), (z.square(), 1.0)):
        value, error = mean_and_error(power)
        assert_within_standard_errors(value, expected, error)
    flat = pv.posterior(pair, x, num_samples=50 * 8, num_particles=1)
    assert torch.cat(ess).mean() / 25 > 3 * flat.ess.item() / 400
    quantile = post.quantile("theta", 0.5)
    assert_within_standard_errors(quantile.value, mean, quantile.standard_error)


def test_draws_of_everything_where_one_is_asked_for_agree():
    x = hierarchical.data(4)
    (mean, _), (z_mean, _) = truth(x)
    torch.manual_seed(suite_seed(2))
    for particles, num in ((1, 2_000), (4, 80)):
        post = pv.posterior(near(x), x, num_samples=num, num_particles=particles)
        theta, z = post.mean("theta"), post.mean("z")
        assert_within_standard_errors(theta.value, mean, theta.standard_error)
        assert_within_standard_errors(z.value[0], z_mean, z.standard_error[0])
        assert post.sample(5)["z"].shape == (5, 1, 4)


@pytest.mark.parametrize("chunk_size", [10, 1])
def test_chunks_of_data_and_of_particles_have_one_theta(chunk_size):
    x = hierarchical.data(6)
    (mean, _), (z_mean, _) = truth(x)
    torch.manual_seed(suite_seed(3))
    post = pv.posterior(near(x), x, num_samples=12, num_particles=3, chunk_size=chunk_size)
    assert post.shapes == {"theta": (), "z": (6,)}
    theta, z = post.mean("theta"), post.mean("z")
    assert_within_standard_errors(theta.value, mean, theta.standard_error)
    assert_within_standard_errors(z.value[0], z_mean, z.standard_error[0])


def in_plates(observes):
    """w_t, two of them; z_n; and u_in, three for each of four data, of two elements, where a mask leaves one out."""

    def program(x):
        seen = torch.ones(3, 4).bool()
        seen[1, 2] = False
        with pyro.plate("topics", 2, dim=-1):
            w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0))
        with pyro.plate("data", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(w.sum(-1, keepdim=True) + torch.zeros(4).double(), 1.0))
            with pyro.plate("inner", 3, dim=-2), pyro.poutine.mask(mask=seen):
                u = pyro.sample("u", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1))
                if observes:
                    pyro.sample("x", dist.Normal(u, 1.0).to_event(1), obs=x)

    return program


def test_plates_and_masks_are_where_they_are_without_nesting():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(suite_seed(4))
    settings = {"num_samples": 60, "plate": "data"}
    one, several = (pv.posterior(in_plates(True), in_plates(False), x, num_particles=k, **settings) for k in (1, 3))
    assert one.shapes == several.shapes == {"w": (2,), "z": (4,), "u": (3, 4, 2)}
    left_out = [post.mean("u").value[0].isnan() for post in (one, several)]
    assert torch.equal(*left_out)
    assert left_out[0].nonzero().tolist() == [[1, 2, 0], [1, 2, 1]]
    ends = pv.annealed_posterior(
        in_plates(True), in_plates(False), x, num_distributions=2, num_chains=5, num_leapfrog=1, plate="data"
    )
    assert (ends.shapes["w"], ends.shapes["z"], ends.shapes["u"]) == ((2,), (4,), (3, 4, 2))
    assert torch.equal(ends.mean("u").value[0].isnan(), left_out[0])


def test_a_masked_latent_that_all_data_share_has_no_mean():
    """As without nesting, though each of its draws is a number."""

    def program(x, observes):
        with pyro.poutine.mask(mask=False):
            pyro.sample("gone", dist.Normal(torch.zeros(()).double(), 1.0))
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            if observes:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model, guide = partial(program, observes=True), partial(program, observes=False)
    for particles in (1, 3):
        post = pv.posterior(model, guide, hierarchical.data(4), num_samples=20, num_particles=particles)
        assert post.shapes == {"gone": (), "theta": (), "z": (4,)}
        assert post.mean("gone").value.isnan().all()
        assert not post.mean("theta").value.isnan().any()


def test_compiled_draws_are_the_eager_ones(monkeypatch):
    monkeypatch.setattr(joint_evidence, "Replay", partial(joint_evidence.Replay, inductor=False))
    x, found = hierarchical.data(5), []
    for compile in (False, True):
        torch.manual_seed(suite_seed(7))
        post = pv.posterior(near(x), x, num_samples=30, num_particles=3, compile=compile)
        found.append((post.mean("theta").value, post.mean("z").value))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_programs_that_take_one_particle_at_a_time():
    x = hierarchical.data(3)

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    mean = x.sum() / 2 / (1 + len(x) / 2)

    def guide(x):
        theta = pyro.sample("theta", dist.Normal(mean, 1.2 * (1 + len(x) / 2) ** -0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + theta) / 2, 0.9))

    torch.manual_seed(suite_seed(8))
    post = pv.posterior(model, guide, x, num_samples=60, num_particles=3)
    theta, z = post.mean("theta"), post.mean("z")
    assert_within_standard_errors(theta.value, mean, theta.standard_error)
    assert_within_standard_errors(z.value[0], (x + mean) / 2, z.standard_error[0])


def test_one_of_the_draws_is_chosen_in_proportion_to_its_weight():
    share = torch.tensor([[0.7, 0.0], [0.1, 0.5], [0.2, 0.5]]).double()
    torch.manual_seed(suite_seed(5))
    number = torch.arange(3.0)[:, None].expand(3, 40_000)
    log_w = share[:, :, None].expand(3, 2, 20_000).reshape(3, -1).log()
    (found,) = one_of_each(log_w, (number,))
    for datum, chosen in enumerate(found.view(2, 20_000)):
        for k in range(3):
            mean, error = mean_and_error((chosen == k).double())
            assert_within_standard_errors(mean, share[k, datum], error)


def test_the_remedy_of_weights_too_uneven_is_more_particles():
    x = hierarchical.data(40)
    torch.manual_seed(suite_seed(6))
    narrow = Hierarchy({**near(x).parameters, "log_scale": -2.0})
    post = pv.posterior(narrow, x, num_samples=60, num_particles=2)
    assert "take more draws of the latents of each datum (num_particles), annealed_posterior" in post.verdict
    said = refusal(
        pv.posterior, pv.LinearGaussianVAE(torch.eye(2), torch.zeros(2), 0.5), torch.zeros(3, 2), num_particles=4
    )
    assert said.endswith("beside shared ones, and this is no such pair; got 4")
