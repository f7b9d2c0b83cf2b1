"""Data as they come, at every door: arrays, frames, tuples, `TensorDataset`s, dicts, and tensors of other dtypes."""

from functools import cache

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, conditional_vae, parameters_of, refusal, small_vae, suite_seed
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.common import as_arguments, as_dtype, as_tensor
from pyrovae.data import whole_data

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


class Frame:
    """A frame as pandas has it, as far as anything here looks at it."""

    def __init__(self, values):
        self.values, self.columns = values, ["a", "b", "c"]

    def __len__(self):
        return len(self.values)

    def to_numpy(self):
        return self.values


def read_only() -> np.ndarray:
    array = X.numpy().copy()
    array.flags.writeable = False
    return array


# Arrays and dtypes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda: X.numpy(), lambda: X.numpy()[::-1].copy()[::-1], lambda: X.numpy().astype(">f4"), read_only,
    lambda: Frame(X.numpy()), lambda: Frame(X.numpy().astype(object)),
])  # fmt: skip
def test_arrays_and_frames_become_tensors_of_their_values(make):
    found = as_tensor("x", make())
    torch.testing.assert_close(found.float(), X, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "expected"), [
    ("float64", "float64"), ("float16", "float16"), ("int8", "int8"), ("uint16", "int32"), ("uint32", "int64"),
    ("uint64", "int64"), ("bool", "bool"), ("longdouble", "float64"), ("complex64", "complex64"),
])  # fmt: skip
def test_an_array_keeps_its_dtype_where_torch_has_it(name, expected):
    found = as_tensor("x", np.ones(3, dtype=name))
    assert found.dtype == getattr(torch, expected)
    assert found.tolist() == [1, 1, 1]


def test_what_is_no_array_is_left_as_it_is():
    for value in (3, "text", [1.0, 2.0], None, X):
        assert as_tensor("x", value) is value


def test_a_dtype_is_changed_only_where_nothing_is_lost():
    as_float = lambda value: as_dtype("x", value, torch.float32)  # noqa: E731
    assert as_float(X) is X
    assert torch.equal(as_float(X.double()), X)
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16):
        assert torch.equal(as_float(torch.tensor([0, 1, 1]).to(dtype)), torch.tensor([0.0, 1.0, 1.0]))
    assert as_float(torch.tensor([2**24, -(2**24)])).tolist() == [2.0**24, -(2.0**24)]
    assert as_dtype("x", X, torch.float64).dtype == torch.float64
    # Without a spread to compare with, float64 is rounded: a constant, one datum; and NaN stays.
    few = [[1.7e9], [1.7e9 + 1]]
    for value in (
        [[0.1, 1.7e9]],
        [[1.7e9 + 1]] * 20,
        [[0.1], [float("nan")], [0.2]] * 5,
        [[0.3], [0.1 + 0.2]] * 9,
        few,
    ):
        tensor = torch.tensor(value, dtype=torch.float64)
        assert torch.equal(as_float(tensor).isnan(), tensor.isnan())
    for value in (2**24 + 1, -(2**24) - 1, 2**62 + 1):
        assert f"whose {value} at index (1,) would lose digits" in refusal(as_float, torch.tensor([0, value]))
    for value in (1e39, -1e39):
        assert "would lose digits" in refusal(as_float, torch.tensor([0.0, value], dtype=torch.float64))
    times = 1.7e9 + 10 * torch.arange(50, dtype=torch.float64)[:, None] + torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert "at index (0, 1) would lose digits" in refusal(as_float, times)
    assert torch.equal(as_float(times - 1.7e9), (times - 1.7e9).float())
    assert "must be of torch.bfloat16, got torch.float32" in refusal(as_dtype, "x", X, torch.bfloat16)


# Doors ----------------------------------------------------------------------------------------------------------------

