"""Identities used within their premises: a program run twice is one program; beta; weights of 0; a dream of all data.

The kind of fault: an estimator that is right for a program that draws its latents and nothing else, at beta = 1, with
weights that are positive, and with one observed site.
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from pyro.optim import Adam
from test_gate import OnLatents
from torch import nn

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.programs.random_choices import Choices


def double(value):
    return torch.tensor(value, dtype=torch.float64)


# Programs that draw more than their latents --------------------------------------------------------------------------

DATA = torch.linspace(-1, 3, 1_000, dtype=torch.float64)


def subsampled():
    """A minibatch that the program draws by itself: `obs=data[index]`."""

    def model():
        shift = pyro.param("shift", double(0.5))
        with pyro.plate("data", 1_000, subsample_size=10) as index:
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=DATA[index])

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", 1_000, subsample_size=10) as index:
            pyro.sample("z", dist.Normal(slope * DATA[index], 0.8))

    return model, guide


def drawing(noise: Callable[[], torch.Tensor]):
    """A program that makes a random choice of its own, the same for all particles: dropout of the input, words, ..."""

    def model():
        shift = pyro.param("shift", double(0.5))
        with pyro.plate("data", 10, dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z * noise(), 0.7), obs=DATA[:10])

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", 10, dim=-1):
            pyro.sample("z", dist.Normal(slope * DATA[:10] * noise(), 0.8))

    return model, guide


PROGRAMS = {
    "a subsampled plate": subsampled,
    "torch": lambda: drawing(lambda: 2 * torch.rand(10, dtype=torch.float64)),
    "dropout": lambda: drawing(lambda: nn.functional.dropout(torch.ones(10, dtype=torch.float64), 0.5)),
    "NumPy": lambda: drawing(lambda: torch.from_numpy(2 * np.random.rand(10))),  # noqa: NPY002
    "one of NumPy's pairs of normal numbers": lambda: drawing(lambda: double(1 + 0.5 * np.random.randn())),  # noqa: NPY002
    "Python": lambda: drawing(lambda: double(2 * random.random())),
}


def gradients(objective, pair, *args, num: int = 1) -> torch.Tensor:
    """The gradient of the loss in the parameters, in the order of their names, `(num, parameters)`."""
    objective.loss(*pair, *args)
    parameters = [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]
    found = []
    for _ in range(num):
        for parameter in parameters:
            parameter.grad = None
        objective.loss_and_grads(*pair, *args)
        found.append(torch.stack([torch.zeros(()) if p.grad is None else p.grad.sum() for p in parameters]))
    return torch.stack(found).double()


def assert_one_mean(one: torch.Tensor, other: torch.Tensor, note: str = "") -> None:
    (mean, error), (expected, expected_error) = mean_and_error(one), mean_and_error(other)
    assert_within_standard_errors(mean, expected, (error**2 + expected_error**2).sqrt() + 1e-12, note=note)


@pytest.mark.parametrize("name", PROGRAMS)
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
def test_estimators_of_one_gradient_have_one_mean_whatever_else_the_program_draws(objective, plain, name):
    """In a subsampled plate's data: ELBO 0.029 (0.013), sticking the landing -6.1, DReG -1.6, VIMCO -14.9."""
    pair = PROGRAMS[name]()
    found, expected = (gradients(one, pair, num=150) for one in (objective, plain))
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
    """Of a subsampled plate's data `IWAE(8, chunk_size=1)` would be 3.077 where -log p(x) is 3.205: a bound on more
    than the evidence."""
    pair = PROGRAMS[name]()
    whole, chunked = IWAE(8), IWAE(8, chunk_size=3)
    losses = [double([one.loss(*pair) for _ in range(100)]).unsqueeze(-1) for one in (whole, chunked)]
    assert_one_mean(*losses)
    assert_one_mean(*(gradients(one, pair, num=100) for one in (whole, chunked)))


