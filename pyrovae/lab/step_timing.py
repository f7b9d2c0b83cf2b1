"""The seconds of a training step of each entrant, and the epochs that take equal seconds."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from pyrovae.common import choose_device, require
from pyrovae.lab.entrants import Entrant, TrainingPlan, prepared, text_of
from pyrovae.lab.race_folder import kept_step_seconds
from pyrovae.programs import ProgramPair

TIMED_ROUNDS = 30


def epochs_of_equal_seconds(
    entrants: Sequence[Entrant], plan: TrainingPlan, seed: int, folder: Path, data: str
) -> dict[str, int]:
    """Returns for each entrant the epochs that take the seconds of `plan.epochs` epochs of the first, to the nearest.

    `data` is a digest of the training data. Raises `InputError` if an entrant changes its objective while it trains.
    """
    require_one_objective_each(entrants, "seconds")
    names = step_names(entrants, plan, seed)
    seconds = kept_step_seconds(folder, data, names, lambda known: step_seconds(entrants, plan, seed, known))
    return epochs_of_equal_costs(
        plan.epochs, {entrant.name: seconds[name] for entrant, name in zip(entrants, names, strict=True)}
    )


def require_one_objective_each(entrants: Sequence[Entrant], budget: str) -> None:
    """Raises `InputError` if an entrant changes its objective while it trains, and with it the cost of a step."""
    changing = [entrant.name for entrant in entrants if entrant.changes_objective]
    require(not changing, f"budget {budget} needs objectives that stay the same, got {'; '.join(changing)}")


def epochs_of_equal_costs(epochs: int, costs: Mapping[str, float]) -> dict[str, int]:
    """Returns how many epochs cost what `epochs` epochs of the first do, by name, given the costs of one step."""
    first = next(iter(costs.values()))
    return {name: max(1, round(epochs * first / cost)) for name, cost in costs.items()}


def step_names(entrants: Sequence[Entrant], plan: TrainingPlan, seed: int) -> list[str]:
    """Returns what names the step of each entrant in the file of seconds: all that decides how long it takes."""
    optimizer = plan.setting("optimizer")
    shared = ", ".join((
        f"batch {plan.setting('batch_size')}",
        "compiled" if plan.compiles else "eager",
        getattr(getattr(optimizer, "func", optimizer), "__name__", type(optimizer).__name__),
        choose_device(plan.setting("device")).type,
        *(f"{name} {plan.setting(name)}" for name in ("guide_steps", "train") if name in plan.settings),
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
                steps[name] = _step_of(pair, plan, entrant)
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


def _step_of(pair: ProgramPair, plan: TrainingPlan, entrant: Entrant) -> Callable[[], None]:
    """Returns a function that takes steps on the first batch as `fit` does: as many as the guide takes for one of both.

    That number is the same for all entrants.
    """
    training = prepared(pair, plan, entrant.objective)
    batch = next(iter(training.batches().batches))
    both, guide = training.gradients[1], training.guide_gradients.get(1, training.gradients[1])

    def step() -> None:
        for gradients in (*[guide] * (plan.setting("guide_steps") - 1), both):
            loss = gradients(batch).loss
            training.state.optimizer.step()
            for parameter in training.state.parameters.values():
                parameter.grad = None
            loss.item()  # waits for the device

    return step
