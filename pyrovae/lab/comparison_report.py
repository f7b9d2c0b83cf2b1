"""Writes a comparison into a folder: JSON, Markdown and figures."""

from pathlib import Path

from pyrovae.common import write_figure, write_json, write_text
from pyrovae.lab.comparison import Comparison
from pyrovae.lab.comparison_figures import FIGURES, draw_comparison

COMPARISON_FILES = ("comparison.json", "comparison.md", *(f"figures/comparison_{name}.png" for name in FIGURES))

COMPARISON_NOTES = """\
Bounds are in nats per datum, with their Monte Carlo error in brackets; higher is better. The gap is the distance to
log p(x) by importance sampling, which is itself too low if the guide is far off. It is empty if an objective is no
bound on log p(x). SNR is |mean| / standard deviation, averaged over the coordinates of a gradient. DSNR is the length
of a gradient along the mean gradient over its length across it. "no noise" marks a gradient that is the same each time.
The number in brackets is the floor, which is what pure noise or an unbiased estimator would show: a number near its
floor is no evidence of a signal or a bias. The floors are dotted in the figures. More repeats lower the floors of SNR
and bias; more data lower the noise itself. Parameters that both the density of the model and the guide depend on are
"shared", and belong to neither of the two. Among estimators of the same gradient, the one with the lowest var x s is
the best. That is the variance of the gradient of all that the guide depends on, times the seconds of a step, compiled
if every estimator was compiled.
"""


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Writes comparison.json, comparison.md and figures/comparison_*.png into a folder of `written_together`."""
    log_px = comparison.log_px_per_datum or (None, None)
    content = {"rows": comparison.to_dict(), "log_px": log_px[0], "log_px_standard_error": log_px[1]}
    content |= {name: getattr(comparison, name) for name in ("complete", "no_gap", "unreached")}
    (folder / "figures").mkdir(exist_ok=True)
    images = ""
    for name, figure in draw_comparison(comparison).items():
        write_figure(folder / f"figures/comparison_{name}.png", figure)
        images += f"\n![{name}](figures/comparison_{name}.png)\n"
    text = f"{comparison.to_markdown()}\n\n{comparison.notes}\n\n{COMPARISON_NOTES}{images}"
    write_text(folder / "comparison.md", text)
    write_json(folder / "comparison.json", content)
