"""A report, described once and written twice: as Markdown, and as one web page that needs nothing beside it."""

from pyrovae.reports.description import Part, Picture, Report, Section, Table, Text, Verdict
from pyrovae.reports.writing import report_files, write_report

__all__ = ["Part", "Picture", "Report", "Section", "Table", "Text", "Verdict", "report_files", "write_report"]
