"""Calls a program in a fork, with standard streams of the system's: closed, full, or of a reader that has gone."""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import TextIO

LONGEST = 300.0  # seconds, after which a program is taken to hang


def called(program: Callable[[], object], arguments, cwd, stdout: str = "kept", stderr: str = "kept"):
    """Returns the exit status and what was printed, "" where a stream is not "kept".

    A program that hangs ends with a traceback.

    Args:
        program: what to call
        arguments: its command line
        cwd: its working folder
        stdout: "kept", "closed", "full" or "gone": nobody reads it any more
        stderr: likewise
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            _run(program, [str(argument) for argument in arguments], cwd, {1: (stdout, out), 2: (stderr, err)})
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
        return status, *texts


def _run(program, arguments, cwd, streams) -> None:
    status = 99  # of an error here
    try:
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        os.chdir(cwd)
        sys.argv = arguments
        for descriptor, (kind, kept) in streams.items():
            _redirect(descriptor, kind, kept)
            name = "stdout" if descriptor == 1 else "stderr"
            stream = None if kind == "closed" else open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        try:
            program()
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                _ = stream and stream.flush()
            except (OSError, ValueError):
                status = 120  # as Python exits then
    finally:
        os._exit(status)


def _stop(*_: object) -> None:
    raise TimeoutError(f"the program did not end in {LONGEST:g} seconds")


def _redirect(descriptor: int, kind: str, kept: TextIO) -> None:
    if kind == "closed":
        os.close(descriptor)
    elif kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
    elif kind == "gone":
        reads, writes = os.pipe()
        os.dup2(writes, descriptor)
        os.close(reads)
    else:
        os.dup2(kept.fileno(), descriptor)