def test_a_draw_of_each_particle_is_not_shared_by_chunks():
    """Dropout after the latent: with one mask for every chunk the loss would be 28.7 where it is 21.0."""

    def model():
        with pyro.plate("data", 10, dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.5), 1.0))
            pyro.sample("x", dist.Normal(nn.functional.dropout(z + 1, 0.5), 0.7), obs=DATA[:10])

    def guide():
        slope = pyro.param("slope", double(0.3))
        with pyro.plate("data", 10, dim=-1):
            pyro.sample("z", dist.Normal(slope * DATA[:10], 0.8))

    whole, *chunked = IWAE(8), IWAE(8, chunk_size=3), IWAE(8, chunk_size=1)
    expected = double([whole.loss(model, guide) for _ in range(200)]).unsqueeze(-1)
    for one in chunked:
        assert_one_mean(double([one.loss(model, guide) for _ in range(200)]).unsqueeze(-1), expected)


@pytest.mark.parametrize("noise", ["NumPy", "Python"])
def test_chunks_of_a_program_that_draws_elsewhere_are_one_run(noise):
    """With other noise in every chunk the loss would be 19.3 where it is 21.9."""
    pair = PROGRAMS[noise]()
    expected, found = (
        double([one.loss(*pair) for _ in range(500)]).unsqueeze(-1) for one in (IWAE(8), IWAE(8, chunk_size=2))
    )
    assert_one_mean(found, expected)
    assert mean_and_error(expected)[1] < 0.3


@pytest.mark.parametrize("objective", [StickingTheLanding(2), DReG(4), IWAE(4, chunk_size=2)], ids=str)
def test_a_generator_that_cannot_be_set_back_is_refused_where_a_pair_is_run_again(objective):
    own = torch.Generator().manual_seed(0)
    pair = drawing(lambda: 2 * torch.rand(10, dtype=torch.float64, generator=own))
    with pytest.raises(pv.InputError, match="draws from a generator of its own that cannot be set back"):
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


# beta ----------------------------------------------------------------------------------------------------------------


def weighed(beta: float):
    """One scalar latent: prior N(shift, 1), x ~ N(z, 0.7), q = N(slope x, exp(log_scale)), under beta on the latent."""

    def model(x):
        shift = pyro.param("shift", double(0.4))
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x):
        slope, log_scale = pyro.param("slope", double(0.3)), pyro.param("log_scale", double(-0.3))
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    return model, guide


def total_derivative(objective, beta: float, num: int) -> torch.Tensor:
    """Mean and standard error over data of the gradient of -E[bound], by autograd through draws and densities."""
    pair = weighed(beta)
    repeats = torch.full((num,), 1.5, dtype=torch.float64)
    return gradients(objective, pair, repeats, num=20) / num


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (StickingTheLanding(3), ELBO(3)),
        (AnalyticKLELBO(3), ELBO(3)),
        (ScoreFunction(3), ELBO(3)),
        (ScoreFunction(3, baseline="leave_one_out"), ELBO(3)),
        (DReG(8), IWAE(8)),
        (VIMCO(8), IWAE(8)),
        (Renyi(8, alpha=0.0), IWAE(8)),
        (CIWAE(8, elbo_weight=0.0), IWAE(8)),
        (CIWAE(8, elbo_weight=1.0), ELBO(8)),
        (MIWAE(8, num_batches=1), IWAE(8)),
        (PIWAE(8, num_batches=1), IWAE(8)),
    ],
    ids=str,
)
def test_under_beta_too_every_estimator_has_the_mean_of_the_total_derivative(objective, plain, beta):
    """DReG without beta in its coefficient: (-0.269, -0.277) where IWAE has (2.527, 1.020)."""
    found, expected = (total_derivative(one, beta, 4_000) for one in (objective, plain))
    assert found.shape == (20, 3)
    assert_one_mean(found, expected, f"beta {beta}")
    assert mean_and_error(expected)[1].max() < 0.05 * expected.mean(0).abs().max(), "else nothing is compared"


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize("objective", [Renyi(8, alpha=0.5), CIWAE(8), MIWAE(4, num_batches=2)], ids=str)
def test_under_beta_a_bound_of_its_own_has_the_gradient_of_its_value(objective, beta):
    """Against differences of the loss on the same draws."""
    pair, x = weighed(beta), torch.linspace(-1, 2, 50, dtype=torch.float64)
    torch.manual_seed(7)
    (found,) = gradients_on_one_seed(objective, pair, x)
    for column, name in enumerate(sorted(["log_scale", "shift", "slope"])):
        parameter, losses = pyro.param(name).unconstrained(), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step
                torch.manual_seed(7)
                losses.append(objective.loss(*pair, x))
                parameter -= step
        assert found[column] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-5)


