"""What a report consists of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Verdict:
    """Holds what the reader must know first: what it is on, such as log p(x), a conclusion, and what to do.

    Each line of the text is a verdict of its own.
    """

    on: str
    text: str


@dataclass(frozen=True)
class Text:
    """Holds plain text, without markup; an empty line begins a new paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Holds a table as the function that returns it in a format of `tabulate`, "github" or "html"."""

    in_format: Callable[[str], str]


@dataclass(frozen=True)
class Picture:
    """Holds a figure, the path of its PNG file beside the report, and what it shows."""

    path: str
    shows: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """Holds parts under a title; on the page, a folded one is opened by a click."""

    title: str
    parts: "Sequence[Part]"
    folded: bool = False


Part = Verdict | Text | Table | Picture | Section


@dataclass(frozen=True)
class Report:
    """Holds all of a report: its title, and its parts from the first to the last."""

    title: str
    parts: Sequence[Part]


def pictures_in(parts: Sequence[Part]) -> list[Picture]:
    """Returns all pictures, those of sections among them."""
    found: list[Picture] = []
    for part in parts:
        if isinstance(part, Picture):
            found.append(part)
        elif isinstance(part, Section):
            found += pictures_in(part.parts)
    return found


def paragraphs_of(text: str) -> list[str]:
    """Returns the paragraphs of a text."""
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def sentences_of(text: str) -> list[str]:
    """Returns each line of a text with a full stop, and with a capital letter unless it begins with a name."""
    lines = [line.strip() for line in text.strip().splitlines()]
    capital = [line[:1].upper() + line[1:] if line.split(" ")[0].isalpha() else line for line in lines]
    return [line + ("" if line.endswith((".", ":")) else ".") for line in capital]
