"""Chunks of data: which arguments are cut, and every way in which a cut would give other weights is found."""

import re
from collections import namedtuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draw, linear_gaussian, suite_seed
from torch.nn.utils.rnn import pack_sequence

import pyrovae as pv
from pyrovae.evaluation import cuts

NUM, CHUNK = 300, 128
VAE = linear_gaussian(3, pinned=True)


def posterior_of(x):
    """The exact p(z|x) of `VAE`, without gradients."""
    q = VAE.posterior(x)
    return dist.MultivariateNormal(q.mean.detach(), scale_tril=q.scale_tril.detach())


def generative(x, prior=None, plate="data"):
    with pyro.plate(plate, len(x), dim=-1):
        pyro.sample("x", VAE.decode(pyro.sample("z", prior or VAE.prior)), obs=x)


def recognition(x, q=None, plate="data"):
    with pyro.plate(plate, len(x), dim=-1):
        pyro.sample("z", q or posterior_of(x))


@pytest.fixture
def x():
    torch.manual_seed(suite_seed(1))
    return draw(VAE, NUM)


def sizes_of(model, seen):
    """Returns the program, which notes the number of data at the site x."""

    def program(*args):
        trace = pyro.poutine.trace(model).get_trace(*args)
        seen.append(trace.nodes["x"]["value"].shape[0])

    return program


def assert_exact(model, guide, x, *args, expect_chunks=True):
    """With the exact posterior for a guide, every weight is p(x), whatever is cut."""
    seen = []
    result = pv.log_marginal(sizes_of(model, seen), guide, *args, num_samples=200)
    torch.testing.assert_close(result.log_px, VAE.log_px(x).detach(), rtol=0, atol=1e-10)
    if expect_chunks:
        assert max(seen[seen.index(NUM % CHUNK) :]) == CHUNK  # after the cuts have been compared with the whole
        assert seen.count(CHUNK) > 8
    else:
        assert seen[-8:] == [NUM] * 8


# What is cut ----------------------------------------------------------------------------------------------------------

Batch = namedtuple("Batch", "image mask number")


def test_plain_tensors_are_cut_without_a_word(x):
    assert_exact(generative, recognition, x, x)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (lambda x: ({"x": x, "scale": 3},), lambda a: a["x"]),
        (lambda x: ([x, [x, None]],), lambda a: a[1][0]),
        (lambda x: (Batch(x, torch.ones(len(x)), 7),), lambda a: a.image),
        (lambda x: (x, torch.ones(3)), lambda a, other: a),
        (lambda x: (5, None, x), lambda number, nothing, a: a),
    ],
    ids=["dict", "lists", "named tuple", "another tensor", "number and None"],
)
def test_tensors_of_all_data_are_cut_wherever_they_are(x, arguments, read):
    args = arguments(x)
    assert_exact(lambda *a: generative(read(*a)), lambda *a: recognition(read(*a)), x, *args)


def test_a_tensor_as_long_as_a_chunk_is_not_taken_for_data(x):
    """Neither in a chunk nor in a part of one."""
    weight = torch.ones(CHUNK)

    def model(x, weight):
        assert len(weight) == CHUNK
        generative(x)

    assert_exact(model, lambda x, _: recognition(x), x, x, weight)


def test_the_number_of_data_is_that_of_the_plate_and_not_of_the_first_argument(x):
    other = torch.zeros(7)
    assert_exact(lambda other, x: generative(x), lambda other, x: recognition(x), x, other, x)


# What is not ----------------------------------------------------------------------------------------------------------

ROW = torch.linspace(0.5, 1.5, NUM).double()


def matrix_model(x, matrix):
    """Takes the diagonal of a matrix: a part of its rows has another one."""
    scale = matrix.diagonal()[: len(x)]
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", VAE.prior)
        pyro.sample("x", dist.Normal(VAE.decode(z).mean, scale[:, None]).to_event(1), obs=x)


def closure_model(x, *_):
    scale = ROW[: len(x)]
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", VAE.prior)
        pyro.sample("x", dist.Normal(VAE.decode(z).mean, scale[:, None]).to_event(1), obs=x)


def masked_model(x, *_):
    mask = torch.arange(NUM) % 7 < 3
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", VAE.prior)
        with pyro.poutine.mask(mask=mask[: len(x)]):
            pyro.sample("x", VAE.decode(z), obs=x)


