"""Replicated data against the data: closed forms of p, a model found to be wrong, and what has no replicates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import guide_of
from exact import hierarchical, state_space
from helpers import (
    assert_within_standard_errors,
    conditional_vae,
    draw,
    linear_gaussian,
    refusal,
    small_vae,
    suite_seed,
)

import pyrovae as pv
from pyrovae.evaluation import resampling


def first(x):
    return x[..., 0]


@pytest.fixture
def vae():
    return linear_gaussian(0, pinned=True)


def exact_p(vae, x):
    """x_new given x is normal, and so is its first cell."""
    z, weight = vae.posterior(x), vae.weight.detach()[0]
    mean = z.mean @ weight + vae.bias.detach()[0]
    variance = (z.covariance_matrix @ weight) @ weight + vae.scale.detach() ** 2
    return 1 - dist.Normal(mean, variance.sqrt()).cdf(x[:, 0])


@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_p_values_have_their_closed_form_within_their_errors(vae, widen):
    x = draw(vae, 140)  # over two runs of data
    torch.manual_seed(suite_seed(1))
    check = pv.predictive_check(
        vae.model, guide_of(vae, widen), x, statistic=first, num_samples=1_000, num_replicates=400
    )
    exact = exact_p(vae, x)
    p = check.p_values
    assert_within_standard_errors(p.value, exact, p.standard_error, most=6)
    z = (p.value - exact) / p.standard_error
    assert 0.6 < z.square().mean() < 1.6
    assert torch.equal(check.observed, x[:, 0])
    # of replicates, equally weighted, the same
    share = (check.replicated > check.observed).double().mean(0)
    assert_within_standard_errors(share, exact, (exact * (1 - exact) / 400).sqrt() + p.standard_error, most=6)


def test_a_right_model_passes_and_its_p_is_never_more_extreme_than_chance(vae):
    """Of 20 sets of 20 data, which share no draws: one call checks them all."""
    torch.manual_seed(suite_seed(2))
    check = pv.predictive_check(vae, draw(vae, 400), statistic=first, num_samples=100, num_replicates=200)
    sets = [slice(20 * i, 20 * i + 20) for i in range(20)]
    means = torch.tensor([check.over(lambda t, dim, of=of: t[..., of].mean(dim))[0] for of in sets])
    assert ((means < 0.05) | (means > 0.95)).sum() <= 5
    assert_within_standard_errors(means.mean(), 0.5, math.sqrt(1 / 12 / 20))
    assert "no misfit seen: p = " in check.verdict


@pytest.mark.parametrize(("scale", "extreme", "way"), [(3.0, 0.0, "larger"), (0.2, 1.0, "smaller")])
def test_a_model_whose_noise_is_wrong_is_found_out(vae, scale, extreme, way):
    """Of the spread between the cells of a datum, which no latent can give."""
    with torch.no_grad():
        z = vae.prior.sample((60,))
        x = vae.decode(z).mean + scale * vae.scale * torch.randn(60, 5, dtype=torch.float64)
    outside = torch.linalg.svd(vae.weight.detach()).U[:, 2:]
    check = pv.predictive_check(
        vae, x, statistic=lambda x: ((x - vae.bias) @ outside).square().sum(-1), num_samples=200, num_replicates=300
    )
    assert check.p_value == extreme
    assert f"the model does not make such data: their statistic is {way} than that of its own, p = " in repr(check)
    assert check.over()[1] > 0
    axes = check.plot(pv.plots.figure_row(1)[1][0])
    assert axes.get_title() == f"p = {extreme:.3f}"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(check.observed.mean().item())


def test_many_replicates_of_few_draws_prove_nothing(vae):
    """20 draws of z of one datum miss what has a probability of 1 in 20 more often than in every third run."""
    x, few = 9 * draw(vae, 1), {"statistic": lambda x: x.square().sum(-1), "num_replicates": 1_000}
    said = [repr(pv.predictive_check(vae, x, num_samples=num, **few)).split("\n")[0] for num in (20, 1_000)]
    assert said[0].startswith("perhaps a misfit, p = 0.000")
    assert said[0].endswith("take more replicates than 1,000 to tell, and more draws than 20")
    assert said[1].startswith("the model does not make such data")


def test_few_replicates_prove_nothing(vae):
    x = 9 * draw(vae, 20)
    # 0 of 200 has a chance of 13% at p = 0.01, and 0 of 300 one below 5%
    for num, said in (
        (40, "perhaps a misfit, p = 0.000 (0.02) of the"),
        (200, "perhaps a misfit"),
        (300, "the model does not make such data"),
    ):
        check = pv.predictive_check(vae, x, statistic=lambda x: x.std(-1), num_samples=60, num_replicates=num)
        assert check.verdict.startswith(said)


def test_the_error_of_a_p_covers_the_draws_behind_it():
    """T is driven by z, all replicates rest on 100 draws: p scatters by .040 from run to run, and .016 was printed."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def exact(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01, (0.01 / 1.01) ** 0.5))

    x = torch.zeros(60).double()  # the same datum 60 times, with draws of its own each time
    torch.manual_seed(suite_seed(9))
    check = pv.predictive_check(model, exact, x, statistic=lambda x: x, num_samples=100, num_replicates=1_000)
    found = [check.over(lambda t, dim, n=n: t[..., n]) for n in range(60)]
    p, error = torch.tensor(found).double().unbind(1)
    ratio = (p - 0.5).square().mean() / error.square().mean()
    assert 0.5 < ratio < 1.7
    assert check.grouped.shape == (20, 50, 60)
    one = pv.predictive_check(model, exact, x[:1], statistic=lambda x: x, num_samples=1, num_replicates=30)
    assert math.isnan(one.over()[1])


