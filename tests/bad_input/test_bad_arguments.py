"""Arguments besides the data that fit, log_marginal and evaluate refuse."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from helpers import small_vae
from refusals import A_COUNT, Table, check_refusal, fit

import pyrovae as pv

CASES = Table()
add = CASES.add

GOOD_X = torch.zeros(4, 2)
for name, change, said in (
    (
        "one-time",
        {"data": iter([GOOD_X])},
        "data must be iterable again at .*, got a one-time iterator: say steps_per_.*",
    ),
    ("steps_per_epoch", {"steps_per_epoch": 0}, "steps_per_epoch must be a whole number >= 1, got 0"),
    ("no batch", {"data": []}, "data must yield at least one batch, got none"),
    ("no data", {"data": 3}, "data must be a Dataset, a tensor or an iterable of batches, got int"),
    ("a tensor", {"data": torch.zeros(4, 3)}, r"x must have shape \(batch, 2\), got \(4, 3\)"),
    (
        "a list of lists",
        {"data": [[0.4856, 1.0, 2.0]] * 4},
        r"x must be a tensor of at least one datum, got the float 0\.4856; a list is read as batches; .+",
    ),
    ("an empty tensor", {"data": GOOD_X[:0]}, "x must be a tensor of at least one datum, got a Tensor of shape .*"),
    ("nan", {"data": GOOD_X + math.nan}, r"x must be finite, got nan at index \(0, 0\); if it is a missing cell, .*"),
    ("validation", {"validation": GOOD_X + math.inf}, r"x must be finite, got inf at index \(0, 0\)"),
    ("validation 3", {"validation": 3}, "validation must be a Dataset, a tensor or an iterable of .*, got int"),
    ("epochs", {"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
    ("batch_size", {"batch_size": -3}, "batch_size must be a whole number >= 1, got -3"),
    ("lr", {"lr": 0.0}, "lr must be a finite number > 0, got 0.0"),
    ("max_grad_norm", {"max_grad_norm": -1}, "max_grad_norm must be a finite number > 0, got -1"),
    ("patience", {"patience": 2}, "patience needs validation data, got none"),
    ("schedule", {"schedule": "linear"}, "schedule must be one of constant, cosine; got 'linear'"),
    ("objective", {"objective": "evidence"}, "objective must be one of .+; got 'evidence'"),
    ("compile", {"compile": "yes"}, "compile must be true, false or auto, got 'yes'"),
    ("device", {"device": "abacus"}, "device must be auto or one that torch can use here, got 'abacus'"),
    ("device None", {"device": None}, "device must be auto or one that torch can use here, got None"),
    ("optimizer", {"optimizer": "adam"}, "optimizer must be .*, got 'adam'"),
    ("checkpoints", {"checkpoints": "folder"}, "checkpoints must be .*, got 'folder'"),
    ("batch_size beyond 64 bits", {"batch_size": 10**30}, f"batch_size must be .*, got {10**30}"),
    *((f"seed {seed}", {"seed": seed}, f"seed must be .*, got {seed!r}") for seed in (-1, 1.5, "a", 2**64)),
):
    add(f"fit: {name}", said, lambda c=change: fit(small_vae(), **{"data": GOOD_X, **c}))
add("fit: no pair", "vae must have .*, got 3", pv.fit, 3, GOOD_X, epochs=1)


def never(x) -> None:
    raise AssertionError("ran")


def unrun(function: Callable, **settings) -> None:
    function(never, never, torch.zeros(3, 5), **settings)


for field, values in {"num_samples": (0, 2.5, "a", None), "chunk_size": (0, 1.5, "a")}.items():
    for value in values:
        said = f"{field} must be {A_COUNT}, got {re.escape(repr(value))}"
        more = {"num_samples": 10, field: value}
        add(f"log_marginal: {field} {value!r}", said, unrun, pv.log_marginal, **more)
one_name = "methods must be elbo, iwae_K, is_S, ais_T or ais_prior_T .+, got "
for methods, said in (
    ([], "methods must name at least one method, got none"),
    ("elbo", "methods must be a list or a tuple of names, got 'elbo'"),
    (3, "methods must be .+, got 3"),
    (["is_0"], "is_0 must be a whole number >= 1, got 0"),
    *(([bad], one_name + re.escape(repr(bad))) for bad in ("vae", "is", "is_", "iwae_x", "ais_-1", "elbo_3", 3)),
    *(([bad], one_name + re.escape(repr(bad))) for bad in ("is_1.5", "ais_prior", "is_prior_3")),
):
    add(f"evaluate: methods {methods!r}", said, unrun, pv.evaluate, methods=methods)
for seed in (-1, 1.5, "a", 2**64):
    said, more = f"seed must be .*, got {seed!r}", {"methods": ["is_5"], "seed": seed}
    add(f"evaluate: seed {seed!r}", said, unrun, pv.evaluate, **more)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
