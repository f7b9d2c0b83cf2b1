"""Builds everything that a training needs, and checks the pair on its first batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.common import derived_seed, kept_generators, local_seed, require
from pyrovae.data import Batch, Batches, Dataset, Rows, batches_of, first_batch, generators_of, whole_data
from pyrovae.programs import AS_IT_COMES
from pyrovae.training.beta_schedules import ScheduledBeta
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.data_told import told_of
from pyrovae.training.early_stopping import EarlyStopping
from pyrovae.training.fingerprint import Fingerprint
from pyrovae.training.gradients import BatchGradients, compiles, gradients_of
from pyrovae.training.one_time import OneTime, is_one_time
from pyrovae.training.optimizers import make_optimizer, make_schedule, unusual_settings
from pyrovae.training.pair_checks import PairChecks
from pyrovae.training.pair_modules import buffers_of
from pyrovae.training.settings import FitSettings
from pyrovae.training.sides import TrainedSides, find_sides
from pyrovae.training.state import TrainingState
from pyrovae.training.validation import Validation
from pyrovae.training.versions import versions
from pyrovae.training.whole_data import WholeData


class TrainingData:
    """The batches to train on and those to validate on.

    Args:
        vae: the pair, by which the data are checked.
        source: a data set, data as a whole or an iterable of batches; None for a pair without arguments. Where an epoch
            is a number of steps, an iterator that cannot begin again will do.
        validation: data as a whole or an iterable of batches to validate on; None takes the data set's own, if there
            are any.
        settings: give the size of a batch, and say whether validation data are needed.
        device: the device that batches are moved to.
    """

    def __init__(
        self,
        vae: object,
        source: Any,
        validation: Any,
        settings: FitSettings,
        device: torch.device,
    ) -> None:
        if is_one_time(source):
            rule = "data must be iterable again at every epoch, got a one-time iterator"
            require(settings.steps_per_epoch is not None, f"{rule}: say steps_per_epoch, and it goes on")
            source = OneTime(cast(Iterator, source))
        self.source, self.validation = whole_data(vae, "data", source), whole_data(vae, "validation", validation)
        self.train, self.held_out = batches_of(vae, self.source, self.validation, settings.batch_size, device)
        needed = settings.patience is not None
        require(not needed or self.held_out is not None, "patience needs validation data, got none")
        self.generators = generators_of(source)
        self.validates_rows = validation is None or isinstance(self.validation, Rows) or hasattr(vae, "check_data")
        """Whether a validation batch is made of rows, one for each datum, which are not so in any program's batches."""

    def told(self, first: Batch) -> dict[str, str | None]:
        """Returns texts that say which data they are; `first` is the first batch."""
        return told_of(self.source, self.validation, first, lambda: first_batch(self.train, self.generators)[1])


@dataclass
class Training:
    """Everything that the loop works with.

    `objectives` and `gradients` go by the epoch from which each is used, and so do `guide_gradients`, where steps move
    the guide alone. `sides` are known where a setting needs them, and `fixed` are the modules of a side that is not
    trained. `batches` are those of an epoch from `source`, and `compiled` says that steps are compiled.
    """

    vae: Any
    source: Dataset | Rows | Iterable | None
    batches: Batches
    state: TrainingState
    objectives: dict[int, ELBO]
    gradients: dict[int, BatchGradients]
    guide_gradients: dict[int, BatchGradients]
    sides: TrainedSides | None
    beta: ScheduledBeta
    validation: Validation
    checks: PairChecks
    compiled: bool

    @property
    def fixed(self) -> list[nn.Module]:
        return [] if self.sides is None else self.sides.fixed


def prepare(
    vae: Any, data: TrainingData, settings: FitSettings, checkpoints: Checkpoints | None, device: torch.device
) -> Training:
    """Checks the pair on the first batch, and builds the training that `settings` describe.

    Raises `InputError` if the pair, the optimiser or the schedule cannot be used; nothing has been trained then.
    """
    if isinstance(vae, nn.Module):
        vae.to(device)
    elbos = settings.objectives
    check_seed = derived_seed(settings.seed, "check") if settings.seed is not None else int(torch.randint(2**62, ()))
    epoch, first = first_batch(data.train, data.generators)
    checks = PairChecks(vae, first, data.generators, check_seed)
    parameters = checks.parameters(elbos.values(), settings.batch_size if epoch.smallest_share == 1 else None)
    all_of_pair = list(parameters.values())
    readings = [getattr(elbo, "reading", AS_IT_COMES) for elbo in elbos.values()]
    sides = None
    if settings.by_side is not None:
        with kept_generators(data.generators), local_seed(check_seed):
            sides = find_sides(vae, parameters, first, readings[0], settings.train, settings.by_side)
    trained = all_of_pair if sides is None or settings.train == "both" else sides.of(settings.train)
    whole = WholeData(vae, data.source, data.train, epoch.num_batches, first, data.generators)
    counts = list(map(whole.count, checks.runs, readings))
    num_steps = settings.epochs * (settings.steps_per_epoch or epoch.num_batches or 0)  # 0 if it is not known
    rule = f"guide_steps must be at most the {num_steps} steps of this training, or the model never moves"
    require(num_steps == 0 or settings.guide_steps <= num_steps, f"{rule}; got {settings.guide_steps}")
    compiled = compiles(num_steps) if settings.compile == "auto" else bool(settings.compile)

    def gradients_for(some: list[Tensor]) -> dict[int, BatchGradients]:
        wanted = None if len(some) == len(all_of_pair) else some
        return {
            start: BatchGradients(
                gradients_of(vae, elbo, parameters, compiled, count, wanted),
                some,
                num_particles=getattr(elbo, "num_draws", 1),
                reading=reading,
                skip_refused=settings.nonfinite == "skip",
            )
            for (start, elbo), count, reading in zip(elbos.items(), counts, readings, strict=True)
        }

    gradients = gradients_for(trained)
    guide_gradients = gradients_for(sides.guide) if sides is not None and settings.guide_steps > 1 else {}
    optimizer = make_optimizer(settings.optimizer, trained, settings.lr, sides)
    beta, fingerprint = ScheduledBeta(vae, settings.beta_factor), None
    if checkpoints is not None:
        told = {**data.told(first), "optimizer settings": unusual_settings(optimizer), **checkpoints.told}
        fingerprint = Fingerprint(vae, elbos[1], counts[0], all_of_pair, first, told, data.generators, beta.at_full)
    buffers = buffers_of(vae)
    state = TrainingState(
        vae,
        parameters,
        buffers,
        optimizer,
        early_stopping=EarlyStopping([*all_of_pair, *buffers.values()], settings.patience),
        generators=data.generators,
        given=settings,
        settings=settings.to_dict(vae, optimizer, epoch.num_batches, compiled),  # before a schedule moves lr
        scheduler=make_schedule(settings.schedule, optimizer, settings.epochs),
        fingerprint=fingerprint,
        versions=lambda: versions(trained[0].device, ", ".join(sorted({g.computed_by for g in gradients.values()}))),
    )
    layout = checks.runs[0].layout
    validation = Validation(
        vae,
        data.held_out,
        data.source,
        data.generators,
        trained[0].device,
        readings[0],
        in_chunks=data.validates_rows and whole.has_rows(checks.runs[0]),
        several_draws=layout.draws_globally or not layout.plates,
    )
    return Training(
        vae,
        data.source,
        data.train,
        state,
        elbos,
        gradients,
        guide_gradients,
        sides,
        beta,
        validation,
        checks,
        compiled,
    )
