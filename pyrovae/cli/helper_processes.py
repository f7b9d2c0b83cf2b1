"""Runs a script in several processes that find their work in a folder that they share, as `race` does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyrovae.common import require_count

HELPER = "PYROVAE_HELPER"


def is_helper() -> bool:
    """Returns whether `helpers` started this process: printing and writing are left to the first one."""
    return HELPER in os.environ


@contextmanager
def helpers(processes: int) -> Iterator[None]:
    """Runs this program with the same flags in `processes - 1` further processes while the block runs.

    Each process gets its share of the processor's cores. The block ends when all of them have ended.
    """
    require_count("processes", processes)
    if is_helper() or processes == 1:
        yield
        return
    import torch  # not above: a command line is read without it

    threads = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    environment = {**os.environ, HELPER: "1", "OMP_NUM_THREADS": str(threads)}
    # A script is started by its path, and the installed command, which need not be a Python file, as a module.
    by_path = sys.argv[0].endswith(".py") and not sys.argv[0].endswith("__main__.py")
    program = sys.argv[:1] if by_path else ["-m", "pyrovae"]
    command, quiet = [sys.executable, *program, *sys.argv[1:]], subprocess.DEVNULL
    started = [subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) for _ in range(processes - 1)]
    try:
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.terminate()
            process.wait()
