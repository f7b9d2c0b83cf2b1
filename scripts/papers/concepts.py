"""Draws the figures of the pages on concepts: a plate diagram, and what is computed with its program.

python scripts/papers/concepts.py --out docs

pair.png      what the term of a datum sums over: log-densities of each site beside its log-weight
beta.png      rate and distortion against beta, in closed form and of trained VAEs
masks.png     log p(x_obs), exact and estimated, and what cells that are filled in do to it
globals.png   how far a bound is below the evidence, with theta outside of it and inside

Every truth is a closed form of a linear Gaussian model.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds


import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from tabulate import tabulate
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import local_seed, require, require_count, require_seed, write_figure

BLUE, ORANGE, GREEN, RED, GREY = "C0", "C1", "C2", "C3", "0.45"


def main(repeats: int = 600, epochs: int = 300, seed: int = 0, out: str = ".") -> None:
    """Draw the figures of docs/pair.md, beta.md, masks.md and globals.md, and print what they show.

    Args:
        repeats: draws of each bound in globals.png
        epochs: of each VAE in beta.png
        seed: fixes data and draws
        out: folder of the figures
    """
    require_count("repeats", repeats, 2)
    require_count("epochs", epochs)
    require_seed(seed)
    require(Path(out).is_dir(), f"out must be a folder that exists, got {out}")
    figures: Mapping[str, Callable[[], tuple[Figure, str]]] = {
        "pair": draw_pair,
        "beta": lambda: draw_beta(epochs, seed),
        "masks": draw_masks,
        "globals": lambda: draw_globals(repeats),
    }
    for name, draw in figures.items():
        with local_seed(seed):
            figure, table = draw()
        print(f"{name}.png\n{table}\n")
        write_figure(Path(out) / f"{name}.png", figure)


# Plate diagrams -------------------------------------------------------------------------------------------------------


def plate_diagram(
    axes: Axes,
    nodes: Mapping[str, tuple[float, float, str]],
    arrows: Sequence[tuple[str, str]],
    plates: Mapping[str, tuple[float, float, float, float]],
    observed: Sequence[str] = (),
) -> None:
    """Draws sites as circles, observed ones filled, and plates as boxes, each with its name at the lower right."""
    for label, (x, y, width, height) in plates.items():
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="0.3"))
        axes.text(x + width - 0.08, y + 0.08, label, ha="right", va="bottom", fontsize=9, color="0.3")
    for start, end in arrows:
        (x0, y0, _), (x1, y1, _) = nodes[start], nodes[end]
        away = 0.36 / math.hypot(x1 - x0, y1 - y0)
        tip, tail = (x1 - away * (x1 - x0), y1 - away * (y1 - y0)), (x0 + away * (x1 - x0), y0 + away * (y1 - y0))
        axes.annotate("", tip, tail, arrowprops={"arrowstyle": "-|>", "color": "black"})
    for name, (x, y, color) in nodes.items():
        face = to_rgba(color, 0.35) if name in observed else "white"
        axes.add_patch(Ellipse((x, y), 0.72, 0.72, facecolor=face, edgecolor=color, linewidth=2, zorder=3))
        axes.text(x, y, name, ha="center", va="center", fontsize=11, zorder=4)
    axes.set(aspect="equal", xlim=(-0.2, 4.2), ylim=(-0.3, 4.1))
    axes.axis("off")


def _panels(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.3 * columns, 3.7), layout="constrained")
    return figure, list(figure.subplots(1, columns, width_ratios=[1.0] + [1.25] * (columns - 1)))


# The pair and its plates ----------------------------------------------------------------------------------------------


def visits_model(y: Tensor) -> None:
    """Observes y, `(patients, visits)`: a mean of all, a level of each patient, and readings at their visits."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("patients", len(y), dim=-2):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        with pyro.plate("visits", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(level, 0.7), obs=y)


def visits_guide(y: Tensor) -> None:
    """Draws the mean, and each patient's level from the mean of its readings."""
    mean = pyro.sample("mean", dist.Normal(0.0, 0.5))
    with pyro.plate("patients", len(y), dim=-2):
        pyro.sample("level", dist.Normal(0.1 * mean + 0.9 * y.mean(1, keepdim=True), 0.4))


