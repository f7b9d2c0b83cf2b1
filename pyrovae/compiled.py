"""`CompiledSVI`: steps of stochastic variational inference that run Pyro's handlers once and replay what they did."""

import functools
import math
import types
import warnings
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyrovae.errors import InputError, require
from pyrovae.graphs import Graph, checked_graph
from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.pair import not_finite
from pyrovae.rng import generator_states, set_generator_states

MANY_SHAPES = 8
MANY_CHANGES = 8


class CompiledLoss:
    """Loss and gradients of an objective for one pair: run by Pyro at the first batch of each shape, then replayed.

    `loss_and_grads(*args)` sets `.grad` of the pair's `parameters` and returns `(loss, norm)`, 0-dim tensors without
    gradient. With `per_datum` the gradients are those of the loss divided by `len(args[0])`, and `norm` is their norm;
    else `norm` is None. The loss is always the objective's own, summed over the data.

    The first batch of each shape runs eagerly, validated, and the graph on the same random numbers must give the same
    loss and gradients. What cannot be traced, or does not agree, goes on eagerly, with one warning that says why. When
    the pair changes (a parameter replaced, frozen or of another type, `train()`, a number in an attribute, a closure or
    a global), it is traced again. Values that a graph cannot see are not validated: data of later batches are trusted.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        loss: PyroELBO,
        *,
        per_datum: bool = False,
        inductor: bool = True,
    ) -> None:
        if not (isinstance(loss, PyroELBO) and hasattr(loss, "differentiable_loss")):
            raise InputError(f"loss must be an ELBO with a differentiable_loss, got {type(loss).__name__}")
        self.model, self.guide, self.loss, self.per_datum, self.inductor = model, guide, loss, per_datum, inductor
        self.parameters: list[Tensor] = []
        self.reason: str | None = None
        """Why steps run eagerly, or None where they are replayed."""
        if isinstance(loss, Objective) and loss.chunk_size is not None:
            self.reason = "an objective with a chunk_size runs its particles twice on rewound random numbers"
        self._graphs: dict[tuple, Graph] = {}
        self._watch: _Watch | None = None
        self._changes = 0

    def loss_and_grads(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        return self._set_gradients(*self._run("step", args, kwargs))

    def evaluate(self, *args, **kwargs) -> Tensor:
        """The loss alone, a 0-dim tensor."""
        return self._run("evaluate", args, kwargs)[0]

    def not_finite(self, *args, **kwargs) -> str:
        """Which site has a log-density that is not finite, in words, from one more run, eager and validated."""
        return not_finite(self.model, self.guide, *args, num_particles=getattr(self.loss, "num_draws", 1), **kwargs)

    def _run(self, kind: str, args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
        if self.reason is None and self._watch is not None:
            change = self._watch.change()
            if change is not None:
                self._changes += 1
                self._graphs.clear()
                self._watch = None
                if self._changes > MANY_CHANGES:
                    self._go_eager(f"{change} changed {self._changes} times, and each time it must be traced again")
        if self.reason is not None:
            return self._eagerly(kind, args, kwargs)
        flat = [*args, *kwargs.values()]
        key = (kind, *kwargs, *(_layout(arg) for arg in flat))
        graph = self._graphs.get(key)
        if graph is not None and graph.fits():
            return graph(*(arg for arg in flat if isinstance(arg, Tensor)))
        return self._first_of_its_shape(kind, key, args, kwargs)

    def _first_of_its_shape(self, kind: str, key: tuple, args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
        if len(self._graphs) == MANY_SHAPES:
            warnings.warn(
                f"a graph is compiled for every shape of the arguments, and this is number {MANY_SHAPES + 1}: pad "
                "batches to few lengths, or drop the last, smaller one",
                stacklevel=5,
            )
        flat = [*args, *kwargs.values()]
        is_tensor = [isinstance(arg, Tensor) for arg in flat]

        def function(*values: Tensor) -> tuple[Tensor | None, ...]:
            tensors = iter(values)
            filled = [next(tensors) if is_one else arg for arg, is_one in zip(flat, is_tensor, strict=True)]
            named = dict(zip(kwargs, filled[len(args) :], strict=True))
            return self._finish(kind, self._loss(kind, filled[: len(args)], named), filled)

        tensors = [arg for arg in flat if isinstance(arg, Tensor)]
        eager = functools.partial(self._eagerly, kind, args, kwargs)
        outcome, graph, why = checked_graph(function, tensors, eager, self.inductor)
        if graph is None:
            self._go_eager(why)
        else:
            self._graphs[key] = graph
            if self._watch is None:
                self._watch = _Watch(self.model, self.guide)
        return outcome

    def _go_eager(self, reason: str) -> None:
        self.reason = reason
        self._graphs.clear()
        warnings.warn(f"steps run eagerly, as the program cannot be replayed: {reason}", stacklevel=5)

    # The step ---------------------------------------------------------------------------------------------------------

    def _eagerly(self, kind: str, args: tuple, kwargs: dict) -> tuple[Tensor | None, ...]:
        with poutine.trace(param_only=True) as capture:
            loss = self._loss(kind, args, kwargs)
        sites = (site for site in capture.trace.nodes.values() if site["type"] == "param")
        self.parameters = list({id(p): p for p in (site["value"].unconstrained() for site in sites)}.values())
        return self._finish(kind, loss, args)

    def _loss(self, kind: str, args, kwargs) -> Tensor:
        with torch.set_grad_enabled(kind == "step"):
            return self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs)

    def _finish(self, kind: str, loss: Tensor, args) -> tuple[Tensor | None, ...]:
        """(loss, norm, gradients ...), or the loss alone."""
        if kind == "evaluate":
            return (loss.detach(),)
        wanted = [parameter for parameter in self.parameters if parameter.requires_grad]
        require(loss.requires_grad, "the objective must give some parameter a gradient, and gives none")
        found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
        gradients = [next(found) if parameter.requires_grad else None for parameter in self.parameters]
        norm = None
        if self.per_datum:
            gradients = [None if g is None else g * (1 / len(args[0])) for g in gradients]
            norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
        return (loss.detach(), norm, *gradients)

    def _set_gradients(self, loss: Tensor, norm: Tensor | None, *gradients: Tensor | None) -> tuple:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss, norm


class CompiledSVI:
    """`pyro.infer.SVI` for a program that does the same at every step: traced once, compiled, replayed.

    `step(*args)` takes a gradient step on the loss of `loss` (an objective of ours; default `ELBO()`), and
    `evaluate_loss(*args)` is it without a step; both return it as a float, summed over the data as in Pyro. `model` and
    `guide` are any static pair: `nn.Module`s through `pyro.module`, `PyroModule`s, plain `pyro.param`s.

    - `optim`: a `pyro.optim` optimiser, applied as `SVI` does, or the faster one of torch over all of the pair's
      parameters; None is `torch.optim.Adam(..., lr=1e-3, fused=True)`.
    - There is one graph for each shape of the arguments; buffers (a VAE's `beta`) are read at every step; randomness is
      drawn afresh from torch's generators, in the order of the eager step. See `CompiledLoss` for what is checked, what
      is traced again and what runs eagerly; `reason` says why it does.
    - `inductor=False` replays without compiling to machine code: for a machine without C++ compiler, or to have the
      eager step's numbers to the bit.

    Raises `FloatingPointError`, naming the site, when the loss is not finite; the parameters are then those before the
    step.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim | torch.optim.Optimizer | None = None,
        loss: PyroELBO | None = None,
        *,
        inductor: bool = True,
    ) -> None:
        known = optim is None or isinstance(optim, PyroOptim | torch.optim.Optimizer)
        require(known, f"optim must be an optimiser of pyro.optim or torch.optim, got {type(optim).__name__}")
        self.model, self.guide, self.optim = model, guide, optim
        self.compiled = CompiledLoss(model, guide, ELBO() if loss is None else loss, inductor=inductor)

    @property
    def reason(self) -> str | None:
        """Why steps run eagerly, or None where they are replayed."""
        return self.compiled.reason

    def step(self, *args, **kwargs) -> float:
        start = generator_states()
        loss = self.compiled.loss_and_grads(*args, **kwargs)[0].item()
        if not math.isfinite(loss):
            set_generator_states(start)
            raise FloatingPointError(f"loss is not finite ({loss}): {self.compiled.not_finite(*args, **kwargs)}")
        parameters = self.compiled.parameters
        if isinstance(self.optim, PyroOptim):
            self.optim(parameters)
        else:
            if self.optim is None:
                self.optim = torch.optim.Adam(parameters, lr=1e-3, fused=True)
            self.optim.step()
        for parameter in parameters:
            parameter.grad = None
        return loss

    def evaluate_loss(self, *args, **kwargs) -> float:
        return self.compiled.evaluate(*args, **kwargs).item()


