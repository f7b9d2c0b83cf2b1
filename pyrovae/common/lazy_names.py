"""Imports the names of a package when they are first used, so that a command line is read before torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package that imports each module at the first use of a name.

    Args:
        package: The `__name__` of the package.
        names: For each module of the package the names that come from it, where "a as b" hands on its a as b. A module
            is an attribute, too, and is in `__all__` if no names come from it.

    Example:
        >>> from pyrovae.common.lazy_names import lazy_names
        >>> find, _, every = lazy_names("pyrovae", {"common": ("InputError",), "data": ("load as read",)})
        >>> every, find("read") is pv.load
        (['InputError', 'read'], True)

    Source:
        PEP 562.
    """
    homes = {}
    for module, entries in names.items():
        for entry in entries:
            name, _, other = entry.partition(" as ")
            homes[other or name] = (f"{package}.{module}", name)

    def find(name: str) -> object:
        if name in homes:
            module, inner = homes[name]
            value = getattr(import_module(module), inner)
        elif name in names:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    every = [*homes, *(module for module, entries in names.items() if not entries)]
    return find, lambda: sorted({*vars(sys.modules[package]), *homes, *names}), every