def draw_pair() -> tuple[Figure, str]:
    """Draws one draw's term of each patient as a sum over sites, beside the log-weight that pyrovae returns."""
    y = torch.randn(6, 1) + 0.7 * torch.randn(6, 3)
    pair = pv.objectives.check_objective(pv.objectives.ELBO(), visits_model, visits_guide, y)
    weights = pair.terms().log_weights[0]  # of the first of its two particles
    mean = pair.guide_sites["mean"]["value"]
    level = pair.guide_sites["level"]["value"][0]
    told = dist.Normal(level, 0.7).log_prob(y)
    terms = {  # by hand, from the values that were drawn
        "log p(level | mean)": dist.Normal(mean, 1.0).log_prob(level)[:, 0],
        **{f"log p(y | level), visit {j + 1}": told[:, j] for j in range(3)},
        "- log q(level | y, mean)": -dist.Normal(0.1 * mean + 0.9 * y.mean(1, keepdim=True), 0.4).log_prob(level)[:, 0],
    }
    total = torch.stack(list(terms.values())).sum(0)
    figure, (left, right) = _panels(2)
    nodes = {"mean": (0.6, 3.5, ORANGE), "level": (2.0, 2.4, BLUE), "y": (2.0, 1.0, BLUE)}
    boxes = {"patients (data plate)": (0.7, -0.1, 3.2, 3.0), "visits": (1.2, 0.35, 1.7, 1.25)}
    plate_diagram(left, nodes, [("mean", "level"), ("level", "y")], boxes, observed=["y"])
    left.text(1.1, 3.5, "global: once", color=ORANGE, va="center")
    left.text(2.5, 2.4, "local: K times", color=BLUE, va="center", fontsize=9)
    above, below = torch.zeros(6), torch.zeros(6)
    colors = ("C0", "0.55", "0.68", "0.81", "C2")
    for (label, term), color in zip(terms.items(), colors, strict=True):
        base = torch.where(term > 0, above, below)
        right.bar(range(1, 7), term, bottom=base, color=color, width=0.7, label=label)
        above, below = above + term.clamp(min=0), below + term.clamp(max=0)
    right.plot(
        range(1, 7), weights, "k_", markersize=20, markeredgewidth=2.5, label="the sum: log w, as pyrovae has it"
    )
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="patient n", ylabel="nats", title="the term of each datum, one draw")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.set_size_inches(10.5, 3.7)
    largest = (weights - total).abs().max().item()
    require(largest < 1e-4, f"log-weights must be the sums over sites, off by {largest}")
    return figure, f"log-weights against sums over sites: largest difference {largest:.0e} nats"


# beta -----------------------------------------------------------------------------------------------------------------

VARIANCES, NOISE = torch.tensor([4.0, 1.0, 0.16]), 0.5
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 24.0)


