"""Writes races into a folder: JSON, Markdown and figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from pyrovae.common import write_text
from pyrovae.lab.race_result import Race

RACE_NOTES = """\
log p(x) of the held-out data is in nats per datum, averaged over seeds, with the standard error over seeds in brackets.
Differences are paired, seed by seed and datum by datum. Their 95% intervals combine Student's t over seeds with the
error over data. Importance sampling gives a lower bound, which is too low if many data have Pareto k > 0.7.
"""


def write_race(folder: Path, races: Mapping[str, Race]) -> None:
    """Writes race.json, race.md and race_*.png into a folder, from the races by their budgets."""
    content = {budget: race.to_dict() for budget, race in races.items()}
    write_text(folder / "race.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    parts = []
    for budget, race in races.items():
        figure = save_race_figure(race, folder, f"race_{budget}.png")
        parts.append(f"## Equal {budget}\n\n{race.to_markdown()}\n\n{race.verdict}\n\n![curves]({figure.name})\n")
    write_text(folder / "race.md", f"# Race\n\n{RACE_NOTES}\n" + "\n".join(parts))


def save_race_figure(race: Race, folder: Path, name: str = "race.png") -> Path:
    """Saves the learning curves, against epochs and against seconds, and returns the path of the figure."""
    race.plot().savefig(folder / name, dpi=120)
    return folder / name
