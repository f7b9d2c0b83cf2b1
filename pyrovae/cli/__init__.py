"""The command line of a script: its flags, its errors, its helper processes."""

from pyrovae.cli.command_line import flags_of, reporting, run_script
from pyrovae.cli.helper_processes import helpers, is_helper

__all__ = [
    "flags_of",
    "helpers",
    "is_helper",
    "reporting",
    "run_script",
]