def gradients_on_one_seed(objective, pair, x) -> torch.Tensor:
    objective.loss(*pair, x)
    parameters = [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(7)
    objective.loss_and_grads(*pair, x)
    return torch.stack([parameter.grad for parameter in parameters]).unsqueeze(0)


# Weights of 0 --------------------------------------------------------------------------------------------------------

EVERY = [
    ELBO(4),
    StickingTheLanding(4),
    ScoreFunction(4),
    ScoreFunction(4, baseline="leave_one_out"),
    IWAE(4),
    DReG(4),
    Renyi(4, alpha=0.5),
    Renyi(4, alpha=-1.0),
    MIWAE(2, num_batches=2),
    PIWAE(2, num_batches=2),
    CIWAE(4),
    CIWAE(4, elbo_weight=0.0),
    VIMCO(4),
    ReweightedWakeSleep(4),
    ThermodynamicVO(4),
    ThermodynamicVO(4, num_partitions=5),
]


@pytest.mark.parametrize("objective", EVERY, ids=str)
@pytest.mark.parametrize("num_zero", [0, 1, 3, 4])
def test_every_bound_and_coefficient_is_defined_where_weights_are_0(objective, num_zero):
    log_weights = double([[0.3], [-0.7], [1.1], [0.2]])
    log_weights[:num_zero] = -math.inf
    bound = objective.bound(log_weights)
    assert not bound.isnan().any()
    coefficients = objective.coefficients(log_weights, double(1.0)).finite()
    for part in (coefficients.model, coefficients.path, coefficients.score):
        assert part is None or part.isfinite().all()
    if num_zero == 4:
        assert bound.item() == -math.inf
        assert coefficients.model.abs().max() <= 1 / 4 + 1e-12 if objective.takes_masked else True
    if isinstance(objective, IWAE) and 0 < num_zero < 4:
        left = log_weights[num_zero:]
        assert bound.item() == pytest.approx((left.logsumexp(0) - math.log(4)).item(), abs=1e-12)
        torch.testing.assert_close(coefficients.model[num_zero:], left.softmax(0))
        assert coefficients.model[:num_zero].abs().max() == 0


def edge(scale: float = 0.0):
    """x ~ Uniform(low z, z): a draw below x has weight 0."""

    def model(x):
        low = pyro.param("low", double(0.05))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(double(0.0), 1.0))
            pyro.sample("x", dist.Uniform(low * z, z), obs=x)

    def guide(x):
        logit = pyro.param("logit", double(0.5))
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(logit, double(1.0))
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.SigmoidTransform()]))

    return model, guide


@pytest.mark.parametrize("objective", [VIMCO(4), ReweightedWakeSleep(4)], ids=str)
@pytest.mark.parametrize("x", [0.97, 5.0], ids=["few weights are not 0", "all are 0"])
def test_loss_and_gradient_of_a_pair_are_defined_where_weights_are_0(objective, x):
    data = torch.full((400,), x, dtype=torch.float64)
    found = gradients(objective, edge(), data)
    assert found.isfinite().all()
    assert objective.loss(*edge(), data) == math.inf
    assert (found.abs().max() > 0) == (x < 1)


PATHS = [objective for objective in EVERY if objective.coefficients(torch.zeros(4, 1), 1.0).path is not None]


@pytest.mark.parametrize("objective", PATHS, ids=str)
def test_a_path_derivative_is_refused_where_weights_fall_to_0(objective):
    """The derivative through the draws has no part of what crosses the edge: IWAE's gradient would be 1.56 where
    differences of its loss have 0.015, and drives the guide out of the support."""
    with pytest.raises(pv.InputError, match=r"goes through the draws|ELBO is then -inf"):
        objective.loss(*edge(), torch.full((400,), 0.9, dtype=torch.float64))

    def beyond(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("a", double(0.5)), 0.6))

    with pytest.raises(pv.InputError, match="must draw what the prior can give"):
        objective.loss(exponential, beyond, torch.full((400,), 0.2, dtype=torch.float64))