# What a conditional VAE may be given in place of X and Y.
FORMS = {
    "arrays": (X.numpy(), Y.numpy()),
    "float64": (X.double(), Y.double()),
    "frames": (Frame(X.numpy().astype(np.float64)), Frame(Y.numpy())),
    "small integers": (X, Y.to(torch.uint8)),
}
HOLDERS = {
    "a tuple": lambda x, y: (x, y),
    "a tuple with more": lambda x, y: (x, y, ["names"] * 20),
    "a dict": lambda x, y: {"y": y, "x": x, "name": "mine"},
}
WHOLES = {f"{how} of {kind}": hold(*form) for how, hold in HOLDERS.items() for kind, form in FORMS.items()}
WHOLES["a TensorDataset"] = TensorDataset(X.double(), Y)


def make_vae() -> pv.VAE:
    torch.manual_seed(suite_seed())
    return conditional_vae(pv.OneHot(3))


def trained(data, **settings):
    vae = make_vae()
    history = pv.fit(vae, data, epochs=1, batch_size=8, seed=0, progress=False, **settings)
    return history.loss, history.elbo, parameters_of(vae)


@cache
def expected_of(how: str):
    """Returns what the plain data give, of which each form is another."""
    if how == "a set":
        return trained(pv.Dataset("mine", "real", X, Y, X, Y, X, Y))
    return trained([(X, Y)], validation=[(X, Y)])


@pytest.mark.parametrize("name", WHOLES)
def test_fit_takes_the_whole_data_in_any_form_for_data_and_for_validation(name):
    loss, elbo, parameters = trained(WHOLES[name], validation=WHOLES[name])
    expected = expected_of("a set")
    assert (loss, elbo) == expected[:2]
    assert torch.equal(parameters, expected[2])


@pytest.mark.parametrize("name", [name for name in WHOLES if "TensorDataset" not in name])
def test_fit_takes_batches_in_any_form(name):
    batches = [WHOLES[name]]
    assert trained(batches, validation=batches)[:2] == expected_of("batches")[:2]


def test_a_data_loader_of_dicts_is_read_by_field():
    rows = [{"x": x, "y": y} for x, y in zip(X.numpy(), Y.tolist(), strict=True)]
    assert trained(DataLoader(rows, batch_size=5))[0] == trained(DataLoader(TensorDataset(X, Y), batch_size=5))[0]


def race_loss(vae, args):
    settings = {"seeds": (0,), "epochs": 1, "num_samples": 5, "batch_size": 8, "progress": False}
    run = pv.race(
        make_vae, args if len(args) > 1 else args[0], ["elbo"], held_out=args if len(args) > 1 else args[0], **settings
    )
    return run["elbo"][0].log_px.value


DOORS = {
    "log_marginal": lambda vae, args: pv.log_marginal(vae, *args, num_samples=7).value,
    "log_marginal of programs": lambda vae, args: pv.log_marginal(vae.model, vae.guide, *args, num_samples=7).value,
    "importance_bound": lambda vae, args: pv.importance_bound(vae, *args, num_particles=2).value,
    "quadrature": lambda vae, args: pv.quadrature_log_marginal(vae, *args, num_points=5)[0],
    "evaluate": lambda vae, args: pv.evaluate(vae, *args, methods=["elbo"]).measured[0].estimate.value,
    "elbo_terms": lambda vae, args: pv.diagnostics.elbo_terms(vae, *args)["elbo"],
    "kl_per_dimension": lambda vae, args: pv.diagnostics.kl_per_dimension(vae, *args),
    "latent_use": lambda vae, args: pv.diagnostics.latent_use(vae, *args).kl,
    "log_weights": lambda vae, args: pv.log_weights(vae, *args, num_particles=2),
    "compare": lambda vae, args: torch.tensor(
        pv.compare(vae, *args, objectives=["elbo"], num_particles=[2], repeats=4, compile=False).rows[0].bound
    ),
    "race": race_loss,
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_the_data_of_a_vae_in_any_form(door):
    vae = make_vae()

    def found(*args):
        torch.manual_seed(suite_seed(1))
        return DOORS[door](vae, args)

    expected = found(X, Y)
    # All forms at one door, and at each of the others one whole, for the time it takes: another one at the next door.
    wholes = list(WHOLES)
    for name in wholes if door == "log_marginal" else [wholes[list(DOORS).index(door)]]:
        assert torch.equal(found(WHOLES[name]), expected), name
    assert torch.equal(found(*FORMS["arrays"]), expected)


# Pairs that are no VAE ------------------------------------------------------------------------------------------------


def recording(seen: list) -> Pair:
    """A pair that notes what it is given."""

    def model(x, *more):
        seen.append((x, *more))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(pyro.param("rate", torch.tensor(1.0)) * z.exp()), obs=x)

    def guide(x, *more):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)) * x, 1.0))

    return Pair(model, guide)


