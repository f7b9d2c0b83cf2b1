"""Splits the rows of a data set into those for training, validation and testing: by chance, or as a column says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import InputError, derived_seed, require, require_number, shown
from pyrovae.data.columns import Cells, Place, as_text
from pyrovae.data.dataset import SPLITS

USUAL_SHARES = (0.8, 0.1, 0.1)
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    **dict.fromkeys(("val", "valid", "dev"), "validation"),
    "testing": "test",
}

Rows = dict[str, np.ndarray]  # the indices of the rows of each split, in the order of the file


def split_fields(x: Tensor, y: Tensor | None, rows: Mapping[str, np.ndarray | slice]) -> dict[str, Any]:
    """Returns the fields of a `Dataset` that hold x and y of each split; `rows` are those of each."""
    found: dict[str, Any] = {}
    for split, index in rows.items():
        at = index if isinstance(index, slice) else torch.from_numpy(index)
        found |= {f"{split}_x": x[at], f"{split}_y": () if y is None else y[at]}
    return found


def split_by_shares(num_rows: int, shares: Sequence[float] | None, seed: int, source: str) -> Rows:
    """Returns a random split, which the seed fixes; each share above 0 gets at least one row.

    Args:
        num_rows: The number of rows.
        shares: The shares of training, validation and test data, which need not add up to 1. None is 0.8, 0.1, 0.1.
        seed: The seed.
        source: Names the data in errors.

    Raises:
        InputError: If the shares are bad, or the rows are too few.
    """
    validation, test = _sizes(num_rows, USUAL_SHARES if shares is None else shares, source)
    order = np.random.default_rng(derived_seed(seed, "split")).permutation(num_rows)
    parts = np.split(order, [num_rows - validation - test, num_rows - test])
    return {split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)}


def split_in_order(num_rows: int, shares: Sequence[float] | None, source: str) -> dict[str, slice]:
    """Returns the split into blocks, which copies nothing: training data first, and test data last."""
    validation, test = _sizes(num_rows, USUAL_SHARES if shares is None else shares, source)
    first, second = num_rows - validation - test, num_rows - test
    return {"train": slice(0, first), "validation": slice(first, second), "test": slice(second, num_rows)}


def split_by_column(cells: Cells, place: Place) -> Rows:
    """Returns the split that the cells of a column name: train, validation (or val, valid, dev) and test.

    Raises:
        InputError: If a cell says something else, or none says train.
    """
    texts = [as_text(cell) for cell in cells] if isinstance(cells, np.ndarray) else cells
    known = {text: SPLIT_NAMES.get(text.strip().lower()) for text in set(texts)}
    for index, text in enumerate(texts):
        if known[text] is None:
            raise InputError(f"{place(index)}: must be train, validation or test, got {text[:50]!r}")
    named = np.array([known[text] for text in texts])
    require(bool((named == "train").any()), f"{place(None)}: must say train for at least one row")
    return {split: np.flatnonzero(named == split) for split in SPLITS}


def _sizes(num_rows: int, shares: Sequence[float], source: str) -> tuple[int, int]:
    """Returns the numbers of rows for validation and for testing."""
    rule = "shares must be three numbers, of training, validation and test data"
    require(len(shares) == 3, f"{rule}; got {shown(shares)}")
    for share in shares:
        require_number("shares", share)
        require(share >= 0, f"shares must be 0 or more, got {share}")
    require(shares[0] > 0, f"shares must leave something to train on, got {tuple(shares)}")
    validation, test = (max(1, round(num_rows * s / sum(shares))) if s > 0 else 0 for s in shares[1:])
    count = "1 row" if num_rows == 1 else f"{num_rows} rows"
    require(
        num_rows > validation + test,
        f"{source} has {count}, too few for shares {', '.join(f'{share:g}' for share in shares)}; shares=(1, 0, 0) "
        "takes all rows for training",
    )
    return validation, test
