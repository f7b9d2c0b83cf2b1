"""How a message spells a setting: as a flag in a command, and as an argument in a program."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from pyrovae.common.errors import shown

_as_flags = ContextVar("settings are flags", default=False)


@contextmanager
def settings_as_flags() -> Iterator[None]:
    """Within the block messages spell settings as the flags of a command, since its user calls no function."""
    token = _as_flags.set(True)
    try:
        yield
    finally:
        _as_flags.reset(token)


def setting(name: str, value: object = None) -> str:
    """Returns what the user writes to give the setting a value; any value if it is None.

    Example:
        >>> from pyrovae.common.spelling import setting, settings_as_flags
        >>> setting("missing", "mask"), setting("columns")
        ("missing='mask'", 'columns=')
        >>> with settings_as_flags():
        ...     setting("missing", "mask"), setting("resume", True), setting("kinds", {"a": "count"})
        ('--missing mask', '--resume', '--kinds a=count')
    """
    if not _as_flags.get():
        return f"{name}={'' if value is None else shown(value)}"
    words = [f"--{name.replace('_', '-')}"]
    if isinstance(value, Mapping):
        words += [f"{key}={one}" for key, one in value.items()]
    elif isinstance(value, list):
        words += [shlex.quote(str(one)) for one in value]
    elif not (value is None or value is True):
        words.append(str(value))
    return " ".join(words)
