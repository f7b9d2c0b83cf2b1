"""A step on a batch of a pair with global sites follows the bound on all N data, divided by N."""

import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import conjugate
from global_pairs import BATCH, NUM, PLATES, POSITIVE, X, double, pair_of
from helpers import Pair, suite_seed
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.data import batches_of, first_batch, generators_of
from pyrovae.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.programs import AS_IT_COMES
from pyrovae.training.data_count import DataCount
from pyrovae.training.gradients import BatchGradients, gradients_of
from pyrovae.training.pair_checks import checked_pair
from pyrovae.training.whole_data import WholeData


def count_of(pair, source, objective=None, batch_size=BATCH) -> DataCount:
    """Returns how `fit` counts the data of this source, which moves no generator."""
    objective = objective or ELBO()
    train, _ = batches_of(pair, source, None, batch_size, torch.device("cpu"))
    epoch, first = first_batch(train, ())
    _, run = checked_pair(pair, objective, first)
    whole = WholeData(pair, source, train, epoch.num_batches, first, generators_of(source))
    before = torch.get_rng_state()
    count = whole.count(run, getattr(objective, "reading", AS_IT_COMES))
    assert torch.equal(torch.get_rng_state(), before)
    return count


def gradient(pair, objective, batch, count) -> torch.Tensor:
    """Returns the gradient per datum of a step, in the order of the parameters' names, always on the same draws."""
    objective.loss(pair.model, pair.guide, batch)
    parameters = {name: value.unconstrained() for name, value in sorted(pyro.get_param_store().items())}
    torch.manual_seed(suite_seed(1))
    gradients_of(pair, objective, parameters, False, count)(batch)
    return torch.stack([parameter.grad for parameter in parameters.values()])


OF_GLOBALS = [
    ELBO(2),
    StickingTheLanding(),
    AnalyticKLELBO(),
    ScoreFunction(),
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
]


@pytest.mark.parametrize("plate", PLATES)
@pytest.mark.parametrize("objective", OF_GLOBALS)
def test_the_mean_gradient_of_an_epochs_batches_is_that_of_all_data(plate, objective):
    """On one draw of theta: under our objectives, and under Pyro's own."""
    pair = pair_of(plate)
    if isinstance(objective, AnalyticKLELBO | TraceMeanField_ELBO):
        pair = Pair(pyro.poutine.block(pair.model, hide=["regulariser"]), pair.guide)  # a factor has no KL
    count = count_of(pair, X, objective)
    assert count.num_data == (None if plate == "declared" else NUM)
    batches = torch.stack([gradient(pair, objective, batch, count) for batch in X.split(BATCH)])
    whole = gradient(pair, objective, X, count_of(pair, X, objective, batch_size=NUM))
    torch.testing.assert_close(batches.mean(0), whole, rtol=0, atol=1e-10)


OF_LOCALS = [
    ELBO(2),
    IWAE(3),
    IWAE(4, chunk_size=2),
    DReG(3),
    VIMCO(3),
    ReweightedWakeSleep(3),
    MIWAE(2, num_batches=2),
    ThermodynamicVO(3),
    AnalyticKLELBO(),
    Trace_ELBO(),
]


@pytest.mark.parametrize("objective", OF_LOCALS)
@pytest.mark.parametrize("plate", ["sized", "without a size"])
def test_a_batch_counts_as_where_the_program_declares_the_number_of_data(plate, objective):
    """With local latents as well: N / B stands outside of every bound on a datum."""
    without, declared = pair_of(plate, has_local=True), pair_of("declared", has_local=True)
    found = gradient(without, objective, X[:BATCH], count_of(without, X, objective))
    torch.testing.assert_close(
        found, gradient(declared, objective, X[:BATCH], count_of(declared, X, objective)), rtol=0, atol=1e-10
    )


