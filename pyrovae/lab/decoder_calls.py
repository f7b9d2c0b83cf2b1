"""Counts the decoder calls of a training step of each entrant, and the epochs that make equally many."""

from collections.abc import Callable, Sequence
from typing import cast

from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from pyrovae.common import local_seed, require
from pyrovae.lab.entrants import Entrant, TrainingPlan, prepared
from pyrovae.lab.step_timing import epochs_of_equal_costs, require_one_objective_each
from pyrovae.programs import run_pair

COUNT_SEED = 0


def epochs_of_equal_calls(entrants: Sequence[Entrant], plan: TrainingPlan, seed: int) -> dict[str, int]:
    """Returns for each entrant the epochs that make the decoder calls of `plan.epochs` of the first, to the nearest.

    Raises `InputError` if an entrant changes its objective while it trains.
    """
    require_one_objective_each(entrants, "decoder_calls")
    return epochs_of_equal_costs(plan.epochs, {one.name: decoder_calls(one, plan, seed) for one in entrants})


def decoder_calls(entrant: Entrant, plan: TrainingPlan, seed: int) -> float:
    """Returns how often a step of an entrant evaluates log p(x|z), per datum of its batch.

    A call is one datum at one z: the ELBO with K particles makes K of them, and an objective that runs the pair again
    makes more. The backward pass belongs to the call. The calls of a step are those at the observed sites, divided by
    those of one run of the pair, and times the `model_runs` of one where the guide runs the model, too.
    """
    with entrant.start(seed) as pair, local_seed(COUNT_SEED):
        training = prepared(pair, plan, entrant.objective)
        batch = next(iter(training.batches().batches))
        layout = training.checks.runs[0].layout
        elbo, reading = training.objectives[1], training.gradients[1].reading

        def step() -> None:
            elbo.loss_and_grads(pair.model, pair.guide, *batch)  # type: ignore[attr-defined]

        step()  # which checks the pair
        of_step = _counted(layout.plates, step)
        of_run = _counted(layout.plates, lambda: run_pair(pair.model, pair.guide, *batch, reading=reading))
    require(of_run > 0, "budget decoder_calls needs an observed site in the data plate, found none")
    return getattr(pair, "model_runs", 1) * of_step / of_run


def _counted(plates: tuple[str, ...], run: Callable[[], object]) -> int:
    with _Calls(plates) as calls:
        run()
    return calls.total


class _Calls(Messenger):
    """Adds up the sizes of the observed sites that pass, each as many times as its density is evaluated."""

    def __init__(self, plates: tuple[str, ...]) -> None:
        super().__init__()
        self.plates, self.total = plates, 0

    def _pyro_post_sample(self, msg: Message) -> None:
        in_plate = not self.plates or any(frame.name in self.plates for frame in msg["cond_indep_stack"])
        if msg["is_observed"] and in_plate and not site_is_subsample(msg):
            self.total += cast(TorchDistribution, msg["fn"]).batch_shape.numel()
