"""The checks of settings, and how a value that is shown in an error is shortened."""

import numpy as np
import pytest
import torch
from helpers import refusal, small_vae

import pyrovae as pv
from pyrovae.common import (
    choose_device,
    first_line,
    is_out_of_memory,
    require_flag,
    require_shape,
    require_size,
    require_sizes,
    shortened,
    shown,
)


class Unshowable:
    def __repr__(self) -> str:
        raise KeyError("no")


@pytest.mark.parametrize(
    "value",
    [
        *("y" * 10_000_000, b"y" * 10_000_000, "a\nb\n" * 10**6, 10**4_000, 10**6_000),
        *(list(range(10**6)), {str(n): "y" * 1_000 for n in range(1_000)}, [[["y" * 10**6] * 50] * 50] * 50),
        *(torch.zeros(30, 30, 30), Unshowable()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_in_one_short_line(value):
    text = shown(value)
    assert 0 < len(text) <= 205
    assert len(text.splitlines()) == 1


def test_a_value_that_is_short_is_shown_as_it_is():
    for value in (3, 0.1, "ring", b"3", None, ["a", 1], {"a": 1}, (1,), 10**30):
        assert shown(value) == repr(value)


def test_of_a_long_line_beginning_and_end_are_kept():
    message = str(pv.InputError(f"data must be {'y' * 10_000_000} and not {'z' * 1_000_000} at row 3"))
    assert message.startswith("data must be yyy")
    assert message.endswith("zzz at row 3")
    assert len(message) <= 505
    assert shortened("a  b\nc", 100) == "a b c"
    assert len(first_line(ValueError("y" * 10_000_000))) <= 305


@pytest.mark.parametrize(
    "value", [b"3", "3", {3}, {3: 4}, iter([3]), memoryview(b"3"), bytearray(b"3"), 3, [True], None]
)
def test_sizes_are_whole_numbers_in_a_list_or_a_tuple(value):
    """A network of `hidden=b"3"` had a layer of 51 units, one of `hidden=""` none."""
    refusal(require_sizes, "hidden", value)


def test_sizes_that_no_memory_holds_are_refused():
    require_size("size", 2**40 - 1)
    assert refusal(require_size, "size", 2**40) == "size must be < 2^40, got 1099511627776"
    require_sizes("sizes", range(3, 5))
    require_shape("shape", (2**20, 2**19))
    assert refusal(require_shape, "shape", (2**20, 2**20)).startswith("shape must be of fewer than 2^40 numbers, got")


def test_a_flag_is_nothing_that_only_counts_as_one():
    for value in (0, 1, "", "no", None, torch.tensor(True)):
        assert refusal(require_flag, "progress", value).startswith("progress must be true or false, got")
    require_flag("progress", None, None)
    require_flag("compile", "auto", "auto")
    assert refusal(require_flag, "compile", "yes", "auto") == "compile must be true, false or auto, got 'yes'"


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.empty(2**62),
        lambda: torch.empty(2**62, 4),
        lambda: torch.empty(2**31, 2**31, 2**31),
        lambda: torch.empty(2**31, 2**31, 2**31, device="meta"),
        lambda: torch.empty(2**45),
        lambda: torch.zeros(1).expand(2**62).clone(),
        lambda: torch.empty(2**64),
        lambda: np.empty((2**31, 2**31, 2**31)),
    ],
)
def test_a_tensor_that_cannot_be_had_is_told_by_what_torch_and_numpy_say(call):
    with pytest.raises((RuntimeError, ValueError, MemoryError, TypeError)) as caught:
        call()
    assert is_out_of_memory(caught.value), caught.value


def test_other_errors_are_not_for_lack_of_memory():
    for call in (lambda: torch.zeros(2) @ torch.zeros(3), lambda: torch.empty(-1), lambda: int("x")):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            call()
        assert not is_out_of_memory(caught.value)


NAMES = (
    *("hpu", "xpu", "ipu", "mtia", "privateuseone", "maia", "ve", "fpga", "xla", "lazy", "vulkan", "mps", "meta"),
    *("opengl", "opencl", "ideep", "hip", "mkldnn", "cuda:99", "cpu:x", "", "abacus", "y" * 10**6),
)


@pytest.mark.parametrize(
    "device", [*NAMES, "cuda:99", "cpu:x", "", "abacus", "y" * 10**6, None, 3, -1, 2**70, True, b"cpu"]
)
def test_a_device_that_torch_does_not_have_here_is_refused_in_one_line(device):
    assert refusal(choose_device, device).startswith("device must be auto or one that torch can use here, got")


@pytest.mark.parametrize(
    ("flag", "value", "meant"),
    [
        ("objective", "iwea", "iwae"),
        ("objective", "dregg(num_particles=4)", "dreg"),
        ("schedule", "cosin", "cosine"),
        ("posterior", "diagnal", "diagonal"),
        ("likelihood", "gausian", "gaussian"),
        ("activation", "RELU", "relu"),
        ("network", "cnv", "conv"),
        ("prior", "vampp", "vamp"),
        ("beta_schedule", "ciclical", "cyclical"),
        ("nonfinite", "skipp", "skip"),
        ("dataset", "mnits", "mnist"),
        ("posterior", "round", None),
        ("objective", "magic", None),
    ],
)
def test_a_word_close_to_a_known_one_is_told_that_one(flag, value, meant):
    said = refusal(pv.RunConfig, **{flag: value})
    assert said.endswith(f": did you mean {meant}?") if meant else "did you mean" not in said


def test_methods_settings_and_fields_are_told_the_close_ones_too():
    vae, x = small_vae(), torch.zeros(2, 2)
    for method, meant in {"iwae50": "iwae_50", "iwea_5": "iwae_5", "ebo": "elbo", "ais_prio_3": "ais_prior_3"}.items():
        assert refusal(pv.evaluate, vae.model, vae.guide, x, methods=(method,)).endswith(f": did you mean {meant}?")
    assert refusal(pv.RunConfig.from_dict, {"hiden": [3]}).endswith(": did you mean hidden?")
    grey = {"dataset": "mnist", "binarize": "none", "likelihood": "bernoulli"}
    assert "did you mean" not in refusal(pv.RunConfig, **grey)  # bernoulli_grey is a cross-entropy