def test_a_program_is_given_tensors_as_they_are_and_arrays_as_tensors_of_their_dtype():
    counts, seen = torch.arange(6), []
    pair = recording(seen)
    for dtype in (torch.int64, torch.float64, torch.uint8):
        pv.log_marginal(pair, counts.to(dtype), {"a": X.numpy()}, 3, num_samples=2)
        pv.log_marginal(pair, counts.to(dtype).numpy(), {"a": X.numpy()}, 3, num_samples=2)
        pv.fit(pair, [(counts.to(dtype), {"a": X.numpy()}, 3)], epochs=1)
        pv.fit(pair, [(counts.to(dtype).numpy(), {"a": X.numpy()}, 3)], epochs=1)
        assert {args[0].dtype for args in seen} == {dtype}
        assert all(isinstance(args[1]["a"], np.ndarray) and args[2] == 3 for args in seen)
        seen.clear()
    names = np.array(["a", "b"])
    assert as_arguments(pair, (counts, names, [counts.numpy()], Frame(names)))[1:][0] is names


def test_a_tuple_of_tensors_is_cut_into_rows_and_is_never_two_batches():
    counts, other, seen = torch.arange(6), torch.arange(6.0), []
    for data in ((counts, other), TensorDataset(counts, other)):
        seen.clear()
        history = pv.fit(recording(seen), data, epochs=1, batch_size=2, seed=0, validation=data)
        assert len(history.elbo) == 1
        assert {len(args) for args in seen} == {2}
        assert all(torch.equal(x.double(), y.double()) for x, y in seen)
        assert {x.dtype for x, _ in seen} == {torch.int64}
        assert sorted(torch.cat([x for x, _ in seen if len(x) == 2][-3:]).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ((X, Y[:5]), "torch.float32 (20, 3), torch.int64 (5,)"),
        ((X, 3), "torch.float32 (20, 3), int"),
        ((), "an empty tuple"),
        (([X], [X]), "list, list"),
    ],
)
def test_a_tuple_that_is_no_whole_is_refused(data, found):
    rule = "must be a tuple of arrays with a row for each datum, (x, y), or else a list of batches; got"
    assert refusal(pv.fit, recording([]), data, epochs=1) == f"data {rule} {found}"
    assert refusal(pv.fit, recording([]), X[:, 0], epochs=1, validation=data) == f"validation {rule} {found}"


def test_a_dict_without_the_fields_of_a_vae_is_refused():
    message = "a dict must have the fields x, y; got x, label"
    for call in (
        lambda: pv.fit(make_vae(), [{"x": X, "label": Y}], epochs=1),
        lambda: pv.log_marginal(make_vae(), {"x": X, "label": Y}),
    ):
        assert refusal(call) == message
    vae = conditional_vae((pv.OneHot(3), pv.OneHot(3)))
    assert pv.log_marginal(vae, {"x": X, "y_1": Y, "y_2": Y}, num_samples=2).value.shape == (20,)


