"""Lets a pair stand in place of its model and guide, in every function that takes the two."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from torch import Tensor, nn

from pyrovae.programs.pair import ProgramPair

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Program = Callable[..., Any]


class TakesPair(Protocol[Arguments, Result_co]):
    """A function of `(model, guide, ...)`, or of `(pair, ...)`."""

    @overload
    def __call__(
        self, model: Program, guide: Program, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result_co: ...
    @overload
    def __call__(self, pair: ProgramPair, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result_co: ...


class TakesModel(Protocol[Arguments, Result_co]):
    """A function of `(model, ...)`, or of `(pair, ...)`."""

    @overload
    def __call__(self, model: Program, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result_co: ...
    @overload
    def __call__(self, pair: ProgramPair, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result_co: ...


def takes_pair(
    function: Callable[Concatenate[Program, Program, Arguments], Result],
) -> TakesPair[Arguments, Result]:
    """Decorates a function of `(model, guide, *args)` so that `function(pair, *args)` is the same call.

    A pair that can itself be run counts as the model if a second program follows it.
    """

    @wraps(function)
    def with_pair(*args: Any, **kwargs: Any) -> Result:
        if args and is_pair(args[0]) and not (_is_program(args[0]) and len(args) > 1 and _is_program(args[1])):
            args = (args[0].model, args[0].guide, *args[1:])
        return function(*args, **kwargs)

    return with_pair


def takes_model(function: Callable[Concatenate[Program, Arguments], Result]) -> TakesModel[Arguments, Result]:
    """Decorates a function of `(model, *args)` so that `function(pair, *args)` is the same call."""

    @wraps(function)
    def with_model(*args: Any, **kwargs: Any) -> Result:
        if args and is_pair(args[0]) and not _is_program(args[0]):
            args = (args[0].model, *args[1:])
        return function(*args, **kwargs)

    return with_model


def is_pair(thing: object) -> bool:
    """Returns True for anything with a `model` and a `guide` that can be called."""
    return all(callable(getattr(thing, name, None)) for name in ("model", "guide"))


def _is_program(thing: object) -> bool:
    """Returns True for what can be run itself, as a function or a module with a `forward` can, and a VAE cannot."""
    if isinstance(thing, nn.Module):
        return type(thing).forward is not nn.Module.forward
    return callable(thing) and not isinstance(thing, Tensor)
