"""A report as Markdown."""

from collections.abc import Sequence

from pyrovae.common import without_markup
from pyrovae.reports.description import (
    Part,
    Picture,
    Report,
    Section,
    Table,
    Text,
    Verdict,
    paragraphs_of,
    sentences_of,
)


def as_markdown(report: Report) -> str:
    """Returns the report as Markdown, in which pictures are links to their files."""
    blocks = [f"# {_line(report.title)}", *_blocks(report.parts, level=2)]
    return "\n\n".join(blocks) + "\n"


def _blocks(parts: Sequence[Part], level: int) -> list[str]:
    blocks: list[str] = []
    for part in parts:
        match part:
            case Verdict(on, text):
                first, *others = map(_line, sentences_of(text))
                blocks += [f"**Verdict on {_line(on)}:** {first}", *others]
            case Text(text):
                blocks += map(without_markup, paragraphs_of(text))
            case Table(in_format):
                blocks.append(in_format("github"))
            case Picture(path, shows):
                blocks.append(f"![{_line(shows)}]({path})")
            case Section(title, inner):
                blocks += [f"{'#' * level} {_line(title)}", *_blocks(inner, level + 1)]
    return blocks


def _line(text: str) -> str:
    return without_markup(" ".join(text.split()))
