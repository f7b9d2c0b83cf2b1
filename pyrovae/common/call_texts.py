"""Reads texts such as `dreg(num_particles=64)`: a name, or a call of it with keywords."""

import ast
from collections.abc import Collection

from pyrovae.common.checks import require_choice
from pyrovae.common.errors import InputError, require, shown


def parse_call(field: str, text: str, choices: Collection[str]) -> tuple[str, dict[str, object]]:
    """Returns the name and the settings in a text, which is a name or a call with keywords.

    Args:
        field: What the text is of, for errors.
        text: For example `elbo` or `score_function(num_particles=8, baseline="leave_one_out")`. The quotes of a string
            may be left out.
        choices: The names that there are.

    Returns:
        The name, one of `choices`, and the settings by name.

    Raises:
        InputError: The text has another form, or the name is unknown.
    """
    name, bracket, _ = text.partition("(") if isinstance(text, str) else (text, "", "")
    name = name.strip() if isinstance(name, str) else name
    require_choice(field, name, choices)
    if not bracket:
        return name, {}
    refused = f"{field} must be a name or name(setting=value, ...), got {shown(text)}"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(refused) from error
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
        raise InputError(refused)
    settings = {keyword.arg or "**": _value(keyword.value, refused) for keyword in call.keywords}
    require("**" not in settings and len(settings) == len(call.keywords), refused)  # no **settings, and none twice
    return name, settings


def _value(node: ast.expr, refused: str) -> object:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(refused) from error
