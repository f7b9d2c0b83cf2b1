"""`CompiledLoss`: loss and gradients of an objective, whose Pyro handlers run once and are then replayed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO, TraceTailAdaptive_ELBO
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrovae.common import device_of, require, warn
from pyrovae.compilation import LOOKS, CannotTrace, Outcome, Replay, cpp_compiler
from pyrovae.data import leaves_of, mapped
from pyrovae.objectives import KeptTerms, Objective, keeping_terms
from pyrovae.programs import AS_IT_COMES, checking_again, gate, not_finite
from pyrovae.training.any_loss import AnyLoss
from pyrovae.training.backward_reach import HOOKED, OF_AN_ARGUMENT, check_reach, has_hook
from pyrovae.training.data_count import Counted, DataCount, Rows
from pyrovae.training.first_run import NO_PARAMETER, checked_as_they_run, has_parameter
from pyrovae.training.graph_keys import layouts, torch_settings

USUAL_GRAPHS = 8  # one for each shape of the arguments; more make compiling a waste
OPERATIONS = "PyTorch's operations"
REMEDY_FOR_CHANGES = ", and each time it must be traced again: keep what varies in a tensor, and write to it by fill_"
REMEDY_FOR_LOOKS = "; use torch.where instead of a branch, and pass a known number as an argument"
MAX_CHANGES = 8  # of the pair, each of which makes it be traced again


@dataclass(frozen=True)
class _Traced:
    replay: Replay
    parameters: list[Tensor]
    counted: Counted


class CompiledLoss:
    """Loss and gradients of an objective for one pair: run by Pyro at the first batch of each shape, then replayed.

    - The first batch of each shape runs eagerly and is validated, and so is every step whose number is a power of two,
      from 16 on. On the same random numbers the graph must give the same loss, gradients and buffers (see `Replay`).
    - A pair that sets itself up in its first run, as a new autoguide does, is traced at the second batch.
    - When the pair changes (a parameter is replaced or frozen, `train()` is called, a number in an attribute, a closure
      or a global changes: see `CapturedState`), it is traced again.
    - Some programs and losses cannot be traced: those with control flow on values, with random numbers or iterators of
      Python's, or that assign attributes; nor is what `backward` does besides (see `backward_reach`). They run eagerly,
      with one warning that says why. Where only the evaluation of a loss cannot be traced, its steps still are. Calls
      within Pyro's handlers run eagerly too, without a warning.
    - A graph does not validate values: data after the first batch are trusted.

    Args:
        model, guide: the pair.
        loss: any loss that `SVI` takes; see `AnyLoss`.
        count: says how the data of a call are counted. The gradients are then divided by the number that the loss is
            of, and their norm is taken. The loss is always the objective's own, summed over the data.
        trained: the parameters whose gradients are wanted; None is all of them.
        inductor: compiles the graph to machine code; False replays its operations one by one, which gives the eager
            step's numbers to the bit.

    Raises:
        InputError: if `loss` is none.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        loss: PyroELBO | Callable,
        *,
        count: DataCount | None = None,
        trained: Sequence[Tensor] | None = None,
        inductor: bool = True,
    ) -> None:
        self.model, self.guide, self.count, self.inductor = model, guide, count, inductor
        self.loss, self._any_loss = loss, AnyLoss(loss)
        self._trained = None if trained is None else {id(parameter): parameter for parameter in trained}
        self.parameters: list[Tensor] = []
        """The parameters of the last call."""
        self.names: dict[int, str] = {}
        """The names of the parameters, by their `id`."""
        self.counted: Counted = Rows(1)
        """The numbers of data of the last call; without a `count` gradients are those of the whole loss."""
        self.terms: Tensor | None = None
        """Reconstruction and KL of the last call, `(2,)`, summed over the data; None without a `count`, or of losses
        that are not ours."""
        self.reason: str | None = None
        """The reason why steps run eagerly, or None if they are replayed."""
        self._evaluates_eagerly = False
        self._traced: dict[tuple, _Traced] = {}
        self._names: list[str] = []
        self._changes = 0
        self._has_run: set[str] = set()
        self._may_set_up = True
        self._input = torch.zeros((), device=device_of(model, ()))
        if isinstance(loss, Objective) and loss.chunk_size is not None:
            self._go_eager("an objective with a chunk_size runs its particles twice, on rewound random numbers")
        if isinstance(loss, TraceTailAdaptive_ELBO):
            self._go_eager("its loss has no value, by which a replay could be compared with the program")

    def loss_and_grads(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Sets `.grad` of the pair's parameters.

        Returns `(loss, norm)`, 0-dim tensors without gradient. `norm` is None without a `count`.
        """
        loss, self.terms, norm, *gradients = self._run("step", args, kwargs)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return cast(Tensor, loss), norm

    def evaluate(self, *args, **kwargs) -> Tensor:
        """Returns the loss alone, a 0-dim tensor."""
        return cast(Tensor, self._run("evaluate", args, kwargs)[0])

    @property
    def computed_by(self) -> str:
        """What computes the steps, which decides their last bits; before the first of them, what is to compute them."""
        if not self.inductor or any(not traced.replay.is_machine_code for traced in self._traced.values()):
            return OPERATIONS
        if self._input.is_cuda:
            return "machine code by Triton"
        compiler = cpp_compiler()
        return OPERATIONS if compiler is None else f"machine code by {compiler}"

    def not_finite(self, *args, **kwargs) -> str:
        """Returns words that name the site whose log-density is not finite, found by an eager, validated run."""
        num_particles, reading = getattr(self.loss, "num_draws", 1), getattr(self.loss, "reading", AS_IT_COMES)
        return not_finite(self.model, self.guide, *args, num_particles=num_particles, reading=reading, **kwargs)

    def _run(self, kind: str, args: tuple, kwargs: dict) -> Outcome:
        if self._sets_up(kind):
            return self._run_first(kind, args, kwargs)
        no_graph = self.reason is not None or (self._evaluates_eagerly and kind == "evaluate")
        if no_graph or pyro.poutine.runtime._PYRO_STACK:
            return self._run_eagerly(kind, args, kwargs)
        is_simple = not kwargs and all(type(arg) is Tensor for arg in args)  # the usual call, of some microseconds
        flat = list(args) if is_simple else leaves_of((args, kwargs))
        if not is_simple and any(isinstance(leaf, PackedSequence) for leaf in flat):
            self._go_eager("the lengths in a packed sequence decide what is done")
            return self._run_eagerly(kind, args, kwargs)
        has_parts = not is_simple and any(isinstance(arg, list | tuple | dict) for arg in (*args, *kwargs.values()))
        structure = str(mapped(lambda leaf: None, (args, kwargs))) if has_parts else ""
        key = (kind, len(args), *kwargs, structure, *torch_settings(), *layouts(flat))
        try:
            traced = self._traced.get(key)
        except (TypeError, ValueError):  # the latter of a memoryview
            self._go_eager("an argument is neither a tensor nor hashable")
            return self._run_eagerly(kind, args, kwargs)
        if traced is not None and any(has_hook(p) and self._is_trained(p) for p in traced.parameters):
            self._go_eager(HOOKED)
            return self._run_eagerly(kind, args, kwargs)
        if traced is not None:
            change = traced.replay.change()
            if change is None and not traced.replay.is_due:
                self.parameters, self.counted = traced.parameters, traced.counted
                return traced.replay(*self._tensors(flat))
            if change is None:
                return self._compare_with_eager(traced, kind, args, kwargs)
            self._traced.clear()
            self._changes += 1
            if self._changes > MAX_CHANGES:
                self._go_eager(f"{change} changed {self._changes} times{REMEDY_FOR_CHANGES}")
                return self._run_eagerly(kind, args, kwargs)
        return self._trace(kind, key, flat, args, kwargs)

    def _trace(self, kind: str, key: tuple, flat: list, args: tuple, kwargs: dict) -> Outcome:
        if len(self._traced) == USUAL_GRAPHS:
            numbers = [arg for arg in flat if not isinstance(arg, Tensor)]
            if numbers:
                self._go_eager(
                    f"it was given {USUAL_GRAPHS} kinds of arguments: pass a number that varies as a 0-dim tensor"
                )
                return self._run_eagerly(kind, args, kwargs)
            warn(
                f"a graph is compiled for every shape of the arguments, and this is number {USUAL_GRAPHS + 1}: pad "
                "batches to few lengths, or drop the last, smaller one"
            )

        tensors = self._tensors(flat)
        if kind == "step" and any(tensor.requires_grad for tensor in tensors):
            self._go_eager(OF_AN_ARGUMENT)
            return self._run_eagerly(kind, args, kwargs)

        def function(*values: Tensor) -> Outcome:
            tensors = iter(values)
            if any(map(has_hook, filter(self._is_trained, self.parameters))):
                raise CannotTrace(HOOKED)
            filled, named = mapped(lambda leaf: next(tensors) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            with self._counting(filled) as counted, self._keeping() as kept:
                found = self._any_loss.traced(kind, self.model, self.guide, filled, named)
                if self._trained is None or not self._any_loss.is_own:  # ours goes no further than to those
                    check_reach(found[1], self.parameters)
                return self._outcome(kind, found[0], self._gradients(kind, found[1]), counted, kept)

        others = [leaf for leaf in flat if not isinstance(leaf, Tensor)]  # which may change between two steps
        programs = (self.model, self.guide, *([] if self._any_loss.is_own else self._any_loss.state))
        eager = partial(self._run_eagerly, kind, args, kwargs)
        may_set_up, self._may_set_up = self._may_set_up, False
        replay = Replay(function, tensors, eager, programs, lambda: self._names, self.inductor, 2, may_set_up, others)
        if replay.why is not None and kind == "evaluate":
            self._evaluates_eagerly = True
            warn(f"losses are evaluated eagerly, because the program cannot be replayed: {replay.why}")
        elif replay.why is not None:
            self._go_eager(replay.why)
        elif replay.graph is not None:
            self._traced[key] = _Traced(replay, self.parameters, self.counted)
        return replay.outcome

    def _tensors(self, flat: list) -> list[Tensor]:
        """Returns the tensors among the arguments, or if there are none, one for a graph to have an input."""
        tensors = [arg for arg in flat if isinstance(arg, Tensor)]
        return tensors or [self._input]

    def _compare_with_eager(self, traced: _Traced, kind: str, args: tuple, kwargs: dict) -> Outcome:
        """Runs the step by Pyro and by the graph, and goes on eagerly if they differ."""
        tensors = self._tensors(leaves_of((args, kwargs)))
        with checking_again():
            outcome, why = traced.replay.compare(partial(self._run_eagerly, kind, args, kwargs), tensors)
        if why is None and [id(p) for p in self.parameters] != [id(p) for p in traced.parameters]:
            why = "it trains other parameters than when it was traced"
            outcome = traced.replay.outcome  # the eager run's: the graph's gradients are those of the others
        if why is not None:
            self._go_eager(f"something that it reads has changed unseen: {why}")
        return outcome

    def _go_eager(self, reason: str) -> None:
        self.reason = reason
        self._traced.clear()
        remedy = REMEDY_FOR_LOOKS if LOOKS in reason else ""
        warn(f"steps run eagerly, because the program cannot be replayed: {reason}{remedy}")

    # The step ---------------------------------------------------------------------------------------------------------

    def _sets_up(self, kind: str) -> bool:
        """Returns True if this run is one to set up a loss of Pyro's or its guide, which may draw numbers for that.

        `SVI` does so in its first step. Where data are counted, `checked_pair` has done so.
        """
        return not (self._any_loss.is_own or self.count is not None or kind in self._has_run)

    def _run_first(self, kind: str, args: tuple, kwargs: dict) -> Outcome:
        """Runs a loss that is not ours for the first time, after which the pair is known to be one."""
        programs = checked_as_they_run(self.model, self.guide, self._any_loss.loss)
        is_step_of_pyros = kind == "step" and isinstance(self.loss, PyroELBO)
        with poutine.trace(param_only=True) as capture:
            try:
                outcome = self._run_eagerly(kind, args, kwargs, *programs)
            except RuntimeError:  # of losses that call `backward` whether or not there is a gradient
                require(not is_step_of_pyros or has_parameter(capture.trace), NO_PARAMETER)
                raise
        require(not is_step_of_pyros or len(self.parameters) > 0, NO_PARAMETER)
        self._has_run.add(kind)
        return outcome

    def _run_eagerly(
        self, kind: str, args: tuple, kwargs: dict, model: Callable | None = None, guide: Callable | None = None
    ) -> Outcome:
        for parameter in self.parameters if kind == "step" else []:
            parameter.grad = None
        with self._counting(args) as counted, self._keeping() as kept:
            with poutine.trace(param_only=True) as capture:
                programs = model or self.model, guide or self.guide
                value, surrogates = self._any_loss.eager(kind, *programs, args, kwargs)
            self._take_parameters(capture.trace, args, kwargs)
            if kind == "step" and surrogates:  # of ours; Pyro's losses have called `backward` themselves
                self._backward(surrogates[0])
            gradients = [p.grad if self._is_trained(p) else None for p in self.parameters]
            outcome = self._outcome(kind, value, gradients, counted, kept)
        self.counted = counted
        return outcome

    def _counting(self, args: tuple) -> AbstractContextManager[Counted]:
        return nullcontext(Rows(1)) if self.count is None else self.count.of_run(args)

    def _keeping(self) -> AbstractContextManager[KeptTerms | None]:
        return nullcontext() if self.count is None else keeping_terms()

    def _take_parameters(self, trace: poutine.Trace, args: tuple, kwargs: dict) -> None:
        sites = {name: site for name, site in trace.nodes.items() if site["type"] == "param"}
        gate.check_parameters(tuple(sites.values()), self.model, self.guide, args, kwargs)
        self._names = list(sites)
        found = [site["value"].unconstrained() for site in sites.values()]  # type: ignore[union-attr]
        parameters = list({id(p): p for p in found}.values())
        self.names.update({id(p): name.replace("$$$", ".") for name, p in zip(self._names, found, strict=True)})
        if list(map(id, parameters)) != list(map(id, self.parameters)):  # by the same list a step knows them again
            self.parameters = parameters

    def _backward(self, surrogate: Tensor) -> None:
        """Does what `SVI` does, also to what is no parameter of the pair: its hooks run, and its gradient is added."""
        for parameter in self.parameters:
            parameter.grad = None
        surrogate.backward(inputs=None if self._trained is None else list(filter(self._is_trained, self.parameters)))

    def _gradients(self, kind: str, surrogates: list[Tensor]) -> list[Tensor | None]:
        """Returns the parameters' gradients, added up over the surrogates in the order in which `backward` does."""
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        places = [place for place, parameter in enumerate(self.parameters) if self._is_trained(parameter)]
        for surrogate in surrogates if kind == "step" else []:
            wanted = [self.parameters[place] for place in places]
            shared = surrogate is not surrogates[-1]
            found = torch.autograd.grad(surrogate, wanted, retain_graph=shared, allow_unused=True)
            for place, gradient in zip(places, found, strict=True):
                known = gradients[place]
                gradients[place] = gradient if known is None else known if gradient is None else known + gradient
        return gradients

    def _is_trained(self, parameter: Tensor) -> bool:
        return parameter.requires_grad and (self._trained is None or id(parameter) in self._trained)

    def _outcome(
        self, kind: str, value: Tensor, gradients: list[Tensor | None], counted: Counted, kept: KeptTerms | None
    ) -> Outcome:
        """Returns (loss, terms, norm, gradients ...), or the loss alone where it is only evaluated."""
        if kind == "evaluate":
            return (value,)
        if self._any_loss.is_own or self.count is not None:  # Pyro's losses take a step of nothing
            has_some = any(gradient is not None for gradient in gradients)
            require(len(self.parameters) > 0, NO_PARAMETER)
            require(has_some, "the objective must give some parameter a gradient, and gives none")
        norm = None
        if self.count is not None:
            gradients = [None if g is None else g * (1 / counted.whole) for g in gradients]
            norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
        # As `backward` does: fused optimisers go through parameter and gradient in the order of their memory.
        laid_out = (_with_strides_of(p, g) for g, p in zip(gradients, self.parameters, strict=True))
        return (value, None if kept is None else kept.total(), norm, *laid_out)


def _with_strides_of(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    if gradient is None or gradient.is_sparse or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)
