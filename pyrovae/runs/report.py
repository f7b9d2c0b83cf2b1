"""What is measured of a trained VAE on its test data, and how a run folder shows it: table, JSON, Markdown, figures."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

import pyrovae.plots as plots
from pyrovae.common import check_unwritten, local_seed, require, require_count
from pyrovae.data import Dataset
from pyrovae.evaluation import (
    ELBO_DRAWS,
    Estimate,
    Evaluation,
    MarginalLikelihood,
    active_units,
    enumerated_log_marginal,
    evaluate,
    has_kl_per_dimension,
    importance_bound,
    latent_use,
    quadrature_log_marginal,
)
from pyrovae.models import VAE, mean_of, priors
from pyrovae.objectives import MAX_STATES
from pyrovae.runs.run import Run
from pyrovae.training import History

IWAE_PARTICLES = 50
MAX_POINTS = 5_000
ENUMERATED = 5_000_000  # pairs of a code and a datum


def measures(
    vae: VAE,
    data: Dataset,
    *,
    num_samples: int,
    num_data: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, float | int | str | None]:
    """The measures of `vae` on the first `num_data` test data (default: all), in nats per datum, at beta = 1.

    `elbo`, `iwae_50`, `log_px` (importance sampling, `num_samples` draws), `log_px_quadrature` (one or two latent
    dimensions), `log_px_enumeration` (codes of few bits) and `data_log_density` (where the data's own density is
    known). `*_standard_error` is the Monte Carlo error of the mean, `*_data_error` the standard error of the mean over
    data. `measure` says what `elbo` is: the ELBO, or for grey pixels under a Bernoulli a cross-entropy bound, or for an
    autoencoder its reconstruction; the two have no log p(x). What does not apply is None. `active_units` and
    `collapse` tell what the latents say about the data.
    """
    require_count("num_samples", num_samples)
    args = first_data(vae, data, num_data)
    x = args[0]
    measure = "ELBO" if vae.likelihood.has_density(x) else "cross-entropy bound"
    measure = measure if vae.posterior_family.has_density else "reconstruction"
    started = time.perf_counter()
    result = {"dataset": data.name, "kind": data.kind, "measure": measure, "num_data": len(x)}
    result |= {"num_samples": num_samples, "seed": seed}
    pair = vae.model, vae.guide, *args
    iwae = marginal = None
    if measure == "ELBO":
        methods = ("elbo", f"iwae_{IWAE_PARTICLES}", f"is_{num_samples}")
        found = evaluate(*pair, methods=methods, seed=seed, progress=progress)
        elbo, iwae, marginal = (found[method].estimate for method in methods)
    else:
        with local_seed(seed):
            elbo = importance_bound(*pair, num_particles=1, num_repeats=ELBO_DRAWS, progress=progress)
    result |= _entries("elbo", elbo)
    result |= _entries(f"iwae_{IWAE_PARTICLES}", iwae) | _entries("log_px", marginal)
    result["share_pareto_k_above_0.7"] = None if marginal is None else marginal.share_unreliable
    result["median_ess"] = None if marginal is None else marginal.ess.median().item()
    result |= {"log_px_quadrature": None, "log_px_quadrature_error": None, "log_px_enumeration": None}
    result |= {"data_log_density": None}
    if measure == "ELBO" and vae.latent_dim <= 2 and vae.prior_family.is_real_vector and data.kind == "real":
        log_px, error = quadrature_log_marginal(vae.model, *args)
        if bool(error.isfinite().all()):  # else the grid misses some of the mass
            result |= {"log_px_quadrature": log_px.mean().item(), "log_px_quadrature_error": error.mean().item()}
    bits = measure == "ELBO" and isinstance(vae.prior_family, priors.Bernoulli)
    if bits and 2**vae.latent_dim <= min(MAX_STATES, ENUMERATED / len(x)):
        result["log_px_enumeration"] = enumerated_log_marginal(vae.model, *args).mean().item()
    if data.log_density is not None and vae.num_conditions == 0:
        result["data_log_density"] = data.log_density(x).double().mean().item()
    result |= {"active_units": None, "collapse": None}
    if measure != "reconstruction" and len(x) > 1:
        here = _on_device(vae, args)
        with local_seed(seed):
            result["active_units"] = active_units(vae.model, vae.guide, *here)
        result["collapse"] = latent_use(vae, *here).warning if has_kl_per_dimension(vae) else None
    result["seconds"] = time.perf_counter() - started
    # What is not a number (an error from one draw, k from ten) is unknown; JSON has no word for nan.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}


def first_data(vae: VAE, data: Dataset, num_data: int | None) -> tuple[torch.Tensor, ...]:
    """What model and guide of `vae` take, of the first `num_data` test data (None: of all), checked."""
    args = held_out_arguments(vae, data)
    if num_data is not None:
        require_count("num_data", num_data)
        most = len(data.test_x)
        require(num_data <= most, f"num_data must be <= {most}, the number of test data; got {num_data}")
        args = tuple(arg[:num_data] for arg in args)
    vae.check_data(*args)
    return args


def held_out_arguments(vae: VAE, data: Dataset) -> tuple[torch.Tensor, ...]:
    """What model and guide of `vae` take, of the test data: x, and y for each condition."""
    return data.arguments("test")[: 1 + vae.num_conditions]


def _entries(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values = (None,) * 3 if estimate is None else (estimate.mean, estimate.monte_carlo_error, estimate.data_error)
    return dict(zip((name, f"{name}_standard_error", f"{name}_data_error"), values, strict=True))


def results_table(results: Mapping[str, Mapping], tablefmt: str = "simple") -> str:
    """Measures down, runs across: `mean (Monte Carlo error)` in nats per datum, as text or `tablefmt="github"`."""
    first = next(iter(results.values()))
    rows = {
        first["measure"]: ("elbo", "elbo_standard_error"),
        f"IWAE-{IWAE_PARTICLES} bound": (f"iwae_{IWAE_PARTICLES}", f"iwae_{IWAE_PARTICLES}_standard_error"),
        f"log p(x), importance sampling, {first['num_samples']:,}": ("log_px", "log_px_standard_error"),
        "log p(x), quadrature": ("log_px_quadrature", "log_px_quadrature_error"),
        "log p(x), enumeration": ("log_px_enumeration", None),
        "exact log-density of the data": ("data_log_density", None),
    }
    lines = []
    for label, (name, error) in rows.items():
        if any(r[name] is not None for r in results.values()):
            lines.append([label, *(_with_error(r[name], r[error] if error else None) for r in results.values())])
    if first["log_px"] is not None:
        errors = (r["log_px_data_error"] for r in results.values())
        lines.append(["standard error over data", *("unknown" if e is None else f"{e:.3f}" for e in errors)])
        shares = (r["share_pareto_k_above_0.7"] for r in results.values())
        lines.append(["share with Pareto k > 0.7", *("unknown" if s is None else f"{s:.1%}" for s in shares)])
    if first["active_units"] is not None:
        lines.append(["active latent units", *(str(r["active_units"]) for r in results.values())])
    header = [f"{first['num_data']:,} test data, nats per datum", *results]
    return tabulate(
        lines, header, tablefmt=tablefmt, disable_numparse=True, colalign=("left", *("right",) * len(results))
    )


def _with_error(value: float | None, error: float | None) -> str:
    """1.2345 and 0.0021 as `1.234 (0.0021)`: the error with two figures and the value with three decimals."""
    if value is None:
        return "unknown"
    if error is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({error:.2g})"


def history_table(history: History, rows: int = 10) -> str:
    """At most `rows` epochs of the history, evenly spaced and with the last, as text."""
    records = history.records()
    step = math.ceil(len(records) / rows)
    chosen = records[len(records) - 1 :: -step][::-1]
    columns = [name for name in chosen[0] if chosen[-1][name] is not None]
    formats = {"epoch": "d", "lr": ".1e"}
    lines = [[format(record[name], formats.get(name, ".3f")) for name in columns] for record in chosen]
    return tabulate(lines, columns, disable_numparse=True, colalign=("right",) * len(columns))


NOTES = """\
Nats per datum, higher is better; in brackets the Monte Carlo error (for quadrature: a bound on its error).
Everything is taken at beta = 1, whatever training used. ELBO and IWAE bound are lower bounds on log p(x) in
expectation, and importance sampling is one too: it is low where many points have Pareto k > 0.7.
"""
OF_THE_ELBO = ("elbo", "elbo_analytic_kl", "elbo_enumerated", "sticking_the_landing", "score_function")
ANOTHER_BOUND = """\
Training under another bound than the ELBO does not hold the ELBO: the same training on another processor, or on another
number of threads, may end with an ELBO that differs by many nats, of which its Monte Carlo error knows nothing.
"""
NO_DENSITY = {
    "cross-entropy bound": """\
