"""Information of latents about factors: exact on discrete codes, its errors, its floor by chance, the gap."""

import math

import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, refusal, small_vae, suite_seed
from torch.distributions import Normal

import pyrovae as pv

LOG2 = math.log(2)


class Coded(torch.nn.Module):
    """An encoder whose means are given with the data, `(num, L)`, at one standard deviation."""

    def __init__(self, std):
        super().__init__()
        self.log_variance = torch.nn.Parameter(torch.tensor(2 * math.log(std)))

    def forward(self, x):
        return torch.stack((x, self.log_variance.expand(x.shape)), 1)


def coded(latent_dim, std=1e-3):
    decoder = torch.nn.Linear(latent_dim, latent_dim)
    settings = {"encoder": Coded(std), "decoder": decoder, "likelihood": pv.Gaussian(1.0)}
    return pv.VAE((latent_dim,), latent_dim=latent_dim, **settings)


def information(codes, *factors, std=1e-3, num_draws=2):
    codes = torch.as_tensor(codes, dtype=torch.float32)
    return pv.factor_information(coded(codes.shape[1], std), codes, factors=factors, num_draws=num_draws)


def plug_in(code, factor):
    """I of two columns of whole numbers, by their table of counts."""
    joint = torch.zeros(int(code.max()) + 1, int(factor.max()) + 1, dtype=torch.float64)
    for a, b in zip(code.tolist(), factor.tolist(), strict=True):
        joint[int(a), int(b)] += 1 / len(code)
    product = joint.sum(1, keepdim=True) * joint.sum(0)
    return torch.xlogy(joint, joint / product.where(product > 0, 1)).sum().item()


def test_a_latent_for_each_factor_has_all_of_it_and_the_gap_is_1():
    factors = torch.cartesian_prod(torch.arange(3), torch.arange(4)).repeat(5, 1)
    found = information(factors.float(), *factors.unbind(1))
    expected = torch.diag(torch.tensor([math.log(3), math.log(4)], dtype=torch.float64))
    torch.testing.assert_close(found.information, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.entropy, expected.diagonal())
    torch.testing.assert_close(found.gaps, torch.ones(2, dtype=torch.float64))
    assert found.mig == pytest.approx(1)


def test_latents_that_are_independent_of_the_factors_have_no_information_exactly():
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(2))
    found = information(grid[:, 1:].float(), grid[:, 0])
    assert found.information.abs().max() < 1e-12
    assert found.mig == pytest.approx(0, abs=1e-12)


def test_a_noisy_code_has_the_information_of_its_channel_and_the_gap_worked_by_hand():
    """z_1 is the bit v in 3 of 4 data, z_2 in 5 of 8: I = log 2 - H(3/4), and the gap is their difference by log 2."""
    v = torch.arange(2).repeat_interleave(8)
    flips = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 1]]).repeat(1, 2)
    codes = (v ^ flips).T
    found = information(codes, v)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (3 / 4, 5 / 8)]
    truth = [LOG2 - h for h in entropy]
    assert found.information.flatten().tolist() == pytest.approx(truth, abs=1e-9)
    assert truth == pytest.approx([0.1308, 0.0316], abs=1e-4)
    assert found.mig == pytest.approx((truth[0] - truth[1]) / LOG2, abs=1e-9)


