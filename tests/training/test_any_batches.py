"""`fit` takes batches of anything that a pair takes; its steps are per datum of the data plate, wherever that lies."""

from contextlib import contextmanager
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, parameters_of, refusal, suite_seed
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE

pytestmark = pytest.mark.usefixtures("float64")


def plain_pair(read, plates, observe=lambda x: x) -> Pair:
    """A normal z and a normal x for each element of `read(*batch)`, in `plates(x)`."""

    def model(*batch):
        x = read(*batch)
        weight = pyro.param("weight", torch.tensor(1.2))
        with plates(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape), 1.0))
            pyro.sample("x", dist.Normal(weight * z, 0.5), obs=observe(x))

    def guide(*batch):
        x = read(*batch)
        slope = pyro.param("slope", torch.tensor(0.4))
        with plates(x):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Pair(model, guide)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows(x):
    return pyro.plate("data", len(x))


@contextmanager
def nested(x, data_dim=-2):
    """Enters two plates: of the data at one dimension, and of what each has at the other."""
    other_dim = -3 - data_dim
    with pyro.plate("data", x.shape[data_dim], dim=data_dim), pyro.plate("other", x.shape[other_dim], dim=other_dim):
        yield


def ragged() -> Pair:
    """A latent for each sequence, which a recurrent network reads; their elements are observed under a mask."""
    torch.manual_seed(0)
    net = nn.GRU(1, 2)

    def model(sequences: PackedSequence):
        y, lengths = pad_packed_sequence(sequences)
        weight = pyro.param("weight", torch.tensor(1.2))
        with pyro.plate("data", len(lengths)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(lengths)), 1.0))
            for t, y_t in enumerate(y.squeeze(-1)):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"y{t}", dist.Normal(weight * z, 0.5), obs=y_t)

    def guide(sequences: PackedSequence):
        pyro.module("net", net)
        loc, log_scale = net(sequences)[1][0].unbind(-1)
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return Pair(model, guide)


def two_plates() -> Pair:
    """Data that are counted and data that are measured, each in a plate of their own."""

    def model(x, y):
        weight = pyro.param("weight", torch.tensor(1.2))
        for name, part in (("x", x), ("y", y)):
            with pyro.plate(f"plate_{name}", len(part)):
                z = pyro.sample(f"z_{name}", dist.Normal(torch.zeros(part.shape), 1.0))
                pyro.sample(name, dist.Normal(weight * z, 0.5), obs=part)

    def guide(x, y):
        slope = pyro.param("slope", torch.tensor(0.4))
        for name, part in (("x", x), ("y", y)):
            with pyro.plate(f"plate_{name}", len(part)):
                pyro.sample(f"z_{name}", dist.Normal(slope * part, 0.7))

    return Pair(model, guide)


def one_after_another() -> Pair:
    """Data in a plate that is a loop."""

    def model(x):
        weight = pyro.param("weight", torch.tensor(1.2))
        for n in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{n}", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample(f"x{n}", dist.Normal(weight * z, 0.5), obs=x[n])

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.4))
        for n in pyro.plate("data", len(x)):
            pyro.sample(f"z{n}", dist.Normal(slope * x[n], 0.7))

    return Pair(model, guide)


def one_event(read) -> Pair:
    """A whole sequence, or whatever a batch is, is one datum."""

    def model(*batch):
        x = read(*batch)
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(pyro.param("weight", torch.tensor(1.2)) * z, 0.5).to_event(1), obs=x)

    def guide(*batch):
        x = read(*batch)
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, 0.7).to_event(1))

    return Pair(model, guide)


def sequences(*lengths: int) -> PackedSequence:
    return pack_sequence([data(length, 1) for length in lengths], enforce_sorted=False)


