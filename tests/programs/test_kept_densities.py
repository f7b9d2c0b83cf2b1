"""While a pair is checked its log-densities are computed once, and what is kept is what would be computed."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.objectives import IWAE
from pyrovae.programs import gate, run_pair
from pyrovae.programs.kept_densities import keep_densities_of, kept_densities


class Counting(dist.Normal):
    asked: list = []  # noqa: RUF012

    def log_prob(self, value):
        self.asked.append(id(value))
        return super().log_prob(value)


@pytest.fixture
def pair():
    Counting.asked.clear()
    slope = torch.tensor(0.3, requires_grad=True)
    x = torch.linspace(-1, 1, 6)

    def model():
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Counting(slope * z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    return model, guide


def test_a_check_asks_for_the_density_of_each_of_its_three_runs_once(pair):
    gate.check(*pair, IWAE(2))
    assert len(Counting.asked) == 3


def test_what_is_kept_has_a_gradient_where_one_is_asked_for_and_is_no_other_pairs(pair):
    with kept_densities(), pyro.validation_enabled(True):
        first = run_pair(*pair, num_particles=2)
        keep_densities_of(first)
        with torch.no_grad():
            assert not first.terms().log_weights.requires_grad
        assert first.terms().log_weights.requires_grad
        with torch.no_grad():
            assert not first.terms().log_weights.requires_grad
        assert len(Counting.asked) == 2  # with and without
        second = run_pair(*pair, num_particles=2)
        assert not torch.equal(first.terms().log_weights, second.terms().log_weights)
        assert torch.equal(first.terms().log_prior, first.total(first.latent))
        keep_densities_of(second)
        first.terms()
        assert len(Counting.asked) == 4


def test_what_was_not_validated_is_not_kept_and_nothing_is_after_the_block(pair):
    with kept_densities():
        found = run_pair(*pair, num_particles=2)
        keep_densities_of(found)
        for count in (1, 2):
            with pyro.validation_enabled(False):
                found.terms()
            assert len(Counting.asked) == count
    with pyro.validation_enabled(True):
        for _ in range(2):
            found.terms()
    assert len(Counting.asked) == 4