def rate_and_distortion(beta: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the best linear VAE's rate and distortion in nats per datum, for betas `(num,)`.

    rate = 1/2 sum_j log+(lambda_j / (beta sigma^2)),  distortion = 1/2 sum_j (min(beta, lambda_j / sigma^2) + log 2 pi
    sigma^2), for data of variances lambda_j along their principal axes and a decoder of variance sigma^2.
    """
    ratio = VARIANCES / NOISE**2
    rate = 0.5 * (ratio / beta[:, None]).log().clamp(min=0).sum(1)
    spread = torch.minimum(beta[:, None], ratio)
    return rate, 0.5 * (spread + math.log(2 * math.pi * NOISE**2)).sum(1)


def train_linear_vae(beta: float, x: Tensor, epochs: int, seed: int) -> tuple[float, float]:
    """Returns rate and distortion of a VAE of linear networks, trained at this beta and measured on its data."""
    with local_seed(seed):
        networks: dict[str, Any] = {"encoder": nn.Linear(3, 6), "decoder": nn.Linear(3, 3)}
        vae = pv.VAE((3,), latent_dim=3, **networks, likelihood=pv.Gaussian(NOISE), beta=beta)
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": 500, "lr": 0.03, "schedule": "cosine", "seed": seed}
    pv.fit(vae, x, objective="elbo_analytic_kl", progress=False, **settings)
    with local_seed(seed):
        terms = pv.diagnostics.elbo_terms(vae.model, vae.guide, x, num_particles=100)
    return terms["kl"].mean().item(), -terms["reconstruction"].mean().item()


def draw_beta(epochs: int, seed: int) -> tuple[Figure, str]:
    """Draws the closed form against beta with trained VAEs on it, and the curve of distortion against rate."""
    x = torch.randn(2_000, 3)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x))).T * VARIANCES.sqrt()  # exactly these variances
    found = [train_linear_vae(beta, x, epochs, seed) for beta in BETAS]
    exact = list(zip(*rate_and_distortion(torch.tensor(BETAS)), strict=True))
    grid = torch.logspace(math.log10(0.2), math.log10(30), 400)
    rate, distortion = rate_and_distortion(grid)
    figure, (left, middle, right) = _panels(3)
    nodes = {"z": (1.9, 2.9, BLUE), "x": (1.9, 1.1, BLUE)}
    plate_diagram(left, nodes, [("z", "x")], {"data": (1.2, 0.1, 2.9, 3.6)}, observed=["x"])
    left.text(2.4, 2.9, "x beta, in\nboth programs", va="center", fontsize=9, color=RED)
    curves = {"rate": (rate, 0, BLUE), "distortion": (distortion, 1, ORANGE), "-ELBO, their sum": (None, None, GREEN)}
    for label, (curve, which, color) in curves.items():
        middle.semilogx(grid, rate + distortion if curve is None else curve, color=color, label=label)
        dots = [sum(one) if which is None else one[which] for one in found]
        middle.plot(BETAS, dots, "o", color=color, markersize=5)
    middle.axvline(1, color=GREY, linestyle=":", linewidth=1)
    middle.set(xlabel="beta in training", ylabel="nats per datum", title="lines: closed form; dots: trained")
    middle.legend(frameon=False, fontsize=9)
    right.plot(rate, distortion, color="black")
    for (at_rate, at_distortion), beta in zip(found, BETAS, strict=True):
        right.plot(at_rate, at_distortion, "o", color=RED)
        right.annotate(f"{beta:g}", (at_rate, at_distortion), (5, 4), textcoords="offset points", fontsize=9)
    best = (exact[2][0] + exact[2][1]).item()
    line = torch.tensor([0.4, 3.6])
    right.plot(line, best - line, color=GREY, linestyle=":", label="best ELBO at beta = 1: slope -1")
    right.set(xlabel="rate, nats", ylabel="distortion, nats", ylim=(0, 12), title="the slope at a point is -beta")
    right.legend(frameon=False, fontsize=9)
    rows = [
        [f"{beta:g}", *[f"{value:.2f}" for pair in zip(truth, trained, strict=True) for value in pair]]
        for beta, truth, trained in zip(BETAS, exact, found, strict=True)
    ]
    return figure, tabulate(rows, ["beta", "rate", "trained", "distortion", "trained"], disable_numparse=True)


# Masks ----------------------------------------------------------------------------------------------------------------

WEIGHT = torch.tensor([[1.0, 0.2], [0.8, -0.5], [0.3, 0.9], [-0.6, 0.7], [0.5, 0.5], [0.9, -0.1]])


def with_missing_cells(x: Tensor) -> None:
    """Observes the cells of x, `(rows, 6)`, that are not NaN: z ~ N(0, I), x|z ~ N(W z, 0.5^2)."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        cells = dist.Normal(z @ WEIGHT.T, 0.5).mask(~x.isnan()).to_event(1)
        pyro.sample("x", cells, obs=x.nan_to_num(0.0), infer=cast(Any, {"observes": x}))


def guide_of_cells(x: Tensor) -> None:
    """Draws z from the posterior given the observed cells, with 1.2 times its standard deviations."""
    seen = (~x.isnan()).to(x.dtype)
    precision = torch.eye(2) + torch.einsum("nd,di,dj->nij", seen, WEIGHT, WEIGHT) / 0.25
    mean = torch.linalg.solve(precision, (x.nan_to_num(0.0) @ WEIGHT / 0.25).unsqueeze(-1)).squeeze(-1)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / 1.44).to_event(0))


with_missing_cells.missing = guide_of_cells.missing = "mask"  # type: ignore[attr-defined]


def exact_log_px(x: Tensor) -> Tensor:
    """Returns log p of the observed cells of each row: of a Gaussian, some of whose coordinates are left out."""
    covariance = WEIGHT @ WEIGHT.T + 0.25 * torch.eye(6)
    values = []
    for row in x:
        seen = ~row.isnan()
        values.append(
            dist.MultivariateNormal(torch.zeros(int(seen.sum())), covariance[seen][:, seen]).log_prob(row[seen])
        )
    return torch.stack(values)


