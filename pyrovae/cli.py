"""How a script of ours starts and ends: flags by tyro; bad input is one line and exit status 2, never a traceback."""

import sys
from collections.abc import Callable

import torch
import tyro

from pyrovae.errors import InputError


def run_script(main: Callable[..., None]) -> None:
    """Calls `main` with the command line's flags, made from its signature and docstring."""
    try:
        tyro.cli(main)
    except (InputError, FloatingPointError) as error:
        sys.exit(_say(f"error: {error}", 2))
    except OSError as error:
        sys.exit(_say(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 2))
    except (MemoryError, torch.OutOfMemoryError):
        sys.exit(_say("error: out of memory: a smaller --hidden, --batch-size or --num-particles takes less", 2))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted: what had been written stays as it is", 130))


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status