The data are grey levels under a Bernoulli: the number above is minus a cross-entropy and a KL, not a bound on a
log-density, and log p(x) does not exist.
""",
    "reconstruction": """\
An autoencoder: the number above is log p(x|z) at its code, higher is better, and log p(x) does not exist.
""",
}


def write_evaluation(run: Run, evaluation: Mapping, overwrite: bool = False) -> None:
    """evaluation.json, report.md and figures/*.png into the run's folder."""
    check_unwritten(run.folder, overwrite, EVALUATION)
    table = results_table({"value": evaluation}, "github")
    figures = save_figures(run)
    note = NO_DENSITY.get(evaluation["measure"], NOTES)
    if evaluation["measure"] == "ELBO" and run.config.objective not in OF_THE_ELBO:
        note += f"\n{ANOTHER_BOUND}"
    if evaluation["collapse"]:
        note += f"\n{evaluation['collapse']}.\n"
    config = tabulate([(name, value) for name, value in vars(run.config).items()], ("setting", "value"), "github")
    images = "\n".join(f"![{path.stem}](figures/{path.name})" for path in figures)
    text = f"# {run.config.dataset}, {run.config.objective}\n\n{table}\n\n{note}\n{images}\n\n{config}\n"
    (run.folder / "report.md").write_text(text)
    (run.folder / "evaluation.json").write_text(json.dumps(evaluation, indent=2, allow_nan=False) + "\n")


def write_estimates(folder: Path, estimates: Evaluation, overwrite: bool = False) -> None:
    """estimates.json, estimates.md and, where importance sampling is among them, figures/estimates.png."""
    check_unwritten(folder, overwrite, ESTIMATES)
    content = {"estimates": estimates.rows(), "verdict": estimates.verdict}
    (folder / "estimates.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    sampled = [one for one in estimates.measured if isinstance(one.estimate, MarginalLikelihood)]
    image = ""
    if sampled:
        largest = max(sampled, key=lambda one: one.estimate.num_samples).estimate
        annealed = {
            one.method: (one.estimate.mean, one.estimate.monte_carlo_error)
            for one in estimates.measured
            if one.method.startswith("ais_")
        }
        figure, axes = plots.figure_row(1 + (len(estimates.measured) > 1), width=4.5)
        errors = largest.bounds_error.square().sum(1).sqrt() / len(largest.value)
        plots.bounds(largest.bound_sizes, largest.bounds.mean(1), errors, annealed, axes[0])
        if len(axes) > 1:
            measured = {
                one.method: (one.seconds, one.estimate.mean, one.estimate.monte_carlo_error)
                for one in estimates.measured
            }
            plots.below_the_best(measured, axes[1])
        (folder / "figures").mkdir(exist_ok=True)
        figure.savefig(folder / "figures/estimates.png", dpi=120)
        image = "\n![bounds against samples and seconds](figures/estimates.png)\n"
    (folder / "estimates.md").write_text(f"{estimates.table('github')}\n\n{estimates.verdict}\n{image}")


EVALUATION, ESTIMATES = ("evaluation.json", "report.md"), ("estimates.json", "estimates.md")


# Figures ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def save_figures(run: Run) -> list[Path]:
    """Training curves, data beside samples, latent space and, for images, reconstructions; as PNG in figures/."""
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    drawings = {"training": _draw_training, "samples": draw_samples, "latent": _draw_latent}
    if len(run.vae.event_shape) == 3:
        drawings["reconstructions"] = _draw_reconstructions
    paths = []
    with local_seed(run.config.seed):
        for name, draw in drawings.items():
            figure = draw(run)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=120)
    return paths


def _draw_training(run: Run) -> Figure:
    history, validated = run.history, None not in run.history.elbo
    figure, axes = plots.figure_row(3 if validated else 1)
    loss = {"training loss": history.loss}
    if validated:
        loss["minus validation ELBO"] = [-elbo for elbo in history.elbo]
        plots.training_curve(history.epoch, {"": history.reconstruction}, "validation reconstruction, nats", axes[1])
        plots.training_curve(history.epoch, {"": history.kl}, "validation KL, nats", axes[2])
    plots.training_curve(history.epoch, loss, "nats per datum", axes[0])
    return figure


@torch.no_grad()
def draw_samples(run: Run) -> Figure:
    """Test data beside samples of the model."""
    data, vae = run.data, run.vae
    figure, axes = plots.figure_row(2)
    if len(vae.event_shape) == 3:
        args = _on_device(vae, tuple(arg[:64] for arg in held_out_arguments(vae, data)))
        plots.image_grid(args[0], 8, "test data", axes[0])
        plots.image_grid(vae.sample(len(args[0]), args[1:], mean=True), 8, "decoded means of prior draws", axes[1])
    else:
        x = data.test_x[:MAX_POINTS]
        plots.points(x, data.test_y[:MAX_POINTS], "test data", axes[0])
        y = _on_device(vae, tuple(arg[:MAX_POINTS] for arg in held_out_arguments(vae, data)))[1:]
        plots.points(vae.sample(len(x), y), data.test_y[:MAX_POINTS] if y else None, "samples", axes[1])
        axes[1].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    return figure


def _draw_latent(run: Run) -> Figure:
    args = tuple(arg[:MAX_POINTS] for arg in held_out_arguments(run.vae, run.data))
    means = mean_of(run.vae.encode(*_on_device(run.vae, args)))
    # Of many dimensions the two whose posterior means vary the most: the ones that say most about x.
    busiest = means.var(0).argsort(descending=True)[:2].tolist()
    figure, axes = plots.figure_row(1)
    if len(busiest) == 1:
        means, busiest = torch.cat((means, torch.randn_like(means)), 1), [0, 1]
    plots.latent_space(means[:, busiest], run.data.test_y[:MAX_POINTS], "posterior means, test data", axes[0])
    axes[0].set(xlabel=f"$z_{{{busiest[0] + 1}}}$", ylabel=f"$z_{{{busiest[1] + 1}}}$")
    return figure


def _draw_reconstructions(run: Run) -> Figure:
    args = _on_device(run.vae, tuple(arg[:12] for arg in held_out_arguments(run.vae, run.data)))
    figure, axes = plots.figure_row(1, width=9.0, height=2.0)
    plots.reconstructions(args[0], run.vae.reconstruct(*args), axes=axes[0])
    return figure


def _on_device(vae: VAE, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(arg.to(vae.beta.device) for arg in args)