def test_the_loss_of_an_epoch_is_of_each_datum_where_the_program_declares_their_number():
    """Batches of 5, 5 and 2 data: without a step's move, each plate gives the same history."""
    losses = []
    for plate in ("sized", "declared"):
        pyro.clear_param_store()
        history = pv.fit(pair_of(plate), X, epochs=2, batch_size=5, lr=1e-12, seed=1)
        losses.append(history.loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


# The number of data ---------------------------------------------------------------------------------------------------


def drawn_anew(**settings) -> DataLoader:
    return DataLoader(TensorDataset(X), shuffle=True, **settings)


@pytest.mark.parametrize(
    ("source", "num_data"),
    [
        (X, NUM),
        (list(X.split(5)), NUM),
        (drawn_anew(batch_size=5), NUM),
        (drawn_anew(batch_size=5, drop_last=True), NUM),
        (DataLoader([*X.split(4)], batch_size=None), NUM),
        ([X], None),
    ],
    ids=["tensor", "list", "loader", "loader without the last", "loader of batches", "one batch"],
)
def test_the_number_of_data_is_found(source, num_data):
    assert count_of(pair_of(), source).num_data == num_data


def test_the_number_of_data_of_a_data_set_is_that_of_its_training_data():
    data = pv.load("ring", num_train=20, num_validation=5, num_test=5)

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    assert count_of(Pair(model, AutoNormal(model)), data).num_data == 20


def test_a_batch_that_the_program_subsamples_is_a_part_of_the_whole():
    """It gives 2 of 3 data: 3 stand for N = 12."""

    def model(x):
        theta = pyro.sample("theta", dist.Normal(double(0.0), 3.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(theta, 0.5), obs=x[rows])

    pair = Pair(model, pair_of().guide)
    count = count_of(pair, X)
    with count.of_run((X[:BATCH],)) as counted:
        trace = pyro.poutine.trace(model).get_trace(X[:BATCH])
    assert (counted.size, counted.whole, trace.nodes["x"]["scale"]) == (2, NUM, NUM / 2)


# What comes out -------------------------------------------------------------------------------------------------------

MANY = 0.7 + torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mean_model(x):
    theta = pyro.sample("theta", dist.Normal(double(0.0), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


def mean_guide(x):
    loc, scale = pyro.param("loc", double(0.0)), pyro.param("scale", double(0.02), constraint=POSITIVE)
    pyro.sample("theta", dist.Normal(loc, scale))


@pytest.mark.parametrize(
    ("objective", "guide", "epochs"),  # of Pyro's ELBO theta is drawn a hundred times in a step, and has less noise
    [("elbo", "AutoNormal", 48), (Trace_ELBO(100, 1, vectorize_particles=True), "by hand", 20)],
)
def test_the_posterior_of_a_mean_is_that_of_all_data(objective, guide, epochs):
    """sd 0.045 for 500 data in batches of 100: with theta's densities counted once a batch it would be 0.10.

    log sd has a standard error of 0.11 at its end under our ELBO (of 4,000 trainings).
    """
    auto = AutoNormal(mean_model, init_scale=0.02)  # from where the scale grows with little noise
    pair = SimpleNamespace(model=mean_model, guide=mean_guide if guide == "by hand" else auto)
    settings = {"batch_size": 100, "lr": 0.07, "schedule": "cosine", "seed": suite_seed(), "progress": False}
    pv.fit(pair, MANY, epochs=epochs, objective=objective, **settings)
    if guide == "by hand":
        loc, scale = (pyro.param(name).item() for name in ("loc", "scale"))
    else:
        loc, scale = auto.locs.theta.item(), auto.scales.theta.item()
    assert loc == pytest.approx(MANY.sum().item() / 500.01, abs=0.055)
    assert math.log(scale) == pytest.approx(-math.log(500.01) / 2, abs=0.5)


def test_the_posterior_of_a_regression_in_minibatches_is_the_exact_one():
    x, y = conjugate.measurements(200)
    mean, covariance = conjugate.regression_posterior(x, y)
    # Scales grow from below with little noise.
    guide = AutoNormal(conjugate.regression, init_loc_fn=pyro.infer.autoguide.init_to_mean, init_scale=0.02)
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    settings = {"lr": 0.07, "schedule": "cosine", "seed": suite_seed()}
    pv.fit(Pair(conjugate.regression, guide), loader, epochs=80, **settings)
    sd = 1 / torch.linalg.inv(covariance).diagonal().sqrt()  # of the best guide with independent weights
    assert (guide.locs.w - mean).abs().max() < 1.5 * sd.max()
    assert (guide.scales.w / sd).log().abs().max() < 0.4


# Several processes ----------------------------------------------------------------------------------------------------


class InTurn:
    """Two processes, one after the other, whose messages add up."""

    size = 2

    def __init__(self):
        self.sent = []

    def total(self, flat: torch.Tensor) -> torch.Tensor:
        self.sent.append(flat.clone())
        return flat.copy_(sum(self.sent))


@pytest.mark.parametrize("plate", ["sized", "declared"])
@pytest.mark.parametrize("objective", [ELBO(), Trace_ELBO()])
def test_processes_with_unequal_numbers_of_rows_have_the_gradient_of_one(plate, objective):
    """Three rows for one and two for the other, with one draw of theta in both."""
    pair, batch = pair_of(plate), X[:5]
    objective.loss(pair.model, pair.guide, batch)
    parameters = {name: value.unconstrained() for name, value in sorted(pyro.get_param_store().items())}
    step = gradients_of(pair, objective, parameters, False, count_of(pair, X, objective, batch_size=5))
    gradients = BatchGradients(step, list(parameters.values()), 1, AS_IT_COMES, skip_refused=False)
    found = []
    for workers, shares in ((gradients.workers, [batch]), (InTurn(), [batch[::2], batch[1::2], batch[:0]])):
        gradients.workers, messages = workers, workers.sent if isinstance(workers, InTurn) else []
        for share in shares:
            torch.manual_seed(suite_seed(2))
            loss, _, size, _, requests = gradients((share,), (0.0, 1.0))
        assert (size, *requests) == (5, 0.0, max(len(messages), 1))
        found.append(torch.stack([loss, *(parameter.grad for parameter in parameters.values())]))
    assert len(messages) == 3  # one for each process
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