def test_of_discrete_codes_it_is_that_of_the_table_of_counts():
    generator = torch.Generator().manual_seed(suite_seed())
    codes = torch.randint(0, 5, (60, 3), generator=generator)
    factors = torch.stack((codes[:, 0] // 2, (codes[:, 1] + codes[:, 2]) % 3, codes[:, 2]), 1)
    found = information(codes.float(), *factors.unbind(1))
    for j in range(3):
        for k in range(3):
            assert found.information[j, k].item() == pytest.approx(plug_in(codes[:, j], factors[:, k]), abs=1e-9)
    assert found.standard_error.max() < 1e-9


def test_one_latent_for_two_factors_and_two_latents_for_one_have_gaps_of_their_own():
    """The gap asks that a factor be in one latent, and lets a latent hold several factors."""
    factors = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    both = (2 * factors[:, 0] + factors[:, 1]).float()
    torch.testing.assert_close(information(both[:, None], *factors.unbind(1)).gaps, torch.ones(2, dtype=torch.float64))
    twice = information(factors[:, [0, 0]].float(), factors[:, 0])
    assert twice.mig == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("std", [0.4, 1.0])
def test_of_overlapping_posteriors_it_is_that_of_quadrature(std):
    v = torch.tensor([0, 0, 0, 1, 1, 2])
    loc = torch.tensor([-1.0, -0.4, 0.3, 0.2, 1.1, 2.0], dtype=torch.float64)
    found = information(loc[:, None].float(), v, std=std, num_draws=4_000)
    z = torch.linspace(-8, 9, 4_001, dtype=torch.float64)
    density = Normal(loc, std).log_prob(z[:, None]).exp()
    whole, truth = density.mean(1), 0.0
    for value in range(3):
        given = density[:, v == value].mean(1)
        truth += (v == value).double().mean() * torch.trapezoid(torch.xlogy(given, given / whole), z)
    truth = torch.as_tensor(truth)
    assert_within_standard_errors(found.information[0, 0], truth, found.standard_error[0, 0])
    assert found.standard_error.item() < 0.02


def test_its_standard_error_is_that_of_repetitions():
    vae, x, v = coded(1, 0.7), torch.randn(40, 1), torch.arange(40) % 3
    found = [pv.factor_information(vae, x, factors=[v], num_draws=5) for _ in range(150)]
    means = torch.stack([one.information[0, 0] for one in found])
    errors = torch.stack([one.standard_error[0, 0] for one in found])
    assert 0.75 < means.std() / errors.square().mean().sqrt() < 1.3
    assert errors.std() < 0.15 * errors.mean()  # that of five means, one of each draw of all data, varied by a third


def test_posteriors_too_narrow_for_the_data_show_in_what_is_found_by_chance():
    """Of codes that are noise, narrow posteriors make as much as H(v); the floor has it, and wide ones have none."""
    x, v = torch.randn(300, 2), torch.arange(300) % 10
    narrow, wide = (information(x, v, std=std) for std in (1e-5, 0.5))
    assert narrow.information.min() > 0.9 * narrow.entropy.item()
    assert narrow.by_chance.min() > 0.9 * narrow.entropy.item()
    assert wide.by_chance.max() < 0.1 * wide.entropy.item()


def test_each_datum_goes_with_its_own_factors_and_conditions():
    vae = small_vae((3,), condition=pv.OneHot(4))
    x, y = torch.randn(50, 3), torch.arange(50) % 4
    torch.manual_seed(suite_seed())
    found = pv.factor_information(vae, x, y, factors=[y], num_draws=500)
    with torch.no_grad():
        q = vae.encode(x, y).base_dist
        z = q.sample((500,))
        log_q = Normal(q.loc, q.scale).log_prob(z.unsqueeze(2))  # draws, own datum, datum of the density, dimension
        same = torch.where((y[:, None] == y)[..., None], log_q, -math.inf)
        counts = y.bincount()[y].log()[:, None]
        mean, error = mean_and_error((same.logsumexp(2) - counts - log_q.logsumexp(2) + math.log(50)).mean(1))
    both = (error**2 + found.standard_error[:, 0] ** 2).sqrt()
    assert_within_standard_errors(found.information[:, 0].float(), mean, both.float())


def test_factors_may_be_any_whole_numbers_and_need_not_be_counted_from_0():
    codes = torch.arange(12)[:, None] % 3
    v = torch.tensor([-5, 7, 1000])[codes[:, 0]]
    assert information(codes, v).mig == pytest.approx(1)
    assert information(codes, codes[:, 0] > 0).mig == pytest.approx(1)


def test_it_prints_the_table_that_it_holds():
    factors = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(3, 1)
    lines = repr(information(factors.float(), *factors.unbind(1))).splitlines()
    assert lines[0].split() == ["nats", "factor", "1", "factor", "2"]
    assert lines[1].split() == ["z_1", "0.693", "0.000"]
    assert lines[-2].split() == ["gap", "1.000", "1.000"]
    assert lines[-1] == "mutual information gap 1.000"


def test_bad_factors_are_refused_in_one_line():
    vae, x = coded(2), torch.zeros(4, 2)
    rule = "factors must be tensors of whole numbers, (4,) as there are data, got "
    assert refusal(pv.factor_information, vae, x, factors=[torch.zeros(4)]) == rule + "torch.float32 (4,)"
    assert refusal(pv.factor_information, vae, x, factors=[torch.arange(3)]) == rule + "torch.int64 (3,)"
    two = [torch.arange(4), torch.full((4,), 7)]
    told = "each factor must take at least two values, and factor 2 takes one: 7"
    assert refusal(pv.factor_information, vae, x, factors=two) == told
    flow = small_vae(posterior="flow")
    assert "needs posterior diagonal" in refusal(pv.factor_information, flow, x, factors=[torch.arange(4)])
    assert "factors must hold" in refusal(pv.factor_information, vae, x, factors=[])
