"""Data of every kind at every door: their numbers are those of plain data, or they are refused in one line."""

import math
import sys
import tempfile
import warnings
from array import array
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_vae
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor

import pyrovae as pv

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
N = X.numpy()
HIDDEN = np.eye(20, 2, dtype=bool)
W = torch.ones(2, requires_grad=True)


class OfAUser(torch.Tensor):
    """A subclass without behaviour of its own."""


def quietly(make, *args, **settings):
    with warnings.catch_warnings():  # of what torch calls a prototype or beta
        warnings.simplefilter("ignore")
        return make(*args, **settings)


def fake():
    with FakeTensorMode():
        return torch.zeros(20, 2)


def in_inference_mode():
    with torch.inference_mode():
        return X.clone()


def read_only():
    copy = N.copy()
    copy.flags.writeable = False
    return copy


def on_disk():
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(N.tobytes())
    try:
        return np.memmap(file.name, "float32", "r", shape=(20, 2))
    finally:
        Path(file.name).unlink()


# The same numbers in another form.
SAME = {
    "a view of a negative": lambda: torch._neg_view(-X),
    "an imaginary part": lambda: torch.complex(torch.zeros_like(X), -X).conj().imag,
    "a leaf with a gradient": lambda: X.clone().requires_grad_(),
    "a tensor with a graph": lambda: X * W,
    "a parameter": lambda: torch.nn.Parameter(X.clone()),
    "a subclass": lambda: X.as_subclass(OfAUser),
    "inference mode": in_inference_mode,
    "transposed": lambda: X.T.contiguous().T,
    "every other": lambda: torch.stack([X, X], -1)[..., 0],
    "float64": X.double,
    "big-endian": lambda: N.astype(">f4"),
    "read-only": read_only,
    "negative strides": lambda: np.ascontiguousarray(N[::-1, ::-1])[::-1, ::-1],
    "not aligned": lambda: np.frombuffer(b"0" + N.tobytes(), "u1")[1:].view("f4").reshape(20, 2),
    "on the disk": on_disk,
    "masked nowhere": lambda: np.ma.masked_array(N),
    "longdouble": lambda: N.astype(np.longdouble),
    "a frame": lambda: pd.DataFrame(N, columns=["a", "a"]),
    "a frame of objects": lambda: pd.DataFrame(N.astype(object)),
}
REFUSED = {
    "meta": lambda: X.to("meta"),
    "fake": fake,
    "nested": lambda: quietly(torch.nested.nested_tensor, [torch.ones(2, 2), torch.ones(3, 2)]),
    "ragged": lambda: quietly(torch.nested.nested_tensor, [torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged),
    "coo": X.to_sparse,
    "csr": lambda: quietly(X.to_sparse_csr),
    "bsr": lambda: quietly(X.to_sparse_bsr, (1, 1)),
    "mkldnn": X.to_mkldnn,
    "quantised": lambda: quietly(torch.quantize_per_tensor, X, 0.1, 10, torch.quint8),
    "masked": lambda: quietly(masked_tensor, X, torch.tensor(~HIDDEN)),
    "float8": lambda: X.to(torch.float8_e4m3fn),
    "complex": X.cfloat,
    "conjugate": lambda: X.cfloat().conj(),
    "no rows": lambda: X[:0],
    "no columns": lambda: X[:, :0],
    "no dimension": lambda: X[0, 0],
    "masked array": lambda: np.ma.masked_array(N, HIDDEN),
    "objects": lambda: N.astype(object),
    "texts": lambda: N.astype(str),
    "bytes array": lambda: N.astype("S"),
    "dates": lambda: np.zeros((20, 2), "datetime64[s]"),
    "void": lambda: np.zeros((20, 2), [("a", "f4")]),
    "complex array": lambda: N.astype(complex),
    "array without rows": lambda: N[:0],
    "array without dimension": lambda: np.array(1.0),
    "Int64 with NA": lambda: pd.DataFrame({"a": pd.array([1, None] * 10, "Int64"), "b": range(20)}),
    "Float64 with NA": lambda: pd.DataFrame({"a": pd.array([1.0, None] * 10, "Float64"), "b": range(20)}),
    "categories": lambda: pd.DataFrame({"a": pd.Categorical(["u", "v"] * 10), "b": range(20)}),
    "strings": lambda: pd.DataFrame({"a": pd.array(["u"] * 20, "string"), "b": range(20)}),
    "days": lambda: pd.DataFrame({"a": pd.date_range("2020", periods=20), "b": range(20)}),
    "periods": lambda: pd.DataFrame({"a": pd.period_range("2020-01-01", periods=20), "b": range(20)}),
    "intervals": lambda: pd.DataFrame({"a": pd.interval_range(0, 20), "b": range(20)}),
    "a series": lambda: pd.Series(range(20)),
    "lists": X.tolist,
    "lists of unequal length": lambda: [[1.0], [1.0, 2.0]],
    "bytes": lambda: b"abc",
    "bytearray": lambda: bytearray(b"abc"),
    "memoryview": lambda: memoryview(N),
    "an array of Python's": lambda: array("f", [1.0, 2.0]),
    "a set": lambda: {1.0, 2.0},
    "a generator": lambda: (row for row in X),
    "a text": lambda: "x",
    "a number": lambda: 3,
    "an object": object,
    "a class": lambda: torch.Tensor,
    "an empty dict": dict,
    "an empty tuple": tuple,
    "nan": lambda: X * math.nan,
    "inf": lambda: X + math.inf,
    "nothing": lambda: None,
}


def vae():
    return small_vae(event_shape=(2,))


new_vae = vae  # for a race, which makes its own


def seeded(call):
    torch.manual_seed(0)
    return call()


def fit(data, **settings):
    torch.manual_seed(0)
    return pv.fit(vae(), data, **{"epochs": 1, "seed": 0, "batch_size": 8, "device": "cpu", **settings})


def race(x, held_out):
    return pv.race(new_vae, x, ["elbo"], (0,), epochs=1, held_out=held_out, num_samples=2).runs[0].log_px.mean


def of_parts():
    return small_vae(event_shape=(2,), missing="mask")


def sums(x):
    return x.sum(-1)


VQVAE = pv.VQVAE((2,), num_tokens=2, num_codes=3, code_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
LINEAR = pv.LinearGaussianVAE(torch.eye(2), torch.zeros(2), 0.5)
AIS = {"num_distributions": 1, "num_chains": 2, "num_leapfrog": 1}
FIRST, HOLES = torch.tensor([True, False]), {"nan", "masked array", "Int64 with NA", "Float64 with NA"}
COMPARED = {"objectives": ["elbo"], "num_particles": [1], "repeats": 4, "compile": False}
DOORS = {
    "fit": lambda x: fit(x).loss,
    "fit, batches": lambda x: fit([x]).loss,
    "fit, validation": lambda x: fit(X, validation=x).elbo,
    "fit, y": lambda x: pv.fit(conditional(), (X, x), epochs=1, seed=0).loss,
    "compare": lambda x: pv.compare(vae(), x, **COMPARED).rows[0].bound,
    "log_marginal": lambda x: pv.log_marginal(vae(), x, num_samples=3).mean,
    "importance_bound": lambda x: pv.importance_bound(vae(), x, num_particles=2, num_repeats=2).mean,
    "evaluate": lambda x: pv.evaluate(vae(), x, methods=["elbo"]).measured[0].estimate.mean,
    "annealed_log_marginal": lambda x: pv.annealed_log_marginal(vae(), x, **AIS).mean,
    "simulation_based_calibration": lambda x: str(pv.simulation_based_calibration(vae(), x, num_draws=3, num_bins=2)),
    "elbo_surgery": lambda x: str(pv.elbo_surgery(vae(), x)),
    "posterior": lambda x: pv.posterior(vae(), x, num_samples=3).ess.sum().item(),
    "conditional_log_marginal": lambda x: pv.conditional_log_marginal(of_parts(), x, given=FIRST, num_samples=3).mean,
    "impute": lambda x: pv.impute(of_parts(), x, missing=~FIRST.expand(20, 2), num_samples=3).value.sum().item(),
    "predictive_check": lambda x: pv.predictive_check(vae(), x, statistic=sums, num_samples=3).p_value,
    "annealed_rate_distortion": lambda x: pv.annealed_rate_distortion(vae(), x, **AIS).mean_rate.sum().item(),
    "annealed_posterior": lambda x: pv.annealed_posterior(vae(), x, **AIS).ess.sum().item(),
    "log_weights": lambda x: pv.log_weights(vae(), x, num_particles=2).mean().item(),
    "quadrature_log_marginal": lambda x: pv.quadrature_log_marginal(vae(), x, num_points=5)[0].mean().item(),
    "factor_information": lambda x: pv.factor_information(vae(), x, factors=[torch.arange(20) % 2]).mig,
    "active_units": lambda x: pv.diagnostics.active_units(vae(), x),
    "elbo_terms": lambda x: pv.diagnostics.elbo_terms(vae(), x)["elbo"].mean().item(),
    "kl_per_dimension": lambda x: pv.diagnostics.kl_per_dimension(vae(), x).mean().item(),
    "latent_use": lambda x: pv.diagnostics.latent_use(vae(), x).kl.mean().item(),
    "encode": lambda x: vae().encode(x).mean.sum().item(),
    "reconstruct": lambda x: vae().reconstruct(x).sum().item(),
    "interpolate, x1": lambda x: vae().interpolate(x, X).sum().item(),
    "interpolate, x2": lambda x: vae().interpolate(X, x).sum().item(),
    "decode": lambda z: vae().decode(z).mean.sum().item(),
    "VQVAE.encode": lambda x: VQVAE.encode(x).code.sum().item(),
    "VQVAE.reconstruct": lambda x: VQVAE.reconstruct(x).sum().item(),
    "VQVAE.codebook_use": lambda x: VQVAE.codebook_use(x).perplexity,
    "LinearGaussianVAE.encode": lambda x: LINEAR.encode(x).mean.sum().item(),
    "LinearGaussianVAE.decode": lambda z: LINEAR.decode(z).mean.sum().item(),
    "LinearGaussianVAE.posterior": lambda x: LINEAR.posterior(x).mean.sum().item(),
    "LinearGaussianVAE.log_px": lambda x: LINEAR.log_px(x).sum().item(),
    "LinearGaussianVAE.elbo": lambda x: LINEAR.elbo(x).sum().item(),
    "sample, y": lambda y: conditional().sample(20, y).sum().item(),
    "race": lambda x: race(x, X),
    "race, held_out": lambda x: race(X, x),
}
SLOW = {
    "bidirectional_gap": lambda x: pv.bidirectional_gap(vae(), x, **AIS),
    "inference_gaps": lambda x: pv.inference_gaps(vae(), x, num_samples=3),
}
TENSORS = {  # which take tensors as they are, or are changed by data
    "VQVAE.restart_unused": lambda x: VQVAE.restart_unused(x),
    "check_data": lambda x: vae().check_data(x),
    "Dataset": lambda x: pv.Dataset("a", "real", x, (), x, (), x, ()).train_x.sum().item(),
}


def conditional():
    torch.manual_seed(0)
    return small_vae(event_shape=(2,), condition=pv.Embedding((2,)))


@pytest.mark.parametrize("name", DOORS)
def test_the_same_numbers_in_another_form_give_the_same_result(name):
    door = DOORS[name]
    truth = seeded(lambda: door(X.clone()))
    # All forms at a few doors, and at each of the others one, for the time it takes: another one at the next door.
    forms, place = list(SAME.values()), list(DOORS).index(name) % len(SAME)
    for make in forms if name in ("log_marginal", "encode", "reconstruct", "decode") else [forms[place]]:
        assert seeded(lambda make=make: door(make())) == (pytest.approx(truth) if isinstance(truth, float) else truth)


@pytest.fixture
def one_vae(monkeypatch):
    """What refuses its data leaves its model as it is: one is enough, whose making takes longer than a refusal."""
    made = vae()
    monkeypatch.setattr(sys.modules[__name__], "vae", lambda: made)


@pytest.mark.usefixtures("one_vae")
@pytest.mark.parametrize("name", [*DOORS, *SLOW, *TENSORS, "load"])
def test_data_without_numbers_at_all_places_are_refused_in_one_line(name):
    doors = {**DOORS, **SLOW, **TENSORS, "load": pv.load}
    unlike = {
        # A table may have columns of texts and a single column.
        "load": {"categories", "periods", "intervals", "strings", "a series"},
        "Dataset": {"no rows", "no columns", "nan", "inf", "complex"},
        "fit, validation": {"nothing"},
        "decode": {"no rows", "array without rows"},  # as many z as there are
        "LinearGaussianVAE.decode": {"no rows", "array without rows"},
        "fit, y": {"a number"},
        "conditional_log_marginal": HOLES,
        "impute": HOLES,
    }.get(name, set())
    # All kinds at the first doors of each way in, and at each of the others every third, by turns.
    first, every = (0, 1) if name in ("fit", "log_marginal", "encode", "load") else (list(doors).index(name) % 3, 3)
    for kind, make in list(REFUSED.items())[first::every]:
        if kind not in unlike:
            with pytest.raises(pv.InputError) as caught:
                doors[name](make())
            assert len(str(caught.value)) <= 500, kind


def test_a_masked_cell_is_a_missing_one_and_not_what_lies_under_the_mask():
    with_nan, masked = N.copy(), np.ma.masked_array(N, HIDDEN)
    with_nan[HIDDEN] = np.nan

    def loss(data):
        torch.manual_seed(0)
        return pv.fit(small_vae(event_shape=(2,), missing="mask"), data, epochs=1, seed=0).loss

    assert loss(masked) == loss(with_nan) != loss(N)
    loaded = pv.load(masked, missing="mask", shares=(1, 0, 0)).train_x
    assert torch.equal(loaded.isnan(), pv.load(with_nan, missing="mask", shares=(1, 0, 0)).train_x.isnan())
    assert loaded.isnan().sum() == HIDDEN.sum()
