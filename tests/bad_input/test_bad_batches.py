"""Data and labels, given as tensors, that are refused by every function that takes a batch."""

import math
import re

import numpy as np
import pytest
import torch
from helpers import small_vae
from refusals import Table, check_refusal, fit

import pyrovae as pv

CASES = Table()
add = CASES.add

# Every function that takes a batch `x, *y`.
ON_BATCHES = {
    "fit": lambda vae, *batch: fit(vae, [batch]),
    "log_marginal": lambda vae, *batch: pv.log_marginal(vae.model, vae.guide, *batch, num_samples=5),
    "evaluate": lambda vae, *batch: pv.evaluate(vae.model, vae.guide, *batch, methods=["elbo"]),
}


def add_batch(name: str, batch: tuple, said: str, uses=tuple(ON_BATCHES), **vae) -> None:
    for use in uses:

        def call(use=use):
            ON_BATCHES[use](small_vae(**{"event_shape": (3,), **vae}), *batch)

        add(f"{name}, {use}", said, call)


def pixel(value: float) -> torch.Tensor:
    x = torch.zeros(4, 1, 2, 2)
    x[1, 0, 1, 0] = value
    return x


ESTIMATES = ("log_marginal", "evaluate")
add_batch("x: complex64", (torch.zeros(4, 3).cfloat(),), "x must be a floating-point tensor, got torch.complex64")
# Whole numbers and float64 are converted; these are not, as float32 would lose what they say.
large = torch.full((4, 3), 2**24 + 1)
lost = r"x must be of torch.float32, got torch.{}, whose {} at index \(0, 0\) would lose digits in it"
add_batch("x: int64", (large,), lost.format("int64", 2**24 + 1))
add_batch("x: ndarray of int64", (large.numpy(),), lost.format("int64", 2**24 + 1))
seconds = 1.7e9 + 1 + torch.arange(36.0, dtype=torch.float64).reshape(12, 3)
add_batch("x: float64", (seconds,), lost.format("float64", "1700000001.0"))
for array in (np.array([["a", "b", "c"]]), np.array([[None, 1, 2]])):
    add_batch(f"x: ndarray of {array.dtype}", (array,), f"x must be an array of numbers, got one of {array.dtype}; .+")
for shape in ((3,), (4, 1, 3), (4, 2)):
    said = rf"x must have shape \(batch, 3\), got {re.escape(str(shape))}"
    add_batch(f"x: shape {shape}", (torch.zeros(shape),), said)
for value in (math.nan, math.inf, -math.inf):
    x = torch.zeros(4, 3)
    x[2, 1] = value
    add_batch(f"x: {value}", (x,), rf"x must be finite, got {value} at index \(2, 1\)(; if .*)?")
add_batch(
    "x: empty", (torch.zeros(0, 3),), r"x must (be a tensor of|hold) at least one datum, got (0|a Tensor of shape .*)"
)
add_batch("x: no dimension", (torch.zeros(()),), r"x must .*, got .+")
add_batch("x: sparse", (torch.zeros(4, 3).to_sparse(),), "x must be .*sparse.*")
for value in ([[0.0] * 3], None, "images"):
    name = type(value).__name__
    add_batch(f"x: {name}", (value,), "x must be a (floating-point )?tensor.*, got .+")
at = r"at index \(1, 0, 1, 0\).*"
for likelihood, value, rule in (
    (pv.Bernoulli(), 0.5, "be 0 or 1 under Bernoulli"),
    (pv.Bernoulli(allow_grey=True), 1.5, r"lie in \[0, 1\]"),
    (pv.ContinuousBernoulli(), -0.1, r"lie in \[0, 1\]"),
    (pv.Categorical(), 0.3, "be one of the 256 grey levels k / 255"),
    (pv.DiscretizedLogistic(0.3), 2, "be one of the 256 grey levels k / 255"),
):
    more = {"event_shape": (1, 2, 2), "likelihood": likelihood}
    name = f"x: {value} under {likelihood}".split("(")[0]
    add_batch(name, (pixel(value),), f"x must {rule}, got {value} {at}", ["fit"], **more)
    outside = rf'(log p\(x\) does not|the pair does not run).+site "x".+ {value}[\d.]* {at}'
    add_batch(name, (pixel(value),), outside, ESTIMATES, **more)

X, Y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
labels = {"condition": pv.OneHot(3)}
# `fit` accepts more labels than conditions: loaders of unconditional models yield them, too.
add_batch("label: too many", (X, Y, Y), "y must hold 1 condition, got 2", ESTIMATES, **labels)
add_batch("label: missing", (X,), r"y must hold 1 condition, got 0: give y, as in \(x, y\)", **labels)
for name, y, said in (
    ("too large", torch.tensor([0, 1, 2, 0, 3]), "y must lie in 0 ... 2, got 3 at index 4"),
    ("negative", torch.tensor([0, -1, 2, 0, 7]), "y must lie in 0 ... 2, got -1 at index 1"),
    ("half", torch.full((5,), 0.5), "y must be a tensor of integer labels, got torch.float32"),
    ("complex", Y.cfloat(), "y must be a tensor of integer labels, got torch.complex64"),
    ("column", Y[:, None], "y must have shape (5,), a label per datum, got (5, 1)"),
    ("one-hot", torch.zeros(5, 3, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 3)"),
):
    add_batch(f"label: {name}", (X, y), re.escape(said), **labels)
for num in (4, 1, 0):
    either = (
        rf"y must have shape \(5,\), a label per datum, got \({num},\)",
        rf".+ must have one length, got \[5, {num}\]",
    )
    add_batch(f"label: {num} for 5", (X, Y[:num]), "|".join(either), **labels)
scalar = r"y must have shape \(5,\), a label per datum, got \(\)|y must have a dimension of data, got shape \(\)"
add_batch("label: no dimension", (X, Y[0]), scalar, **labels)
for value in ([0] * 5, None):
    said = f"y must be a tensor( of integer labels)?, got {type(value).__name__}"
    add_batch(f"label: {type(value).__name__}", (X, value), said, **labels)
values = {"condition": pv.Embedding()}
add_batch("value: nan", (X, X[:, :1] + math.nan), r"y must be finite, got nan at .*", **values)
add_batch("value: flat", (X, X[:, 0]), r"y must have shape \(5, 1\), a value per datum, got \(5,\)", **values)
add_batch("value: complex", (X, X[:, :1].cfloat()), "y must be a floating-point tensor, got torch.complex64", **values)
large = torch.full((5, 1), 2**24 + 1)
add_batch("value: large", (X, large), lost.replace("x must", "y must").format("int64", 2**24 + 1), **values)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
