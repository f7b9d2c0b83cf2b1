"""The base class of models and of their parts, and the name under which each one enters Pyro's parameter store."""

import itertools
import weakref
from typing import Self

import pyro
from pyro.params import param_with_module_name
from torch import nn

from pyrovae.models.construction import Recipe, recipe_of

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class Module(nn.Module):
    """An `nn.Module` that remembers what it was made with, and that can be pickled after Pyro has registered it.

    `made_with` is what `VAE.save` writes in place of code. A subclass has nothing to do for it.

    Pyro's parameter store leaves a weak reference on every parameter that it hands out, and a weak reference cannot be
    pickled. The store makes a new reference each time, so the old one can be dropped.
    """

    made_with: Recipe | None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        module = super().__new__(cls)
        vars(module)["made_with"] = recipe_of(cls, args, kwargs)
        return module

    def __getstate__(self) -> dict[str, object]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)


def unique_name(module: nn.Module) -> str:
    """Returns the name of `module` in Pyro's parameter store, one that no other module of this process has ever had.

    Under a name that the store already holds, `pyro.module` returns the older parameters, and the new module never
    trains. The name is kept by the module's identity and not as an attribute, so that a copy gets a name of its own.
    """
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_numbers)}"
    return _names[module]


def register(name: str, module: nn.Module) -> None:
    """Registers the parameters of `module` that are trained, as `pyro.module` does, and says nothing of frozen ones."""
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad:
            pyro.param(param_with_module_name(name, parameter_name), parameter)
