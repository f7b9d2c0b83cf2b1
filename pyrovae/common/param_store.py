"""The names under which modules enter Pyro's parameter store, and their registration there."""

import itertools
import weakref

import pyro
from pyro.params import param_with_module_name
from torch import nn

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


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


class RegisteredModule(nn.Module):
    """An `nn.Module` that can be pickled and copied after Pyro has registered it.

    Pyro's parameter store leaves a weak reference on every parameter that it hands out, and a weak reference cannot be
    pickled. The store makes a new reference each time, so the old one can be dropped.
    """

    def __getstate__(self) -> dict[str, object]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)
