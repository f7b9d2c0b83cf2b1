"""How estimators compared and races are written down: tables, JSON, Markdown, figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.comparison import SIDES, Comparison, Row
from pyrovae.files import write_text
from pyrovae.report import check_not_evaluated, figure_row
from pyrovae.standings import Race

COMPARISON = ("comparison.json", "comparison.md")

COMPARISON_NOTES = """\
Bounds in nats per datum, higher is better, in brackets their Monte Carlo error; the gap is to log p(x), by importance
sampling, itself low where the guide is far off. SNR is |mean| / standard deviation of a gradient's coordinates, their
mean; DSNR is a gradient's length along the mean gradient over what lies across it. In brackets what pure noise has: do
not read a signal off a number near it, nor a bias off one near what an unbiased estimator shows. In the figures these
floors are dotted. Repeats lower those of SNR and bias; the noise itself falls with the number of data. Of estimators of
one gradient the one of lower var x s (variance of the guide's gradient times the seconds of a step) is the better.
"""


def write_comparison(folder: Path, comparison: Comparison, overwrite: bool = False) -> None:
    """comparison.json, comparison.md and figures/comparison_*.png: bounds, signal to noise, bias and variance."""
    check_not_evaluated(folder, overwrite, COMPARISON)
    log_px = {"log_px": comparison.log_px.mean, "log_px_standard_error": comparison.log_px.monte_carlo_error}
    content = {"rows": comparison.to_dict(), **log_px, "complete": comparison.complete}
    (folder / "figures").mkdir(exist_ok=True)
    images = ""
    for name, figure in _draw_comparison(comparison).items():
        figure.savefig(folder / f"figures/comparison_{name}.png", dpi=120)
        images += f"\n![{name}](figures/comparison_{name}.png)\n"
    least = min(row.repeats for row in comparison.rows)
    text = f"log p(x) {comparison.log_px.mean:.3f} nats; {least} repeats or more"
    text += "" if comparison.complete else ": the time ran out"
    write_text(folder / "comparison.md", f"{comparison.to_markdown()}\n\n{text}.\n\n{COMPARISON_NOTES}{images}")
    write_text(folder / "comparison.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _draw_comparison(comparison: Comparison) -> dict[str, Figure]:
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows.setdefault(row.objective, []).append(row)
    colors = {name: f"C{index}" for index, name in enumerate(rows)}
    figures = {}
    figures["bounds"], (axes,) = figure_row(1, width=5.0, height=4.4)
    bounds = {
        name: ([row.num_particles for row in of], [row.bound for row in of], [row.bound_error for row in of])
        for name, of in rows.items()
    }
    plots.compared_bounds(bounds, (comparison.log_px.mean, comparison.log_px.monte_carlo_error), colors, axes)
    for quantity in ("snr", "dsnr"):
        curves = {side: comparison.curves(side, quantity) for side in SIDES}
        curves = {side: of_side for side, of_side in curves.items() if of_side}
        if curves:
            figures[quantity], columns = figure_row(len(curves), width=5.0, height=5.0)
            for axes, (side, of_side) in zip(columns, curves.items(), strict=True):
                plots.against_size(
                    of_side, ylabel=f"{quantity.upper()} of the {side}'s gradient", colors=colors, axes=axes
                )
    seconds = {(row.objective, row.num_particles): row.compiled_seconds or row.seconds for row in comparison.rows}
    cost = {
        "variance": {
            name: ([seconds[name, row.num_particles] for row in of], [row.guide.variance for row in of], None)
            for name, of in rows.items()
            if of[0].guide is not None
        },
        "bias": {
            name: ([seconds[name, size] for size in sizes], values, floors)
            for name, (sizes, values, floors) in comparison.curves("guide", "bias").items()
        },
    }
    cost = {what: curves for what, curves in cost.items() if curves}
    if cost:
        figures["cost"], columns = figure_row(len(cost), width=5.5, height=4.0)
        for axes, (what, curves) in zip(columns, cost.items(), strict=True):
            plots.against_seconds(curves, f"{what} of the guide's gradient", colors, axes)
    return figures


def write_race(folder: Path, races: Mapping[str, Race]) -> None:
    """race.json, race.md and race_*.png: of each budget, what it was and how it ended."""
    content = {budget: race.to_dict() for budget, race in races.items()}
    write_text(folder / "race.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    parts = []
    for budget, race in races.items():
        figure = save_race_figure(race, folder, f"race_{budget}.png")
        parts.append(f"## Equal {budget}\n\n{race.to_markdown()}\n\n{race.verdict}\n\n![curves]({figure.name})\n")
    write_text(folder / "race.md", f"# Race\n\n{RACE_NOTES}\n" + "\n".join(parts))


RACE_NOTES = """\
log p(x) of the held-out data in nats per datum, mean over seeds; in brackets the standard error over seeds. Differences
are paired, seed by seed and datum by datum, with a 95% interval from Student's t over seeds and the error over data.
Importance sampling is a lower bound, low where many data have Pareto k > 0.7.
"""


def save_race_figure(race: Race, folder: Path, name: str = "race.png") -> Path:
    """The learning curves, against epochs and against seconds."""
    figure, axes = figure_row(2, width=5.0, height=4.0)
    for ax, against in zip(axes, ("epochs", "seconds"), strict=True):
        plots.race_curves(race.curves(against), against, ax)
    figure.savefig(folder / name, dpi=120)
    return folder / name
