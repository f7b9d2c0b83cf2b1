"""The doors that a program can be taken through, each with the claims that hold of what comes out."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from helpers import assert_within_standard_errors, suite_seed
from pyro import poutine
from pyro.infer import ELBO as PyroELBO, SVI
from torch import Tensor

import pyrovae as pv
from programs_of_users.program import Program

MOST_STEPS = 3
NUM_PARTICLES = 3  # not the two of which the check of a pair knows
LEARNING_RATE = 0.002

Objectives = dict[str, Callable[..., PyroELBO]]
OBJECTIVES: Objectives = {
    "elbo": pv.objectives.ELBO,
    "iwae": pv.objectives.IWAE,
    "dreg": pv.objectives.DReG,
    "vimco": pv.objectives.VIMCO,
    "rws": pv.objectives.ReweightedWakeSleep,
    "joint": partial(pv.objectives.IWAE, joint=True),
}


def plate_of(program: Program) -> dict[str, Any]:
    """Returns the keyword that names the data plate, where the program needs it."""
    return {} if program.plate is None else {"plate": program.plate}


def parameters() -> dict[str, Tensor]:
    """Returns copies of all parameters in Pyro's store."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def still(program: Program, before: dict[str, Tensor]) -> list[str]:
    """Returns the names of the parameters that should have moved, and did not."""
    after = parameters()
    unmoved = [name for name, value in before.items() if torch.equal(value, after[name])]
    return [name for name in unmoved if not name.startswith(program.untrained or "none")]


def assert_all_moved(program: Program, before: dict[str, Tensor]) -> None:
    """Checks that training moved every parameter, and that all are finite."""
    assert still(program, before) == []
    assert all(value.isfinite().all() for value in parameters().values())


def start(program: Program) -> None:
    """Registers the parameters: autoguides draw at their first call, and would move the stream of random numbers."""
    program.pyro_loss.loss(program.model, program.guide, *program.args)


def loss_of(program: Program, objective: PyroELBO) -> float:
    torch.manual_seed(suite_seed())
    return objective.loss(program.model, program.guide, *program.args)


# Training -------------------------------------------------------------------------------------------------------------


def train_by_elbo(program: Program) -> None:
    """Checks that the ELBO is Pyro's own on the same draws, with its gradient, and that a step lowers it."""
    objective = OBJECTIVES["elbo"](**plate_of(program))
    start(program)
    if program.same_draws:
        if is_reparameterised(program):
            (ours, gradient), (theirs, their_gradient) = (
                _with_gradient(program, o) for o in (objective, program.pyro_loss)
            )
            _assert_same_gradient(gradient, their_gradient)
        else:
            ours, theirs = (loss_of(program, one) for one in (objective, program.pyro_loss))
        assert math.isclose(ours, theirs, rel_tol=1e-4, abs_tol=1e-4), (ours, theirs)
    train(program, objective)


def train_by(name: str, program: Program) -> None:
    """Checks that steps on a bound of several particles move every parameter, and lower its loss."""
    plate = {} if name == "joint" else plate_of(program)
    start(program)
    train(program, OBJECTIVES[name](NUM_PARTICLES, **plate), lowers=name in ("iwae", "joint"))


def train(program: Program, objective: PyroELBO, lowers: bool = True) -> None:
    """Checks that every parameter moves, and, with `lowers`, that the loss goes down on draws that stay the same.

    On the same draws a total derivative is the gradient of the loss itself, and the claim is about no chance. Neither
    a score function nor the double reparameterisation is such a derivative: what is not drawn in one of its steps may
    be in the next, which has draws of its own.
    """
    first, before, losses = loss_of(program, objective), parameters(), []
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), objective)
    is_lowered = lowers and is_reparameterised(program)
    for step in range(1 if is_lowered else MOST_STEPS):
        torch.manual_seed(suite_seed() + step)
        losses.append(svi.step(*program.args))
        if still(program, before) == []:
            break
    assert all(map(math.isfinite, losses))
    assert math.isclose(losses[0], first, rel_tol=1e-4, abs_tol=1e-4), "loss and step differ"
    if is_lowered:
        assert loss_of(program, objective) < first
    assert_all_moved(program, before)


def is_reparameterised(program: Program) -> bool:
    """Returns True if a gradient has no score term, and so has one value on given draws."""
    sites = poutine.trace(program.guide).get_trace(*program.args).nodes.values()
    drawn = [site for site in sites if site["type"] == "sample" and not site["is_observed"]]
    drawn = [site for site in drawn if type(site["fn"]).__name__ != "_Subsample"]
    return all(site["fn"].has_rsample or site["infer"].get("enumerate") for site in drawn)


def _with_gradient(program: Program, objective: PyroELBO) -> tuple[float, dict[str, Tensor | None]]:
    """Returns the loss and its gradient by the names of the parameters."""
    torch.manual_seed(suite_seed())
    stored = {name: value.unconstrained() for name, value in pyro.get_param_store().items()}
    for parameter in stored.values():
        parameter.grad = None
    loss = objective.loss_and_grads(program.model, program.guide, *program.args)
    gradient = {name: parameter.grad for name, parameter in stored.items()}
    for parameter in stored.values():
        parameter.grad = None
    return loss, gradient


def _assert_same_gradient(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    for name, one in ours.items():
        other = theirs[name]
        if one is None or other is None:
            assert all(gradient is None or not gradient.any() for gradient in (one, other)), name
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def fit(program: Program) -> None:
    """Checks that `fit` takes the arguments as a batch, and trains every parameter for two epochs."""
    start(program)
    before = parameters()
    objective = OBJECTIVES["elbo"](**plate_of(program))
    history = pv.fit(program, [program.args], epochs=2, objective=objective, progress=False)
    assert len(history.loss) == 2
    assert all(map(math.isfinite, history.loss))
    assert_all_moved(program, before)


# Measuring ------------------------------------------------------------------------------------------------------------


def log_marginal(program: Program) -> None:
    """Checks the shape of log p(x), and its value in standard errors where it is known."""
    num_samples = 10 if program.log_px is None else 100
    settings = {"num_samples": num_samples, "progress": False, **plate_of(program)}
    found = pv.log_marginal(program.model, program.guide, *program.args, **settings)
    assert found.log_px.shape == (program.num_data,)
    assert found.log_px.isfinite().all()
    if program.log_px is not None:
        assert_within_standard_errors(found.log_px, program.log_px(), found.standard_error, dtype=torch.float32)


def compare(program: Program, bounds: list[str], has_log_px: bool, **settings: Any) -> None:
    """Checks that the objectives of these names are compared, with a gap to log p(x) where there is one.

    `settings` are those of the objectives.
    """

    def named(name: str) -> Callable[[int], PyroELBO]:
        def make(num_particles: int) -> PyroELBO:
            plate = {} if name == "joint" else plate_of(program)
            return OBJECTIVES[name](num_particles, **plate, **settings)

        make.__name__ = name
        return make

    objectives = [*map(named, bounds)]
    how = {"num_particles": [2], "repeats": 4, "compile": False, "progress": False}
    found = pv.compare(program.model, program.guide, *program.args, objectives=objectives, **how)
    assert [row.objective for row in found.rows] == bounds
    assert all(math.isfinite(row.bound) for row in found.rows)
    # Batch normalisation has other densities in training, and scANVI scales every site: no bound is on log p(x) then.
    if has_log_px and not re.search("training mode|under the scale", found.no_gap or ""):
        assert all(row.gap is not None and math.isfinite(row.gap) for row in found.rows)
    else:
        assert all(row.gap is None for row in found.rows)
        assert found.no_gap
