"""The figures of a run: training curves, samples, latent space, reconstructions."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.common import local_seed, on_device_of
from pyrovae.models import mean_of
from pyrovae.runs.held_out import held_out_arguments
from pyrovae.runs.run import Run

MAX_DRAWN_POINTS = 5_000


@torch.no_grad()
def save_figures(run: Run) -> list[Path]:
    """Saves figures as PNG in the run's folder figures/, and returns their paths.

    They show training curves, test data beside samples, the latent space and, for images, reconstructions.
    """
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    drawings = {"training": lambda run: run.history.plot(), "samples": draw_samples, "latent": _draw_latent}
    if len(run.vae.event_shape) == 3:
        drawings["reconstructions"] = _draw_reconstructions
    paths = []
    with local_seed(run.config.seed):
        for name, draw in drawings.items():
            figure = draw(run)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=120)
    return paths


@torch.no_grad()
def draw_samples(run: Run) -> Figure:
    """Draws test data beside samples of the model."""
    data, vae = run.data, run.vae
    figure, axes = plots.figure_row(2)
    if len(vae.event_shape) == 3:
        args = on_device_of(vae.model, tuple(arg[:64] for arg in held_out_arguments(vae, data)))
        plots.image_grid(args[0], 8, "test data", axes[0])
        plots.image_grid(vae.sample(len(args[0]), args[1:], mean=True), 8, "decoded means of prior draws", axes[1])
    else:
        x, labels, *_ = (part[:MAX_DRAWN_POINTS] for part in data.arguments("test"))
        plots.points(x, labels, "test data", axes[0])
        y = on_device_of(vae.model, tuple(arg[:MAX_DRAWN_POINTS] for arg in held_out_arguments(vae, data)))[1:]
        plots.points(vae.sample(len(x), y), labels if y else None, "samples", axes[1])
        axes[1].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    return figure


def _draw_latent(run: Run) -> Figure:
    args = tuple(arg[:MAX_DRAWN_POINTS] for arg in held_out_arguments(run.vae, run.data))
    means = mean_of(run.vae.encode(*on_device_of(run.vae.model, args)))
    # Of many dimensions, the two whose posterior means vary most say most about x.
    busiest = means.var(0).argsort(descending=True)[:2].tolist()
    figure, axes = plots.figure_row(1)
    if len(busiest) == 1:
        means, busiest = torch.cat((means, torch.randn_like(means)), 1), [0, 1]
    labels = run.data.arguments("test")[1][:MAX_DRAWN_POINTS]
    plots.latent_space(means[:, busiest], labels, "posterior means, test data", axes[0])
    axes[0].set(xlabel=f"$z_{{{busiest[0] + 1}}}$", ylabel=f"$z_{{{busiest[1] + 1}}}$")
    return figure


def _draw_reconstructions(run: Run) -> Figure:
    args = on_device_of(run.vae.model, tuple(arg[:12] for arg in held_out_arguments(run.vae, run.data)))
    figure, axes = plots.figure_row(1, width=9.0, height=2.0)
    plots.reconstructions(args[0], run.vae.reconstruct(*args), axes=axes[0])
    return figure