OUTSIDE = data(5)
SQUARE = data(4, 4)
# Each pair, its batch as an iterable yields it, and the number of data in it.
BATCHES = {
    "a tensor": (lambda: plain_pair(lambda x: x, rows), data(5), 5),
    "a dict": (lambda: plain_pair(lambda batch: batch["x"], rows), {"x": data(5), "name": "five"}, 5),
    "a list in a tuple": (lambda: plain_pair(lambda xs, scale: torch.stack(xs) / scale, rows), ([*data(5)], 2), 5),
    "a number before a tensor": (lambda: plain_pair(lambda scale, x: scale * x, rows), (2, data(5)), 5),
    "a tensor without dimensions": (
        lambda: plain_pair(lambda scale, x: scale * x, rows),
        (torch.tensor(2.0), data(5)),
        5,
    ),
    "a matrix of all data": (lambda: plain_pair(lambda x, k: k @ x, rows), (data(4), SQUARE), 4),
    "data along the last dimension": (
        lambda: plain_pair(lambda x: x, lambda x: pyro.plate("data", x.shape[-1], dim=-1)),
        data(1, 5),
        5,
    ),
    "nested plates": (lambda: plain_pair(lambda x: x, nested), data(5, 3), 5),
    "time before data": (lambda: plain_pair(lambda x: x, partial(nested, data_dim=-1)), data(3, 5), 5),
    "a plate without a size": (lambda: plain_pair(lambda x: x, lambda x: pyro.plate("data")), data(5), 5),
    "as many data as the values say": (lambda: plain_pair(lambda x: x[x > -0.5], rows), data(20), None),
    "a plate that is a loop": (one_after_another, data(5), 5),
    "two plates": (two_plates, (data(5), data(3)), 8),
    "sequences of several lengths": (ragged, sequences(4, 2, 3), 3),
    "no plate": (lambda: one_event(lambda x: x), data(5), 1),
    "no argument": (lambda: plain_pair(lambda: OUTSIDE, rows), (), 5),
}


EAGER = ("sequences of several lengths", "no argument", "as many data as the values say", "a plate that is a loop")


def parameters() -> Tensor:
    return torch.cat([value.unconstrained().detach().flatten() for _, value in sorted(pyro.get_param_store().items())])


@pytest.mark.parametrize(
    ("name", "objective", "compile"),
    [
        *((name, objective, False) for name in BATCHES for objective in (IWAE(2), Trace_ELBO())),
        *((name, IWAE(2), True) for name in BATCHES if name not in EAGER),
    ],
)
def test_a_step_is_the_objectives_divided_by_the_number_of_data(name, objective, compile, without_machine_code):
    make, batch, count = BATCHES[name]
    args, rate = batch if isinstance(batch, tuple) and not isinstance(batch, PackedSequence) else (batch,), 0.1
    count = count or int((batch > -0.5).sum())
    pair = make()
    objective.loss(pair.model, pair.guide, *args)  # registers the parameters
    start = parameters()
    torch.manual_seed(suite_seed())
    loss = objective.loss_and_grads(pair.model, pair.guide, *args)
    gradients = [value.unconstrained().grad.flatten() for _, value in sorted(pyro.get_param_store().items())]
    expected = start - rate * torch.cat(gradients) / count
    for _, value in pyro.get_param_store().items():
        value.unconstrained().grad = None
    settings = {"objective": objective, "optimizer": torch.optim.SGD, "lr": rate, "seed": suite_seed()}
    history = pv.fit(pair, [batch], epochs=1, compile=compile, progress=False, **settings)
    assert history.loss == [pytest.approx(loss / count, abs=1e-10)]
    torch.testing.assert_close(parameters(), expected, rtol=0, atol=1e-10)


def test_without_data_an_epoch_is_a_step():
    pair = BATCHES["no argument"][0]()
    assert len(pv.fit(pair, None, epochs=3).loss) == 3
    assert len(pv.fit(pair, [()] * 4, epochs=2, validation=[()]).elbo) == 2


@pytest.mark.filterwarnings("error")
def test_a_dict_of_tensors_is_replayed(monkeypatch):
    """Without a warning; with each batch's own values, and with a number that changes traced anew."""
    made, real = [], pv.training.gradients.CompiledLoss
    monkeypatch.setattr(
        pv.training.gradients,
        "CompiledLoss",
        lambda *args, **kwargs: made.append(real(*args, **kwargs, inductor=False)) or made[-1],
    )
    batches = [{"x": part, "scale": scale} for part in data(12).split(4) for scale in (1, 2)]
    losses = []
    for compile in (False, True):
        pyro.clear_param_store()
        pair = plain_pair(lambda batch: batch["scale"] * batch["x"], rows)
        losses.append(pv.fit(pair, batches, epochs=2, seed=1, compile=compile, lr=0.1).loss)
    assert losses[0] == losses[1]
    assert made[0].reason is None
    assert len(made[0]._traced) == 2


