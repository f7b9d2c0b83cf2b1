"""How a script of ours starts and ends: flags by tyro; bad input is one line and exit status 2, never a traceback."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import tyro

from pyrovae.common import InputError, is_out_of_memory, process_group, require_count


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


HELPER = "PYROVAE_HELPER"


def is_helper() -> bool:
    """Whether this process was started by `helpers`, and leaves it to the first to print and to write."""
    return HELPER in os.environ


@contextmanager
def helpers(processes: int) -> Iterator[None]:
    """Within the block so many processes run this script with these flags, each on its share of the processor's cores.

    For a script whose processes find their work in a folder that they share, as `race` does.
    """
    require_count("processes", processes)
    if is_helper() or processes == 1:
        yield
        return
    threads = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    environment = {**os.environ, HELPER: "1", "OMP_NUM_THREADS": str(threads)}
    command, quiet = [sys.executable, *sys.argv], subprocess.DEVNULL
    started = [subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) for _ in range(processes - 1)]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()
            process.wait()


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
