"""Tests of what the other tests rest on: an error in standard errors, with a floor for rounding and no more."""

import math
import os

import forked
import pytest
import torch
from helpers import ROUNDING, assert_within_standard_errors, rounding

LOG_TEN = math.log(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_saturated_value_is_right_when_it_differs_in_its_last_bits_and_wrong_beyond(dtype):
    """As the mutual information of ten data far apart: its error is 3e-10 and the value one unit from log 10."""
    truth, error, eps = torch.tensor(LOG_TEN, dtype=torch.float64), torch.tensor(3e-10), torch.finfo(dtype).eps
    error = error.to(dtype) * (1 if dtype == torch.float32 else 1e-10)
    near, far = (torch.tensor(LOG_TEN * (1 + units * eps), dtype=dtype) for units in (ROUNDING / 4, 2 * ROUNDING))
    assert_within_standard_errors(near, truth, error)
    with pytest.raises(AssertionError, match="for rounding"):
        assert_within_standard_errors(far, truth, error)


def test_the_floor_is_that_of_the_estimate_as_it_was_computed():
    assert rounding(torch.ones(2)) == pytest.approx(32 * 2**-23)
    assert rounding(torch.ones(2).double()) == pytest.approx(32 * 2**-52)
    assert rounding(1.0) == rounding(torch.ones((), dtype=torch.float64))
    assert rounding(1.0, dtype=torch.float32) == rounding(torch.ones(()))
    assert rounding(torch.tensor([0.0, 500.0])).tolist() == pytest.approx([32 * 2**-23, 500 * 32 * 2**-23])
    with pytest.raises(AssertionError):
        assert_within_standard_errors(1.0 + 1e-6, 1.0, 0.0)
    assert_within_standard_errors(1.0 + 1e-6, 1.0, 0.0, dtype=torch.float32)
    assert_within_standard_errors(1.0 + 1e-6, torch.ones(()), 0.0)


def test_a_claim_fails_beyond_its_standard_errors_and_at_nan_and_names_the_worst():
    error = torch.full((3,), 0.1)
    assert_within_standard_errors(torch.tensor([1.0, 2.4, 3.0]), torch.tensor([1.0, 2.0, 3.0]), error)
    with pytest.raises(AssertionError, match=r"estimate 2\.6, truth 2, standard error 0\.1: 6\.0 .* apart.* model 7"):
        assert_within_standard_errors(torch.tensor([1.0, 2.6, 3.0]), torch.tensor([1.0, 2, 3.0]), error, note="model 7")
    for bad in (math.nan, math.inf):
        with pytest.raises(AssertionError):
            assert_within_standard_errors(torch.tensor([1.0, bad, 3.0]), torch.ones(()), error)
    with pytest.raises(AssertionError):
        assert_within_standard_errors(1.0, 1.0, math.nan)


def test_a_fork_that_hangs_ends_and_says_where(tmp_path, monkeypatch):
    """It did wait for good, and the whole suite with it, for a lock that another fork had when it was killed."""
    monkeypatch.setattr(forked, "LONGEST", 0.1)
    reads, writes = os.pipe()  # to which nobody writes
    status, _, said = forked.called(lambda: os.read(reads, 1), (), tmp_path)
    os.close(reads), os.close(writes)
    assert status == 1
    assert "os.read(reads, 1)" in said
    assert said.endswith("TimeoutError: the program did not end in 0.1 seconds\n")
