"""Writes races into a folder: JSON, a report and figures."""

from collections.abc import Mapping
from pathlib import Path

from pyrovae.common import write_json, written_together
from pyrovae.lab.race_result import Race
from pyrovae.reports import Picture, Report, Section, Table, Text, Verdict, report_files, write_report

NOTES = """\
log p(x) of the held-out data is in nats per datum, averaged over seeds, with the standard error over seeds in brackets.
Differences are paired, seed by seed and datum by datum. Their 95% intervals combine Student's t over seeds with the
error over data. Importance sampling gives a lower bound, which is too low if many data have Pareto k > 0.7.
"""


def write_race(folder: Path, races: Mapping[str, Race]) -> None:
    """Writes race.json, race.md, race.html and race_*.png into a folder, from the races by their budgets."""
    pictures = {
        budget: Picture(f"race_{budget}.png", "log p(x) of held-out data along the training", race.plot())
        for budget, race in races.items()
    }
    sections = [
        Section(
            f"Equal {budget.replace('_', ' ')}",
            [Verdict("the race", race.verdict), Table(race.table), pictures[budget]],
        )
        for budget, race in races.items()
    ]
    title = f"Race: {', '.join(next(iter(races.values())).objectives)}"
    report = Report(title, [*sections, Section("The columns", [Text(NOTES)], folded=True)])
    files = ("race.json", *report_files("race"), *(picture.path for picture in pictures.values()))
    # Processes that share a race may all have come to its end, and all have the same to write.
    with written_together(folder, "race", files, wait=True) as beside:
        write_report(beside, "race", report)
        write_json(beside / "race.json", {budget: race.to_dict() for budget, race in races.items()})
