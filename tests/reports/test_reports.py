"""A report in both of its forms: the same words, no markup from names, and a page that asks for nothing."""

import base64
import hashlib
from functools import partial

import pytest
import torch
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from reading_pages import Page, markdown_rows

import pyrovae as pv
from pyrovae.common import right_aligned
from pyrovae.lab import write_race
from pyrovae.reports import Picture, Report, Section, Table, Text, Verdict, report_files, write_report

EVIL = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style></title><b>bold</b> & &amp; &lt;",
    "a|b\nc",
    "![x](http://example.org/x.png)",
    "{braces} %s $x$ \\",
    "\\<img src=x onerror=alert(1)> \\\\<b> a\\|b [x]\\(y)",
)


def report_of(name):
    """A report that has this name wherever a report has text."""
    table = partial(right_aligned, [[name, "1.5 (0.1)"]], [f"{name} column", "value"])
    figure = Figure(figsize=(2, 1))
    parts = [Verdict(name, name), Table(table), Text(f"{name}\n\nmore"), Picture("figures/one.png", name, figure)]
    return Report(name, [*parts, Section(name, [Text("inner"), Table(table)]), Section(name, [Text("x")], folded=True)])


@pytest.fixture(params=range(len(EVIL)))
def written(request, tmp_path):
    name = EVIL[request.param]
    write_report(tmp_path, "report", report_of(name))
    return name, tmp_path, *((tmp_path / file).read_text() for file in report_files("report"))


def test_names_are_text_and_no_markup(written):
    name, _, markdown, html = written
    page, one_line = Page(html), " ".join(name.split())
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "main",
            "script",
            "section",
            "details",
            "summary",
            "figure",
        ),
        *("h1", "h2", "p", "br", "strong", "div", "table", "thead", "tbody", "tr", "th", "td", "img", "figcaption"),
    }
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)
    assert len(page.named("script")) == len(page.named("style")) == len(page.named("img")) == 1
    assert page.texts["title"] == page.texts["h1"] == [name]
    assert page.named("img")[0]["alt"] == name
    assert page.rows == [[f"{name} column", "value"], [name, "1.5 (0.1)"]] * 2
    assert markdown_rows(markdown) == [[f"{one_line} column", "value"], [one_line, "1.5 (0.1)"]] * 2
    read = Page(MarkdownIt("commonmark", {"html": True, "xhtmlOut": False}).enable("table").render(markdown))
    in_markdown = {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "img"}
    assert {tag for tag, _ in read.elements} == in_markdown
    assert [image["src"] for image in read.named("img")] == ["figures/one.png"]


def test_a_page_needs_nothing_beside_it_and_runs_no_script_but_its_own(written):
    _, folder, _, html = written
    page = Page(html)
    links = [attributes.get(key) for _, attributes in page.elements for key in ("src", "href", "data", "action")]
    (image,) = (link for link in links if link is not None)
    kind, data = image.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (folder / "figures/one.png").read_bytes()
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    policy = next(attributes["content"] for attributes in page.named("meta") if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(page.texts["script"][0].encode()).digest()).decode()
    assert "default-src 'none'; img-src data:;" in policy
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_the_verdict_comes_first_and_details_are_folded(tmp_path):
    write_report(tmp_path, "report", report_of("plain"))
    markdown, html = ((tmp_path / file).read_text() for file in report_files("report"))
    assert markdown.startswith("# plain\n\n**Verdict on plain:** Plain.\n\n| plain column ")
    order = [tag for tag, _ in Page(html).elements if tag in ("p", "table", "img", "section", "details")]
    assert order == ["p", "table", "p", "p", "img", "section", "p", "table", "details", "p"]
    assert Page(html).texts["p"][0].strip() == "Plain."
    assert Page(html).named("details") == [{}]  # closed


def test_labels_of_a_race_are_text(tmp_path, monkeypatch):
    def run(objective, seed, log_px):
        return pv.RaceRun(objective, seed, 1, pv.Estimate(torch.tensor(log_px), torch.zeros(2)), 0.0, 2, 1.0, (), None)

    runs = [run(EVIL[index], seed, [-3.0 + index, -2.0 + seed]) for index in (0, 1, 3) for seed in (0, 1)]
    race = pv.Race(tuple(runs), "epochs")
    monkeypatch.setattr(pv.Race, "plot", lambda race: Figure(figsize=(1, 1)))
    write_race(tmp_path, {"epochs": race})
    page = Page((tmp_path / "race.html").read_text())
    assert [row[0] for row in page.rows] == ["objective", EVIL[0], EVIL[1], EVIL[3]]
    assert len(page.named("script")) == 1
    rows = markdown_rows((tmp_path / "race.md").read_text())
    assert [row[0] for row in rows] == ["objective", EVIL[0], EVIL[1], "a|b c"]
    assert {len(row) for row in rows} == {len(page.rows[0])}
    assert [row[2] for row in rows] == [row[2] for row in page.rows]
