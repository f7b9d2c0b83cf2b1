"""A report as a web page: one file with its style, its script and its figures, which asks no other for anything."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from html import escape
from pathlib import Path

from pyrovae.common import read_text
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

PIXELS_PER_INCH = 96  # of CSS; a screen of more shows those of the file
# All text from outside is escaped; should any not be, the browser still runs no script but the one of this hash.
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{parts}
</main>
<script>{script}</script>
</body>
</html>
"""


def as_page(report: Report, images: Mapping[str, bytes]) -> str:
    """Returns the report as HTML.

    Args:
        report: The report.
        images: The PNG file of each picture by its path.
    """
    style, script = (read_text(Path(__file__).with_name(name)) for name in ("page.css", "page.js"))
    return _PAGE.format(
        title=escape(report.title),
        style=style,
        script=script,
        digest=b64encode(sha256(script.encode()).digest()).decode(),
        parts=_parts(report.parts, images, level=2),
    )


def _parts(parts: Sequence[Part], images: Mapping[str, bytes], level: int) -> str:
    return "\n".join(map(partial(_part, images=images, level=level), parts))


def _part(part: Part, images: Mapping[str, bytes], level: int) -> str:
    match part:
        case Verdict(on, text):
            said = "<br>".join(map(escape, sentences_of(text)))
            return f'<p class="verdict"><strong>Verdict on {escape(on)}</strong> {said}</p>'
        case Text(text):
            return "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs_of(text))
        case Table(in_format):
            return f'<div class="table" role="region" aria-label="table" tabindex="0">{in_format("html")}</div>'
        case Picture(path, shows, figure):
            source = f"data:image/png;base64,{b64encode(images[path]).decode()}"
            width = round(PIXELS_PER_INCH * figure.get_figwidth())
            # On a phone a wide figure is scrolled rather than shrunk until nobody can read it.
            size = f'width="{width}" style="min-width: {round(0.6 * width)}px"'
            image = f'<img alt="{escape(shows)}" {size} src="{source}">'
            return f"<figure>{image}<figcaption>{escape(shows)}</figcaption></figure>"
        case Section(title, inner, folded):
            head, body = escape(title), _parts(inner, images, level + 1)
            if folded:
                return f"<details>\n<summary>{head}</summary>\n{body}\n</details>"
            return f"<section>\n<h{level}>{head}</h{level}>\n{body}\n</section>"