@pytest.mark.parametrize("condition", [(), pv.OneHot(3)], ids=["no condition", "labels"])
def test_what_only_a_training_takes_is_told_what_to_give_instead(condition):
    vae, whole = conditional_vae(condition), TensorDataset(X, Y)
    test = "test_x" + " and test_y" * bool(condition)
    given = {pv.load((X.numpy(), Y.numpy())): f"give its {test}", DataLoader(whole): "give a batch of it"}
    for data, remedy in given.items():
        rule = f"x must be a tensor or an array, got a {type(data).__name__}: {remedy}"
        for call in (
            lambda data: pv.log_marginal(vae, data),
            lambda data: pv.evaluate(vae.model, vae.guide, data),
            lambda data: pv.compare(vae, data),
            lambda data: pv.impute(vae, data),
            lambda data: pv.diagnostics.active_units(vae, data),
            vae.encode,
            vae.reconstruct,
        ):
            assert refusal(call, data) == rule
    assert pv.log_marginal(vae, whole, num_samples=2).value.shape == (20,)


def test_a_program_of_ones_own_that_fails_at_a_data_set_is_told_what_to_give_instead():
    pair = recording([])
    said = refusal(pv.log_marginal, pair.model, pair.guide, pv.load(X.numpy()))
    assert said.startswith("the pair does not run with these arguments: ")
    assert said.endswith("; give its test_x")


def test_a_frame_with_a_text_is_refused_with_its_column():
    frame = pd.DataFrame({"a": [0.5, 0.7], "town": ["3", "Oslo"]})
    rule = "x must be a frame of numbers, got 'Oslo' in column {}; pv.load reads frames with texts or missing cells"
    assert refusal(as_tensor, "x", frame) == rule.format("'town'")
    assert refusal(as_tensor, "x", frame["town"]) == rule.format("'town'")
    assert refusal(as_tensor, "x", Frame(frame.to_numpy())) == rule.format("'b'")


def test_the_programs_of_a_vae_take_their_own_dtype_alone():
    """What SVI and the objectives hand to them is not converted on the way."""
    assert "x must be of torch.float32, as the parameters are" in refusal(small_vae((3,)).model, X.double())


def test_a_data_set_is_converted_for_the_model():
    data = pv.Dataset("mine", "real", X.double(), Y, X.double(), Y, X.double(), Y)
    assert trained(data)[:2] == trained((X, Y), validation=(X, Y))[:2]


def test_grey_levels_are_drawn_in_the_dtype_of_the_data():
    grey = torch.randint(256, (6, 1, 2, 2), dtype=torch.uint8)
    x = torch.rand(6, 1, 2, 2, dtype=torch.float64)
    data = pv.Dataset("mine", "dequantised", x, (), x, (), x, (), train_grey=grey)
    assert data.batch(torch.tensor([1, 2]))[0].dtype == torch.float64


def test_an_array_that_changed_is_another_training(tmp_path):
    checkpoints = pv.Checkpoints(tmp_path)
    trained((X.numpy(), Y.numpy()), checkpoints=checkpoints)
    with pytest.warns(UserWarning, match="is finished"):
        trained({"x": X.double(), "y": Y}, checkpoints=checkpoints)
    assert "is of other training data" in refusal(trained, (X.numpy() + 1, Y), checkpoints=checkpoints)


def test_a_whole_is_taken_once():
    rows = whole_data(None, "data", (X, Y))
    assert whole_data(None, "data", rows) is rows


def test_parts_that_are_not_used_must_have_a_row_for_each_datum_too():
    """`(x_train, x_validation)` is not taken for x and labels that the VAE does without."""
    message = refusal(pv.fit, small_vae(), (torch.randn(50, 2), torch.randn(7, 2)), epochs=1)
    assert message.endswith("or else a list of batches; got torch.float32 (50, 2), torch.float32 (7, 2)")
