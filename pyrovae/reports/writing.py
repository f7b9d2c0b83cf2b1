"""Writes a report into a folder, in both forms and with its figures."""

from pathlib import Path

from pyrovae.common import write_figure, write_text
from pyrovae.reports.description import Report, pictures_in
from pyrovae.reports.markdown import as_markdown
from pyrovae.reports.page import as_page


def report_files(name: str) -> tuple[str, str]:
    """Returns the files of the report of this name, which are written together with those of its pictures."""
    return f"{name}.md", f"{name}.html"


def write_report(folder: Path, name: str, report: Report) -> None:
    """Writes the files of `report_files`, and the PNG file of each picture, into a folder of `written_together`."""
    images = {}
    for picture in pictures_in(report.parts):
        path = folder / picture.path
        path.parent.mkdir(exist_ok=True)
        images[picture.path] = write_figure(path, picture.figure)
    markdown, page = report_files(name)
    write_text(folder / markdown, as_markdown(report))
    write_text(folder / page, as_page(report, images))
