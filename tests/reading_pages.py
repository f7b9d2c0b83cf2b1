"""Reads a page as a browser does."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, its text by element, and the cells of its tables."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.rows, self.texts, self.open = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open:
            self.texts[self.open[-1]][-1] += text
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] = (self.rows[-1][-1] + text).strip()

    def named(self, tag):
        """The attributes of all elements of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def markdown_rows(text):
    """The cells of all tables of a text in Markdown, as a reader sees them; a row begins and ends with a bar."""
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    cells = [re.findall(r"(?:\\.|[^|])+", line.strip("|")) for line in rows]
    return [[re.sub(r"\\([!-/:-@[-`{-~])", r"\1", cell.strip()) for cell in row] for row in cells]