def indexed_model(x, *_):
    with pyro.plate("data", len(x), dim=-1) as index:
        z = pyro.sample("z", VAE.prior)
        pyro.sample("x", dist.Normal(VAE.decode(z).mean, ROW[index][:, None]).to_event(1), obs=x)


def whole_batch_guide(x, *_):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :2] - 0.2 * x.mean(0)[:2], 0.8).to_event(1))


def own_guide(x, *_):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.5 * x[:, :2], 0.8).to_event(1))


def regularized_model(x, *_):
    """Has a factor, as it were, of all data together."""
    pyro.sample("mean", dist.Normal(x.mean(), 0.01), obs=torch.zeros(()).double())
    generative(x)


def counting_model(x, *_):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", VAE.prior)
        pyro.sample("x", dist.Normal(VAE.decode(z).mean, 1 + len(x) / NUM).to_event(1), obs=x)


TRAPS = {
    "matrix": (matrix_model, own_guide),
    "closure": (closure_model, own_guide),
    "mask in a closure": (masked_model, own_guide),
    "closure by index": (indexed_model, own_guide),
    "guide reads the batch": (lambda x, *_: generative(x), whole_batch_guide),
    "number of data": (counting_model, own_guide),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_cut_that_changes_weights_is_found_and_would_have_been_wrong(x, name, monkeypatch):
    model, guide = TRAPS[name]
    args = (x, 0.7 + torch.diag(ROW))

    def estimate():
        torch.manual_seed(suite_seed(2))
        return pv.importance_bound(model, guide, *args, num_particles=100, num_repeats=4).value

    monkeypatch.setattr(pv.evaluation.sampled_weights, "DATA_PER_CHUNK", NUM)
    truth = estimate()  # in one chunk of data
    monkeypatch.undo()
    rule = "all 300 data are taken at once, and not in chunks of 128: alone, a part of them has other log-densities"
    with pytest.warns(UserWarning, match=rule):
        found = estimate()
    assert (found - truth).abs().median() < 1
    monkeypatch.setattr(cuts, "why_not_cut", lambda *_: None)
    wrong = estimate()
    assert (wrong - truth).abs().max() > 0.5, "the trap is none"
    torch.testing.assert_close(found.mean(), truth.mean(), rtol=0.01, atol=0)


def test_a_cut_that_the_programs_do_not_take_is_none(x):
    mask = torch.ones(NUM, dtype=torch.bool)

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=mask):
            pyro.sample("x", VAE.decode(pyro.sample("z", VAE.prior)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=mask):
            pyro.sample("z", posterior_of(x))

    with pytest.warns(UserWarning, match=re.escape("a part of them cannot be taken alone (")):
        assert_exact(model, guide, x, x, expect_chunks=False)


def test_what_all_data_share_is_compared_too(x):
    """The mean of a part of the data is another: the local weights alone would not tell."""
    with pytest.warns(UserWarning, match="all 300 data are taken at once, and not in chunks of 50: alone, a part"):
        result = pv.log_marginal(regularized_model, recognition, x, num_samples=4, num_particles=1, chunk_size=50)
    shared = dist.Normal(x.mean(), 0.01).log_prob(torch.zeros(()).double())
    torch.testing.assert_close(result.log_px[0], VAE.log_px(x).sum().detach() + shared, rtol=0, atol=1e-9)


def test_parameters_of_each_datum_are_found(x):
    """A guide without a network has a row for each datum in the param store."""

    def guide(x):
        loc = pyro.param("loc", lambda: posterior_of(x).mean.clone())
        q = posterior_of(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc[: len(x)], scale_tril=q.scale_tril))

    with pytest.warns(UserWarning, match="all 300 data are taken at once"):
        assert_exact(generative, guide, x, x, expect_chunks=False)