def exponential(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Exponential(double(1.0)))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def test_vimcos_gradient_is_that_of_its_loss_where_weights_fall_to_0():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("a", double(0.5)), 0.6))

    x, step = torch.full((20_000,), 0.2, dtype=torch.float64), 0.2
    objective = VIMCO(32)
    found = gradients(objective, (exponential, guide), x, num=10) / len(x)
    ends = []
    for a in (0.5 + step, 0.5 - step):
        pyro.get_param_store()["a"] = double(a)
        ends.append(double([objective.loss(exponential, guide, x) / len(x) for _ in range(10)]))
    assert_one_mean(found, ((ends[0] - ends[1]) / (2 * step)).unsqueeze(-1))


# Wake-sleep's dream --------------------------------------------------------------------------------------------------


def two_sites(model_scale: float = 0.7):
    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)
            pyro.sample("y", dist.Normal(-z, 0.5), obs=y)

    def guide(x, y):
        a, b = pyro.param("a", double(0.2)), pyro.param("b", double(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x + b * y, 0.6))

    return model, guide


def test_wake_sleep_dreams_every_observed_site():
    """With the real y beside the dreamed x the gradient is (-1.69, 0.50)."""
    num = 4_000
    x, y = torch.full((num,), 1.5, dtype=torch.float64), torch.full((num,), -2.0, dtype=torch.float64)
    found = gradients(ReweightedWakeSleep(2, sleep_weight=1.0), two_sites(), x, y, num=20) / num
    # By hand: E over (z, x, y) of the model of -d log q(z | x, y) = -(z - a x - b y) / 0.36 (x, y).
    a, b = 0.2, 0.1
    xx, yy, xy, zx, zy = 1 + 0.49, 1 + 0.25, -1.0, 1.0, -1.0
    expected = -double([zx - a * xx - b * xy, zy - a * xy - b * yy]) / 0.36
    mean, error = mean_and_error(found)
    assert_within_standard_errors(mean, expected, error)


def test_a_dream_takes_the_place_of_keyword_arguments_and_is_refused_where_it_has_none():
    model, guide = two_sites()
    x = torch.ones(50, dtype=torch.float64)
    sleep = ReweightedWakeSleep(2, sleep_weight=1.0)
    torch.manual_seed(1)
    expected = gradients_of_keywords(sleep, model, guide, x, y=x)
    torch.manual_seed(1)
    assert torch.equal(expected, gradients_of_keywords(sleep, model, guide, x, x))

    def shifted(x, y):
        model(x, y + 1)

    with pytest.raises(pv.InputError, match='site "y" must observe one of the arguments as it is'):
        sleep.loss_and_grads(shifted, guide, x, x)


def gradients_of_keywords(objective, model, guide, *args, **kwargs) -> torch.Tensor:
    for _, value in pyro.get_param_store().items():
        value.unconstrained().grad = None
    objective.loss_and_grads(model, guide, *args, **kwargs)
    return torch.stack([value.unconstrained().grad.clone() for _, value in sorted(pyro.get_param_store().items())])


# Rounding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sd", [1.0, 30.0, 60.0])
def test_rounding_is_not_taken_for_work_across_leading_dimensions(sd, seed):
    torch.manual_seed(seed)
    vae = pv.VAE((2,), latent_dim=2, hidden=(16,), likelihood=pv.Gaussian(sd), posterior="flow")
    x = sd * torch.randn(64, 2)
    assert math.isfinite(replace(ELBO(), num_particles=2).loss(vae.model, vae.guide, x))


def test_work_across_leading_dimensions_is_refused_of_large_values_too():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 0.1 * torch.softmax(z, 0), 1.0).to_event(1), obs=x)

    pyro.param("unused", double(0.0))
    with pytest.raises(pv.InputError, match="something in it works across leading dimensions"):
        ELBO().loss(model, guide, 100 * torch.randn(8, 2))
