"""The `pyrovae` command: its subcommands by name."""

import sys
from collections.abc import Callable
from importlib.metadata import version

from tyro.extras import SubcommandApp

from pyrovae.cli.command_line import GROUPS_WITHOUT_PREFIX, reporting, with_values
from pyrovae.cli.compare import compare_objectives
from pyrovae.cli.demo import ring_demo
from pyrovae.cli.evaluate import evaluate_run
from pyrovae.cli.given_flags import check_flags
from pyrovae.cli.impute import impute_missing
from pyrovae.cli.race import race_objectives
from pyrovae.cli.shown_defaults import saying_defaults_once
from pyrovae.cli.train import default_flags, train_vae
from pyrovae.common import require, require_choice

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train_vae,
    "evaluate": evaluate_run,
    "impute": impute_missing,
    "compare": compare_objectives,
    "race": race_objectives,
    "demo": ring_demo,
}
DESCRIPTION = """\
Train variational autoencoders and measure them. `pyrovae train --help` shows the flags of `train`, and so for each
command; `pyrovae --version` shows the version.
"""


def run_command() -> None:
    """Calls the subcommand that the command line names, with its flags; `pip` installs this as `pyrovae`."""
    with reporting():
        name, flags = (sys.argv[1:2] or [""])[0], sys.argv[2:]
        if name == "--version":
            print(f"pyrovae {version('pyrovae')}")
            return
        require(name != "", f"a command must be given: one of {', '.join(COMMANDS)}")
        if name in COMMANDS:
            check_flags(COMMANDS[name], with_values(flags), f"pyrovae {name}")
        elif name not in ("-h", "--help") and not name.startswith("--tyro-"):
            require_choice("the command", name, COMMANDS)
        app = SubcommandApp()
        for known, main in COMMANDS.items():
            app.command(name=known)(saying_defaults_once(main))
        args = [name, *default_flags(flags), *flags] if name == "train" else sys.argv[1:]
        app.cli(
            prog="pyrovae",
            description=DESCRIPTION,
            args=with_values(args),
            config=GROUPS_WITHOUT_PREFIX,
        )
