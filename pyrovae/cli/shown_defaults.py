"""Says the default of a flag once: where it depends on the data, in the flag's own text, and not as None beside it."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import tyro


def _default(label: str) -> str:
    return "" if label in ("", "None") else f"(default: {label})"


_ONCE = tyro.conf.arg(help_behavior_hint=_default)


def saying_defaults_once(main: Callable[..., None]) -> Callable[..., None]:
    """Returns the program; its flags, also those in groups, show no default in `--help` where that is None or empty.

    It marks the types in the annotations, which tyro reads and nobody else.
    """
    for hint in _mark(main).values():
        if is_dataclass(hint):
            _mark(hint)
    return main


def _mark(owner: Any) -> dict[str, Any]:
    """Marks the types of the flags of a function or a group, and returns the types of all its annotations."""
    hints = get_type_hints(owner, include_extras=True)
    flags = {name: hint for name, hint in hints.items() if name != "return" and not is_dataclass(hint)}
    unmarked = {name: hint for name, hint in flags.items() if _ONCE not in get_args(hint)}
    owner.__annotations__ = {**hints, **{name: Annotated[hint, _ONCE] for name, hint in unmarked.items()}}
    return hints
