"""Tables of known columns: cells that are filled in keep what varies, and cells that were there stay as they were."""

import math

import numpy as np
import pytest

from pyrovae.data import Column, cell_text


@pytest.mark.parametrize("mean", [101_325.0, -40.0, 1e9, 0.0])
@pytest.mark.parametrize("sd", [0.4, 3e-4, 250.0])
def test_what_varies_in_a_column_is_written_however_large_its_mean(mean, sd):
    """A pressure of 101325 +- 0.4 was 101325 in every draw."""
    z = np.random.default_rng(0).normal(size=50)
    standardised, raw = Column("a", "continuous", mean=mean, sd=sd), Column("a", "continuous")
    for column, x, spread in ((standardised, z, 1.0), (raw, z * sd + mean, sd)):
        found = [float(cell_text(column, value, spread)) for value in x]
        assert np.abs(np.array(found) - (z * sd + mean)).max() <= 1e-5 * sd
    unknown = {cell_text(Column("a", "positive"), value) for value in 101_325 + 0.4 * z}
    assert len(unknown) == 50, "nor where one draw alone is made, whose spread is unknown"


def test_a_cell_has_no_more_digits_than_are_known():
    texts = [cell_text(Column("a", "continuous", mean=m, sd=300.0), 1 / 3, 1.0) for m in (0.0, 2_000.0, 3e6)]
    assert texts == ["100", "2100", "3000100"]
    assert cell_text(Column("a", "continuous"), 2 / 3, 0.5) == "0.666667"
    assert cell_text(Column("a", "unit"), 1.0, 0.1) == repr(1 - 1e-7)
    assert cell_text(Column("a", "continuous"), 12.5, math.nan) == "12.5"
