"""Runs any loss that `pyro.infer.SVI` takes, also while a graph is traced, where there are no values to look at.

Pyro's losses return numbers and call `backward` themselves. While a graph is traced, a number is the tensor that it
would have been read from, and what `backward` is called on is kept: its gradients, added up, are those of the loss.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import unwrap
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

from pyrovae.common import InputError, is_validation_error
from pyrovae.compilation import CannotTrace, caller, line_being_run
from pyrovae.objectives import DifferentiableELBO
from pyrovae.programs import check_finite_data, refuse_dtypes


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
        self._dtypes: dict[str, torch.dtype] = {}

    @property
    def state(self) -> tuple:
        """The loss and, if it is an ELBO, its attributes: a change of either makes a step be traced again."""
        return (self.loss, vars(self.loss)) if isinstance(self.loss, PyroELBO) else (self.loss,)

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
        return value.to(self._dtypes.get(kind, value.dtype)), surrogates

    def eager(
        self, kind: str, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs the loss as `SVI` does. One that is not ours adds to the parameters' `.grad`, and gives no tensors."""
        with torch.set_grad_enabled(kind == "step"):
            if isinstance(self.loss, DifferentiableELBO):
                loss = self.loss.differentiable_loss(model, guide, *args, **kwargs)
                return loss.detach(), [loss] if loss.requires_grad else []
            is_first = kind not in self._dtypes
            try:
                value = _tensor_of(self._run(kind, model, guide, args, kwargs))
            except (RuntimeError, TypeError, ValueError) as error:
                if is_first and is_validation_error(error):
                    check_finite_data(unwrap(model), args)
                if not isinstance(error, ValueError):
                    refuse_dtypes(model, guide, args, kwargs, error)
                raise
            if is_first and not bool(value.isfinite().all()):
                check_finite_data(unwrap(model), args)
            self._dtypes[kind] = value.dtype
            return value, []

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
    plain: PyroELBO = object.__new__(kind)
    plain.__dict__ = vars(loss)  # the very same attributes, which the user may change
    return plain


def _tensor_of(value: Any) -> Tensor:
    if isinstance(value, tuple | list):
        return torch.stack([_tensor_of(part) for part in value])
    if isinstance(value, Tensor):
        return value.detach().reshape(()) if value.numel() == 1 else value.detach()
    return torch.as_tensor(value, dtype=torch.float64)


@contextmanager
def _recording() -> Iterator[list[Tensor]]:
    """Within the block no value is looked at; what `backward` is called on is collected."""
    surrogates: list[Tensor] = []
    patches = (
        patch.object(ProvenanceTensor, "__new__", _Tracked.of),
        patch.object(torch.autograd, "backward", _refuse_gradients),
    )
    with patches[0], patches[1], _Recording(surrogates):
        yield surrogates


def _refuse_gradients(*args: Any, **kwargs: Any) -> None:
    raise CannotTrace(f"it works on gradients by other means than backward(){line_being_run()}")


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
        if func is torch.tensor and isinstance(args[0], Tensor):  # of what `item` gave
            number = args[0].to(torch.get_default_dtype()) if args[0].is_floating_point() else args[0]
            return number.to(dtype=kwargs.get("dtype"), device=kwargs.get("device"), copy=True)
        if func in _GRADIENT and not caller().f_code.co_filename.startswith(_FAKE_TENSORS):
            _refuse_gradients()
        if func is Tensor.backward and kwargs.get("gradient") is None and kwargs.get("inputs") is None:
            self.surrogates.append(detach_provenance(args[0]))
            return None
        return func(*args, **kwargs)


_GRAD: Any = vars(torch._C.TensorBase)["grad"]
_GRADIENT = (_GRAD.__get__, _GRAD.__set__)
_COMPUTE_EXPECTATION = Dice.compute_expectation.__code__
_FAKE_TENSORS = str(Path(torch._subclasses.__path__[0]))  # whose own code looks whether there is one
_PYRO = str(Path(pyro.__path__[0]))


def _is_pyros(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PYRO)