def _layout(arg: object) -> object:
    return (arg.shape, arg.dtype, arg.device) if isinstance(arg, Tensor) else arg


class _Watch:
    """What a traced program was made from: whether one of the things it could see has been replaced since."""

    def __init__(self, *programs: Callable) -> None:
        self._items: list[tuple[dict, str, object]] = []
        self._sizes: list[tuple[dict, int]] = []
        self._cells: list[tuple[types.CellType, object]] = []
        self._flags: list[tuple[Tensor, bool, torch.dtype]] = []
        self._seen: set[int] = set()
        store = pyro.get_param_store()
        self._items.append((store.__dict__, "_params", store._params))
        self._add_dict(store._params, sized=False)
        for program in programs:
            self._visit(program)

    def change(self) -> str | None:
        """The name of something that is another than it was, or None."""
        for container, name, value in self._items:
            if container.get(name, self) is not value:
                return name
        for container, size in self._sizes:
            if len(container) != size:
                return next(reversed(container), "an attribute")
        for cell, value in self._cells:
            if cell.cell_contents is not value:
                return "a variable of a closure"
        for tensor, requires_grad, dtype in self._flags:
            if tensor.requires_grad is not requires_grad or tensor.dtype is not dtype:
                return "requires_grad or type of a parameter"
        return None

    def _visit(self, thing: object) -> None:
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                self._visit(part)
        elif isinstance(thing, types.MethodType):
            self._visit(thing.__self__)
            self._visit(thing.__func__)
        elif isinstance(thing, types.FunctionType):
            self._visit_function(thing)
        elif isinstance(thing, Tensor):
            self._flags.append((thing, thing.requires_grad, thing.dtype))
        elif isinstance(thing, nn.Module):
            for module in thing.modules():
                self._add_dict(module.__dict__)
                for value in list(module.__dict__.values()):
                    if isinstance(value, dict):
                        self._add_dict(value)
        elif hasattr(thing, "__dict__") and not isinstance(thing, type | types.ModuleType):  # a user's own object
            self._add_dict(vars(thing))

    def _visit_function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            self._cells.append((cell, cell.cell_contents))
            self._visit(cell.cell_contents)
        if function.__module__.partition(".")[0] in ("torch", "pyro", "pyrovae"):
            return
        for name in _names(function.__code__):
            if name in function.__globals__ and not isinstance(function.__globals__[name], types.ModuleType | type):
                self._items.append((function.__globals__, name, function.__globals__[name]))
                self._visit(function.__globals__[name])

    def _add_dict(self, container: dict, sized: bool = True) -> None:
        if sized:
            self._sizes.append((container, len(container)))
        for name, value in container.items():
            self._items.append((container, name, value))
            if isinstance(value, Tensor):
                self._visit(value)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names of a function and of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
