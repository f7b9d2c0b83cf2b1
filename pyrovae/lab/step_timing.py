"""The seconds of a training step of each entrant, and the epochs that take equal seconds."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pyro.infer import ELBO as PyroELBO
from torch import nn

from pyrovae.common import choose_device, require
from pyrovae.data import batches_of
from pyrovae.lab.entrants import Entrant, TrainingPlan, text_of
from pyrovae.lab.race_folder import kept_step_seconds
from pyrovae.programs import ProgramPair
from pyrovae.training import DataCount, checked_pair, gradients_of, make_optimizer

TIMED_ROUNDS = 30


def epochs_of_equal_seconds(
    entrants: Sequence[Entrant], plan: TrainingPlan, seed: int, folder: Path, data: str
) -> dict[str, int]:
    """Returns for each entrant the epochs that take the seconds of `plan.epochs` epochs of the first, to the nearest.

    `data` is a digest of the training data. Raises `InputError` if an entrant changes its objective while it trains.
    """
    changing = [entrant.name for entrant in entrants if entrant.changes_objective]
    require(not changing, f"budget seconds needs objectives that stay the same, got {'; '.join(changing)}")
    names = step_names(entrants, plan, seed)
    seconds = kept_step_seconds(folder, data, names, lambda known: step_seconds(entrants, plan, seed, known))
    first = seconds[names[0]]
    return {
        entrant.name: max(1, round(plan.epochs * first / seconds[name]))
        for entrant, name in zip(entrants, names, strict=True)
    }


def step_names(entrants: Sequence[Entrant], plan: TrainingPlan, seed: int) -> list[str]:
    """Returns what names the step of each entrant in the file of seconds: all that decides how long it takes."""
    optimizer = plan.setting("optimizer")
    shared = ", ".join((
        f"batch {plan.setting('batch_size')}",
        "compiled" if plan.compiles else "eager",
        getattr(getattr(optimizer, "func", optimizer), "__name__", type(optimizer).__name__),
        choose_device(plan.setting("device")).type,
    ))  # fmt: skip
    several_models = len({entrant.make_vae for entrant in entrants}) > 1
    return [
        f"{f'{one.name}, ' if several_models else ''}{text_of(plan.elbo_of(one))}, {_size_of(one, seed)}{shared}"
        for one in entrants
    ]


def _size_of(entrant: Entrant, seed: int) -> str:
    with entrant.start(seed) as pair:
        size = sum(parameter.numel() for parameter in pair.parameters()) if isinstance(pair, nn.Module) else None
        return "" if size is None else f"{size} parameters, "


def step_seconds(
    entrants: Sequence[Entrant], plan: TrainingPlan, seed: int, known: Mapping[str, float]
) -> dict[str, float]:
    """Returns the lower quartile of the seconds of training steps by name.

    The steps are taken in turns, so that whatever else the machine does slows all of them down. If some seconds are
    known, the other steps are timed beside the first entrant's, and scaled by its known seconds.
    """
    steps: dict[str, Callable[[], None]] = {}
    names = step_names(entrants, plan, seed)
    first = names[0]
    with ExitStack() as stack:
        for entrant, name in zip(entrants, names, strict=True):
            if name == first or name not in known:
                pair = stack.enter_context(entrant.start(seed))
                steps[name] = _step_of(pair, plan, plan.elbo_of(entrant), plan.compiles)
                steps[name]()  # the first step compiles
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(TIMED_ROUNDS):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - started)
    found = {name: sorted(values)[len(values) // 4] for name, values in times.items()}
    factor = known[first] / found[first] if first in known else 1.0
    return {**{name: factor * value for name, value in found.items()}, **known}


def _step_of(pair: ProgramPair, plan: TrainingPlan, elbo: PyroELBO, compile: bool) -> Callable[[], None]:
    """Returns a function that takes one step on the first batch as `fit` does."""
    device = choose_device(plan.setting("device"))
    if isinstance(pair, nn.Module):
        pair.to(device)
    batch = next(iter(batches_of(pair, plan.data, None, plan.setting("batch_size"), device)[0]()))
    parameters, run = checked_pair(pair, elbo, batch)
    gradients = gradients_of(pair, elbo, parameters, compile, DataCount(run.layout.plates, run.layout.has_globals))
    optimizer = make_optimizer(plan.setting("optimizer"), list(parameters.values()), plan.setting("lr"))

    def step() -> None:
        loss, *_ = gradients(*batch)
        optimizer.step()
        loss.item()  # waits for the device

    return step
