"""Answers a mistyped flag of a script at once: its `main` is read before the script imports torch, which takes seconds.

The commands of `pyrovae` import torch within their functions instead. A script that people read has its imports on top.
"""

import ast
import os
from collections.abc import Callable
from pathlib import Path

from pyrovae.cli.command_line import run_script
from pyrovae.common import read_text

_CHEAP = ("pathlib", "typing", "tyro")  # modules that a signature takes its types from


def answer_flags(script: str) -> None:
    """Ends the program if it was called with --help or with flags that `main` of the script does not take.

    Args:
        script: The script's `__file__`. The types and defaults of its `main` are built-in, from `pathlib`, `typing` or
            `tyro`, or module variables made from those.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # processes of torchrun are answered together, by `run_script`
        run_script(_signature_of(Path(script)))


def _signature_of(script: Path) -> Callable[..., None]:
    """Returns a function with the signature and the docstring of the script's `main` that does nothing."""
    nodes = ast.parse(read_text(script)).body
    main = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "main")
    main.body = main.body[:1]  # the docstring
    variables = {ast.unparse(node.targets[0]): node for node in nodes if isinstance(node, ast.Assign)}
    found: list[ast.stmt] = [main]
    for node in found:  # which grows
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        found += [variable for name, variable in variables.items() if name in names and variable not in found]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) and _is_cheap(node)]
    in_order = [node for node in nodes if node in imports or node in found]
    defined: dict[str, Callable[..., None]] = {}
    exec(compile(ast.Module(in_order, []), str(script), "exec"), defined)
    return defined["main"]


def _is_cheap(node: ast.Import | ast.ImportFrom) -> bool:
    modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return all(module in _CHEAP for module in modules)