def test_any_statistic_of_the_data_set_has_a_p_value(vae):
    check = pv.predictive_check(vae, draw(vae, 30), statistic=first, num_samples=100, num_replicates=50)
    p, error = check.over(torch.amax)
    above = (check.replicated.amax(1) > check.observed.max()).double().mean()
    assert p == above
    assert 0 < error < 0.1
    said = refusal(check.over, lambda t, dim: t)
    assert said.startswith("combine must give a number for each of 50, got ")


def test_ties_count_half():
    """A statistic of 0 alone, and one that is the same in every replicate."""
    vae = small_vae((3,), likelihood=pv.Bernoulli())
    x = torch.randint(0, 2, (10, 3)).float()
    check = pv.predictive_check(vae, x, statistic=lambda x: 0 * x.sum(-1), num_samples=50, num_replicates=20)
    assert (check.p_values.value - 0.5).abs().max() < 1e-12
    assert check.p_value == 0.5
    assert check.plot(pv.plots.figure_row(1)[1][0]).patches  # all replicates are the same


def test_pairs_of_other_kinds(vae):
    """Conditions, missing cells, one number for each datum, and sites that observe columns of x."""
    conditional, y = conditional_vae(pv.OneHot(2), likelihood=pv.Gaussian(0.1)), torch.arange(130) % 2
    seen = []

    def statistic(x):
        seen.append(tuple(x.shape[2:]))
        return x.sum(-1)

    check = pv.predictive_check(conditional, torch.randn(130, 3), y, statistic=statistic, num_samples=20)
    assert check.replicated.shape == (1_000, 130)
    assert set(seen) == {(3,)}
    missing = small_vae((3,), missing="mask")
    x = torch.randn(4, 3)
    x[0, 1] = torch.nan
    holes = pv.predictive_check(
        missing, x, statistic=lambda x: x.isnan().sum(-1).double(), num_samples=20, num_replicates=7
    )
    assert torch.equal(holes.replicated, torch.tensor([1.0, 0, 0, 0]).double().expand(7, 4))
    sequences, lengths = state_space.sequences()
    guide = state_space.SmoothingGuide().masked
    torch.manual_seed(suite_seed(3))
    check = pv.predictive_check(
        state_space.masked, guide, sequences, lengths, statistic=first, num_samples=2_000, num_replicates=50
    )
    post = pv.posterior(state_space.masked, guide, sequences, lengths, num_samples=2_000)
    noise = state_space.NOISE_SD
    p = post.expectation(
        lambda site, x: 1 - dist.Normal(site["z_0"], noise).cdf(x[:, 0].expand_as(site["z_0"])), sequences
    )
    assert_within_standard_errors(
        check.p_values.value, p.value, (check.p_values.standard_error**2 + p.standard_error**2).sqrt()
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def number_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.tensor([-2.0, 0.3, 1.0]).double()
    check = pv.predictive_check(model, number_guide, x, statistic=lambda x: x, num_samples=2_000, num_replicates=20)
    exact = 1 - dist.Normal(x / 2, 1.5**0.5).cdf(x)
    assert_within_standard_errors(check.p_values.value, exact, check.p_values.standard_error)


def test_blocks_of_replicates_are_whole(vae, monkeypatch):
    monkeypatch.setattr(resampling, "PAIRS_PER_CHUNK", 50)
    check = pv.predictive_check(vae, draw(vae, 20), statistic=first, num_samples=100, num_replicates=31)
    assert check.replicated.shape == (31, 20)
    assert check.replicated.isfinite().all()
    assert len(check.replicated.unique()) == 31 * 20


def test_what_has_no_replicates_is_refused(vae):
    x = draw(vae, 3)
    shape = "statistic must return a real number for each of (draws, data), here (1, 1), got (1, 1, 5)"
    assert refusal(pv.predictive_check, vae, x, statistic=lambda x: x, num_samples=30) == shape
    assert "got 3.0" in refusal(pv.predictive_check, vae, x, statistic=lambda x: 3.0, num_samples=30)
    data = hierarchical.data(6)

    def shared(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    def guide(x):
        pyro.sample("theta", dist.Normal(x.mean(), 1.0))

    said = refusal(pv.predictive_check, shared, guide, data, statistic=lambda x: x)
    assert said.startswith("predictive_check needs latents that are drawn for each datum, and the data share some")

    def logs(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pyro.sample("x", vae.decode(z), obs=x.log())

    said = refusal(pv.predictive_check, logs, vae.guide, x.exp(), statistic=first)
    assert said == "predictive_check needs a model that observes cells of x as they are, and none of its sites does"


# What a model reads ---------------------------------------------------------------------------------------------------


def wide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))


def of_z(observe):
    """A model of z ~ N(0, 1) and what `observe(x, z)` observes."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            observe(x, pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0)))

    return model


def teacher_forced(x, z):
    """x_t ~ N(0.9 x_{t-1}, 1), given the data's own x_{t-1}: an exact p near 0 was .49."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    pyro.sample("x", dist.Normal(0.9 * before + z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def saturated(x, z):
    """Numbers near a million are all the same to it."""
    pyro.sample("x", dist.Normal(x[:, :1].tanh() + z.unsqueeze(-1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("observe", [teacher_forced, saturated])
@pytest.mark.parametrize("num", [1, 20])
def test_a_model_that_reads_the_data_beside_its_sites_is_refused(observe, num):
    x = torch.linspace(-1, 2, 3 * num).double().view(num, 3)
    said = refusal(pv.predictive_check, of_z(observe), wide, x, statistic=first, num_samples=30)
    assert said.startswith("predictive_check needs a model that reads x at its observed sites alone; what it says")


def test_a_model_that_sums_states_out_is_refused():
    """c ~ Bernoulli(.5), x ~ N(10 c, 1), x = 10.5: p was .154 for .309, with c from its prior."""

    def observe(x, z):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5).double()), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(10 * c, 1.0), obs=x)

    said = refusal(pv.predictive_check, of_z(observe), wide, torch.full((3,), 10.5).double(), statistic=lambda x: x)
    assert (
        said == "predictive_check needs latents that are drawn, and the model sums some out, on which cells may depend"
    )


def test_cells_that_are_not_drawn_anew_are_no_replicates():
    """They were the data's own, and "no misfit seen"."""

    def half(x, z):
        pyro.sample("x_0", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("x_1", dist.Normal(z, 1.0), obs=x[:, 1].log())

    x = torch.full((4, 2), 1.5).double()
    said = refusal(pv.predictive_check, of_z(half), wide, x, statistic=lambda x: x[..., 1], num_samples=30)
    assert said.startswith("data are drawn anew at every cell that is there, each by a site that observes it as it is")


def test_a_statistic_that_is_no_number_is_refused(vae):
    said = refusal(pv.predictive_check, vae, draw(vae, 5), statistic=lambda x: (-x.abs()).log().sum(-1), num_samples=30)
    assert said == "statistic must return finite numbers, got nan"
    missing = small_vae((3,), missing="mask")
    said = refusal(pv.predictive_check, missing, torch.full((2, 3), torch.nan), statistic=first, num_samples=30)
    assert said == "statistic must return finite numbers (cells that are missing are NaN in x and x_new), got nan"


def test_an_argument_of_the_pair_that_is_called_mask_is_its_own():
    """Padding is called so in Pyro; it was given twice."""

    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            steps = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), 1.0).mask(mask)
            pyro.sample("x", steps.to_event(1), obs=x)

    def guide(x, mask):
        wide(x)

    def of_parts(x, mask):
        wide(torch.where(x.isnan(), 0.0, x) * mask)

    of_parts.missing = "mask"
    x, mask = torch.zeros(4, 3).double(), torch.arange(3) < torch.tensor([[3], [2], [1], [3]])
    check = pv.predictive_check(model, guide, x, mask, statistic=first, num_samples=100, num_replicates=30)
    assert check.replicated.shape == (30, 4)
    x[0, 1] = torch.nan
    filled = pv.impute(model, of_parts, x, mask, num_samples=100, num_draws=2)
    assert filled.value.isfinite().all()
    assert filled.missing.sum() == 1
