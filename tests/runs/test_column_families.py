"""The likelihood of a table, with the family of each column's kind."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.data.columns import KINDS
from pyrovae.runs.column_families import FAMILIES, columns_likelihood

COLUMNS = [
    pv.Column("a", "continuous"),
    pv.Column("b", "continuous"),
    pv.Column("c", "positive"),
    pv.Column("d", "unit"),
    pv.Column("e", "count"),
    pv.Column("f", "count"),
    pv.Column("g", "binary", categories=("no", "yes")),
    pv.Column("h", "category", categories=("x", "y", "z")),
    pv.Column("i", "category", categories=("v", "w", "x", "y", "z")),
]


def test_every_kind_has_a_family():
    assert set(FAMILIES) == set(KINDS)


def test_real_columns_have_scales_of_their_own_and_neighbours_without_parameters_are_one_block():
    likelihood = columns_likelihood(COLUMNS, 0.5)
    assert likelihood.names == tuple("abcdefghi")
    assert likelihood.sizes == (1, 1, 1, 1, 2, 1, 1, 1)
    scales = [value.exp().item() for name, value in likelihood.named_parameters() if name.endswith("log_scale")]
    assert scales == pytest.approx([0.5] * 3)


def test_the_density_of_a_row_is_the_product_of_its_columns():
    x = torch.tensor([[0.3, -1.0, 2.0, 0.4, 3.0, 0.0, 1.0, 2.0, 4.0]])
    likelihood = columns_likelihood(COLUMNS, 0.5)
    outputs = torch.zeros(1, *likelihood.output_shape((9,)))
    found = likelihood(outputs, event_dim=1).log_prob(x)
    normal = torch.distributions.Normal(0.0, 0.5)
    by_hand = normal.log_prob(torch.tensor([0.3, -1.0])).sum() + normal.log_prob(torch.tensor(2.0).log()) - math.log(2)
    counts = pv.NegativeBinomial()(torch.zeros(2, 2), event_dim=1).log_prob(torch.tensor([3.0, 0.0]))
    share = pv.Beta()(torch.zeros(pv.Beta().output_shape((1,))), event_dim=1).log_prob(torch.tensor([0.4]))
    by_hand += counts + share + math.log(1 / 2) + math.log(1 / 3) + math.log(1 / 5)
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_without_columns_it_is_refused_in_one_line():
    with pytest.raises(pv.InputError, match="likelihood columns needs a table, whose columns have names and kinds"):
        columns_likelihood([], 0.5)
