"""Writes a comparison into a folder: JSON, a report and figures."""

from collections.abc import Mapping
from pathlib import Path

from pyrovae.common import write_json
from pyrovae.evaluation import IN_SHELL, AnnealedEstimate, MarginalLikelihood
from pyrovae.lab.comparison import Comparison
from pyrovae.lab.comparison_figures import FIGURES, draw_comparison
from pyrovae.reports import Part, Picture, Report, Section, Table, Text, Verdict, report_files, write_report

SHOWN = {
    "bounds": "bounds against K",
    "snr": "signal-to-noise ratio of the gradients against K",
    "dsnr": "directional signal-to-noise ratio of the gradients against K",
    "cost": "variance and bias of the gradients against the seconds of a step",
}
_IMAGES = {name: f"figures/comparison_{name}.png" for name in FIGURES}
COMPARISON_FILES = ("comparison.json", *report_files("comparison"), *_IMAGES.values())

NOTES = """\
Bounds are in nats per datum, with their Monte Carlo error in brackets; higher is better. The gap is the distance to log
p(x) by importance sampling, which is itself too low if the guide is far off. It is empty if an objective is no bound on
log p(x). SNR is |mean| / standard deviation, averaged over the coordinates of a gradient. DSNR is the length of a
gradient along the mean gradient over its length across it. "no noise" marks a gradient that is the same each time. The
number in brackets is the floor, which is what pure noise or an unbiased estimator would show: a number near its floor
is no evidence of a signal or a bias, and a bias within twice its floor shows "none seen". The floors are dotted in the
figures. More repeats lower the floors of SNR and bias; more data lower the noise itself. Parameters that both the
density of the model and the guide depend on are "shared", and belong to neither of the two. Among estimators of the
same gradient, the one with the lowest var x s is the best. That is the variance of the gradient of all that the guide
depends on, times the seconds of a step, compiled if every estimator was compiled.
"""


def write_comparison(folder: Path, comparison: Comparison, title: str, of: Mapping[str, object]) -> None:
    """Writes comparison.json, comparison.md, comparison.html and their figures into a folder of `written_together`.

    Args:
        folder: The folder.
        comparison: The result.
        title: The title of the report, which says what was compared where.
        of: What the JSON says before the result: the epoch of a run, for example.
    """
    log_px = comparison.log_px_per_datum or (None, None)
    content = {**of, "rows": comparison.to_dict(), "log_px": log_px[0], "log_px_standard_error": log_px[1]}
    content |= {name: getattr(comparison, name) for name in ("complete", "no_gap", "unreached")}
    found = comparison.log_px
    verdict = []
    if isinstance(found, MarginalLikelihood | AnnealedEstimate):
        verdict.append(Verdict("log p(x)", found.verdict_in(IN_SHELL)))
    pictures = [Picture(_IMAGES[name], SHOWN[name], figure) for name, figure in draw_comparison(comparison).items()]
    parts: list[Part] = [*verdict, Table(comparison.table), *map(Text, comparison.notes.splitlines()), *pictures]
    write_report(folder, "comparison", Report(title, [*parts, Section("The columns", [Text(NOTES)], folded=True)]))
    write_json(folder / "comparison.json", content)