def draw_masks() -> tuple[Figure, str]:
    """Draws estimates of log p(x_obs) against the truth, and the error of rows whose holes are filled by the mean."""
    z = torch.randn(90, 2)
    whole = z @ WEIGHT.T + 0.5 * torch.randn(90, 6)
    missing = torch.arange(90) % 5  # how many cells of each row
    order = torch.rand(90, 6).argsort(1).argsort(1)
    x = whole.masked_fill(order < missing[:, None], torch.nan)
    truth = exact_log_px(x)
    found = pv.log_marginal(with_missing_cells, guide_of_cells, x, num_samples=2_000, progress=False)
    filled = pv.log_marginal(with_missing_cells, guide_of_cells, x.nan_to_num(0.0), num_samples=2_000, progress=False)
    figure, (left, middle, right) = _panels(3)
    nodes = {"z": (0.9, 2.9, BLUE), "x": (2.2, 1.2, BLUE), "seen": (3.3, 2.9, GREY)}
    boxes = {"rows": (0.2, -0.1, 3.9, 3.7), "cells": (1.5, 0.35, 2.4, 3.05)}
    plate_diagram(left, nodes, [("z", "x"), ("seen", "x")], boxes, observed=["x", "seen"])
    ends = torch.stack((truth.min(), truth.max()))
    middle.plot(ends, ends, color=GREY, linewidth=1)
    dots = middle.scatter(truth, found.log_px, c=missing, cmap="viridis", s=22)
    figure.colorbar(dots, ax=middle, label="missing cells", ticks=range(5))
    middle.set(xlabel="log p(x_obs), exact", ylabel="estimated", title="masked: the model of what is there")
    rows = []
    for label, estimate, color, shift in (("masked", found, BLUE, -0.08), ("filled with 0", filled, RED, 0.08)):
        off = estimate.log_px - truth
        means = torch.stack([off[missing == number].mean() for number in range(5)])
        errors = torch.stack([off[missing == number].std() / 18**0.5 for number in range(5)])
        where = torch.arange(5) + shift
        right.errorbar(where, means, errors, fmt="o", color=color, label=label, capsize=3)
        rows.append([label, *[f"{m:+.3f} ({e:.3f})" for m, e in zip(means, errors, strict=True)]])
    right.axhline(0, color=GREY, linewidth=1)
    right.set(xlabel="missing cells of a row", ylabel="estimate - log p(x_obs), nats", xticks=range(5))
    right.set_title("filled in: another number")
    right.legend(frameon=False)
    z_scores = ((found.log_px - truth) / found.standard_error).square().mean().sqrt()
    table = tabulate(rows, ["missing cells", *map(str, range(5))], disable_numparse=True)
    return figure, f"{table}\nz-scores of the masked estimates: root mean square {z_scores:.2f}"


# Globals --------------------------------------------------------------------------------------------------------------


def model_of_means(x: Tensor) -> None:
    """Observes x, `(num,)`: theta ~ N(0, 1), z_n ~ N(theta, 1), x_n ~ N(z_n, 0.5)."""
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(theta, 1.0)), 0.5), obs=x)


WIDER = 1.5


def guide_of_means(x: Tensor) -> None:
    """Draws theta with 1.5 times, and z_n with 0.8 times, the standard deviation of the posterior."""
    precision = 1 + len(x) / 1.25
    theta = pyro.sample("theta", dist.Normal(x.sum() / 1.25 / precision, WIDER * precision**-0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * x + 0.2 * theta, 0.8 * 0.2**0.5))


def draw_globals(repeats: int) -> tuple[Figure, str]:
    """Draws both bounds below the evidence against K, for few data and for more."""
    figure, (left, *others) = _panels(3)
    nodes = {"theta": (1.0, 3.5, ORANGE), "z": (1.9, 2.1, BLUE), "x": (1.9, 0.8, BLUE)}
    plate_diagram(left, nodes, [("theta", "z"), ("z", "x")], {"data": (0.8, -0.1, 2.6, 2.9)}, observed=["x"])
    sizes, rows = (1, 2, 4, 8, 16, 32, 64), []
    kl = 0.5 * (WIDER**2 - 1) - math.log(WIDER)  # of q(theta) from p(theta|x), however many data there are
    for axes, num in zip(others, (4, 64), strict=True):
        x = torch.randn(()) + torch.randn(num) + 0.5 * torch.randn(num)
        covariance = torch.ones(num, num) + 1.25 * torch.eye(num)
        evidence = dist.MultivariateNormal(torch.zeros(num), covariance).log_prob(x)
        for label, joint, color in (("theta outside", False, BLUE), ("theta inside, joint=True", True, RED)):
            gaps = []
            for size in sizes:
                bound = pv.objectives.IWAE(size, joint=joint)
                draws = [evidence + bound.loss(model_of_means, guide_of_means, x) for _ in range(repeats)]
                gaps.append(pv.Estimate(torch.stack(draws), torch.zeros(repeats)))
            means, errors = [gap.mean for gap in gaps], [gap.data_error for gap in gaps]
            axes.errorbar(sizes, means, errors, marker="o", markersize=4, color=color, label=label, capsize=3)
            rows.append([num, label, *[f"{gap.mean:.2f} ({gap.data_error:.2f})" for gap in gaps]])
        axes.axhline(kl, color=BLUE, linestyle=":", label="KL(q(theta) || p(theta|x))")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set(xscale="log", xlabel="draws K", title=f"{num} data")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    others[0].set_ylabel("log p(data) - bound, nats")
    others[0].legend(frameon=False, fontsize=9)
    table = tabulate(rows, ["data", "bound", *[f"K = {size}" for size in sizes]], disable_numparse=True)
    return figure, f"{table}\nKL(q(theta) || p(theta|x)) = {kl:.3f} nats"


if __name__ == "__main__":
    run_script(main)
