"""Runs any loss that `pyro.infer.SVI` takes, also while a graph is traced, where there are no values to look at.

Pyro's losses return numbers and call `backward` themselves. While a graph is traced, a number is the tensor that it
would have been read from, and what `backward` is called on is kept: its gradients, added up, are those of the loss.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import Dice
from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.common import InputError
from pyrovae.compilation import caller
from pyrovae.objectives import DifferentiableELBO


class AnyLoss:
    """Runs a loss: one of `pv.objectives`, an ELBO of Pyro's or of the user's, or a function of model, guide and data.

    Args:
        loss: The loss. One that compiles itself, such as `JitTrace_ELBO`, is run as the one that it was made from.

    Raises:
        InputError: If it is none of these.
    """

    def __init__(self, loss: PyroELBO | Callable) -> None:
        is_elbo = isinstance(loss, PyroELBO) and hasattr(loss, "loss_and_grads")
        if not (is_elbo or (callable(loss) and not isinstance(loss, type | PyroELBO))):
            raise InputError(f"loss must be an ELBO with loss_and_grads or a function, got {type(loss).__name__}")
        self.loss = _not_jit(loss) if isinstance(loss, PyroELBO) else loss
        self.is_own = isinstance(loss, DifferentiableELBO)
        """True for an objective of ours, which gives a differentiable loss, and takes no first run to set up."""

    def traced(
        self, kind: str, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the loss without a look at values, to "step" or to "evaluate".

        Returns its value, a vector if the loss is a tuple of several, and tensors whose gradients make up its gradient.
        """
        if self.is_own:
            return self.eager(kind, model, guide, args, kwargs)
        with torch.set_grad_enabled(kind == "step"), _recording() as surrogates:
            value = _tensor_of(self._run(kind, model, guide, args, kwargs))
        return value, surrogates

    def eager(
        self, kind: str, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the loss as `SVI` does. One that is not ours adds to the parameters' `.grad`, and gives no tensors."""
        with torch.set_grad_enabled(kind == "step"):
            if isinstance(self.loss, DifferentiableELBO):
                loss = self.loss.differentiable_loss(model, guide, *args, **kwargs)
                return loss.detach(), [loss] if loss.requires_grad else []
            return _tensor_of(self._run(kind, model, guide, args, kwargs)), []

    def _run(self, kind: str, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Any:
        loss: Any = self.loss
        if isinstance(loss, PyroELBO):
            run: Any = getattr(loss, "loss_and_grads" if kind == "step" else "loss")  # not declared by `ELBO`
            return run(model, guide, *args, **kwargs)
        value = loss(model, guide, *args, **kwargs)
        if kind == "step" and getattr(value, "requires_grad", False):
            value.backward()
        return value


def _not_jit(loss: PyroELBO) -> PyroELBO:
    """Returns the loss as one of the class that it was made from, if it compiles itself by Pyro's means."""
    for kind in type(loss).__mro__:
        if not (kind.__name__.startswith("Jit") and kind.__module__.startswith("pyro.")):
            break
    if kind is type(loss):
        return loss
    loss = copy.copy(loss)
    loss.__class__ = kind
    return loss


def _tensor_of(value: Any) -> Tensor:
    if isinstance(value, tuple | list):
        return torch.stack([_tensor_of(part) for part in value])
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


@contextmanager
def _recording() -> Iterator[list[Tensor]]:
    """Within the block no value is looked at; what `backward` is called on is collected."""
    surrogates: list[Tensor] = []
    with patch.object(ProvenanceTensor, "__new__", _Tracked.of), _Recording(surrogates):
        yield surrogates


class _Tracked(ProvenanceTensor):
    """Says from which sites a value stems, for `TraceGraph_ELBO`; unlike its parent it can hold a tensor of a trace."""

    @staticmethod
    def of(_: type, data: Tensor, provenance: frozenset = frozenset()) -> Tensor:
        if not provenance:
            return data
        made = Tensor._make_wrapper_subclass(_Tracked, data.shape, dtype=data.dtype, device=data.device)
        made._t, made._provenance = data, provenance
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{func} must see the tensor that is held")


class _Recording(TorchFunctionMode):
    def __init__(self, surrogates: list[Tensor]) -> None:
        super().__init__()
        self.surrogates = surrogates

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item:
            value = detach_provenance(args[0]).detach()
            # Pyro adds up Python's numbers, which are as precise; in the user's program it would promote other tensors.
            return value.double() if value.is_floating_point() and _is_pyros(caller()) else value
        if func is Tensor.__bool__ and caller().f_code is _COMPUTE_EXPECTATION:
            return True  # it asks whether all probabilities are positive, to leave out those that are 0
        if func is Tensor.backward and kwargs.get("gradient") is None and kwargs.get("inputs") is None:
            self.surrogates.append(detach_provenance(args[0]))
            return None
        return func(*args, **kwargs)


_COMPUTE_EXPECTATION = Dice.compute_expectation.__code__
_PYRO = str(Path(pyro.__path__[0]))


def _is_pyros(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PYRO)
