"""The `pyrovae` command."""
