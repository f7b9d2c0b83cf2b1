"""Evaluation in `eval()` mode: dropout off, running statistics untouched, and every module's mode as it was after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import Tensor

from pyrovae.common.captured_state import Watch

Arguments, Result = ParamSpec("Arguments"), TypeVar("Result")


def evaluates(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes `function` run with the modules that its arguments are made from in `eval()` mode.

    A program need not be a module: modules are found in bound methods, partials, closures, attributes and globals, as
    `watch.Watch` says. Each is in its own mode again when the function returns or raises.
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
    modes = [(module, module.training) for module in Watch(programs).modules]
    try:
        for module, training in modes:
            if training:
                module.eval()
        yield
    finally:
        # By `train`, which a module may have of its own, and then one by one: `train` sets the parts of a module, too.
        for module, training in modes:
            if training is not module.training:
                module.train(training)
        for module, training in modes:
            module.training = training
