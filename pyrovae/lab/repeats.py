"""The repeats of one estimator, and the reference estimator that its bias is measured against."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import InputError, local_seed
from pyrovae.data import moved
from pyrovae.lab.comparison_row import Row
from pyrovae.lab.costs import clock, median
from pyrovae.lab.gap_to_log_px import is_bound
from pyrovae.lab.gradient_moments import Moments
from pyrovae.objectives import check_on_runs
from pyrovae.programs import SIDES, Pair, Reading, base_of


class Repeats:
    """Collects the bounds, the times and the moments of the gradients of one estimator.

    `planned` is the number of repeats that are to come, and `sides` holds the trained parameters of each side. The
    repeats of `reference`, if there is one, give the mean gradient that the bias is measured against.
    """

    def __init__(
        self,
        name: str,
        num_particles: int,
        objective: PyroELBO,
        planned: int,
        sides: dict[str, list[Tensor]],
        num_data: int,
    ) -> None:
        self.name, self.num_particles, self.objective, self.sides = name, num_particles, objective, sides
        self.planned, self.num_data = planned, num_data
        trained = [parameter for parameters in sides.values() for parameter in parameters]
        self.device = trained[0].device if trained else torch.device("cpu")
        self.bounds: list[float] = []
        self.times: list[float] = []
        self.moments = {side: Moments(planned) for side, parameters in sides.items() if parameters}
        self.reference: Repeats | None = None

    @property
    def seconds(self) -> float:
        """The median time of a step."""
        return median(self.times)

    def take_one(self, model: Callable, guide: Callable, args: tuple, seed: int) -> None:
        """Takes one gradient, of draws that `seed` fixes."""
        for parameters in self.sides.values():
            for parameter in parameters:
                parameter.grad = None
        bound, seconds = self.bound_of(model, guide, args, seed)
        self.bounds.append(bound)
        self.times.append(seconds)
        for side, moments in self.moments.items():
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.sides[side]]
            moments.add(torch.cat([g.flatten() for g in flat]) / self.num_data)

    def bound_of(self, model: Callable, guide: Callable, args: tuple, seed: int) -> tuple[float, float]:
        """Returns the bound per datum with draws that `seed` fixes, and the seconds of loss and gradients."""
        with local_seed(seed):
            started = clock(self.device)
            loss = self.objective.loss_and_grads(model, guide, *args)  # type: ignore[attr-defined]
            seconds = clock(self.device) - started
        return -float(loss) / self.num_data, seconds

    def to_dict(self) -> dict[str, Any]:
        """Returns what has been collected, as tensors and plain values."""
        moments = {side: one.to_dict() for side, one in self.moments.items()}
        return {"bounds": list(self.bounds), "times": list(self.times), "moments": moments}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `to_dict` returned for the same estimator."""
        self.bounds, self.times = list(state["bounds"]), list(state["times"])
        self.moments = {side: Moments.from_dict(moved(one, self.device)) for side, one in state["moments"].items()}

    def row(
        self, log_px: float | None, compiled_seconds: float | None, step_seconds: float, saved_bytes: int | None
    ) -> Row:
        """Returns the row of a comparison; `log_px` is None if there is no gap to it."""
        others = {} if self.reference is None else self.reference.moments
        gradients = {side: moments.gradient(others.get(side)) for side, moments in self.moments.items()}
        bounds = torch.tensor(self.bounds, dtype=torch.float64)
        gap = None if log_px is None or not is_bound(self.objective) else log_px - bounds.mean().item()
        return Row(
            objective=self.name,
            num_particles=self.num_particles,
            num_draws=getattr(self.objective, "num_draws", getattr(self.objective, "num_particles", 0)),
            repeats=len(bounds),
            bound=bounds.mean().item(),
            bound_error=bounds.std().item() / math.sqrt(len(bounds)),
            gap=gap,
            **{side: gradients.get(side) for side in SIDES},
            reference=None if self.reference is None else type(self.reference.objective).__name__,
            seconds=self.seconds,
            compiled_seconds=compiled_seconds,
            step_seconds=step_seconds,
            saved_bytes=saved_bytes,
        )


def give_references(
    estimators: list[Repeats],
    model: Callable,
    guide: Callable,
    args: tuple,
    pair: Pair,
    sides: dict[str, list[Tensor]],
    runs: dict[Reading, Pair],
) -> list[Repeats]:
    """Gives each estimator the repeats of its reference, and returns those that are not among the estimators already.

    A guide with a straight-through site gets no references: there the gradient of the plain estimator is itself biased.
    An estimator gets none if the plain one is refused for this pair, of which `runs` holds those that were checked.
    """
    if any(getattr(base_of(site["fn"]), "has_biased_rsample", False) for site in pair.guide_sites.values()):
        return []
    new: list[Repeats] = []
    for estimator in estimators:
        reference = reference_of(estimator.objective)
        if reference is None:
            continue
        known = (other for other in (*estimators, *new) if other is not estimator and other.objective == reference)
        estimator.reference = next(known, None)
        if estimator.reference is None:
            try:
                check_on_runs(reference, model, guide, args, runs)
            except InputError:
                continue
            number = getattr(reference, "num_particles", estimator.num_particles)
            name = f"reference {type(reference).__name__}"
            estimator.reference = Repeats(name, number, reference, estimator.planned, sides, estimator.num_data)
            new.append(estimator.reference)
    return new


def reference_of(objective: PyroELBO) -> PyroELBO | None:
    """Returns the plain estimator of the same bound, with the settings that it has in common with `objective`."""
    kind = getattr(objective, "reference", None)
    if kind is None:
        return None
    names = [name for name in inspect.signature(kind).parameters if name != "chunk_size" and hasattr(objective, name)]
    return kind(**{name: getattr(objective, name) for name in names})