BATCH_READERS = {
    "largest": lambda x: x.abs().max().expand(len(x)),
    "first row": lambda x: x[:1].expand(len(x)),
    "last row": lambda x: x[-1:].expand(len(x)),
    "row in the middle": lambda x: x[len(x) // 2].expand(len(x)),
    "row before": lambda x: torch.cat([x[:1], x[:-1]]),
    "next row": lambda x: torch.cat([x[1:], x[-1:]]),
    "rows before": lambda x: x.cumsum(0),
    "rows to come": lambda x: x.flip(0).cumsum(0).flip(0),
    "its own place": lambda x: torch.arange(len(x)).double(),
    "its place from the end": lambda x: torch.arange(len(x)).flip(0).double(),
    "how many values there are": lambda x: x.round().unique().numel() * torch.ones_like(x),
}


@pytest.mark.parametrize(("num", "compared"), [(129, 1_024), (200, 1_024), (200, 64)])
@pytest.mark.parametrize("name", BATCH_READERS)
def test_whatever_a_program_reads_of_the_batch_is_found(name, num, compared, monkeypatch):
    """With the exact posterior given what is read, every weight is p(x) of the datum among all data."""
    read, x = BATCH_READERS[name], torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[num // 2] = 5.0
    monkeypatch.setattr(cuts, "DATA_COMPARED", compared)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z + read(x), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - read(x)) / 1.25, 0.2**0.5))

    with pytest.warns(UserWarning, match=f"all {num} data are taken at once"):
        result = pv.log_marginal(model, guide, x, num_samples=4, chunk_size=None if compared > num else 16)
    truth = dist.Normal(read(x), torch.tensor(1.25).double().sqrt()).log_prob(x)
    torch.testing.assert_close(result.log_px, truth, rtol=0, atol=1e-10)


def test_packed_sequences_run_whole():
    lengths = [2 + index % 3 for index in range(CHUNK + 2)]
    torch.manual_seed(suite_seed(3))
    packed = pack_sequence([torch.randn(length, 1).double() for length in lengths], enforce_sorted=False)

    def means(packed):
        padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        return padded.sum((1, 2)) / lengths

    def model(packed):
        x = means(packed)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(packed):
        x = means(packed)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    with pytest.warns(UserWarning, match="no tensor among the arguments has a row for each"):
        result = pv.log_marginal(model, guide, packed, num_samples=20)
    truth = dist.Normal(0.0, torch.tensor(1.25).double().sqrt()).log_prob(means(packed))
    torch.testing.assert_close(result.log_px, truth, rtol=0, atol=1e-10)


def test_a_pair_may_take_no_arguments(x):
    few = x[:5]
    result = pv.log_marginal(lambda: generative(few), lambda: recognition(few), num_samples=30)
    torch.testing.assert_close(result.log_px, VAE.log_px(few).detach(), rtol=0, atol=1e-10)


# The check itself -----------------------------------------------------------------------------------------------------


def test_of_many_data_some_chunks_stand_for_all_and_the_check_costs_little(monkeypatch):
    monkeypatch.setattr(cuts, "DATA_COMPARED", 300)
    few = CHUNK + 2_000 % CHUNK  # the first chunk and the last
    torch.manual_seed(suite_seed(4))
    many, seen = draw(VAE, 2_000), []
    pv.log_marginal(sizes_of(generative, seen), recognition, many, num_samples=64)
    assert max(seen) == few
    assert seen.count(few) == 1
    assert seen.count(CHUNK) < 2 * 2_000 / CHUNK * 4


def test_weights_of_zero_are_equal():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(-1.0, 2.0).expand(x.shape))

    torch.manual_seed(suite_seed(5))
    assert pv.log_marginal(model, guide, torch.randn(NUM), num_samples=200).log_px.isfinite().all()


def test_the_caller_generator_does_not_move_by_the_check(x, monkeypatch):
    states = []
    for check in (cuts.why_not_cut, lambda *_: None):
        monkeypatch.setattr(cuts, "why_not_cut", check)
        torch.manual_seed(1)
        result = pv.log_marginal(generative, own_guide, x, num_samples=20).log_px
        states.append((torch.get_rng_state(), result))
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


def test_bad_arguments_are_refused_before_anything_runs():
    for value, message in [
        (({"x": torch.tensor([1.0, float("nan")])},), r"x must be finite, got nan at index \(1,\)"),
        ((torch.ones(2), [torch.tensor([float("inf")])]), r"y must be finite, got inf at index \(0,\)"),
        ((torch.zeros(0, 5),), "x must hold at least one datum, got 0"),
    ]:
        with pytest.raises(pv.InputError, match=message):
            pv.log_marginal(generative, recognition, *value, num_samples=10)
