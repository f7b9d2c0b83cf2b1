"""Evaluation in `eval()` mode: dropout off, running statistics untouched, and every module's mode restored after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import Tensor

from pyrovae.common.captured_state import modules_within

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def evaluates(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes `function` run with the modules that its arguments are made from in `eval()` mode.

    A program need not be a module: `modules_within` finds modules in bound methods, partials, closures, attributes and
    globals. Each is in its own mode again when the function returns or raises.
    """

    @wraps(function)
    def evaluated(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        programs = [arg for arg in (*args, *kwargs.values()) if callable(arg) and not isinstance(arg, Tensor)]
        with evaluation_mode(*programs):
            return function(*args, **kwargs)

    return evaluated


@contextmanager
def evaluation_mode(*programs: object) -> Iterator[None]:
    """Within the block every module that the programs are made from is in `eval()` mode."""
    modes = [(module, module.training) for module in modules_within(programs)]
    try:
        for module, training in modes:
            if training:
                module.eval()
        yield
    finally:
        # `train` is called because a module may define its own. It also sets the module's parts, so that afterwards
        # each mode is set by itself.
        for module, training in modes:
            if training is not module.training:
                module.train(training)
        for module, training in modes:
            module.training = training
