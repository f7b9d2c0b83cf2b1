"""A program that is run twice makes the same random choices, whatever it draws besides its latents."""

import math
import random
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import mean_and_error, suite_seed
from pyro.optim import Adam
from scalar_pairs import assert_one_mean, double, gradients
from torch import nn

import pyrovae as pv
from pyrovae.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
)
from pyrovae.programs import Reading, pair_at, run_pair
from pyrovae.programs.random_choices import Choices

DATA = torch.linspace(-1, 3, 1_000, dtype=torch.float64)


def subsampled(drawn=None):
    """Returns a pair that draws its minibatch by itself: `obs=data[index]`. Each minibatch is appended to `drawn`."""

    def model():
        shift = pyro.param("shift", double(0.5))
        with pyro.plate("data", 1_000, subsample_size=40) as index:
            record(drawn, index)
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=DATA[index])

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", 1_000, subsample_size=40) as index:
            record(drawn, index)
            pyro.sample("z", dist.Normal(slope * DATA[index], 0.8))

    return model, guide


def record(drawn, choice):
    if drawn is not None:
        drawn.append(choice.flatten().tolist())
    return choice


def drawing(noise: Callable[[], torch.Tensor], drawn=None, size=10):
    """Returns a pair that makes a random choice of its own for all particles, such as dropout of the input."""

    def model():
        shift = pyro.param("shift", double(0.5))
        with pyro.plate("data", size, dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z * record(drawn, noise()), 0.7), obs=DATA[:size])

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", size, dim=-1):
            pyro.sample("z", dist.Normal(slope * DATA[:size] * record(drawn, noise()), 0.8))

    return model, guide


NOISES = {
    "torch": lambda: 2 * torch.rand(10, dtype=torch.float64),
    "dropout": lambda: nn.functional.dropout(torch.ones(10, dtype=torch.float64), 0.5),
    "NumPy": lambda: torch.from_numpy(2 * np.random.rand(10)),  # noqa: NPY002
    "one of NumPy's pairs of normal numbers": lambda: double(1 + 0.5 * np.random.randn()),  # noqa: NPY002
    "Python": lambda: double(2 * random.random()),
}
PROGRAMS = {
    "a subsampled plate": subsampled,
    **{name: partial(drawing, noise) for name, noise in NOISES.items()},
    "all kinds of noise": partial(drawing, lambda: sum(noise() for noise in NOISES.values()) / len(NOISES)),
}


def dropout_of_many():
    return drawing(lambda: nn.functional.dropout(torch.ones(400, dtype=torch.float64), 0.5), size=400)


@cache
def plain_gradients(plain, make) -> torch.Tensor:
    """Returns the gradients that one or two estimators are compared with, from draws of their own."""
    pyro.clear_param_store()
    torch.manual_seed(suite_seed(1))
    return gradients(plain, make(), num=40)


@pytest.mark.parametrize("make", [subsampled, dropout_of_many])
@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (StickingTheLanding(2), ELBO(2)),
        (ScoreFunction(4, baseline="leave_one_out"), ELBO(4)),
        (DReG(4), IWAE(4)),
        (VIMCO(4), IWAE(4)),
        (PIWAE(2, num_batches=2), MIWAE(2, num_batches=2)),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_estimators_of_one_gradient_have_one_mean_whatever_else_the_program_draws(objective, plain, make):
    """Without that, they are many standard errors apart; the noise of few data alone would hide it."""
    found, expected = gradients(objective, make(), num=40), plain_gradients(plain, make)
    if isinstance(objective, PIWAE):  # the guide's alone
        found, expected = found[:, 1:], expected[:, 1:]
    assert_one_mean(found, expected)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_second_run_has_the_log_weights_of_the_first_and_leaves_the_generators_where_it_did(name):
    model, guide = PROGRAMS[name]()
    for _ in range(2):  # the second time it is known to draw more than its latents
        choices = Choices(model, guide)
        with choices.first():
            first = pv.programs.run_pair(model, guide, num_particles=3)
        states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
        latents = {"z": first.guide_sites["z"]["value"].detach()}
        second = choices.again(
            lambda redraw, latents=latents: pv.programs.pair_at(model, guide, latents, redraw=redraw)
        )
        assert torch.equal(first.terms().log_weights, second.terms().log_weights)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (random.getstate(), str(np.random.get_state())) == states[1:]  # noqa: NPY002


@pytest.mark.parametrize("name", PROGRAMS)
def test_chunks_of_particles_make_the_choices_of_one_run(name):
    """With a minibatch per chunk `IWAE(8, chunk_size=1)` would be 3.077, and -log p(x) is 3.205: above the evidence."""
    drawn, steps = [], []
    pair, objective = PROGRAMS[name](drawn=drawn), IWAE(8, chunk_size=3)
    objective.loss(*pair)  # in which the pair is checked, too
    for _ in range(3):
        drawn.clear()
        objective.loss_and_grads(*pair)
        steps += drawn[-18::2], drawn[-17::2]  # of guide and model, in three chunks: weights, gradients and again
    assert [len(choices) for choices in steps] == [9] * 6
    assert all(choice == choices[0] for choices in steps for choice in choices)
    of_guide, of_model = ([choices[0] for choices in steps[start::2]] for start in (0, 1))
    assert (of_guide == of_model) == (name == "a subsampled plate")
    assert any(choice != of_guide[0] for choice in of_guide)  # each step makes its own; two masks may be equal


