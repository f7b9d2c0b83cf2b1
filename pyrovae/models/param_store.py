"""The base class of models, and the name under which each one enters Pyro's parameter store."""

import itertools
import weakref

from torch import nn

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class Module(nn.Module):
    """An `nn.Module` that `torch.save`, `pickle` and `copy.deepcopy` still accept after Pyro has registered it.

    Pyro's parameter store leaves a weak reference on every parameter that it hands out, and a weak reference cannot be
    pickled. The store makes a new reference each time, so the old one can be dropped.
    """

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
