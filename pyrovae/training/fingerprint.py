"""What a training is of: its data, optimiser and model, by which a checkpoint is not taken for that of another."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.common import fixed_generators, is_validation_error, require
from pyrovae.data import Dataset
from pyrovae.training.state import buffers_of, in_training_mode, kept_values

SEED = 0
TRAINING = "training data"

# Of the loss in nats per datum, and relatively of the gradient: what other processors round otherwise.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


def digest(tensors: Iterable[Tensor]) -> str:
    """Returns a fingerprint of shapes and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class Identity:
    """What is written beside the parameters of a training, so that it is not gone on with as another.

    - `told` are texts by name: fingerprints of the data, the optimiser's settings. None is unknown.
    - Loss and gradient of the objective on `batch`, as a step has them, on the same random numbers each time. Those of
      a checkpoint are taken at the parameters that it holds, so that it does not matter what a new model starts from.
      They show an activation, a likelihood, a dropout or a body that is another.
    - `buffers` are those that steps do not move (a fixed scale). A checkpoint puts its own in their place, so that a
      difference would not show in the loss.
    - `start` is the norm of the initial parameters.

    `generators` are those that the data draw from, and `at_full_beta` is a block in which beta is not scheduled.
    """

    def __init__(
        self,
        vae: object,
        elbo: ELBO,
        parameters: Sequence[Tensor],
        batch: Sequence[Tensor],
        told: dict[str, str | None],
        generators: Sequence[torch.Generator],
        at_full_beta: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.vae, self.elbo, self.parameters, self.batch, self.told = vae, elbo, parameters, batch, told
        self.generators, self.at_full_beta = generators, at_full_beta
        self.where = f"{parameters[0].device.type} under torch {torch.__version__}"
        self.start: float | None = math.sqrt(sum(p.detach().double().square().sum().item() for p in parameters))
        self.buffers = self._still()

    def state(self) -> dict[str, object]:
        """Returns all of it as plain values and tensors."""
        loss, gradient = self.measured()
        own = {"told": self.told, "start": self.start, "buffers": self.buffers, "where": self.where}
        return {**own, "loss": loss, "gradient": gradient}

    def measured(self) -> tuple[float, float]:
        """Returns the loss in nats per datum and the norm of its gradient; not a number where there is none.

        Nothing is left of it but the gradients, which are dropped.
        """
        for parameter in self.parameters:
            parameter.grad = None
        try:
            with self._kept(), in_training_mode(self.vae), torch.enable_grad():
                loss = self.elbo.loss_and_grads(self.vae.model, self.vae.guide, *self.batch)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        except ValueError as error:
            if not is_validation_error(error):
                raise
            return math.nan, math.nan
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        return float(loss) / len(self.batch[0]), norm / len(self.batch[0])

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Whatever the block runs, the training goes on as if it had not."""
        buffers = list(buffers_of(self.vae).values())
        with kept_values(buffers), fixed_generators(SEED, self.generators), self.at_full_beta():
            yield

    def _still(self) -> dict[str, Tensor]:
        """Copies of the buffers that a run in training mode leaves as they are."""
        buffers = buffers_of(self.vae)
        with self._kept():
            before = {name: buffer.detach().clone() for name, buffer in buffers.items()}
            if buffers:
                with torch.no_grad(), in_training_mode(self.vae):
                    self.elbo.loss(self.vae.model, self.vae.guide, *self.batch)
            return {name: value for name, value in before.items() if torch.equal(buffers[name], value)}

    def check(self, where: str, state: dict[str, object], buffers: dict[str, Tensor], same_start: bool) -> None:
        """Raises `InputError` where the checkpoint, of these buffers, is of other data or another optimiser or model.

        With `same_start` its training must have had the initial parameters of this one, too.
        """
        for name, was in state["told"].items():
            now = self.told.get(name)
            require(None in (was, now) or was == now, f"{where} is of other {name}: take another folder")
        for name, value in self.buffers.items():
            known = [found[name].to(value.device) for found in (state["buffers"], buffers) if name in found]
            same = not known or any(_near(value, other) for other in known)
            require(same, f"{where} is of another model: its {name} is not {_shown(value)}: take another folder")
        known = same_start and state["start"] is not None and state["where"] == self.where
        same = not known or math.isclose(state["start"], self.start, rel_tol=1e-6)
        require(same, f"{where} is of a training from other initial parameters: take another folder")

    def check_model(self, where: str, state: dict[str, object], found: tuple[float, float]) -> None:
        """Raises `InputError` where this model, with the parameters that the checkpoint holds, gives another loss."""
        known = None not in (state["told"][TRAINING], self.told[TRAINING])
        if not known or state["where"] != self.where:  # other data or other random numbers
            return
        for name, was, now in zip(("loss", "gradient"), (state["loss"], state["gradient"]), found, strict=True):
            absolute, relative = (LOSS_TOLERANCE, LOSS_TOLERANCE) if name == "loss" else (1e-6, GRADIENT_TOLERANCE)
            same = not math.isfinite(was) or math.isclose(was, now, rel_tol=relative, abs_tol=absolute)
            rule = f"{where} is of another model: its {name} on the same data was {was:.6g}"
            require(same, f"{rule}, and of this one with the same parameters it is {now:.6g}: take another folder")

    def go_on_as(self, state: dict[str, object]) -> None:
        """What comes next is written as of the same start."""
        self.start, self.buffers = state["start"], state["buffers"]


def _near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, equal_nan=True)


def _shown(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"the same, of shape {tuple(value.shape)}"


def told_of(data: object, validation: object, first: Iterable[Tensor], again: Callable[[], Iterable[Tensor]]) -> dict:
    """Returns the fingerprints of data: all of a data set or a tensor, of an iterable the first batch.

    `again()` draws the first batch once more; where it comes out as another, nothing is known of the data.
    """
    if isinstance(data, Dataset):
        grey = () if data.train_grey is None else (data.train_grey,)
        training = digest((*data.arguments("train"), *grey))
        if validation is None and len(data.validation_x):
            validation = data.arguments("validation")
    elif isinstance(data, Tensor):
        training = digest((data,))
    else:
        training = digest(first)
        training = training if training == digest(again()) else None
    held_out = (validation,) if isinstance(validation, Tensor) else validation
    known = isinstance(held_out, tuple) and all(isinstance(part, Tensor) for part in held_out)
    return {TRAINING: training, "validation data": digest(held_out) if known else None}