def test_a_draw_of_each_particle_is_not_shared_by_chunks():
    """Dropout after the latent: with one mask for every chunk the loss would be 86 where it is 63."""
    data = DATA[:10].repeat(3)

    def model():
        with pyro.plate("data", 30, dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.5), 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z + 1, 0.5), 0.7), obs=data)

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", 30, dim=-1):
            pyro.sample("z", dist.Normal(slope * data, 0.8))

    whole, *chunked = IWAE(8), IWAE(8, chunk_size=3), IWAE(8, chunk_size=1)
    expected = double([whole.loss(model, guide) for _ in range(20)]).unsqueeze(-1)
    for one in chunked:
        assert_one_mean(double([one.loss(model, guide) for _ in range(20)]).unsqueeze(-1), expected)
    assert mean_and_error(expected)[1] < 1.5


def test_chunks_of_a_program_that_draws_elsewhere_are_one_run():
    """With other noise in every chunk the loss would be 176 where it is 194."""
    pair = drawing(lambda: torch.from_numpy(5 * np.random.rand(80)), size=80)  # noqa: NPY002
    expected, found = (
        double([one.loss(*pair) for _ in range(30)]).unsqueeze(-1) for one in (IWAE(8), IWAE(8, chunk_size=1))
    )
    assert_one_mean(found, expected)
    assert mean_and_error(expected)[1] < 3.5


@pytest.mark.parametrize("objective", [StickingTheLanding(2), DReG(4), IWAE(4, chunk_size=2)], ids=str)
def test_a_generator_that_cannot_be_set_back_is_refused_where_a_pair_is_run_again(objective):
    own = torch.Generator().manual_seed(0)
    pair = drawing(lambda: 2 * torch.rand(10, dtype=torch.float64, generator=own))
    with pytest.raises(pv.InputError, match="draws from a generator of its own: use torch's, which can be set back"):
        objective.loss(*pair)
    assert math.isfinite(ELBO(2).loss(*pair))


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        StickingTheLanding(),
        DReG(2),
        ReweightedWakeSleep(2),
        ReweightedWakeSleep(2, sleep_weight=0.5),
        IWAE(4, chunk_size=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_running_statistics_move_once_a_step(objective, dropout):
    norm = nn.BatchNorm1d(2).double()
    net = nn.Sequential(norm, nn.Dropout(dropout), nn.Linear(2, 2).double())

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 0.7).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).unbind(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    x = torch.randn(8, 2, dtype=torch.float64)
    for step in range(1, 4):
        objective.loss_and_grads(model, guide, x)
        assert norm.num_batches_tracked == step


@pytest.mark.parametrize("objective", [StickingTheLanding(3), DReG(3), ReweightedWakeSleep(3)], ids=str)
def test_with_dropout_compiled_steps_are_the_eager_ones(objective):
    net = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.Linear(6, 4), nn.Dropout(0.2)).double()
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.3), nn.Linear(6, 2)).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.7).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, results = torch.randn(5, 2, dtype=torch.float64), []
    start = [p.detach().clone() for p in (*net.parameters(), *decoder.parameters())]
    for step in (pv.CompiledSVI, None):
        pyro.clear_param_store()
        with torch.no_grad():
            for parameter, value in zip((*net.parameters(), *decoder.parameters()), start, strict=True):
                parameter.copy_(value)
        if step is None:
            svi = pyro.infer.SVI(model, guide, Adam({"lr": 0.01}), objective)
        else:
            svi = compiled = step(model, guide, Adam({"lr": 0.01}), objective, inductor=False)
        torch.manual_seed(3)
        results.append(([svi.step(x) for _ in range(4)], torch.get_rng_state()))
    assert compiled.reason is None
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("subsample_size", [10, 4])
def test_the_second_run_has_the_log_weights_of_the_first_beside_global_draws_and_one_particle_after_another(
    subsample_size, vectorize
):
    """The particles after the first draw neither global sites nor subsamples, in the second run as in the first."""

    def program(observes):
        def run():
            mean = pyro.sample("mean", dist.Normal(double(0.0), 1.0))
            with pyro.plate("data", 10, subsample_size=subsample_size) as index:
                z = pyro.sample("z", dist.Normal(mean * torch.rand(subsample_size, dtype=torch.float64), 1.0))
                if observes:
                    pyro.sample("x", dist.Normal(z * torch.rand(()), 0.7), obs=DATA[index])

        return run

    model, guide = program(True), program(False)
    reading = Reading(vectorize_particles=vectorize)
    for _ in range(2):  # the second time it is known to draw more than its latents
        choices = Choices(model, guide)
        with choices.first():
            first = run_pair(model, guide, num_particles=3, reading=reading)
        state = torch.get_rng_state()
        latents = {name: z.detach() for name, z in first.draws().items()}
        second = choices.again(
            lambda redraw, first=first, latents=latents: pair_at(model, guide, latents, like=first, redraw=redraw)
        )
        torch.testing.assert_close(second.terms().log_weights, first.terms().log_weights, atol=1e-12, rtol=0)
        assert torch.equal(torch.get_rng_state(), state)
