"""Binary pixels have the probabilities that the grey levels give."""

import torch
from helpers import assert_within_standard_errors, mean_and_error, suite_seed

from pyrovae.data.pixels import binarize_grey


def test_binarize_grey_gives_one_with_probability_grey_over_255():
    """At level 254 a denominator of 256 would be nine standard errors off."""
    num = 20_000
    grey = torch.arange(256, dtype=torch.uint8).expand(num, 256)
    draws = binarize_grey(grey)
    assert draws.dtype == torch.float32
    assert ((draws == 0) | (draws == 1)).all()
    share, p = draws.double().mean(0), torch.arange(256, dtype=torch.float64) / 255
    assert share[0] == 0
    assert share[255] == 1
    inner = slice(1, 255)
    assert_within_standard_errors(share[inner], p[inner], (p * (1 - p) / num).sqrt()[inner])


def test_binarize_grey_draws_pixels_independently():
    grey = torch.full((40_000, 2), 100, dtype=torch.uint8)
    noise = binarize_grey(grey).double() - 100 / 255
    estimate, error = mean_and_error(noise.prod(-1))
    assert_within_standard_errors(estimate, 0.0, error)
    estimate, error = mean_and_error((noise[1:] * noise[:-1]).flatten())
    assert_within_standard_errors(estimate, 0.0, error)


def test_binarize_grey_draws_from_the_generator_it_is_given():
    grey, before = torch.full((100,), 128, dtype=torch.uint8), torch.get_rng_state()
    first, again, other = (binarize_grey(grey, torch.Generator().manual_seed(suite_seed(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert (grey == 128).all()
