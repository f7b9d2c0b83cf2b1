"""What the modules that Pyro registers have in common: a name of their own in its store, and that they are saved."""

import itertools
import weakref

from torch import nn

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


class Module(nn.Module):
    """A module that `torch.save`, `pickle` and `copy.deepcopy` take after Pyro has registered it, too.

    Pyro's param store leaves a weak reference on every parameter that it is asked for, and there is no pickling those.
    It makes a new one each time, so that nobody misses the old one.
    """

    def __getstate__(self) -> dict[str, object]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)


def unique_name(module: nn.Module) -> str:
    """Returns a name for `module` in Pyro's param store that no other module of this process has had.

    Under a name that the store already holds, `pyro.module` hands back the older parameters, and the new module never
    trains. The name is kept by identity and not as an attribute, so that a copy gets one of its own.
    """
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_numbers)}"
    return _names[module]
