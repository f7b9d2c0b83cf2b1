"""Errors and warnings as a user reads them: one short line, the field first, no full stop, and words that are ours."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyrovae"
SAID_BY = ("InputError", "require", "warn", "refuse", "OtherSettings", "NewerFormat", "FolderInUse")
MOST = 185  # characters besides the names and values that are put in
# What a message does not say: words that nobody would say to a colleague, and orders before their reason.
NOT = (" has not", "gone on with", "is had", "be of numbers", "Please", "please", "Invalid", "!", "You ", "you ")
STARTS = ("use ", "call ", "set ", "try ", "give ", "pass ", "make ", "take ", "remove ", "raise ", "add ", "put ")
FILES = sorted(PACKAGE.rglob("*.py"))


def literal(node: ast.expr) -> str:
    """Returns what is written in a text, each value that is put in as {}."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages_in(path: Path) -> Iterator[tuple[int, str]]:
    """`(line, text)` of the messages that a file raises or gives as they stand in a call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in SAID_BY:
            yield from ((node.lineno, text) for argument in node.args[:3] if len(text := literal(argument)) > 15)


def faults_of(text: str) -> list[str]:
    faults = [f"{len(text)} characters"] if len(text) > MOST else []
    faults += ["a line break"] if "\n" in text else []
    faults += ["a full stop"] if text.rstrip().endswith(".") and not text.endswith("...") else []
    faults += ["the remedy first"] if text.startswith(STARTS) else []
    faults += ["a capital"] if text[0].isupper() and text.split()[0] not in NAMES else []
    return faults + [repr(word) for word in NOT if word in text]


NAMES = ("HMC", "RenyiELBO", "ReduceLROnPlateau")


def test_every_message_is_one_short_line_with_the_reason_first():
    found = {
        f"{path.name}:{line}": faults
        for path in FILES
        for line, text in messages_in(path)
        if (faults := faults_of(text))
    }
    assert found == {}
    assert sum(1 for path in FILES for _ in messages_in(path)) > 400


@pytest.mark.parametrize(
    "text", ["use iwae, as x has {}", "x must be > 0, got {}.", "Invalid x: {}", "x must be > 0\nand is {}", "x" * 300]
)
def test_what_the_test_must_find(text):
    assert faults_of(text)
