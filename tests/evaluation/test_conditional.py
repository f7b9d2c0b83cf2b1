"""log p of a part given another: against the conditional of a Gaussian, and pairs that take no part of their data."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import hierarchical
from exact.hierarchical import Hierarchy
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, refusal, small_vae, suite_seed
from pyro.infer.autoguide import AutoNormal

import pyrovae as pv
from pyrovae.programs import observing_parts

REPETITIONS, CELLS = 200, 5
GIVEN = torch.arange(CELLS) < 1  # one given, four asked


def guide_at(vae, widen=1.0):
    """Returns p(z | the cells that the mask shows) as a guide, `widen` times as wide."""

    def guide(x, mask):
        weight = vae.weight.detach() * mask.unsqueeze(-1)
        precision = torch.eye(vae.latent_dim).double() + weight.mT @ weight / vae.scale.detach() ** 2
        pull = torch.where(mask, x - vae.bias.detach(), 0.0) @ vae.weight.detach() / vae.scale.detach() ** 2
        mean = torch.linalg.solve(precision, pull + vae.prior_mean.detach())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / widen**2))

    return guide


def log_p(vae, x, cells):
    """log p of the cells of this index, `(batch,)`."""
    weight = vae.weight.detach()[cells]
    covariance = weight @ weight.T + vae.scale.detach() ** 2 * torch.eye(len(weight)).double()
    mean = (vae.weight @ vae.prior_mean + vae.bias).detach()[cells]
    return dist.MultivariateNormal(mean, covariance).log_prob(x[:, cells])


def conditional(vae, x, given=GIVEN):
    return log_p(vae, x, torch.arange(CELLS)) - log_p(vae, x, given.nonzero().flatten())


@pytest.fixture
def vae():
    return linear_gaussian(0, pinned=True)


@pytest.mark.parametrize("widen", [0.9, 1.5])
def test_errors_are_calibrated_for_guides_too_narrow_and_too_wide(vae, widen):
    """Each of 200 data is the same x: z-scores have mean 0 and mean square 1."""
    x = draw(vae, 1).expand(REPETITIONS, -1)
    torch.manual_seed(suite_seed(1))
    found = pv.conditional_log_marginal(vae.model, guide_at(vae, widen), x, given=GIVEN, num_samples=400)
    assert (found.ess > 80).all()
    z = (found.value - conditional(vae, x)) / found.standard_error
    for power, expected in ((z, 0.0), (z.square(), 1.0)):
        mean, error = mean_and_error(power)
        assert_within_standard_errors(mean, expected, error)
    whole, part = found.whole.standard_error, found.part.standard_error
    torch.testing.assert_close(found.standard_error, (whole**2 + part**2).sqrt())
    assert found.verdict.startswith("reliable as far as its own draws can tell")
    torch.manual_seed(suite_seed(1))
    wider = pv.conditional_log_marginal(
        vae.model, pv.proposals.widened(guide_at(vae), widen), x[:3], given=GIVEN, num_samples=1_000
    )
    assert_within_standard_errors(wider.value, conditional(vae, x[:3]), wider.standard_error)


def test_the_posteriors_themselves_give_the_exact_value(vae):
    x = draw(vae, 6)
    found = pv.conditional_log_marginal(vae.model, guide_at(vae), x, given=GIVEN, num_samples=30)
    torch.testing.assert_close(found.value, conditional(vae, x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.jackknife, found.value, rtol=0, atol=1e-10)
    assert (found.pareto_k == -math.inf).all()
    assert found.standard_error.max() < 1e-7


def test_a_guide_far_too_narrow_is_flagged_with_the_term_that_is_off(vae):
    """Narrow where nearly all is masked: the second term is too low, and the difference too high."""

    def guide(x, mask):
        guide_at(vae, 0.2 if mask.sum() <= len(x) else 1.1)(x, mask)

    torch.manual_seed(suite_seed(2))
    found = pv.conditional_log_marginal(vae.model, guide, draw(vae, 20), given=GIVEN, num_samples=2_000)
    assert found.is_unreliable.double().mean() > 0.5
    assert not found.whole.is_unreliable.any()
    assert torch.equal(found.is_unreliable, found.pareto_k > 0.7)
    assert found.verdict.startswith("not to be relied on: Pareto k > 0.7 at ")
    number = int(found.is_unreliable.sum())
    assert repr(found).endswith(f"; values may be too high where log p(x_b) is bad ({number})")


def test_draws_given_all_cells_would_be_off_for_the_given_ones():
    """Why there are two guides: the exact posterior of all ten cells does not reach as far as one cell leaves z."""
    vae = linear_gaussian(0, data_dim=10, pinned=True)
    x, given = draw(vae, 40), torch.arange(10) < 1
    posterior = vae.posterior(x)

    def of_all(x):
        with pyro.plate("data", 40, dim=-1):
            pyro.sample("z", posterior)

    torch.manual_seed(suite_seed(6))
    model, _ = observing_parts(vae.model, of_all)
    part = pv.log_marginal(model, of_all, torch.where(given, x, torch.nan), num_samples=1_000)
    exact = log_p(vae, x, torch.arange(10)) - log_p(vae, x, torch.arange(1))
    one_guide = (vae.log_px(x).detach() - part.log_px - exact).mean()
    assert one_guide > 0.3
    assert part.is_unreliable.double().mean() > 0.5
    found = pv.conditional_log_marginal(vae.model, guide_at(vae, 1.2), x, given=given, num_samples=1_000)
    assert (found.value - exact).abs().max() < 0.1
    assert not found.is_unreliable.any()


def test_each_datum_has_its_own_parts_and_cells_that_are_missing_are_in_neither(vae):
    x = draw(vae, 4)
    x[0, 2] = torch.nan
    given = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    torch.manual_seed(suite_seed(3))
    found = pv.conditional_log_marginal(vae.model, guide_at(vae, 1.2), x, given=given, num_samples=4_000)
    index = torch.arange(CELLS)
    exact = [
        log_p(vae, x[:1], index[index != 2]) - log_p(vae, x[:1], index[:1]),
        log_p(vae, x[1:2], index) - log_p(vae, x[1:2], index[4:]),
        torch.zeros(1),  # nothing is asked
        log_p(vae, x[3:], index),  # nothing is given
    ]
    assert_within_standard_errors(found.value, torch.cat(exact), found.standard_error)
    assert found.value[2] == found.standard_error[2] == 0


def test_a_vae_takes_parts_with_its_conditions():
    """Of a decoder that is linear in z: both terms are those that log_marginal gives of NaN."""
    vae = small_vae((3,), condition=pv.OneHot(2), likelihood=pv.Gaussian(0.6), missing="mask")
    x, y, given = torch.randn(6, 3), torch.arange(6) % 2, torch.tensor([True, False, True])
    torch.manual_seed(suite_seed(4))
    found = pv.conditional_log_marginal(vae, x, y, given=given, num_samples=2_000)
    apart = [pv.log_marginal(vae, one, y, num_samples=2_000) for one in (x, torch.where(given, x, torch.nan))]
    expected = apart[0].minus(apart[1])
    assert_within_standard_errors(
        found.value, expected.value, (found.standard_error**2 + expected.standard_error**2).sqrt(), most=6
    )


def test_a_model_may_take_the_mask_itself(vae):
    """Also one that masks by it, and sites that observe columns of x."""

    def columns(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            p = vae.decode(z).base_dist
            for i in range(CELLS):
                own = dist.Normal(p.loc[..., i], p.scale[..., i])
                pyro.sample(f"x_{i}", own.mask(mask[:, i]) if i % 2 else own, obs=x[:, i])

    x = draw(vae, 3)
    found = pv.conditional_log_marginal(columns, guide_at(vae), x, given=GIVEN, num_samples=30)
    torch.testing.assert_close(found.value, conditional(vae, x), rtol=0, atol=1e-10)


def test_counts_and_classes_are_left_out_by_cells():
    """A number inside each support stands where a cell is left out."""
    probs = torch.tensor([0.2, 0.5, 0.3]).double()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            for i, fn in enumerate((dist.Poisson(3.0), dist.Categorical(probs), dist.Gamma(2.0, 1.0))):
                pyro.sample(f"x_{i}", fn, obs=x[:, i])
            pyro.sample("last", dist.Normal(z, 1.0), obs=x[:, 3])

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.where(mask[:, 3], x[:, 3] / 2, 0.0), 0.5 + 0.5 * ~mask[:, 3]))

    x = torch.tensor([[2.0, 1.0, 0.7, 0.3]]).double()
    for asked in range(3):
        found = pv.conditional_log_marginal(model, guide, x, given=torch.arange(4) != asked, num_samples=400)
        fn = (dist.Poisson(3.0), dist.Categorical(probs), dist.Gamma(2.0, 1.0))[asked]
        assert_within_standard_errors(found.value[0], fn.log_prob(x[0, asked]), found.standard_error[0])


def test_rows_given_other_rows_where_data_share_a_latent():
    """theta ~ N(0, 1), x_n ~ N(theta, 1): log p of the last two given the first two, one number."""
    x = torch.tensor([0.4, -1.0, 2.0, 0.1]).double()

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    def guide(x, mask):
        precision = 1 + mask.sum()
        pyro.sample("theta", dist.Normal((x * mask).sum() / precision, 1.1 * precision**-0.5))

    torch.manual_seed(suite_seed(5))
    given = torch.tensor([True, True, False, False])
    found = pv.conditional_log_marginal(model, guide, x, given=given, num_samples=4_000)
    of_two, of_all = (dist.MultivariateNormal(torch.zeros(n).double(), torch.eye(n) + torch.ones(n, n)) for n in (2, 4))
    exact = of_all.log_prob(x) - of_two.log_prob(x[:2])
    assert found.value.shape == (1,)
    assert_within_standard_errors(found.value[0], exact, found.standard_error[0])


def test_what_is_known_has_no_error_and_counts_for_no_doubt(vae):
    """Rows with nothing asked are log 1, and log p of nothing given is 0: both had the noise of their draws."""
    x, given = draw(vae, 40), torch.zeros(40, CELLS).bool()
    given[:30], given[30:39, 0] = True, True

    def narrow(x, mask):  # where all is seen, and where nothing is
        guide_at(vae, 0.15)(x, mask)

    torch.manual_seed(suite_seed(7))
    found = pv.conditional_log_marginal(vae.model, narrow, x, given=given, num_samples=500)
    assert found.whole.is_unreliable[:30].any()
    for known in (found.value, found.standard_error, found.jackknife):
        assert (known[:30] == 0).all()
    assert (found.pareto_k[:30] == -math.inf).all()
    assert not found.is_unreliable[:30].any()
    assert (found.ess[:30] == 500).all()
    part = found.part
    assert part.log_px[39] == part.standard_error[39] == part.jackknife[39] == part.smoothed[39] == 0
    assert (found.part.bounds[:, 39] == 0).all()
    assert part.pareto_k[39] == -math.inf
    assert found.value[39] == found.whole.log_px[39]
    assert found.standard_error[39] == found.whole.standard_error[39]


def test_a_few_bad_data_have_no_direction(vae):
    """Of one datum alone a large k comes with a rare large weight: it is off on either side."""

    def guide(x, mask):
        widths = torch.full((len(x), 1, 1), 1.2).double()
        widths[:1] = 0.1
        guide_at(vae, widths)(x, mask)

    torch.manual_seed(suite_seed(8))
    found = pv.conditional_log_marginal(vae.model, guide, draw(vae, 60), given=GIVEN, num_samples=2_000)
    assert found.is_unreliable.sum() == 1
    assert "values may be" not in found.verdict


def test_a_difference_of_two_answers_from_one_seed_knows_their_draws(vae):
    x = draw(vae, 5)
    one, other = [], []
    for found in (one, other):
        torch.manual_seed(suite_seed(9))
        found.append(pv.conditional_log_marginal(vae.model, guide_at(vae, 1.3), x, given=GIVEN, num_samples=400))
    assert one[0].minus(other[0]).standard_error.abs().max() < 1e-10
    moved = one[0].influences
    size = (moved.square().sum(0) * len(moved) / (len(moved) - 1)).sqrt()
    assert ((size / one[0].standard_error).log().abs() < 0.7).all()


def test_too_few_draws_of_a_nested_pair_name_both_settings():
    pair = Hierarchy()

    def guide(x, mask):
        pair.guide(torch.where(mask, x, 0.0))

    given = torch.tensor([True, False, False])
    found = pv.conditional_log_marginal(pair.model, guide, hierarchical.data(3), given=given, num_samples=20)
    assert f"more than 20 are needed (num_samples={21 * found.whole.num_particles}, num_particles=" in found.verdict


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_guide_that_takes_no_part_is_refused_by_name(vae):
    x = draw(vae, 3)
    rule = 'must take a part of the data: an argument "mask", or NaN in x'
    said = refusal(pv.conditional_log_marginal, vae, x, given=GIVEN)
    assert said == f'the guide "LinearGaussianVAE.guide" {rule}; where cells are left out, it draws nan'

    def prior(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior)

    for guide, name in ((prior, "prior"), (AutoNormal(vae.model), "AutoNormal")):
        said = refusal(pv.conditional_log_marginal, vae.model, guide, x, given=GIVEN)
        assert said == f'the guide "{name}" {rule}; it draws the same whatever is left out'
    said = refusal(
        pv.conditional_log_marginal, vae.model, pv.proposals.defensive(vae.model, guide_at(vae)), x, given=GIVEN
    )
    assert said.startswith('the guide "proposal" must take a part of the data')


def test_events_without_densities_of_their_cells_are_whole_or_not_there(vae):
    def joint(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            loc = vae.decode(z).mean
            tril = torch.eye(CELLS).double()
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril), obs=x)

    x = draw(vae, 2)
    said = refusal(pv.conditional_log_marginal, joint, guide_at(vae), x, given=GIVEN)
    assert said == (
        'the site "x" is a MultivariateNormal, whose elements have no densities of their own, '
        "and must be observed whole or not at all"
    )
    whole = torch.tensor([[True], [False]]).expand(2, CELLS)
    assert pv.conditional_log_marginal(joint, guide_at(vae), x, given=whole, num_samples=30).value.shape == (2,)


def test_a_model_that_fills_cells_in_by_itself_is_refused(vae):
    said = refusal(
        pv.conditional_log_marginal, lambda x: vae.model(x.nan_to_num()), guide_at(vae), draw(vae, 3), given=GIVEN
    )
    assert said.startswith("the model must observe cells of x as they are, or say missing")


def test_what_is_given_must_be_a_part(vae):
    x, guide = draw(vae, 3), guide_at(vae)
    shapes = "given must be a tensor of True and False, of shape (3, 5) or (5,), got"
    for given, said in (
        (torch.ones(CELLS), f"{shapes} torch.float32"),
        (torch.ones(3).bool(), f"{shapes} (3,)"),
        ([True], "given must be a tensor, got [True]"),
        (torch.ones(CELLS).bool(), "given must leave some observed cell of x to ask for, and leaves none"),
        (torch.zeros(CELLS).bool(), "given must hold some observed cell of x, and holds none"),
    ):
        assert refusal(pv.conditional_log_marginal, vae.model, guide, x, given=given) == said
    infinite = x.clone()
    infinite[1, 2] = torch.inf
    for function, settings in (
        (pv.conditional_log_marginal, {"given": GIVEN}),
        (pv.impute, {"missing": GIVEN.expand(3, -1)}),
    ):
        said = refusal(function, vae.model, guide, infinite, **settings)
        assert said == "x must be finite, got inf at index (1, 2)"
    counts = refusal(pv.conditional_log_marginal, lambda x: None, guide, x.long(), given=GIVEN)
    assert counts.startswith("x must be a floating-point tensor, in which NaN can stand for a cell")
