"""Writes races into a folder: JSON, Markdown and figures."""

from collections.abc import Mapping
from pathlib import Path

from pyrovae.common import write_figure, write_json, write_text, written_together
from pyrovae.lab.race_result import Race

RACE_NOTES = """\
log p(x) of the held-out data is in nats per datum, averaged over seeds, with the standard error over seeds in brackets.
Differences are paired, seed by seed and datum by datum. Their 95% intervals combine Student's t over seeds with the
error over data. Importance sampling gives a lower bound, which is too low if many data have Pareto k > 0.7.
"""


def write_race(folder: Path, races: Mapping[str, Race]) -> None:
    """Writes race.json, race.md and race_*.png into a folder, from the races by their budgets."""
    figures = {f"race_{budget}.png": race.plot() for budget, race in races.items()}
    # Processes that share a race may all have come to its end, and all have the same to write.
    with written_together(folder, "race", ("race.json", "race.md", *figures), wait=True) as beside:
        for name, figure in figures.items():
            write_figure(beside / name, figure)
        parts = [
            f"## Equal {budget}\n\n{race.to_markdown()}\n\n{race.verdict}\n\n![curves](race_{budget}.png)\n"
            for budget, race in races.items()
        ]
        write_text(beside / "race.md", f"# Race\n\n{RACE_NOTES}\n" + "\n".join(parts))
        write_json(beside / "race.json", {budget: race.to_dict() for budget, race in races.items()})
