"""Compares estimators on one model and guide: bound, signal and noise of the gradient, bias, time and memory."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyrovae.common import (
    InputError,
    Parts,
    as_data,
    derived_seed,
    device_of,
    if_given,
    kept_parts,
    local_seed,
    progress_bar,
    require,
    require_path,
)
from pyrovae.data import moved
from pyrovae.evaluation import (
    Estimate,
    MarginalLikelihood,
    check_args,
    common_length,
    log_marginal,
    tensors_in,
    with_tensors,
)
from pyrovae.lab.comparison import Comparison
from pyrovae.lab.comparison_arguments import FEWEST_REPEATS, check_log_px, checked_objectives, read, readings_of
from pyrovae.lab.comparison_row import Row
from pyrovae.lab.costs import compiled_seconds, saved_bytes
from pyrovae.lab.entrants import text_of
from pyrovae.lab.gap_to_log_px import no_log_px, not_its_bound
from pyrovae.lab.kept_repeats import KeptRepeats
from pyrovae.lab.repeats import Repeats, give_references
from pyrovae.lab.untouched import untouched
from pyrovae.objectives import check_on_runs
from pyrovae.programs import SIDES, sides_of, takes_pair
from pyrovae.training import digest

LOG_PX_SAMPLES = 5_000


@takes_pair
def compare(
    model: Callable,
    guide: Callable,
    *args: Any,
    objectives: Sequence[str | Callable[[int], PyroELBO | None]] = ("elbo", "iwae", "dreg"),
    num_particles: Sequence[int] = (1, 8, 64),
    repeats: int = 100,
    log_px: Estimate | None = None,
    compile: bool = True,
    max_seconds: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Measures estimators side by side at the present parameters of a pair, which stay as they are.

    Each objective with each K takes `repeats` independent gradients of the loss per datum. `Row` and `Gradient` say
    what is measured from them. The repeats go round the estimators, so that slow and fast moments of the machine are
    shared by all.

    A parameter is on the side of the program that its gradient comes from, whichever program registers it; see `Row`.
    The bias is that of the mean gradient against the plain estimator of the same bound with the same settings, which
    the class of an objective names as its `reference`: `ELBO` for STL, analytic KL and the score function, `IWAE` for
    DReG, GDReG, VIMCO and OVIS. It is not measured if a site of the guide draws straight through, whose gradient is
    biased under the plain estimators, too. A number near its floor is no evidence of a signal or a bias.

    Everything that the programs can see is left as it was found (parameters and their gradients, buffers and other
    tensors, modes, attributes), and so are the param store and the generators.

    Args:
        model: The generative program p(x, z), called with `args`.
        guide: The inference program q(z|x), called with `args`.
        *args: The arguments of both programs, of any number and type: the data x of shape `(batch, *event_shape)` for a
            VAE, as `log_marginal` takes them. The number of data is that of the data plate.
        objectives: The estimators. Each is a name of `objectives.OBJECTIVES`, also with settings, as in
            `"miwae(num_batches=4)"`; or a function from K to a
            `pyro.infer.ELBO`, or to None for a K that it does not take.
        num_particles: The numbers K of particles. An objective gets a row at each K that it takes; one without draws
            (`elbo_enumerated`) has a single row, at the first K.
        repeats: The number of gradients of each estimator, at least 4.
        log_px: An estimate of log p(x) for these data, which the gaps are measured from. By default it is taken by
            importance sampling with 5,000 draws. Where sites lie outside the data plate it is the joint evidence of all
            data, and the gap is that per datum.
        compile: If True, compiled steps are timed, too.
        max_seconds: The time after which no more repeats begin, and no step is compiled; no limit by default. All
            estimators have the same number of repeats, at least 4.
        seed: Fixes all draws.
        folder: Keeps what is done there: log p(x), repeats, times. When the comparison is called again with the same
            arguments, it goes on from there, with the same bits. It may then have another `max_seconds`, which count
            from that call. By default nothing is kept.
        progress: Shows a progress bar; by default on a terminal.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        InputError: An argument is invalid, the pair is refused, or an objective does not fit the pair. Also if the
            folder is that of another comparison, as `OtherSettings`.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        >>> x = torch.randn(5, 2)
        >>> settings = {"objectives": ["elbo", "dreg"], "num_particles": [4], "repeats": 4, "compile": False}
        >>> found = pv.compare(vae.model, vae.guide, x, **settings)
        >>> [(row.objective, row.num_particles, row.reference) for row in found.rows]
        [('elbo', 4, None), ('dreg', 4, 'IWAE')]
        >>> found["elbo", 4].gap > found["dreg", 4].gap
        True

    Source:
        Tom Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better, arXiv:1802.04537.
    """
    named = checked_objectives(objectives, num_particles, repeats, max_seconds, seed, compile)
    if_given(require_path, "folder", folder)
    deadline = math.inf if max_seconds is None else perf_counter() + max_seconds
    check_args(model, args)
    check_log_px(log_px, common_length(args), one_value=True)
    device = device_of(model, tensors_in(args))
    args = with_tensors(moved(args, device), as_data)
    readings = readings_of([objective for _, by_size in named for _, objective in by_size])
    with torch.enable_grad(), untouched(model, guide) as watch, local_seed(seed), ExitStack() as stack:
        pair, reading = read(model, guide, args, readings)
        num_data = sum(plate.full_size for plate in pair.plates) if pair.plates else 1
        check_log_px(log_px, num_data, one_value=pair.layout.has_globals)
        runs = {reading: pair}
        for objective in (objective for _, by_size in named for _, objective in by_size):
            check_on_runs(objective, model, guide, args, runs)
        sides = sides_of(model, guide, args, reading)
        trained = {side: getattr(sides, side) for side in SIDES}
        rule = "model and guide must register a parameter that the loss depends on (pyro.param, pyro.module)"
        require(any(trained.values()), f"{rule}, found none")
        estimators = [
            Repeats(name, number, objective, repeats, trained, num_data)
            for name, by_size in named
            for number, objective in by_size
        ]
        references = give_references(estimators, model, guide, args, pair, trained, runs)
        settings = {} if folder is None else {
            "objectives": [f"{one.name} at {one.num_particles}: {text_of(one.objective)}" for one in estimators],
            "repeats": repeats, "compile": compile, "seed": seed, "data": digest(args), "device": str(device),
            "parameters": digest([*watch.parameters(), *watch.tensors()]),
            "log_px": None if log_px is None else digest((log_px.value, log_px.standard_error)),
        }  # fmt: skip
        parts = stack.enter_context(kept_parts(None if folder is None else Path(folder), settings, "folder"))
        no_gap = no_log_px(pair)
        if log_px is None and no_gap is None:
            try:
                with local_seed(derived_seed(seed, "log p(x)")):
                    log_px = MarginalLikelihood(**parts.get("log p(x)", lambda: vars(log_marginal(
                        model, guide, *args, num_samples=LOG_PX_SAMPLES, progress=progress, plate=reading.plate
                    ))))  # fmt: skip
            except InputError as error:  # the pair has bounds, but its weights give no log p(x)
                no_gap = str(error)
        no_gap = no_gap or not_its_bound(model, guide, args, pair, watch.modules)
        kept = KeptRepeats(parts, [*estimators, *references], [one for one in watch.tensors() if not is_lazy(one)])
        complete = _take_repeats(kept, model, guide, args, repeats, deadline, seed, progress)
        kept_anyway = [*watch.parameters(), *(p for side in trained.values() for p in side)]
        found = Comparison((), log_px, complete, num_data=num_data).log_px_per_datum
        rows = _rows(
            estimators,
            model,
            guide,
            args,
            log_px=found[0] if found is not None and no_gap is None else None,
            device=device,
            compile_until=deadline if compile else -math.inf,
            kept_anyway=kept_anyway,
            parts=parts,
        )
    return Comparison(rows, log_px, complete, no_gap, sides.unreached, num_data)


