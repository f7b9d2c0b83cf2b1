"""Starts and ends a program: flags by tyro, and bad input as one line and exit status 2, never a traceback."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import tyro

from pyrovae.cli.given_flags import check_flags
from pyrovae.cli.shown_defaults import saying_defaults_once
from pyrovae.cli.streams import output_error, protect_streams
from pyrovae.common import InputError, progress_in_lines, require, settings_as_flags

MAX_FLAG = 10_000  # characters; a path has at most 4,096
MAX_LINE = 1_000  # characters of an error
# Arguments of `main` that are dataclasses are groups of `--help`, and their flags have no prefix.
GROUPS_WITHOUT_PREFIX = (tyro.conf.OmitArgPrefixes,)


def run_script(main: Callable[..., None], defaults: Callable[[list[str]], list[str]] | None = None) -> None:
    """Calls `main` with the flags of the command line, which its signature and docstring define.

    Args:
        main: the program
        defaults: takes the flags and returns flags that go before them, to replace the usual values
    """
    flags = sys.argv[1:]
    with reporting():
        check_flags(main, with_values(flags), Path(sys.argv[0]).name)
        args = flags if defaults is None else defaults(flags) + flags
        tyro.cli(saying_defaults_once(main), args=with_values(args), config=GROUPS_WITHOUT_PREFIX)


@contextmanager
def reporting() -> Iterator[None]:
    """Ends the program with one line if the block raises an expected error.

    Bad input, a diverged training, the system's refusals and full memory exit with status 2, Ctrl-C and SIGTERM as a
    shell reports them. If torchrun started the program, the block runs in its process group.

    Nothing that is printed stops the block. After it, a standard output that was full exits with 2, and one whose
    reader has gone with the status of SIGPIPE.
    """
    protect_streams()
    try:
        with _processes(), progress_in_lines(), settings_as_flags(), _plain_warnings():
            yield
        _check_output()
    except SystemExit as stopped:
        if not stopped.code:  # of --help
            _check_output()
        raise
    except (InputError, FloatingPointError) as error:
        _exit(f"error: {error}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _exit(f"error: {error.strerror or error}{where}")
    except (MemoryError, RuntimeError, TypeError) as error:
        from pyrovae.common import is_out_of_memory  # not above, because it imports torch

        if not is_out_of_memory(error):
            raise
        _exit("error: out of memory: reduce --hidden, --batch-size, --num-particles or --num-samples")
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 2
        _exit("interrupted: files that were written before are kept", 128 + number)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints a warning as one line, without the place in the code."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        return f"warning: {message}\n" if category is UserWarning else usual(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _processes() -> AbstractContextManager[object]:
    """Returns the process group of torchrun, or nothing to enter if it did not start the program."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from pyrovae.common import process_group  # not above, because it imports torch

    return process_group()


def command_for(name: str, *arguments: object) -> str:
    """Returns what to type next to call the command `name`, in the way in which this program was started."""
    program = Path(sys.argv[0])
    script = program.with_name(f"{name}.py")
    if program.suffix == ".py" and script.exists():
        words = ["python", script]
    elif program.name == "__main__.py":
        words = ["python", "-m", "pyrovae", name]
    else:
        words = ["pyrovae", name]
    return shlex.join(map(str, (*words, *arguments)))


def with_values(flags: Sequence[str]) -> list[str]:
    """Returns flags in which --header and --no-header have a value, as tyro wants it of a truth that may be unknown.

    Raises:
        InputError: a flag is so long that tyro's answer to it would be endless
    """
    for flag in flags:
        require(
            len(flag) <= MAX_FLAG, f"a flag must have at most {MAX_FLAG:,} characters, got {len(flag):,}: {flag[:50]}"
        )
    found: list[str] = []
    for flag, following in zip(flags, (*flags, "")[1:], strict=True):
        if flag == "--no-header":
            found += ["--header", "False"]
        elif flag == "--header" and following not in ("None", "True", "False"):
            found += ["--header", "True"]
        else:
            found.append(flag)
    return found


def flags_of(values: Mapping[str, object]) -> list[str]:
    """Returns flags that set these values; flags that follow them on the command line win."""
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _check_output() -> None:
    """Ends the program if what it printed could not be written."""
    error = output_error()
    if isinstance(error, BrokenPipeError):
        sys.exit(141)  # with which a shell reports SIGPIPE
    if error is not None:
        _exit(f"error: standard output could not be written ({error.strerror})")


def _exit(line: str, status: int = 2) -> NoReturn:
    """Prints a line to standard error, shortened if it is endless, and exits."""
    line = " ".join(line.splitlines())
    print(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 100]} ... {line[-90:]}", file=sys.stderr)
    sys.exit(status)
