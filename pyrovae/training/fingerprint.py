"""Fingerprints that tell a training's data, optimiser and model from those of another."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.common import fixed_generators, is_validation_error, require, require_plain, rules
from pyrovae.data import Batch
from pyrovae.programs import ProgramPair
from pyrovae.training.data_count import DataCount
from pyrovae.training.data_told import TRAINING, same_data
from pyrovae.training.pair_modules import buffers_of, in_training_mode, kept_values

SEED = 0

# Tolerances for the rounding of other processors: of the loss in nats per datum, and of the gradient's norm relatively.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


class Fingerprint:
    """Tells a training from others, so that a checkpoint of another one is not resumed.

    It consists of
    - texts by name: digests of the data, and settings of the optimiser;
    - loss and gradient of the objective on one batch, computed as in a step, on the same random numbers each time.
      Those in a checkpoint are taken at the parameters that it holds, so that it does not matter which parameters a
      new model starts from. They reveal another activation, likelihood, dropout or body;
    - the buffers that steps do not move (a fixed scale). Resuming would overwrite them with those of the checkpoint,
      so that a difference would not show in the loss;
    - the norm of the initial parameters.

    Args:
        vae: the pair.
        elbo: the objective of the first epoch.
        count: says how its data are counted.
        parameters: the pair's parameters.
        batch: the first batch.
        told: the texts by name; None is a text that is not known.
        generators: the generators that the data draw from.
        at_full_beta: returns a block in which beta is not scheduled.
    """

    def __init__(
        self,
        vae: ProgramPair,
        elbo: ELBO,
        count: DataCount,
        parameters: Sequence[Tensor],
        batch: Batch,
        told: dict[str, str | None],
        generators: Sequence[torch.Generator],
        at_full_beta: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.vae, self.elbo, self.count = vae, elbo, count
        self.parameters, self.batch, self.told = parameters, batch, told
        self.generators, self.at_full_beta = generators, at_full_beta
        self.where = f"{parameters[0].device.type} under torch {torch.__version__}"
        self.start: float | None = math.sqrt(sum(p.detach().double().square().sum().item() for p in parameters))
        self.buffers = self._constant_buffers()

    def to_dict(self) -> dict[str, object]:
        """Returns the fingerprint as plain values and tensors, with loss and gradient at the present parameters."""
        loss, gradient = self.loss_and_gradient()
        fixed = {"told": self.told, "start": self.start, "buffers": self.buffers, "where": self.where}
        return {**fixed, "loss": loss, "gradient": gradient}

    def loss_and_gradient(self) -> tuple[float, float]:
        """Returns the loss in nats per datum and the norm of its gradient; both nan if the pair refuses its parameters.

        It leaves no trace, except that gradients which the parameters had are dropped.
        """
        for parameter in self.parameters:
            parameter.grad = None
        try:
            count = self.count.of_run(self.batch)
            with self._no_trace_left(), in_training_mode(self.vae), torch.enable_grad(), count as counted:
                loss = self.elbo.loss_and_grads(  # type: ignore[attr-defined]
                    self.vae.model, self.vae.guide, *self.batch
                )
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        except ValueError as error:
            if not is_validation_error(error):
                raise
            return math.nan, math.nan
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        return float(loss) / counted.whole, norm / counted.whole

    @contextmanager
    def _no_trace_left(self) -> Iterator[None]:
        """Restores buffers, random numbers and beta after the block, so that training goes on as if it had not run."""
        buffers = list(buffers_of(self.vae).values())
        with kept_values(buffers), fixed_generators(SEED, self.generators), self.at_full_beta():
            yield

    def _constant_buffers(self) -> dict[str, Tensor]:
        """Returns copies of the buffers that a run in training mode leaves as they are."""
        buffers = buffers_of(self.vae)
        for name, buffer in buffers.items():
            require_plain(f"buffer {name}", buffer)
        with self._no_trace_left():
            before = {name: buffer.detach().clone() for name, buffer in buffers.items()}
            if buffers:
                with torch.no_grad(), in_training_mode(self.vae):
                    self.elbo.loss(self.vae.model, self.vae.guide, *self.batch)  # type: ignore[attr-defined]
            return {name: value for name, value in before.items() if torch.equal(buffers[name], value)}

    def check(self, where: str, saved: dict[str, Any], buffers: dict[str, Tensor], same_start: bool) -> None:
        """Checks that the fingerprint `saved` in a checkpoint with these buffers is that of the same training.

        Raises `InputError` if its data, optimiser or model are others. With `same_start` its training must have had the
        initial parameters of this one, too.
        """
        for name, was in saved["told"].items():
            now = self.told.get(name)
            require(same_data(was, now), f"{where} is of other {name[:60]}: take another folder")
        for name, value in saved["buffers"].items():
            require(name in buffers, f"identity.buffers must be some of buffers, and {name[:60]} is not")
            rules.like(buffers[name])(f"identity.buffers.{name[:60]}", value)
        for name, value in self.buffers.items():
            known = [found[name].to(value.device) for found in (saved["buffers"], buffers) if name in found]
            same = not known or any(_are_close(value, other) for other in known)
            require(same, f"{where} is of another model: its {name} is not {_described(value)}: take another folder")
        start, ours = saved["start"], self.start
        if same_start and start is not None and ours is not None and saved["where"] == self.where:
            same = math.isclose(start, ours, rel_tol=1e-6)
            require(same, f"{where} is of a training from other initial parameters: take another folder")

    def check_model(self, where: str, saved: dict[str, Any], found: tuple[float, float]) -> None:
        """Checks the loss and gradient `found` with the checkpoint's parameters against those that were saved.

        Raises `InputError` if they differ, because the model then is another.
        """
        known = None not in (saved["told"][TRAINING], self.told[TRAINING])
        if not known or saved["where"] != self.where:  # other data or other random numbers
            return
        for name, was, now in zip(("loss", "gradient"), (saved["loss"], saved["gradient"]), found, strict=True):
            absolute, relative = (LOSS_TOLERANCE, LOSS_TOLERANCE) if name == "loss" else (1e-6, GRADIENT_TOLERANCE)
            same = not math.isfinite(was) or math.isclose(was, now, rel_tol=relative, abs_tol=absolute)
            rule = f"{where} is of another model: its {name} on the same data was {was:.6g}"
            require(same, f"{rule}, and of this one with the same parameters it is {now:.6g}: take another folder")

    def continue_from(self, saved: dict[str, Any]) -> None:
        """Takes over the start of a resumed training, which later checkpoints then carry on."""
        self.start, self.buffers = saved["start"], saved["buffers"]


def _are_close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, equal_nan=True)


def _described(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"the same, of shape {tuple(value.shape)}"
