"""How a script of ours starts and ends: flags by tyro; bad input is one line and exit status 2, never a traceback."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import tyro

from pyrovae.errors import InputError, is_out_of_memory
from pyrovae.workers import process_group


def run_script(main: Callable[..., None]) -> None:
    """Calls `main` with the command line's flags, made from its signature and docstring."""
    with reporting():
        tyro.cli(main)


@contextmanager
def reporting() -> Iterator[None]:
    """Within the block errors end the script in one line; and it is one of several processes if torchrun says so."""
    try:
        with process_group():
            yield
    except (InputError, FloatingPointError) as error:
        sys.exit(_say(f"error: {error}", 2))
    except OSError as error:
        sys.exit(_say(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 2))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(_say("error: out of memory: a smaller --hidden, --batch-size or --num-particles takes less", 2))
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 2
        sys.exit(_say("interrupted: what had been written stays as it is", 128 + number))


def flags_of(values: Mapping[str, object]) -> list[str]:
    """Flags that say these values; those that come after them say otherwise."""
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
