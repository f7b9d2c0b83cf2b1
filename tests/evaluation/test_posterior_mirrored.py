"""What holds for an answer holds for its mirror image: ends of quantiles, shifts of f, complements, units of f."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, suite_seed

import pyrovae as pv
from pyrovae.evaluation.expectation import expectation_of
from pyrovae.evaluation.quantiles import quantiles_of

STANDARD = dist.Normal(0.0, 1.0)
LEVELS = torch.tensor([0.001, 0.01, 0.2, 0.5, 0.75, 0.95, 0.98, 0.995], dtype=torch.float64)


def weighted(num_draws, num_data, scale, seed=0):
    """Draws of N(0, scale^2) with their weights for N(0, 1), in float64."""
    generator = torch.Generator().manual_seed(suite_seed(seed))
    z = scale * torch.randn(num_draws, num_data, generator=generator, dtype=torch.float64)
    return STANDARD.log_prob(z) - dist.Normal(0.0, scale).log_prob(z), z


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def asked(num_data, num_samples, seed=0):
    torch.manual_seed(suite_seed(seed))
    return pv.posterior(model, exact_guide, torch.zeros(num_data).double(), num_samples=num_samples)


# Quantiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.75, 1.5])
@pytest.mark.parametrize("grid", [None, 0.5], ids=["continuous", "tied"])
def test_the_quantile_of_minus_z_at_one_minus_level_is_the_mirror_image(scale, grid):
    log_w, z = weighted(200, 50, scale)
    z = z if grid is None else (z / grid).round() * grid
    value, *others = quantiles_of(LEVELS, log_w, z)
    mirrored, *of_others = quantiles_of(1 - LEVELS, log_w, -z)
    assert torch.equal(value, -mirrored)
    for one, other in zip(others, of_others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0, equal_nan=True)
    assert others[0].isnan().any()
    assert not others[0].isnan().all()


@pytest.mark.parametrize(
    ("scale", "num_draws", "level"),
    [(1.0, 100, 0.975), (1.0, 1_000, 0.995), (0.85, 1_000, 0.95), (1.5, 500, 0.99), (1.0, 200, 0.5)],
)
def test_errors_of_quantiles_are_calibrated_at_both_ends(scale, num_draws, level):
    """z of 2,000 data; it was 3.2 times too wide at (1, 100, 0.975)."""
    log_w, z = weighted(num_draws, 2_000, scale, seed=1)
    levels = torch.tensor([1 - level, level], dtype=torch.float64)
    value, error, _, _ = quantiles_of(levels, log_w, z)
    assert (error > 0).double().mean() > 0.98
    off = ((value - STANDARD.icdf(levels)[:, None]) / error)[error > 0]
    assert 0.8 < off.std() < 1.35
    assert (off.abs() > 3).double().mean() < 0.04


@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_no_error_is_0_and_none_is_known_beyond_the_draws(scale):
    """Upper quantiles had an error of 0, and were called reliable."""
    log_w, z = weighted(100, 400, scale, seed=2)
    levels = torch.tensor([0.005, 0.01, 0.99, 0.995], dtype=torch.float64)
    assert quantiles_of(levels, log_w, z)[1].isnan().all()
    many = torch.tensor([0.05, 0.9, 0.95, 0.975], dtype=torch.float64)
    assert not (quantiles_of(many, log_w, z)[1] == 0).any()


def test_an_atom_of_the_posterior_has_an_error_of_0():
    log_w, z = weighted(500, 20, 1.2, seed=3)
    value, error, _, _ = quantiles_of(torch.tensor([0.3, 0.8], dtype=torch.float64), log_w, (z > 0).double())
    assert (value == torch.tensor([[0.0], [1.0]])).all()
    assert (error == 0).all()


def test_a_quantile_that_few_draws_lie_beyond_is_not_called_reliable():
    post = asked(20, 100, seed=4)
    few = post.quantile("z", (0.025, 0.975))
    assert not few.standard_error.isnan().any()
    unseen = post.quantile("z", (0.005, 0.995))
    assert unseen.standard_error.isnan().all()
    for found in (few, unseen):
        assert found.verdict.startswith("it cannot be judged: fewer than 5 effective draws lie beyond")
    enough = post.quantile("z", (0.05, 0.5, 0.95))
    assert enough.verdict.startswith("reliable")


# Expectations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.4])
def test_a_shift_or_a_change_of_sign_of_f_leaves_error_and_k(scale):
    """k was that of w |f|, and 3000 - L hid the tail of L."""
    log_w, z = weighted(400, 30, scale, seed=5)
    parts = {"f": lambda s: s["z"].exp(), "shifted": lambda s: s["z"].exp() - 3000, "turned": lambda s: -s["z"].exp()}
    found = {name: expectation_of(f, log_w, {"z": z}) for name, f in parts.items()}
    for name, sign, shift in (("shifted", 1, 3000), ("turned", -1, 0)):
        value, error, ess, k, bias = found["f"]
        others = sign * (found[name][0] + shift), found[name][1], found[name][2], found[name][3], sign * found[name][4]
        for one, other in zip((value, error, ess, k, bias), others, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)


def test_a_tail_below_is_seen_as_one_above():
    """f = exp(0.7 z) of a Gamma(2, 1) whose guide has a rate of 1.5: no variance."""
    generator = torch.Generator().manual_seed(suite_seed(6))
    z = torch.rand(2, 5_000, 40, generator=generator, dtype=torch.float64).log().sum(0) / -1.5
    log_w = dist.Gamma(2.0, 1.0).log_prob(z) - dist.Gamma(2.0, 1.5).log_prob(z)
    for f in (lambda s: 3000 - (0.7 * s["z"]).exp(), lambda s: (0.7 * s["z"]).exp()):
        assert (expectation_of(f, log_w, {"z": z})[3] > 0.7).double().mean() > 0.7


@pytest.mark.parametrize("num_draws", [100, 1_000])
def test_ordinary_functions_under_the_exact_guide_raise_no_alarm(num_draws):
    """A one-sided z^2 too: k of w |f - value| was above the limit at 71% of data."""
    log_w, z = weighted(num_draws, 100, 1.0, seed=7)
    limit = 1 - 1 / math.log10(num_draws)
    for f, most in ((lambda s: s["z"], 0.06), (lambda s: s["z"].square(), 0.2), (lambda s: s["z"] > 0, 0.0)):
        k = expectation_of(f, log_w, {"z": z})[3]
        assert (k > limit).double().mean() <= most


@pytest.mark.parametrize("edge", [0.0, 1.3, 2.0, 2.5, 4.0])
def test_an_event_and_its_complement_have_the_same_error_and_verdict(edge):
    post = asked(12, 100, seed=8)
    event, other = (
        post.expectation(f) for f in (lambda s: s["z"] > edge * 0.5**0.5, lambda s: s["z"] <= edge * 0.5**0.5)
    )
    torch.testing.assert_close(event.value, 1 - other.value)
    for name in ("standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(event, name), getattr(other, name), rtol=1e-9, atol=1e-12, equal_nan=True)
    assert event.verdict == other.verdict
    if edge == 4.0:
        assert event.verdict.startswith("it cannot be judged: f is the same at every draw")


@pytest.mark.parametrize("exponent", [-700.0, -360.0, 0.0, 360.0, 690.0])
def test_the_size_of_f_changes_nothing(exponent):
    """Squares left the range of float64: an error of 0, inf or nan, and "reliable"."""
    log_w, z = weighted(500, 5, 1.3, seed=9)
    f = lambda s, c: (c - 0.5 * (s["z"] - 0.5).square()).exp()  # noqa: E731
    (value, error, ess, k, bias), plain = (
        expectation_of(lambda s, c=c: f(s, c), log_w, {"z": z}) for c in (exponent, 0.0)
    )
    for one, other, of_size in zip((value, error, ess, k, bias), plain, (1, 1, 0, 0, 1), strict=True):
        torch.testing.assert_close(one / math.exp(exponent) if of_size else one, other, rtol=1e-6, atol=1e-12)


def test_an_error_out_of_range_is_not_called_reliable():
    post = asked(3, 100, seed=10)
    found = post.expectation(lambda s: (s["z"] - 0.5).sign() * 1.7e308)
    assert found.standard_error.isinf().all()
    assert found.verdict.startswith("it cannot be judged: f spreads over more than float64 can hold")


def test_a_datum_of_many_values_gives_the_same_in_blocks(monkeypatch):
    """f is then called twice, and its random numbers are the same both times."""
    from pyrovae.evaluation import expectation

    log_w, z = weighted(300, 3, 1.2, seed=11)
    calls = []

    def noisy(site):
        calls.append(torch.randn_like(site["z"]))
        return site["z"] + calls[-1]

    monkeypatch.setattr(expectation, "VALUES_AT_A_TIME", 160)
    torch.manual_seed(suite_seed(12))
    found = expectation_of(noisy, log_w, {"z": z})
    first = calls[1:]  # after the call that finds the shape
    assert [len(call) for call in first] == [160, 140, 160, 140] * 3
    for datum in range(3):
        one = first[4 * datum : 4 * datum + 4]
        assert torch.equal(torch.cat(one[:2]), torch.cat(one[2:]))
        f = z[:, datum] + torch.cat(one[:2])[:, 0]
        share = log_w[:, datum].softmax(0)
        torch.testing.assert_close(found[0][datum], (share * f).sum())
        error = (share.square() * (f - found[0][datum]).square()).sum() * 300 / 299
        torch.testing.assert_close(found[1][datum], error.sqrt())
    assert "f must be finite" in refusal(lambda: expectation_of(lambda s: s["z"] / 0, log_w, {"z": z}))