@pytest.mark.filterwarnings("error")
def test_the_same_tensor_in_another_place_is_traced_anew(without_machine_code):
    """A list of one tensor is another argument than the tensor, and `b` is another entry than `a`."""
    batches, losses = [data(4), [[data(4)]], {"a": data(4)}, {"b": data(4)}], []

    def read(batch):
        if isinstance(batch, Tensor):
            return batch
        return 2 * batch[0] if isinstance(batch, list) else 3 * batch["a"] if "a" in batch else 4 * batch["b"]

    for compile in (False, True):
        pyro.clear_param_store()
        losses.append(pv.fit(plain_pair(read, rows), batches, epochs=3, seed=1, compile=compile, lr=0.1).loss)
    assert losses[0] == losses[1]


def test_sequences_of_several_lengths_run_eagerly_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="run eagerly.*the lengths in a packed sequence decide"):
        pv.fit(ragged(), [sequences(4, 2)], epochs=1, compile=True)


def test_a_training_on_other_batches_is_not_resumed(tmp_path):
    def fit(x, name):
        pyro.clear_param_store()
        pair, kept = plain_pair(lambda batch: batch["x"], rows), pv.Checkpoints(tmp_path)
        return pv.fit(pair, [{"x": x, "name": name}], epochs=1, seed=1, checkpoints=kept)

    first = fit(data(5), "five")
    with pytest.warns(UserWarning, match="is finished"):
        assert fit(data(5), "five").loss == first.loss
    for x, name in ((data(5) + 1, "five"), (data(5), "six")):
        assert "is of other training data" in refusal(fit, x, name)


def test_a_tensor_is_cut_along_the_data_plate_alone():
    pair = plain_pair(lambda x: x, partial(nested, data_dim=-1))
    message = refusal(pv.fit, pair, data(4, 6), epochs=1, batch_size=2)
    assert "which must be that of the data plate, got 2 rows and 6 data" in message
    assert "got 2 rows and 1 data" in refusal(pv.fit, one_event(lambda x: x[0]), data(4, 3), epochs=1, batch_size=2)
    pv.fit(one_event(lambda x: x[0]), data(4, 3), epochs=1, batch_size=1)


def test_large_values_in_any_argument_are_named():
    pair = plain_pair(lambda batch, x: x, rows)
    with pytest.raises(FloatingPointError, match=r"y reaches 1e\+06: standardise it"):
        pv.fit(pair, [({}, 1e6 * torch.ones(4))], epochs=50, lr=1e9, optimizer=partial(torch.optim.SGD))


# Validation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BATCHES)
def test_validation_is_the_elbo_for_each_datum_of_whole_batches(name):
    """Two batches of which each has draws of its own; those of a user are not cut, however large."""
    make, batch, count = BATCHES[name]
    args = batch if isinstance(batch, tuple) and not isinstance(batch, PackedSequence) else (batch,)
    count, pair = count or int((batch > -0.5).sum()), make()
    history = pv.fit(pair, [batch], epochs=1, validation=[batch, batch], progress=False)
    total = 0.0
    draws = 8 if name == "no plate" else 2  # what all data share is drawn eight times
    for index in range(draws):
        torch.manual_seed(index)
        total -= ELBO().loss(pair.model, pair.guide, *args)
    assert history.elbo == [pytest.approx(total / (draws * count), abs=1e-10)]
    assert history.elbo[0] == pytest.approx(history.reconstruction[0] - history.kl[0], abs=1e-10)


def test_a_large_batch_is_cut_only_where_its_rows_are_data():
    """2,000 data: a tensor is run 1,024 at a time, and a batch of the user's with a matrix in it as it is."""
    sizes = []

    def read(x, *more):
        sizes.append(len(x))
        return x

    x = data(2_000)
    pv.fit(plain_pair(read, rows), x[:10], epochs=1, validation=x)
    assert set(sizes) == {10, 1_024, 976}
    pyro.clear_param_store()
    sizes.clear()
    pv.fit(plain_pair(read, rows), [(x[:10], x[:10])], epochs=1, validation=[(x, x)])
    assert set(sizes) == {10, 2_000}


class Normed(nn.Module):
    """Batch normalisation: particles are run one after another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.net = nn.BatchNorm1d(2), nn.Linear(2, 2)

    def model(self, x):
        pyro.module("normed", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.norm(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("normed", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_particles_one_after_another_give_one_training_compiled_and_not(without_machine_code):
    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        pair, x = Normed(), data(16, 2)
        history = pv.fit(pair, x, epochs=1, batch_size=8, objective=IWAE(2), compile=compile, seed=1, validation=x)
        found.append((history.loss, history.elbo, parameters_of(pair), pair.norm.running_mean))
    assert found[0][:2] == found[1][:2]
    assert all(map(torch.equal, found[0][2:], found[1][2:]))
