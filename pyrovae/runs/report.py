"""Writes what was measured of a run into its folder: JSON, Markdown and figures."""

from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from pyrovae.common import write_figure, write_json, write_text
from pyrovae.evaluation import Evaluation
from pyrovae.runs.figures import FIGURES, draw_figures
from pyrovae.runs.own_sources import short_name
from pyrovae.runs.run import Run
from pyrovae.runs.tables import columns_table, results_table

EVALUATION_FILES = ("evaluation.json", "report.md", *(f"figures/{name}.png" for name in FIGURES))
ESTIMATES_FILES = ("estimates.json", "estimates.md", "figures/estimates.png")

NOTE_ON_BOUNDS = """\
Nats per datum, higher is better; in brackets the Monte Carlo error (for quadrature: a bound on its error).
Everything is measured at beta = 1, whatever training used. ELBO and IWAE bound are lower bounds on log p(x) in
expectation, and importance sampling is one too: it is low where many points have Pareto k > 0.7.
"""
NOTE_ON_UNITS = """\
Bounds and log p(x) are of the standardised columns. In the units of the file, log p(x) of a row is lower by the sum of
the logs of the standard deviations of its observed cells in those columns.
"""
NOTES_WITHOUT_DENSITY = {
    "cross-entropy bound": """\
The data are grey levels under a Bernoulli: the number above is minus a cross-entropy and a KL, not a bound on a
log-density, and log p(x) does not exist.
""",
    "reconstruction": """\
An autoencoder: the number above is log p(x|z) at its code, higher is better, and log p(x) does not exist.
""",
}
ELBO_OBJECTIVES = (
    "elbo",
    "elbo_analytic_kl",
    "elbo_enumerated",
    "sticking_the_landing",
    "score_function",
)
NOTE_ON_OTHER_OBJECTIVES = """\
Training with another bound than the ELBO does not determine the ELBO: the same training on another processor, or with
another number of threads, may end with an ELBO that differs by many nats, and its Monte Carlo error does not show this.
"""


def write_evaluation(folder: Path, run: Run, evaluation: Mapping) -> None:
    """Writes evaluation.json, report.md and figures/*.png into a folder of `written_together`."""
    table = results_table({"value": evaluation}, "github")
    figures = draw_figures(run)
    (folder / "figures").mkdir()
    for name, figure in figures.items():
        write_figure(folder / f"figures/{name}.png", figure)
    note = NOTES_WITHOUT_DENSITY.get(evaluation["measure"], NOTE_ON_BOUNDS)
    if evaluation["measure"] == "ELBO" and run.config.objective_name not in ELBO_OBJECTIVES:
        note += f"\n{NOTE_ON_OTHER_OBJECTIVES}"
    if evaluation["collapse"]:
        note += f"\n{evaluation['collapse']}.\n"
    config = tabulate([(name, value) for name, value in vars(run.config).items()], ("setting", "value"), "github")
    images = "\n".join(f"![{name}](figures/{name}.png)" for name in figures)
    if evaluation["log_px_in_file_units"] is not None:
        note += f"\n{NOTE_ON_UNITS}"
    columns = f"{columns_table(run.data, 'github')}\n\n" if run.data.columns else ""
    epochs = run.history.epoch[-1]
    title = f"# {short_name(run.config.dataset)}, {run.config.objective}, epoch {epochs}"
    text = f"{title}\n\n{table}\n\n{note}\n{images}\n\n{columns}{config}\n"
    write_text(folder / "report.md", text)
    write_json(folder / "evaluation.json", {"epoch": epochs, **evaluation})


def write_estimates(folder: Path, estimates: Evaluation) -> None:
    """Writes estimates.json, estimates.md and figures/estimates.png into a folder of `written_together`."""
    write_json(folder / "estimates.json", {"estimates": estimates.rows(), "verdict": estimates.verdict})
    (folder / "figures").mkdir()
    write_figure(folder / "figures/estimates.png", estimates.plot())
    image = "\n![bounds against samples and seconds](figures/estimates.png)\n"
    write_text(folder / "estimates.md", f"{estimates.table('github')}\n\n{estimates.verdict}\n{image}")
