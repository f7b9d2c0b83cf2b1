"""Lets a pair stand in place of its model and guide, and takes data as they come, in every function of the two."""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from torch import Tensor, nn

from pyrovae.common import as_arguments, if_given, require, require_count, require_flag, require_text, shown
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

    A pair that can itself be run counts as the model if a second program follows it. The data among the arguments are
    those of `as_arguments`.
    """

    @wraps(function)
    def with_pair(*args: Any, **kwargs: Any) -> Result:
        if args and is_pair(args[0]) and not (_is_program(args[0]) and len(args) > 1 and _is_program(args[1])):
            args = (args[0].model, args[0].guide, *args[1:])
        _check(args[:2], kwargs, function.__name__)
        return function(*args[:2], *as_arguments(owner_of(args[0]) if args else None, args[2:]), **kwargs)

    return with_pair


def takes_model(function: Callable[Concatenate[Program, Arguments], Result]) -> TakesModel[Arguments, Result]:
    """Decorates a function of `(model, *args)` as `takes_pair` does one of `(model, guide, *args)`."""

    @wraps(function)
    def with_model(*args: Any, **kwargs: Any) -> Result:
        if args and is_pair(args[0]) and not _is_program(args[0]):
            args = (args[0].model, *args[1:])
        _check(args[:1], kwargs, function.__name__)
        return function(*args[:1], *as_arguments(owner_of(args[0]) if args else None, args[1:]), **kwargs)

    return with_model


def _check(programs: tuple, settings: Mapping[str, object], called: str) -> None:
    """Raises `InputError` on a program that cannot be called, and on a setting that means the same everywhere."""
    order = f": it comes before the data, as in {called}(model, guide, x)"
    for name, program, hint in zip(("model", "guide"), programs, ("", order), strict=False):
        rule = f"{name} must be a function, or there must be a pair of a model and a guide"
        require(callable(program) and not isinstance(program, type), f"{rule}, got {shown(program)}{hint}")
    require_flag("progress", settings.get("progress"), None)
    if_given(require_text, "plate", settings.get("plate"), "the name of one")
    if_given(require_count, "chunk_size", settings.get("chunk_size"))


def is_pair(thing: object) -> bool:
    """Returns True for anything with a `model` and a `guide` that can be called.

    A class is one if they are functions of its own, and not methods, which are for its objects.
    """
    programs = [getattr(thing, name, None) for name in ("model", "guide")]
    if not all(map(callable, programs)):
        return False
    return not (isinstance(thing, type) and any(_is_method(program) for program in programs))


def _is_method(program: object) -> bool:
    """Returns True for a function that was read from a class and takes an object of it."""
    return isinstance(program, FunctionType) and next(iter(signature(program).parameters), None) == "self"


def owner_of(program: object) -> object:
    """Returns the object whose method a program is, as a VAE's model is; None for any other program."""
    return getattr(program, "__self__", None)


def _is_program(thing: object) -> bool:
    """Returns True for what can be run itself, as a function or a module with a `forward` can, and a VAE cannot.

    A class can be called, but gives an object of it and runs no program.
    """
    if isinstance(thing, nn.Module):
        return type(thing).forward is not nn.Module.forward
    return callable(thing) and not isinstance(thing, Tensor | type)
