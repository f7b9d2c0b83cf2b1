"""`python -m pyrovae` is the command `pyrovae`."""

from pyrovae.cli import run_command

if __name__ == "__main__":
    run_command()
