"""A dictionary that forgets its keys, and tells them apart as objects: they need not be hashable."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class WeakByIdentity(Generic[Value]):
    """Holds a value for each object, until the object is gone.

    Raises:
        TypeError: An object cannot be referred to weakly.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref, Value]] = {}

    def get(self, key: object) -> Value | None:
        """Returns the value of an object, or None if it has none."""
        held = self._held.get(id(key))
        return None if held is None else held[1]

    def setdefault(self, key: object, make: Callable[[], Value]) -> Value:
        """Returns the value of an object, which `make` makes if it has none."""
        number = id(key)
        if number not in self._held:
            self._held[number] = (weakref.ref(key, lambda _: self._held.pop(number, None)), make())
        return self._held[number][1]
