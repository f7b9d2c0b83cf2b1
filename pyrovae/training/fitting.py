"""`fit`: stochastic variational inference over epochs, with the steps of `pyro.infer.SVI`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import nn

from pyrovae.common import (
    Workers,
    choose_device,
    derived_seed,
    if_given,
    local_seed,
    progress_bar,
    require_callable,
    require_flag,
)
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.history import History
from pyrovae.training.loop import Loop
from pyrovae.training.optimizers import ADAM
from pyrovae.training.preparation import TrainingData, prepare
from pyrovae.training.settings import FitSettings


def fit(
    vae: Any,
    data: Any,
    *,
    epochs: int,
    steps_per_epoch: int | None = None,
    objective: str | ELBO | Mapping[int, str | ELBO] = "elbo",
    num_particles: int | None = None,
    alpha: float | None = None,
    num_batches: int | None = None,
    free_bits: float | None = None,
    batch_size: int = 128,
    lr: float | Mapping[str, float] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim = ADAM,
    schedule: str | Callable[[torch.optim.Optimizer], Any] = "constant",
    beta_schedule: str | Callable[[float], float] = "constant",
    max_grad_norm: float | Mapping[str, float] | None = None,
    guide_steps: int = 1,
    train: str = "both",
    compile: bool | str = "auto",
    validation: Any = None,
    patience: int | None = None,
    nonfinite: str = "stop",
    device: str | torch.device = "auto",
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool | None = None,
    on_start: Callable[[History], None] | None = None,
    on_epoch: Callable[[dict[str, float | None]], None] | None = None,
) -> History:
    """Trains `vae.model` and `vae.guide` by stochastic variational inference, in place.

    Each step descends the gradient of the objective's loss per datum of the batch,

        parameters <- optimizer(parameters, d/d parameters  loss(batch) / len(batch))

    so that learning rate and clipping mean the same at every batch size. The number of data is that of the data plate;
    without one, each batch is one datum.

    Sites outside the data plate are of all N data together. In a batch of B they count by B / N, so that every step
    follows the bound on all data, divided by N: under our objectives and under Pyro's. N is the length of a `Dataset`
    or of data given at once; an iterable must have a length, and its data are counted before the first step. Where the
    program declares N itself, as `pyro.plate("data", N, subsample_size=len(x))` does, it is taken as it is.

    Within `pv.workers.process_group` every process takes its rows of each batch (`data` a `Dataset` or all at once).
    The gradients are those of the whole batch. The first process writes checkpoints and shows progress.

    Args:
        vae: a VAE, or anything with a `model` and a `guide`, such as a named tuple of a function and an autoguide.
            All parameters must be registered at the first batch. Afterwards the pair is still on `device`, and a module
            is in `eval()` mode.
        data: a `Dataset` (trained on its training data, validated on its validation data); all data at once, as a
            tensor, an array or a frame `(N, ...)`, or a tuple of them, `(x, y)`, or a `TensorDataset`; or any iterable,
            such as a `DataLoader`, that yields batches again at each epoch. The items of a batch that is a tuple or a
            list are the arguments of model and guide; anything else, such as a tensor, a dict or a `PackedSequence`, is
            one argument. A pair is given no more arguments than it takes, and a conditional VAE as many y as it has
            conditions. A VAE takes a dict by its fields x and y (y_1, y_2, ... of several conditions), and what has
            another dtype is converted to its own if that loses nothing. A program of another pair is given tensors as
            they are. None is for programs without arguments, and makes one step an epoch.
        epochs: the number of passes through the data, or of sets of `steps_per_epoch` steps.
        steps_per_epoch: the number of steps of an epoch, for data that never end, such as a generator or an
            `IterableDataset`: the batches go on from one epoch to the next, and begin again where they end. None makes
            each epoch one pass through the data.
        objective: a name, also with settings, as in `"dreg(num_particles=64)"` (see `pv.objectives.from_text`), or a
            `pyro.infer.ELBO`. Or several, each used from an epoch on: `{1: "elbo", 51: "iwae(num_particles=50)"}`; the
            optimiser and its schedule go on.
        num_particles, alpha, num_batches, free_bits: settings that may also be given beside the objective's name.
        batch_size: the number of data per step, where `data` does not come in batches.
        lr: the learning rate, or those of the sides, `{"model": 1e-3, "guide": 3e-3}`; None is that of a Pyro optimiser
            or a `functools.partial`, else 0.001.
        optimizer: `optimizer(parameters, lr=lr)` makes one of `torch.optim`; or one of `pyro.optim`, whose arguments
            may be a function of a parameter's name. With rates by side `parameters` are two groups.
        schedule: "constant", "cosine" (decays to 0 over the epochs), or a function that makes one of
            `torch.optim.lr_scheduler` from the optimiser. It is stepped once an epoch. A `ReduceLROnPlateau` is stepped
            with minus the validation ELBO, or without validation data with the loss, and with the ELBO or minus the
            loss if its mode is "max". With `threshold_mode="abs"` its threshold is in nats per datum.
        beta_schedule: a name or function of `pv.schedules`, from the share of the training that is done to a factor on
            the VAE's beta. Afterwards beta is what it was.
        max_grad_norm: gradients per datum are clipped to this norm, all together, or those of a side by themselves, as
            in `{"guide": 5.0}`; None leaves them as they are.
        guide_steps: the number of steps of the guide for each of the model. Of so many steps, each on a batch of its
            own, all move the guide and the last moves the model, too; the count goes on from epoch to epoch. An epoch
            is still one pass through the data.
        train: "both", or the one side that is trained, "model" or "guide". The other keeps its parameters to the bit,
            and its modules are in evaluation mode: its dropout is off, and its running statistics stay.
        compile: traces, compiles and replays steps, which gives the same numbers to rounding (see `CompiledSVI`).
            "auto" compiles where it pays for the seconds that it takes: 2,000 steps or more.
        validation: all data at once or an iterable of batches, in place of the data set's own. After each epoch its
            ELBO is estimated from the same draws, which leave the training's stream of random numbers alone. It is of
            the data and of their own latents, without the KL of latents that all data share.
        patience: training stops after this number of epochs without a better validation ELBO, and the best parameters
            are restored. None trains through all epochs.
        nonfinite: "stop" at a loss or gradient that is not finite, or "skip" that step; `History` counts them.
        device: a device of torch; "auto" is a GPU if there is one.
        seed: fixes the run and leaves the caller's generators as they were; None goes on with the caller's.
        checkpoints: writes the training down as it goes (see `Checkpoints`). If its folder has a checkpoint of this
            training, the training resumes from there and ends with the same bits as one that was never interrupted.
            When it resumes in the middle of an epoch, an iterable's batches already used are drawn again, from
            generators as they were at the start of the epoch, and skipped: their order must be drawn then, as by a
            `DataLoader`. With `steps_per_epoch` those of the present pass through the data are, which may be many.

            With more epochs than the checkpoint was written for, the training goes on as if it had been begun with
            them, to the bit, also if it had ended (to rounding if "auto" chooses to compile the longer training).
            This needs the constant `beta_schedule` and a `schedule` that does not depend on the number of epochs. A
            training that stopped early goes on with more patience.
        progress: shows a progress bar; None does on a terminal.
        on_start: is called with the `History` of the epochs that are done, before the first step.
        on_epoch: is called with each epoch's record. Both are called in evaluation mode, and what they draw does not
            change the run.

    Returns:
        The `History`, with one entry per epoch.

    Raises:
        InputError: on bad input, before anything is trained; a checkpoint of other data, or another optimiser or model,
            is bad input, and so are batches that do not make up a whole (several of them where N is not known, or for a
            guide that draws all data's latents at once), and a pair whose sides share a parameter, where a setting
            tells the sides apart.
        FloatingPointError: if the loss or a gradient is no longer finite, or a distribution refuses its parameters; it
            names epoch, step and site. Other errors of the pair pass through.

    Example:
        >>> data = pv.load("ring", num_train=100, num_validation=20, num_test=10)
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> history = pv.fit(vae, data, epochs=3, objective="iwae", num_particles=4, seed=0)
        >>> history.epoch, len(history.loss)
        ([1, 2, 3], 3)

    Source: Kingma and Welling (2014), arXiv:1312.6114; Rezende et al. (2014), arXiv:1401.4082.
    """
    settings = FitSettings(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        objective=objective,
        objective_settings={
            "num_particles": num_particles,
            "alpha": alpha,
            "num_batches": num_batches,
            "free_bits": free_bits,
        },
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        beta_schedule=beta_schedule,
        max_grad_norm=max_grad_norm,
        guide_steps=guide_steps,
        train=train,
        compile=compile,
        patience=patience,
        nonfinite=nonfinite,
        seed=seed,
    )
    settings.check(vae, checkpoints)
    require_flag("progress", progress, None)
    for name, called in (("on_start", on_start), ("on_epoch", on_epoch)):
        if_given(require_callable, name, called)
    device = choose_device(device)
    batches = TrainingData(vae, data, validation, settings, device)
    with local_seed(seed):
        training = prepare(vae, batches, settings, checkpoints, device)
        if Workers().rank > 0:  # each process has noise of its own
            torch.manual_seed(derived_seed(torch.initial_seed(), f"process {Workers().rank}"))
        try:
            with progress_bar(progress, epochs, "training", "epoch") as bar:
                if training.compiled:
                    bar.set_postfix_str("compiling")
                Loop(training, settings, checkpoints).run(bar, on_start or _ignore, on_epoch or _ignore)
        finally:
            training.beta.restore()
        training.state.optimizer.zero_grad(set_to_none=True)  # else a later step of SVI would add to these gradients
        if isinstance(vae, nn.Module):
            vae.eval()
    return training.state.history


def _ignore(*args: object) -> None: ...
