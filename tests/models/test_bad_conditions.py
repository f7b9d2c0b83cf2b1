"""Conditions that are refused, by every method and every estimator, in one line."""

import math
from functools import partial

import pytest
import torch
from helpers import (
    conditional_vae,
    refusal,
)

import pyrovae as pv

BATCH = 5


BAD_LABELS = {
    "too large": (torch.tensor([0, 1, 2, 0, 3]), "y must lie in 0 ... 2, got 3 at index 4"),
    "negative": (torch.tensor([0, -1, 2, 0, 7]), "y must lie in 0 ... 2, got -1 at index 1"),
    "half": (torch.full((BATCH,), 0.5), "y must be a tensor of integer labels, got torch.float32"),
    "complex": (torch.zeros(BATCH, dtype=torch.cfloat), "y must be a tensor of integer labels, got torch.complex64"),
    "list": ([0, 1, 2, 0, 1], "y must be a tensor of integer labels, got list"),
    "none": (None, "y must be a tensor of integer labels, got NoneType"),
    "one": (torch.zeros(1, dtype=torch.long), "y must have shape (5,), a label per datum, got (1,)"),
    "scalar": (torch.tensor(1), "y must have shape (5,), a label per datum, got ()"),
    "too few": (torch.zeros(4, dtype=torch.long), "y must have shape (5,), a label per datum, got (4,)"),
    "column": (torch.zeros(BATCH, 1, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 1)"),
    "one-hot": (torch.zeros(BATCH, 3, dtype=torch.long), "y must have shape (5,), a label per datum, got (5, 3)"),
}


BAD_VALUES = {
    "flat": (torch.zeros(BATCH), "y must have shape (5, 1), a value per datum, got (5,)"),
    "wide": (torch.zeros(BATCH, 2), "y must have shape (5, 1), a value per datum, got (5, 2)"),
    "one": (torch.zeros(1, 1), "y must have shape (5, 1), a value per datum, got (1, 1)"),
    "too many": (torch.zeros(6, 1), "y must have shape (5, 1), a value per datum, got (6, 1)"),
    "complex": (torch.zeros(BATCH, 1).cfloat(), "y must be a floating-point tensor, got torch.complex64"),
    "float": (1.0, "y must be a floating-point tensor, got float"),
    "nan": (torch.tensor([[0.0], [math.nan], [0], [0], [0]]), "y must be finite, got nan at index (1, 0)"),
    "infinite": (torch.tensor([[0.0], [0], [0], [0], [math.inf]]), "y must be finite, got inf at index (4, 0)"),
}


BAD = {
    **{f"label, {name}": (partial(pv.OneHot, 3), *bad) for name, bad in BAD_LABELS.items()},
    **{f"value, {name}": (pv.Embedding, *bad) for name, bad in BAD_VALUES.items()},
}


@pytest.mark.parametrize("method", ["guide", "encode", "reconstruct", "check_data", "sample"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_condition_is_refused_in_one_line(name, method):
    make, y, message = BAD[name]
    vae, x = conditional_vae(make()), torch.zeros(BATCH, 3)
    args = (BATCH, [y]) if method == "sample" else (x, y)
    assert refusal(getattr(vae, method), *args) == message


@pytest.mark.parametrize("name", [name for name in BAD if "nan" not in name and "infinite" not in name])
def test_the_model_refuses_a_bad_condition_as_the_guide_does(name):
    """Quadrature, a predictive and a guide of the caller's own call the model without our guide."""
    make, y, message = BAD[name]
    assert refusal(conditional_vae(make()).model, torch.zeros(BATCH, 3), y) == message


FOR_EACH_DATUM = [n for n, (_, y, _) in BAD.items() if isinstance(y, torch.Tensor) and y.shape[:1] == (BATCH,)]


ESTIMATORS = {
    "importance_bound": lambda vae, *args: pv.importance_bound(vae.model, vae.guide, *args, num_particles=2),
    "quadrature_log_marginal": lambda vae, *args: pv.quadrature_log_marginal(vae.model, *args, num_points=11),
    "elbo_terms": lambda vae, *args: pv.diagnostics.elbo_terms(vae.model, vae.guide, *args),
    "kl_per_dimension": lambda vae, *args: pv.diagnostics.kl_per_dimension(vae, *args),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", FOR_EACH_DATUM)
def test_a_bad_condition_is_refused_by_every_estimator(name, estimator):
    make, y, message = BAD[name]
    found = refusal(ESTIMATORS[estimator], conditional_vae(make()), torch.zeros(BATCH, 3), y)
    # Values that are not finite are found before the pair runs, as in any argument. Quadrature tries the first datum
    # alone, and so its message names another number of data.
    rule = message.partition("(")[0]
    assert found.startswith(rule) or "must be finite, got" in found


@pytest.mark.parametrize("estimator", ["importance_bound", "elbo_terms"])
def test_an_estimator_refuses_a_bad_condition_with_the_rule_and_the_value_alone(estimator):
    """The shapes of the trace, which Pyro appends to every error within a program, do not follow."""
    make, y, message = BAD["label, too large"]
    assert refusal(ESTIMATORS[estimator], conditional_vae(make()), torch.zeros(BATCH, 3), y) == message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_size(dtype):
    vae, x, y = conditional_vae(pv.OneHot(3)), torch.randn(3, 3), torch.tensor([2, 0, 1])
    torch.testing.assert_close(vae.reconstruct(x, y.to(dtype)), vae.reconstruct(x, y))


def test_too_few_and_too_many_conditions_are_refused_by_number():
    x, y = torch.zeros(BATCH, 3), torch.zeros(BATCH, dtype=torch.long)
    for num, condition in enumerate(((), pv.OneHot(3), (pv.OneHot(3), pv.OneHot(3)))):
        vae = conditional_vae(condition)
        for given in {0, 1, 2, 3} - {num}:
            message = f"y must hold {num} condition{'' if num == 1 else 's'}, got {given}"
            message += "" if given else f": give y, as in (x, {', '.join(['y'] * num)})"
            for method in (vae.model, vae.guide, vae.encode, vae.reconstruct, vae.check_data):
                assert refusal(method, x, *[y] * given) == message
            assert refusal(vae.sample, BATCH, [y] * given) == message
            assert refusal(vae.decode, torch.zeros(BATCH, 2), *[y] * given) == message


@pytest.mark.parametrize("y", [2, None, "two"])
def test_sample_refuses_a_y_that_is_not_a_tensor(y):
    message = refusal(conditional_vae(pv.OneHot(3)).sample, BATCH, y)
    assert message.startswith("y must ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.OneHot(1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: pv.OneHot(2.0), "num_classes must be a whole number >= 2, got 2.0"),
        (lambda: pv.Embedding((0,)), "shape must be a whole number >= 1, got 0"),
        (lambda: pv.Embedding(num_features=0), "num_features must be a whole number >= 1, got 0"),
        (lambda: pv.Embedding(hidden=(4, -1)), "hidden must be a whole number >= 1, got -1"),
        (lambda: pv.Embedding(activation="sine"), "activation must be one of"),
        (lambda: conditional_vae("label"), "condition must be a condition of pyrovae or a list of them, got 'l"),
        (
            lambda: conditional_vae([pv.OneHot(3), 3]),
            "condition must be a condition of pyrovae or a list of them, got 3",
        ),
        (lambda: conditional_vae(pv.OneHot), "condition must be a condition of pyrovae or a list of them, got <class"),
        (lambda: conditional_vae(3), "condition must be a condition of pyrovae or a list of them, got 3"),
    ],
)
def test_bad_settings_of_a_condition_are_refused(make, message):
    assert refusal(make).startswith(message)