def _take_repeats(
    kept: KeptRepeats,
    model: Callable,
    guide: Callable,
    args: tuple,
    repeats: int,
    deadline: float,
    seed: int,
    progress: bool | None,
) -> bool:
    """Takes the repeats in rounds of one per estimator; returns False if the time ran out before all were taken."""

    def seed_of(one: Repeats, repeat: int) -> int:
        return derived_seed(seed, f"{one.name} {one.num_particles} {repeat}")

    first = seed_of(kept.estimators[0], 0)
    with progress_bar(progress, repeats, "comparing", "repeat") as bar, kept.session(model, guide, args, first):
        taken = min(len(one.bounds) for one in kept.estimators)
        bar.update(taken)
        for repeat in range(taken, repeats):
            for one in kept.estimators:
                if len(one.bounds) == repeat:  # the others have had this round before it was interrupted
                    one.take_one(model, guide, args, seed_of(one, repeat))
                    kept.keep_if_due()
            bar.update()
            done = repeat + 1
            if done >= FEWEST_REPEATS and perf_counter() > deadline:
                return done == repeats
    return True


def _rows(
    estimators: Sequence[Repeats],
    model: Callable,
    guide: Callable,
    args: tuple,
    *,
    log_px: float | None,
    device: torch.device,
    compile_until: float,
    kept_anyway: Sequence[Tensor],
    parts: Parts,
) -> tuple[Row, ...]:
    """Returns the rows, once compiled steps are timed and the memory is measured without the tensors `kept_anyway`."""

    def timed(objective: PyroELBO) -> dict[str, float | None]:
        return {"seconds": compiled_seconds(model, guide, args, objective, device)}

    seconds = [
        parts.get(f"compiled step {index}", partial(timed, one.objective))["seconds"]
        if perf_counter() < compile_until
        else None
        for index, one in enumerate(estimators)
    ]
    all_compiled = None not in seconds
    return tuple(
        one.row(
            log_px=log_px,
            compiled_seconds=compiled,
            step_seconds=compiled if all_compiled and compiled is not None else one.seconds,
            saved_bytes=saved_bytes(model, guide, args, one.objective, kept_anyway),
        )
        for one, compiled in zip(estimators, seconds, strict=True)
    )
