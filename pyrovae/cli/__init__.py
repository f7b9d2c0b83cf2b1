"""The `pyrovae` command and the command line of a script: flags, errors, helper processes."""

from pyrovae.cli.app import run_command
from pyrovae.cli.command_line import flags_of, reporting, run_script
from pyrovae.cli.compare import compare_objectives
from pyrovae.cli.demo import ring_demo
from pyrovae.cli.early_flags import answer_flags
from pyrovae.cli.evaluate import evaluate_run
from pyrovae.cli.helper_processes import helpers, is_helper
from pyrovae.cli.race import race_objectives
from pyrovae.cli.train import default_flags, train_vae

__all__ = [
    "answer_flags",
    "compare_objectives",
    "default_flags",
    "evaluate_run",
    "flags_of",
    "helpers",
    "is_helper",
    "race_objectives",
    "reporting",
    "ring_demo",
    "run_command",
    "run_script",
    "train_vae",
]
