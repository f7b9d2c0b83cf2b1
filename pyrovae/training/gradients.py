"""Loss and gradients of an objective on a batch: compiled or not, on one process or summed over several."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.common import InputError, Workers, is_validation_error, require
from pyrovae.data import Batch
from pyrovae.objectives import DifferentiableELBO, keeping_terms
from pyrovae.programs import ProgramPair, Reading
from pyrovae.training.compiled_loss import OPERATIONS, CompiledLoss
from pyrovae.training.data_count import Counted, DataCount, Rows

COMPILE_STEPS = 2_000  # compiling takes a few seconds and saves a few milliseconds a step


def compiles(num_steps: int) -> bool:
    """Returns whether `compile="auto"` compiles the steps of so long a training."""
    return num_steps >= COMPILE_STEPS


UNKNOWN = (math.nan, math.nan)  # reconstruction and KL under losses that are not ours


class Step(NamedTuple):
    """Holds what a step has found; `terms` are reconstruction and KL, `(2,)`, None if the loss does not tell them."""

    loss: Tensor
    norm: Tensor
    counted: Counted
    terms: Tensor | None


class Summed(NamedTuple):
    """Holds what `BatchGradients` returns of a batch."""

    loss: Tensor
    norm: Tensor
    num_data: Tensor
    terms: Sequence[Tensor | float]
    requests: Sequence


def gradients_of(
    vae: ProgramPair,
    elbo: ELBO,
    parameters: dict[str, Tensor],
    compile: bool,
    count: DataCount,
    trained: Sequence[Tensor] | None = None,
) -> Callable[..., Step]:
    """Returns a function of a batch that sets the `.grad` of the `trained` parameters (None: of all), per datum.

    The function returns the loss, summed over the data, the norm of the gradient per datum, the numbers of data, which
    `count` says how to find, and reconstruction and KL, summed over the data.
    """
    if compile:
        return partial(_compiled_loss_and_grads, CompiledLoss(vae.model, vae.guide, elbo, count=count, trained=trained))
    return partial(_loss_and_grads, vae, elbo, list(parameters.values()), count, trained)


def _compiled_loss_and_grads(compiled: CompiledLoss, *batch: Any) -> Step:
    loss, norm = compiled.loss_and_grads(*batch)
    return Step(loss, cast(Tensor, norm), compiled.counted, compiled.terms)  # there is a norm where data are counted


def _loss_and_grads(
    vae: ProgramPair,
    elbo: ELBO,
    parameters: list[Tensor],
    count: DataCount,
    trained: Sequence[Tensor] | None,
    *batch: Any,
) -> Step:
    """Does by Pyro, step by step, what `gradients_of` says.

    The gradients are divided by the number of data, and not the loss: inside the loss, as a scale, the factor would
    move into the logsumexp of the importance-weighted objectives.
    """
    for parameter in parameters:
        parameter.grad = None
    with count.of_run(batch) as counted, keeping_terms() as kept:
        loss = _backward(vae, elbo, trained, batch)
    if trained is not None:  # a loss of Pyro's gives them all
        wanted = {id(parameter) for parameter in trained}
        for parameter in parameters:
            parameter.grad = parameter.grad if id(parameter) in wanted else None
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    require(len(found) > 0, "the objective must give some parameter a gradient, and gives none")
    torch._foreach_mul_(found, 1 / counted.whole)
    norm = nn.utils.get_total_norm(found)
    return Step(norm.new_tensor(loss), norm, counted, kept.total())


def _backward(vae: ProgramPair, elbo: ELBO, trained: Sequence[Tensor] | None, batch: Batch) -> float:
    """Returns the loss, and adds to the gradients: where it can tell them apart, those of the `trained` alone."""
    if trained is None or not isinstance(elbo, DifferentiableELBO):
        return elbo.loss_and_grads(vae.model, vae.guide, *batch)  # type: ignore[attr-defined]
    loss = elbo.differentiable_loss(vae.model, vae.guide, *batch)
    if loss.requires_grad:
        loss.backward(inputs=list(trained))
    return loss.item()


class BatchGradients:
    """Sets the parameters' gradients, per datum of the whole batch, of which each process has its rows.

    Args:
        compute: the function that `gradients_of` returns.
        parameters: the parameters, in an order that all processes share.
        num_particles: the draws of z per datum in the objective.
        reading: how the objective reads the pair.
        skip_refused: whether a batch that Pyro's validation refuses counts as one whose loss is not finite.
    """

    def __init__(
        self,
        compute: Callable[..., Step],
        parameters: Sequence[Tensor],
        num_particles: int,
        reading: Reading,
        skip_refused: bool,
    ) -> None:
        self.compute, self.parameters = compute, parameters
        self.num_particles, self.reading = num_particles, reading
        self.skip_refused, self.workers = skip_refused, Workers()

    @property
    def computed_by(self) -> str:
        """What computes the gradients, which decides their last bits."""
        if isinstance(self.compute, partial) and self.compute.func is _compiled_loss_and_grads:
            return self.compute.args[0].computed_by
        return OPERATIONS

    def __call__(self, batch: Batch, requests: Sequence[float] = ()) -> Summed:
        """Returns the outcome of a batch, after adding up those of all processes: in one message, to save its latency.

        Args:
            batch: the rows of the batch that this process has.
            requests: numbers to add up over the processes as well.

        Returns:
            The loss summed over the data, the norm of the gradient per datum, the number of data, the reconstruction
            and the KL summed over the data (nan if the loss does not tell them), and the requests.
        """
        if self.workers.size > 1:
            return self._summed_over_processes(batch, requests)
        loss, norm, counted, terms = self._computed(batch)
        loss = _counting(self._of_own_data(loss, counted))
        return Summed(loss, norm, loss.new_tensor(counted.size), UNKNOWN if terms is None else terms.unbind(), requests)

    def _of_own_data(self, loss: Tensor, counted: Counted) -> Tensor:
        """Returns the loss of as many data as the batch has, if the program declares that it stands for more."""
        return loss if counted.whole == counted.size else loss * (counted.size / counted.whole)

    def _summed_over_processes(self, batch: Batch, requests: Sequence[float]) -> Summed:
        for parameter in self.parameters:
            parameter.grad = None
        loss, count, told = self.parameters[0].new_zeros(()), 0, [0.0, 0.0]
        if len(batch[0]):  # the last batch may have fewer rows than there are processes
            loss, _, counted, terms = self._computed(batch)
            loss, count = self._of_own_data(loss, counted), counted.size
            told = list(UNKNOWN) if terms is None else terms.tolist()
        has = [parameter.grad is not None for parameter in self.parameters]
        tail = _counting(loss).new_tensor([0.0, count, *told, *map(float, has), *requests])
        tail[0] = loss
        flat = torch.cat([_gradient(parameter) for parameter in self.parameters] + [tail])
        sums, tail = flat.split((len(flat) - len(tail), len(tail)))
        if bool(loss.isfinite()):
            sums *= count
        else:
            sums.fill_(math.nan)
        self.workers.total(flat)
        sums /= tail[1]
        given = tail[4 : 4 + len(has)].tolist()
        parts = sums.split([parameter.numel() for parameter in self.parameters])
        for parameter, part, any_has in zip(self.parameters, parts, given, strict=True):
            parameter.grad = _like(parameter, part) if any_has else None
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return Summed(tail[0], norm, tail[1], tail[2:4].unbind(), tail[4 + len(has) :].unbind())

    def _computed(self, batch: Batch) -> Step:
        try:
            return self.compute(*batch)
        except ValueError as error:
            if not self.skip_refused or isinstance(error, InputError) or not is_validation_error(error):
                raise
            nan = self.parameters[0].new_tensor(math.nan)
            return Step(nan, nan, Rows(1), None)


def _counting(loss: Tensor) -> Tensor:
    """Returns the loss in a dtype in which counts of data, and sums of losses, keep their digits: float32 or more."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def _gradient(parameter: Tensor) -> Tensor:
    """Returns a parameter's gradient as a vector, zeros if there is none."""
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """Returns a vector in the shape and the layout of the parameter, which fused Adam goes by."""
    shaped = part.view(parameter.shape)
    same = parameter.dtype == part.dtype and shaped.stride() == parameter.stride()
    return shaped if same else torch.empty_like(parameter).copy_(shaped)
