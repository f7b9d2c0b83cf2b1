"""`CompiledSVI`: steps of stochastic variational inference that run Pyro's handlers once and replay what they did."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyrovae.common import InputError, first_line, is_validation_error, require, scale_hint, warn
from pyrovae.compilation import Outcome, Replay
from pyrovae.objectives import ELBO, Objective
from pyrovae.programs import gate, not_finite

MANY = 8


@dataclass(frozen=True)
class _Traced:
    replay: Replay
    parameters: list[Tensor]


class CompiledLoss:
    """Loss and gradients of an objective for one pair: run by Pyro at the first batch of each shape, then replayed.

    `loss_and_grads(*args)` sets `.grad` of the pair's `parameters` and returns `(loss, norm)`, 0-dim tensors without
    gradient. With `per_datum` the gradients are those of the loss divided by `len(args[0])`, and `norm` is their norm;
    else `norm` is None. The loss is always the objective's own, summed over the data.

    - The first batch of each shape runs eagerly, validated, and so does every step whose number is a power of two, from
      16 on; the graph on the same random numbers must give the same loss, gradients and buffers (see `Replay`).
    - When the pair changes (a parameter replaced or frozen, `train()`, a number in an attribute, a closure or a global:
      see `CapturedState`), it is traced again.
    - What cannot be traced (control flow on values, Python's random numbers, attributes that it assigns), and all ELBOs
      of Pyro's own, go on eagerly, with one warning that says why; so do calls within Pyro's handlers, without one.
    - Values that a graph cannot see are not validated: data after the first batch are trusted.
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
        self._traced: dict[tuple, _Traced] = {}
        self._names: list[str] = []
        self._changes = 0
        if isinstance(loss, Objective) and loss.chunk_size is not None:
            self._go_eager("an objective with a chunk_size runs its particles twice, on rewound random numbers")

    def loss_and_grads(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        loss, norm, *gradients = self._run("step", args, kwargs)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss, norm

    def evaluate(self, *args, **kwargs) -> Tensor:
        """The loss alone, a 0-dim tensor."""
        return self._run("evaluate", args, kwargs)[0]

    def not_finite(self, *args, **kwargs) -> str:
        """Which site has a log-density that is not finite, in words, from one more run, eager and validated."""
        return not_finite(self.model, self.guide, *args, num_particles=getattr(self.loss, "num_draws", 1), **kwargs)

    def _run(self, kind: str, args: tuple, kwargs: dict) -> Outcome:
        if self.reason is not None or pyro.poutine.runtime._PYRO_STACK:
            return self._eagerly(kind, args, kwargs)
        flat = [*args, *kwargs.values()]
        key = (kind, len(args), *kwargs, *_settings(), *_layouts(flat))
        try:
            traced = self._traced.get(key)
        except TypeError:
            self._go_eager("an argument is neither a tensor nor hashable")
            return self._eagerly(kind, args, kwargs)
        if traced is not None:
            change = traced.replay.change()
            if change is None and not traced.replay.is_due:
                self.parameters = traced.parameters
                return traced.replay(*(arg for arg in flat if isinstance(arg, Tensor)))
            if change is None:
                return self._look_again(traced, kind, args, kwargs)
            self._traced.clear()
            self._changes += 1
            if self._changes > MANY:
                self._go_eager(f"{change} changed {self._changes} times, and each time it must be traced again")
                return self._eagerly(kind, args, kwargs)
        return self._trace(kind, key, args, kwargs)

    def _trace(self, kind: str, key: tuple, args: tuple, kwargs: dict) -> Outcome:
        flat = [*args, *kwargs.values()]
        if len(self._traced) == MANY:
            numbers = [arg for arg in flat if not isinstance(arg, Tensor)]
            if numbers:
                self._go_eager(f"it was given {MANY} kinds of arguments: make of a number that varies a 0-dim tensor")
                return self._eagerly(kind, args, kwargs)
            warn(
                f"a graph is compiled for every shape of the arguments, and this is number {MANY + 1}: pad batches to "
                "few lengths, or drop the last, smaller one"
            )

        def function(*values: Tensor) -> Outcome:
            tensors = iter(values)
            filled = [next(tensors) if isinstance(arg, Tensor) else arg for arg in flat]
            named = dict(zip(kwargs, filled[len(args) :], strict=True))
            return self._finish(kind, self._loss(kind, filled[: len(args)], named), filled)

        tensors = [arg for arg in flat if isinstance(arg, Tensor)]
        programs = (self.model, self.guide)
        eager = partial(self._eagerly, kind, args, kwargs)
        replay = Replay(function, tensors, eager, programs, lambda: self._names, self.inductor)
        if replay.graph is None:
            self._go_eager(replay.why)
        else:
            self._traced[key] = _Traced(replay, self.parameters)
        return replay.outcome

    def _look_again(self, traced: _Traced, kind: str, args: tuple, kwargs: dict) -> Outcome:
        """The step by Pyro, and by the graph as it is."""
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        outcome, why = traced.replay.compare(partial(self._eagerly, kind, args, kwargs), tensors)
        if why is None and [id(p) for p in self.parameters] != [id(p) for p in traced.parameters]:
            why = "it trains other parameters than when it was traced"
            outcome = traced.replay.outcome  # the eager run's: the graph's gradients are those of the others
        if why is not None:
            self._go_eager(f"something that it reads has changed unseen: {why}")
        return outcome

    def _go_eager(self, reason: str) -> None:
        self.reason = reason
        self._traced.clear()
        warn(f"steps run eagerly, as the program cannot be replayed: {reason}")

    # The step ---------------------------------------------------------------------------------------------------------

    def _eagerly(self, kind: str, args: tuple, kwargs: dict) -> Outcome:
        with poutine.trace(param_only=True) as capture:
            loss = self._loss(kind, args, kwargs)
        sites = {name: site for name, site in capture.trace.nodes.items() if site["type"] == "param"}
        gate.check_parameters(tuple(sites.values()), self.model, self.guide, args, kwargs)
        self._names = list(sites)
        self.parameters = list({id(p): p for p in (site["value"].unconstrained() for site in sites.values())}.values())
        return self._finish(kind, loss, args)

    def _loss(self, kind: str, args, kwargs) -> Tensor:
        with torch.set_grad_enabled(kind == "step"):
            return self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs)

    def _finish(self, kind: str, loss: Tensor, args) -> Outcome:
        """(loss, norm, gradients ...), or the loss alone."""
        if kind == "evaluate":
            return (loss.detach(),)
        require(loss.requires_grad, "the objective must give some parameter a gradient, and gives none")
        wanted = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
        gradients = [next(found) if parameter.requires_grad else None for parameter in self.parameters]
        norm = None
        if self.per_datum:
            gradients = [None if g is None else g * (1 / len(args[0])) for g in gradients]
            norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
        # As `backward` would: fused optimisers go through parameter and gradient as they lie in memory.
        laid_out = (_as_laid_out(g, p) for g, p in zip(gradients, self.parameters, strict=True))
        return (loss.detach(), norm, *laid_out)


class CompiledSVI:
    """`pyro.infer.SVI` for a program that does the same at every step: traced once, compiled, replayed.

    `step(*args)` takes a gradient step on the loss of `loss` (an objective of ours; default `ELBO()`), and
    `evaluate_loss(*args)` is it without a step; both return it as a float, summed over the data as in Pyro. `model` and
    `guide` are any static pair: `nn.Module`s through `pyro.module`, `PyroModule`s, plain `pyro.param`s.

    - `optim`: a `pyro.optim` optimiser, applied as `SVI` does, or the faster one of torch over the pair's parameters;
      None is `torch.optim.Adam(..., lr=1e-3, fused=True)` over all of them.
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
        require(not isinstance(optim, torch.optim.LBFGS), "optim must step without a closure, and LBFGS does not")
        self.model, self.guide, self.optim = model, guide, optim
        self.compiled = CompiledLoss(model, guide, ELBO() if loss is None else loss, inductor=inductor)
        self._trained: list[Tensor] | None = None
        self._own_optim = optim is None

    @property
    def reason(self) -> str | None:
        """Why steps run eagerly, or None where they are replayed."""
        return self.compiled.reason

    def step(self, *args, **kwargs) -> float:
        try:
            loss = self.compiled.loss_and_grads(*args, **kwargs)[0].item()
        except ValueError as error:
            # A distribution refuses its parameters in the steps that Pyro runs; other errors are the program's own.
            large = scale_hint(*args) if is_validation_error(error) else ""
            if large and isinstance(error, InputError):
                raise InputError(f"{large}{error}") from error
            finite = all(bool(parameter.isfinite().all()) for parameter in self.compiled.parameters)
            if not is_validation_error(error) or (finite and not large):
                raise
            what = "" if finite else "a parameter is not finite: "
            raise FloatingPointError(f"{large}{what}{first_line(error)}") from error
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is not finite ({loss}): {self.compiled.not_finite(*args, **kwargs)}")
        parameters = self.compiled.parameters
        if isinstance(self.optim, PyroOptim):
            self.optim(parameters)
        else:
            if parameters is not self._trained:
                self._take_on(parameters)
            self.optim.step()
        for parameter in parameters:
            parameter.grad = None
        return loss

    def evaluate_loss(self, *args, **kwargs) -> float:
        return self.compiled.evaluate(*args, **kwargs).item()

    def _take_on(self, parameters: list[Tensor]) -> None:
        """Parameters that a torch optimiser has not: the default one takes them on, the user's must have them."""
        if self.optim is None:
            self.optim = torch.optim.Adam(parameters, lr=1e-3, fused=True)
        known = {id(parameter) for group in self.optim.param_groups for parameter in group["params"]}
        new = [parameter for parameter in parameters if id(parameter) not in known]
        if new and self._own_optim:
            self.optim.add_param_group({"params": new})
        elif new and self._trained is not None:
            before = {id(parameter) for parameter in self._trained}
            late = [p for p in new if id(p) not in before]
            require(not late, f"{len(late)} parameters came after the first step, and optim does not have them")
        self._trained = parameters


def _as_laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _settings() -> tuple:
    """What of torch's global state decides what a program does."""
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _layouts(args: list) -> list:
    """Of tensors the layout, and which of them are one and the same; other arguments themselves."""
    places = {}
    return [
        (arg.shape, arg.stride(), arg.dtype, arg.device, places.setdefault(id(arg), place))
        if isinstance(arg, Tensor)
        else (type(arg), arg)
        for place, arg in enumerate(args)
    ]
