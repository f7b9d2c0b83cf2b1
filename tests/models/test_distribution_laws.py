"""Laws that each of our distributions obeys: moments of draws, broadcasting, expansion, support."""

import math
from functools import partial

import pytest
import torch
from helpers import (
    GREY_LEVELS,
    assert_within_standard_errors,
    unit_quadrature,
)

from pyrovae.models.code_distributions import (
    LogitRelaxedBernoulli,
)
from pyrovae.models.gaussian_distributions import IsotropicNormal
from pyrovae.models.pixel_distributions import CategoricalLevels, ContinuousBernoulli, DiscretizedLogistic


def families(shape: tuple[int, ...], dtype=torch.float64) -> dict[str, tuple]:
    """Maps a name to a constructor, parameters of batch shape `shape`, and a value of that shape."""
    parameter = torch.randn(shape, dtype=dtype)
    level = (255 * torch.rand(shape)).round().to(dtype) / 255
    return {
        "IsotropicNormal": (IsotropicNormal, (parameter, torch.tensor(-0.7, dtype=dtype)), torch.randn_like(parameter)),
        "LogitRelaxedBernoulli": (
            partial(LogitRelaxedBernoulli, temperature=0.7),
            (parameter,),
            2 * parameter,
        ),
        "ContinuousBernoulli": (ContinuousBernoulli, (5 * parameter,), torch.rand_like(parameter)),
        "DiscretizedLogistic": (DiscretizedLogistic, (parameter, torch.tensor(-1.5, dtype=dtype)), level),
        "CategoricalLevels": (CategoricalLevels, (torch.randn(*shape, 256, dtype=dtype),), level),
    }


NAMES = tuple(families(()))


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_and_the_variance_of_the_density(name):
    make, parameters, _ = families((6,))[name]
    family, num = make(*parameters), 20_000
    draws = family.sample((num,))
    if name == "IsotropicNormal":
        mean, variance = parameters[0], torch.full((6,), math.exp(-1.4), dtype=torch.float64)
    elif name == "LogitRelaxedBernoulli":
        mean, variance = family.mean, family.variance
    else:
        sums = GREY_LEVELS, torch.ones_like(GREY_LEVELS)
        points, weights = unit_quadrature() if name == "ContinuousBernoulli" else sums
        mass = family.log_prob(points[:, None]).exp() * weights[:, None]
        mean, variance = points @ mass, points.square() @ mass - (points @ mass).square()
    assert_within_standard_errors(draws.mean(0), mean, draws.std(0) / math.sqrt(num))
    squares = (draws - mean).square()
    assert_within_standard_errors(squares.mean(0), variance, squares.std(0) / math.sqrt(num))


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_broadcasts_leading_particle_dimensions_of_parameters_and_values(name):
    make, (first, *rest), _ = families((5, 2, 3))[name]
    value = families((2, 3))[name][2]
    together = make(first, *rest).to_event(1)
    assert together.batch_shape == (5, 2)
    alone = torch.stack([make(particle, *rest).to_event(1).log_prob(value) for particle in first])
    torch.testing.assert_close(together.log_prob(value), alone, rtol=1e-12, atol=1e-12)
    values = families((5, 2, 3))[name][2]
    one = make(first[0], *rest).to_event(2)
    expected = torch.stack([one.log_prob(v) for v in values])
    torch.testing.assert_close(one.log_prob(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_expanded_family_is_the_same_family_in_every_place(name):
    make, parameters, value = families((2, 3))[name]
    family = make(*parameters)
    for wide in (family.expand((4, 2, 3)).to_event(1), family.to_event(1).expand(torch.Size((4, 2)))):
        assert wide.batch_shape == (4, 2)
        assert wide.event_shape == (3,)
        expected = family.log_prob(value).sum(-1).expand(4, 2)
        torch.testing.assert_close(wide.log_prob(value.expand(4, 2, 3)), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wide.mean, family.mean.expand(4, 2, 3), rtol=1e-12, atol=1e-12)
        draws = wide.sample((7,))
        assert draws.shape == (7, 4, 2, 3)
        assert (draws[:, 0] != draws[:, 1]).any()
        assert draws.dtype == torch.float64


OUTSIDE = {
    "ContinuousBernoulli": (-0.01, 1.01, math.nan),
    "DiscretizedLogistic": (-1 / 255, 256 / 255, 0.5, 0.5 / 255, math.nan),
    "CategoricalLevels": (-1 / 255, 256 / 255, 0.5, 0.5 / 255, math.nan),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_a_value_outside_the_support_has_no_log_prob(name, value):
    make, parameters, inside = families((3,))[name]
    family = make(*parameters)
    assert family.support.check(inside).all()
    x = inside.clone()
    x[1] = value
    assert family.support.check(x).tolist() == [True, False, True]
    for one in (family, family.to_event(1), family.expand((2, 3))):
        with pytest.raises(ValueError, match="support"):
            one.log_prob(x)
