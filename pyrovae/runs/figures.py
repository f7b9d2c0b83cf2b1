"""The figures of a run: training curves, samples, latent space, reconstructions."""

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae.plots as plots
from pyrovae.common import local_seed, on_device_of
from pyrovae.data import Column, Dataset
from pyrovae.models import mean_of
from pyrovae.runs.held_out import drawn_split, split_arguments
from pyrovae.runs.run import Run

FIGURES = ("training", "samples", "latent", "reconstructions")
MAX_DRAWN_POINTS, MAX_DRAWN_IMAGES = 5_000, 64
MAX_DRAWN_COLUMNS, COLUMNS_IN_A_ROW = 24, 4
SHOWN_AS = {"test": "test", "validation": "validation", "train": "training"}
FEWEST_SAMPLES = 1_000  # beside the few test data that a table may have


@torch.no_grad()
def draw_figures(run: Run) -> dict[str, Figure]:
    """Draws training curves, test data beside samples, the latent space and, for images, reconstructions."""
    drawings = {"training": lambda run: run.history.plot(), "samples": draw_samples, "latent": _draw_latent}
    if len(run.vae.event_shape) == 3:
        drawings["reconstructions"] = _draw_reconstructions
    with local_seed(run.config.seed):
        return {name: draw(run) for name, draw in drawings.items()}


def draw_log_px(evaluation: Mapping) -> Figure:
    """Draws the bounds L_K against K, and across them log p(x) by the methods that need no draws, where they are known.

    Args:
        evaluation: what `measure` returned of a VAE that has a log p(x).
    """
    exact = {
        "quadrature": (evaluation["log_px_quadrature"], evaluation["log_px_quadrature_error"]),
        "enumeration": (evaluation["log_px_enumeration"], 0.0),
    }
    figure, (axes,) = plots.figure_row(1, width=5.0)
    rows = [[math.nan if one is None else one for one in row] for row in evaluation["bounds"]]
    sizes, values, errors = zip(*rows, strict=True)
    plots.bounds(sizes, values, errors, {name: one for name, one in exact.items() if one[0] is not None}, axes)
    return figure


@torch.no_grad()
def draw_samples(run: Run) -> Figure:
    """Draws data beside samples of the model: images, points in the plane, or the columns of a table.

    They are test data, unless there are none.
    """
    data, vae, split = run.data, run.vae, drawn_split(run.data)
    size = len(vae.event_shape)
    most = MAX_DRAWN_IMAGES if size == 3 else MAX_DRAWN_POINTS
    args = tuple(arg[:most] for arg in split_arguments(vae, data, split))
    x, *y = on_device_of(vae.model, args)
    if size == 3:
        figure, axes = plots.figure_row(2)
        white = _white(data, split)
        plots.image_grid(x / white, 8, f"{SHOWN_AS[split]} data", axes[0])
        means = vae.sample(len(x) if y else MAX_DRAWN_IMAGES, y, mean=True)
        plots.image_grid(means / white, 8, "decoded means of prior draws", axes[1])
        return figure
    samples = vae.sample(len(x) if y else max(len(x), FEWEST_SAMPLES), y)
    if vae.event_shape == (2,) and data.kind == "real" and not x.isnan().any():
        labels = _labels(data, split)
        figure, axes = plots.figure_row(2)
        plots.points(data.in_file_units(x), labels, f"{SHOWN_AS[split]} data", axes[0])
        plots.points(data.in_file_units(samples), labels if y else None, "samples", axes[1])
        axes[1].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
        return figure
    return _draw_columns(data, x.flatten(1), samples.flatten(1))


def _draw_columns(data: Dataset, x: Tensor, samples: Tensor) -> Figure:
    if data.columns:
        x, samples = data.in_file_units(x), data.in_file_units(samples)
    columns = data.columns or [Column(f"x{i + 1}", "continuous") for i in range(x.shape[1])]
    drawn = [i for i in range(x.shape[1]) if not x[:, i].isnan().all()][:MAX_DRAWN_COLUMNS]
    in_a_row = min(len(drawn), COLUMNS_IN_A_ROW)
    rows = math.ceil(len(drawn) / in_a_row)
    figure = Figure(figsize=(3.4 * in_a_row, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, in_a_row, squeeze=False).ravel()
    for one, i in zip(axes, drawn, strict=False):
        whole = columns[i].kind in ("count", "binary", "category")
        names = [_as_it_stands(name) for name in columns[i].categories]
        plots.column(x[:, i], samples[:, i], whole, names, _as_it_stands(columns[i].name), one)
    for one in axes[len(drawn) :]:
        one.set_axis_off()
    return figure


def _as_it_stands(name: str) -> str:
    """Returns a name from the user's file as matplotlib draws it without taking what is between two $ for a formula."""
    return name.replace("$", r"\$")


def _white(data: Dataset, split: str) -> float:
    """Returns the value of a pixel that is drawn at the end of the scale."""
    return data.arguments(split)[0].max().item() if data.kind == "count" else 1.0


def _labels(data: Dataset, split: str) -> Tensor | None:
    """Returns the labels of the data that are drawn, or None if each datum has none or several."""
    _, *labels = data.arguments(split)
    fits = len(labels) == 1 and labels[0].dim() == 1
    return labels[0][:MAX_DRAWN_POINTS] if fits else None


def _draw_latent(run: Run) -> Figure:
    split = drawn_split(run.data)
    args = tuple(arg[:MAX_DRAWN_POINTS] for arg in split_arguments(run.vae, run.data, split))
    means = mean_of(run.vae.encode(*on_device_of(run.vae.model, args)))
    title, labels = f"posterior means, {SHOWN_AS[split]} data", _labels(run.data, split)
    if means.shape[1] == 3:
        figure = Figure(figsize=(4.6, 4.0), layout="constrained")
        plots.latent_space(means, labels, title, figure.add_subplot(projection="3d"))
        return figure
    figure, axes = plots.figure_row(1)
    if means.shape[1] == 1:  # drawn against noise, so that points do not hide each other
        plots.latent_space(torch.cat((means, torch.randn_like(means)), 1), labels, title, axes[0])
        axes[0].set(ylabel="noise")
    else:
        plots.most_active_latents(means, labels, title, axes[0])
    return figure


def _draw_reconstructions(run: Run) -> Figure:
    split = drawn_split(run.data)
    args = on_device_of(run.vae.model, tuple(arg[:12] for arg in split_arguments(run.vae, run.data, split)))
    figure, axes = plots.figure_row(1, width=9.0, height=2.0)
    white = _white(run.data, split)
    plots.reconstructions(args[0] / white, run.vae.reconstruct(*args) / white, axes=axes[0])
    return figure
