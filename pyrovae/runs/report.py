"""Writes what was measured of a run into its folder: JSON, a report and figures."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pyrovae.common import right_aligned, write_json
from pyrovae.evaluation import IN_METHODS, Evaluation
from pyrovae.reports import Part, Picture, Report, Section, Table, Text, Verdict, report_files, write_report
from pyrovae.runs.figures import FIGURES, draw_figures, draw_log_px
from pyrovae.runs.run import Run
from pyrovae.runs.tables import columns_table, results_table

SHOWN = {
    "log_px": "the bound with K samples per datum, which rises to log p(x)",
    "training": "training and validation, epoch by epoch",
    "samples": "data beside samples of the model",
    "latent": "means of the posterior in the latent space",
    "reconstructions": "data above their reconstructions",
}
_IMAGES = {name: f"figures/{name}.png" for name in ("log_px", *FIGURES)}
EVALUATION_FILES = ("evaluation.json", *report_files("report"), *_IMAGES.values())
_ESTIMATES_IMAGE = "figures/estimates.png"
ESTIMATES_FILES = ("estimates.json", *report_files("estimates"), _ESTIMATES_IMAGE)

NOTE_ON_BOUNDS = """\
Nats per datum, higher is better; in brackets the Monte Carlo error (for quadrature: a bound on its error).
Everything is measured at beta = 1, whatever training used. ELBO and IWAE bound are lower bounds on log p(x) in
expectation, and importance sampling is one too: it is low where many points have Pareto k > 0.7.
"""
NOTE_ON_UNITS = """\
Bounds and log p(x) are of the standardised columns. To convert log p(x) of a row to the units of the file, subtract
the logs of the standard deviations of its observed cells in those columns; standard deviations below 1 make it higher.
"""
VERDICTS_WITHOUT_DENSITY = {
    "cross-entropy bound": """\
The data are grey levels under a Bernoulli: the number below is minus a cross-entropy and a KL, not a bound on a
log-density, and log p(x) does not exist.
""",
    "reconstruction": """\
An autoencoder: the number below is log p(x|z) at its code, higher is better, and log p(x) does not exist.
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
    """Writes evaluation.json, report.md, report.html and figures/*.png into a folder of `written_together`."""
    has_density = evaluation["measure"] == "ELBO"
    verdict = evaluation["verdict"] if has_density else VERDICTS_WITHOUT_DENSITY[evaluation["measure"]].strip()
    parts: list[Part] = [Verdict("log p(x)", verdict)]
    if evaluation["collapse"]:
        parts.append(Verdict("the latents", evaluation["collapse"]))
    parts.append(Table(partial(results_table, {"value": evaluation})))
    figures = ({"log_px": draw_log_px(evaluation)} if has_density else {}) | draw_figures(run)
    parts += [Picture(_IMAGES[name], SHOWN[name], figure) for name, figure in figures.items()]
    notes = [NOTE_ON_BOUNDS] if has_density else []
    if has_density and run.config.objective_name not in ELBO_OBJECTIVES:
        notes.append(NOTE_ON_OTHER_OBJECTIVES)
    if evaluation["log_px_in_file_units"] is not None:
        notes.append(NOTE_ON_UNITS)
    if notes:
        parts.append(Section("What the numbers are", list(map(Text, notes)), folded=True))
    if run.data.columns:
        parts.append(Section("The columns of the data", [Table(partial(columns_table, run.data))], folded=True))
    parts.append(Section("All settings", [Table(partial(_settings_table, run))], folded=True))
    write_report(folder, "report", Report(run.title, parts))
    write_json(folder / "evaluation.json", {**run.place, **evaluation})


def write_estimates(folder: Path, run: Run, estimates: Evaluation, num_data: int) -> None:
    """Writes estimates.json, estimates.md, estimates.html and their figure into a folder of `written_together`.

    Args:
        folder: The folder.
        run: The run that was measured.
        estimates: What `evaluate` found.
        num_data: The number of test data.
    """
    picture = Picture(_ESTIMATES_IMAGE, "bounds against samples, and methods against their seconds", estimates.plot())
    verdict = estimates.verdict_in(IN_METHODS)
    title = f"{run.title}: estimates of log p(x), {num_data:,} test data"
    report = Report(title, [Verdict("log p(x)", verdict), Table(estimates.table), picture])
    write_report(folder, "estimates", report)
    content = {**run.place, "num_data": num_data, "estimates": estimates.rows(), "verdict": verdict}
    write_json(folder / "estimates.json", content)


def _settings_table(run: Run, tablefmt: str) -> str:
    lines = [(name, str(value)) for name, value in vars(run.config).items()]
    return right_aligned(lines, ("setting", "value"), tablefmt, left=2)
