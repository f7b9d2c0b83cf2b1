"""Optimisers and schedules: torch's and Pyro's take the same steps, and unusable ones are refused beforehand."""

from functools import partial

import pyro.optim
import pytest
import torch
from helpers import parameters_of, refusal, ring, small_vae
from pyro.infer import SVI

import pyrovae as pv
from pyrovae.runs import build_vae
from pyrovae.training.checkpoints import CURRENT, Checkpoints
from pyrovae.training.optimizers import DEFAULT_LR, make_optimizer, make_schedule, unusual_settings

X = ring(num_train=50).train_x
PAIRS = {  # of Pyro's and torch's that are one
    "Adam": (pyro.optim.Adam({"lr": 0.02}), partial(torch.optim.Adam, lr=0.02)),
    "SGD": (pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}), partial(torch.optim.SGD, lr=0.01, momentum=0.5)),
    "RMSprop": (pyro.optim.RMSprop({"lr": 0.01}), partial(torch.optim.RMSprop, lr=0.01)),
    "Adam without a rate": (pyro.optim.Adam({}), torch.optim.Adam),
    "ClippedAdam": (pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 1e9}), partial(torch.optim.Adam, lr=0.02)),
}


def trained(optimizer, x=X, **settings):
    vae = small_vae().to(x.dtype)
    usual = {"epochs": 2, "batch_size": 25, "seed": 1, "progress": False}
    history = pv.fit(vae, x, optimizer=optimizer, **{**usual, **settings})
    return parameters_of(vae), history


@pytest.mark.parametrize("name", PAIRS)
def test_an_optimiser_of_pyros_takes_the_steps_of_torchs(name):
    (one, history), (other, of_torch) = (trained(optimizer, X.double()) for optimizer in PAIRS[name])
    # ClippedAdam adds its epsilon, 1e-8, before the correction of the bias: gradients of 1e-5 step a thousandth less.
    torch.testing.assert_close(one, other, atol=1e-4 if name == "ClippedAdam" else 1e-10, rtol=0)
    assert history.lr == of_torch.lr


def test_an_optimiser_of_pyros_takes_the_steps_that_it_takes_in_svi():
    """SVI is given the loss per datum, because clipping sees its size."""
    optimizer = lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.05, "lrd": 0.9})  # noqa: E731
    vae, other = small_vae(), small_vae()
    pv.fit(vae, X, optimizer=optimizer(), epochs=4, batch_size=50, seed=1, progress=False)

    class PerDatum(pv.objectives.ELBO):
        def differentiable_loss(self, *args):
            return super().differentiable_loss(*args) / 50

    svi = SVI(other.model, other.guide, optimizer(), PerDatum())
    torch.manual_seed(1)
    for _ in range(4):
        svi.step(X[torch.randperm(50)])
    torch.testing.assert_close(parameters_of(vae), parameters_of(other), atol=1e-6, rtol=1e-5)


def test_a_decay_of_the_optimisers_own_is_left_as_it_is():
    """Once a constant schedule put the rate back after each epoch."""
    _, history = trained(pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.5}), epochs=3)
    assert history.lr == pytest.approx([0.1 / 4, 0.1 / 16, 0.1 / 64])


@pytest.mark.parametrize("kind", [pyro.optim.ClippedAdam, pyro.optim.DCTAdam, pyro.optim.Adagrad, pyro.optim.NAdam])
def test_a_training_with_an_optimiser_of_pyros_goes_on_to_the_bit(kind, tmp_path):
    class BrokenOff(Exception):
        pass

    def stop(record):
        if record["epoch"] == 2:
            raise BrokenOff

    optimizer = kind({"lr": 0.02})
    whole, _ = trained(optimizer)
    kept = Checkpoints(tmp_path, minutes=100.0, epochs=1)
    with pytest.raises(BrokenOff):
        trained(optimizer, checkpoints=kept, on_epoch=stop)
    assert torch.load(tmp_path / CURRENT)["position"]["epoch"] < 3
    assert torch.equal(trained(optimizer, checkpoints=kept)[0], whole)


def test_the_rate_is_the_one_that_is_said():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    for optimizer, lr, expected in (
        (torch.optim.Adam, None, DEFAULT_LR),
        (torch.optim.Adam, 0.5, 0.5),
        (partial(torch.optim.Adam, lr=0.3), None, 0.3),
        (pyro.optim.Adam({"lr": 0.2}), None, 0.2),
        (pyro.optim.Adam({}), 0.4, 0.4),
        (pyro.optim.ClippedAdam({}), None, 1e-3),
    ):
        assert make_optimizer(optimizer, parameters, lr).param_groups[0]["lr"] == expected


def test_settings_that_are_not_the_usual_ones():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    for make, expected in (
        (torch.optim.Adam, {}),
        (partial(torch.optim.Adam, eps=1e-8, lr=3.0), {}),
        (partial(torch.optim.Adam, eps=0.1), {"eps": 0.1}),
        (pyro.optim.ClippedAdam({"betas": (0.5, 0.9)}), {"betas": (0.5, 0.9)}),
    ):
        assert unusual_settings(make_optimizer(make, parameters, None)) == str(expected)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return closure()


def other_parameters(parameters, lr):
    return torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=lr)


