"""The slope of a curve on log axes."""

import math

import pytest
import scipy.stats

from pyrovae.plots import fitted_slope


def test_the_slope_is_fitted_to_points_above_their_floor_with_the_error_of_the_scatter():
    sizes = [1, 2, 4, 8, 16, 32, 64]
    values = [9.0, 5.0, 3.1, 2.1, 1.6, 0.3, 0.29]
    found = fitted_slope(sizes, values, [0.1] * 7)
    assert found.fitted == (True,) * 5 + (False,) * 2  # 0.3 is three times its floor, and not more
    exact = scipy.stats.linregress([math.log(k) for k in sizes[:5]], [math.log(v) for v in values[:5]])
    assert (found.value, found.error) == pytest.approx((exact.slope, exact.stderr))
    power = fitted_slope(sizes, [3 * k**0.7 for k in sizes], [0.1] * 7)
    assert power.value == pytest.approx(0.7)
    assert power.error == pytest.approx(0, abs=1e-9)
    assert power.fitted == (False, False, *(True,) * 5)  # only large sizes
    assert fitted_slope([64, 1, 4], [0.1, 2.0, 1.0], [0.1] * 3).value == pytest.approx(-0.5)  # in any order
    for values, fitted in (([1.0, 0.1], (True, False)), ([0.1, 0.1], (False, False))):
        nothing = fitted_slope([1, 2], values, [0.1, 0.1])
        assert math.isnan(nothing.value)
        assert math.isnan(nothing.error)
        assert nothing.fitted == fitted
    two = fitted_slope([1, 4], [1.0, 2.0], [0.1, 0.1])
    assert two.value == pytest.approx(0.5)
    assert math.isnan(two.error)
