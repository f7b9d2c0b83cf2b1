"""Generalised Pareto distributions of many data at once are those that Pyro fits to one after another."""

import pyro
import pytest
import torch
from helpers import suite_seed

from pyrovae.evaluation import pareto_fits


@pytest.mark.parametrize("count", [5, 13, 43, 213])
def test_a_fit_of_many_columns_is_pyros_of_each(count, monkeypatch):
    """In parts of a few columns. With long tails some candidates have no weight to speak of, and are left out."""
    monkeypatch.setattr(pareto_fits, "NUMBERS_AT_ONCE", 7 * 44 * 213)
    torch.manual_seed(suite_seed())
    uniform = torch.rand(count, 30, dtype=torch.float64)
    k = torch.linspace(-0.9, 1.5, 30, dtype=torch.float64)
    exceedances = 0.01 * torch.expm1(-k * torch.log1p(-uniform)) / k
    found = torch.stack(pareto_fits.pareto_fits(exceedances), 1)
    expected = [pyro.ops.stats.fit_generalized_pareto(column) for column in exceedances.T]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)
    if count == 213:  # k is known to 0.15 or so
        assert (found[:, 0] - k).abs().max() < 1