A_FUNCTION = "optimizer must be a function of parameters and lr"
REFUSED = {
    "LBFGS": (torch.optim.LBFGS, "optimizer must step without a closure, and LBFGS does not"),
    "LBFGS of Pyro's kind": (pyro.optim.PyroOptim(torch.optim.LBFGS, {}), "optimizer must step without a closure"),
    "a closure of one's own": (NeedsClosure, "optimizer must step without a closure, and NeedsClosure does not"),
    "clipping by parameter": (
        pyro.optim.Adam({}, {"clip_norm": 1.0}),
        "optimizer Adam must have no clip_args, which clip parameter by parameter: say max_grad_norm",
    ),
    "a scheduler of Pyro's": (
        pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.1}),
        "optimizer must not be one of Pyro's schedulers: say schedule beside optimizer SGD",
    ),
    "without a rate": (pyro.optim.AdagradRMSProp({}), "optimizer must have a learning rate lr, and AdagradRMSProp"),
    "a wrong argument": (pyro.optim.Adam({"rate": 1.0}), A_FUNCTION),
    "a wrong value": (partial(torch.optim.Adam, betas=(2.0, 3.0)), f"{A_FUNCTION}: Invalid beta parameter at index 0"),
    "not yet made": (pyro.optim.Adam, f"{A_FUNCTION}: "),
    "made": (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), f"{A_FUNCTION}, as torch.optim.Adam is, or one of"),
    "of other arguments": (lambda parameters: None, f"{A_FUNCTION}: "),
    "nothing": (lambda parameters, lr: None, "optimizer must make a torch.optim.Optimizer of parameters and lr, got N"),
    "a class of another kind": (torch.nn.ParameterList, f"{A_FUNCTION}: "),
    "of other parameters": (other_parameters, "optimizer must step the parameters that it is given, and SGD holds"),
    "a name": ("adam", f"{A_FUNCTION}, as torch.optim.Adam is, or one of pyro.optim, got 'adam'"),
    "None": (None, f"{A_FUNCTION}, as torch.optim.Adam is, or one of pyro.optim, got None"),
}


def refused(**settings) -> str:
    vae = small_vae()
    before = parameters_of(vae)
    message = refusal(pv.fit, vae, X, epochs=1, progress=False, **settings)
    assert torch.equal(parameters_of(vae), before)
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimiser_that_cannot_be_stepped_is_refused_before_training(name):
    optimizer, said = REFUSED[name]
    assert refused(optimizer=optimizer).startswith(said)
    with_race = refusal(pv.race, lambda: small_vae(seed=None), ring(), ["elbo"], epochs=1, optimizer=optimizer)
    assert with_race.startswith(said)


@pytest.mark.parametrize("optimizer", [pyro.optim.Adam({"lr": 0.1}), partial(torch.optim.Adam, lr=0.1)], ids=type)
def test_a_rate_is_said_once(optimizer):
    assert refused(optimizer=optimizer, lr=0.2) == "lr must be said once, got 0.1 in optimizer Adam and 0.2 beside it"


class Measured:
    """A schedule that is stepped with something that `fit` does not know."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, perplexity): ...

    def state_dict(self): ...

    def load_state_dict(self, state): ...


A_SCHEDULE = "schedule must make one of torch.optim.lr_scheduler of an optimiser, got "
SCHEDULES = {
    "nothing": (lambda optimizer: None, f"{A_SCHEDULE}None"),
    "a number": (lambda optimizer: 3, f"{A_SCHEDULE}3"),
    "a metric": (Measured, "schedule must be stepped without a metric, or be a ReduceLROnPlateau, and Measured is"),
    "of nothing": (lambda: None, "schedule must be a function of an optimiser: "),
    "settings missing": (torch.optim.lr_scheduler.StepLR, "schedule must be a function of an optimiser: "),
    "of Pyro's": (pyro.optim.ExponentialLR, "schedule must be a function of an optimiser: "),
    "a name": ("linear", "schedule must be one of constant, cosine; got 'linear'"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_cannot_be_stepped_is_refused_before_training(name):
    schedule, said = SCHEDULES[name]
    assert refused(schedule=schedule).startswith(said)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_are_those_of_the_schedule(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    made, rates = make_schedule(schedule, optimizer, 4), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    expected = {"constant": [0.1] * 4, "cosine": [0.1, 0.0853553, 0.05, 0.0146447]}[schedule]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_of_the_schedule_that_a_constant_rate_had_before_goes_on(tmp_path):
    """Once "constant" was a LambdaLR, which put the rate back."""
    whole, _ = trained(torch.optim.Adam)
    kept = Checkpoints(tmp_path, minutes=1e-9)
    with pytest.raises(ZeroDivisionError):
        trained(torch.optim.Adam, checkpoints=kept, on_epoch=lambda _: 1 / 0)
    state = torch.load(tmp_path / CURRENT)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])
    before = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0).state_dict()
    before["last_epoch"] = state["scheduler"]["last_epoch"]
    torch.save({**state, "scheduler": before}, tmp_path / CURRENT)
    assert torch.equal(trained(torch.optim.Adam, checkpoints=kept)[0], whole)


def test_a_run_says_its_rate_and_takes_the_usual_optimiser():
    config = pv.RunConfig(hidden=(8,))
    assert config.lr == DEFAULT_LR
    assert build_vae(config, (2,)).latent_dim == 2
