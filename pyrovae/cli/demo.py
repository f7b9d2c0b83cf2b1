"""`pyrovae demo`: trains one VAE on the ring of Gaussians with the ELBO and IWAE-50 and measures both against truth."""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.common import counted, require, require_count, require_seed, write_json, written_together
from pyrovae.runs import require_new_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrovae.runs import Run

OBJECTIVES: dict[str, dict[str, Any]] = {
    "ELBO": {"objective": "elbo"},
    "IWAE-50": {"objective": "iwae", "num_particles": 50},
}


def ring_demo(
    seed: int = 0, epochs: int = 200, num_samples: int = 2_000, num_data: int = 2_000, out: str | None = None
) -> None:
    """Train the same VAE twice, measure both, write figures and a report.

    Args:
        seed: fixes the data, the initial parameters and the training
        epochs: of each training
        num_samples: draws per datum for log p(x)
        num_data: held-out points to measure on, at most 2,000
        out: folder, new or empty (default: runs/demo-DATE-TIME)
    """
    folder = Path(out or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    require_new_folder(folder)
    for name, value in {"epochs": epochs, "num_samples": num_samples, "num_data": num_data}.items():
        require_count(name, value)
    require_seed(seed)
    from pyrovae.data import load  # not above, because these import torch
    from pyrovae.reports import Picture, Report, Table, Text, report_files, write_report
    from pyrovae.runs import (
        EVALUATION_FILES,
        NOTE_ON_OTHER_OBJECTIVES,
        RunConfig,
        measure,
        results_table,
        train_run,
        write_evaluation,
    )

    num_test = len(load("ring", seed=seed).test_x)
    require(num_data <= num_test, f"num_data must be <= {num_test}, the number of test data; got {num_data}")
    runs, results = {}, {}
    for name, settings in OBJECTIVES.items():
        print(f"training with {name}, {counted(epochs, 'epoch')} ...", flush=True)
        config = RunConfig(dataset="ring", epochs=epochs, lr=3e-3, schedule="cosine", seed=seed, **settings)
        runs[name] = train_run(config, folder / name.lower())
        print("measuring on held-out data ...", flush=True)
        with written_together(runs[name].folder, "evaluation", EVALUATION_FILES, overwrite=False) as beside:
            results[name] = measure(
                runs[name].vae, runs[name].data, num_samples=num_samples, num_data=num_data, seed=seed
            )
            write_evaluation(beside, runs[name], results[name])
    table = partial(results_table, {f"{name}-trained": result for name, result in results.items()})
    print(f"\n{table()}\n\n{NOTE_ON_OTHER_OBJECTIVES}")
    picture = Picture("demo.png", "the data, and samples and latent space of either training", draw(runs))
    report = Report(f"The ring, seed {seed}", [Table(table), Text(NOTE_ON_OTHER_OBJECTIVES), picture])
    files = ("results.json", *report_files("report"), picture.path)
    with written_together(folder, "report", files, overwrite=False) as beside:
        write_json(beside / "results.json", results)
        write_report(beside, "report", report)
    print(
        f"report: {folder / 'report.md'} and report.html; "
        f"each run with its figures: {', '.join(str(r.folder) for r in runs.values())}"
    )


def draw(runs: dict[str, "Run"]) -> "Figure":
    """Draws the data, and for each training its samples and latent space."""
    from matplotlib.figure import Figure

    import pyrovae.plots as plots

    figure = Figure(figsize=(15, 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + 2 * len(runs))
    data = next(iter(runs.values())).data
    device = next(iter(runs.values())).vae.beta.device
    _, labels = data.arguments("test")
    plots.points(data.test_x, labels, "test data", axes[0])
    for column, (name, run) in enumerate(runs.items()):
        samples, latent = axes[1 + 2 * column : 3 + 2 * column]
        plots.points(run.vae.sample(len(data.test_x)), None, f"samples, {name}-trained", samples)
        samples.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
        means = run.vae.encode(data.test_x.to(device)).mean
        plots.latent_space(means, labels, f"latents, {name}-trained", latent)
    return figure
