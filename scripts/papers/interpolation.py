"""Interpolates between data through the latent space of an autoencoder and of a VAE, and measures what lies on the way.

python scripts/papers/interpolation.py                                         # the ring, 5 seeds
python scripts/papers/interpolation.py --images     # with a figure of MNIST's digits

On the ring the density of the data is known, and says how much of the way from one mode to another lies off the data:
where the density is lower than at 99 of 100 test points. In the hole is what is closer to the middle than 2, four
standard deviations inside the ring.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds


import math
from pathlib import Path
from typing import Any

import torch
from kept_training import train_once
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from writing import with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    Parts,
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    require,
    require_count,
    require_number,
    require_seeds,
)
from pyrovae.training import digest

VARIANCE = 0.1  # of the decoder on the ring, as in the tutorials
HOLE = 2.0
MODELS = {"autoencoder": "delta", "VAE": "diagonal"}
WAYS = {"line in x": None, "autoencoder, line": False, "VAE, line": False, "VAE, arc": True}
PAIRS_SHOWN, COLUMNS_SHOWN = 4, 10


def main(
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    images: bool = False,
    data_root: str | None = None,
    num_pairs: int = 500,
    steps: int = 16,
    epochs: int = 400,
    image_epochs: int = 10,
    num_images: int = 20_000,
    lr: float = 1e-3,
    out: str = "runs/interpolation",
) -> None:
    """Train both models, interpolate between test data of different classes, and measure and draw the way.

    Args:
        seeds: on the ring an autoencoder and a VAE for each
        images: draw interpolated digits of MNIST, too, for the first seed
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_pairs: pairs of test points of different modes
        steps: points on the way from one to the other, both included
        epochs: of the ring
        image_epochs: of MNIST
        num_images: the first so many training images of MNIST
        lr: of Adam
        out: folder of the runs; finished ones are not run again
    """
    for name, value in {"num_pairs": num_pairs, "epochs": epochs, "image_epochs": image_epochs}.items():
        require_count(name, value)
    require_count("steps", steps, 3)
    require_number("lr", lr, above=0)
    require_seeds(seeds)
    folder = Path(out)
    check_for_parts(folder)
    ring = pv.load("ring")
    digits = pv.load("mnist", data_root=data_root, num_train=num_images, binarize="static") if images else None
    # Of the trainings alone: what decides those of the digits is in their keys, as a call without --images lacks it.
    training: dict[str, Any] = {"epochs": epochs, "lr": lr}
    with kept_parts(folder, {**training, "data": digest((ring.train_x,))}) as parts:
        found: list[dict[str, Any]] = []
        first: dict[str, pv.VAE] = {}
        for seed in seeds:
            vaes = {}
            for name in MODELS:
                vaes[name] = ring_model(name, seed, ring)
                key = f"ring, {name}, seed {seed}"
                fit = {**training, "batch_size": 256, "seed": seed}
                train_once(vaes[name], ring.train_x, parts, key, **fit, progress=False)
            first = first or vaes
            with local_seed(derived_seed(seed, "pairs")):
                found.append({"seed": seed, **measure(vaes, ring, num_pairs, steps)})
        header = ["way from mode to mode", "off the data", "in the hole"]
        lines = [[way, *(with_error([one[way][what] for one in found]) for what in ("off", "hole"))] for way in WAYS]
        print(f"\nshares of the way, {len(seeds)} seeds, mean ± standard error\n" + tabulate(lines, header))
        write_results(folder, {"num_pairs": num_pairs, "steps": steps, **training, "found": found})
        with local_seed(derived_seed(seeds[0], "figures")):
            figures = {"ring": draw_ring(first, ring, steps)}
            if digits is not None:
                fit = {"epochs": image_epochs, "batch_size": 128, "lr": lr, "seed": seeds[0]}
                figures["digits"] = draw_digits(image_models(digits, fit, parts), digits)
        text = f"# Interpolation, seeds {', '.join(map(str, seeds))}\n\n{tabulate(lines, header, 'github')}\n"
        write_report(folder, text, figures)


def ring_model(name: str, seed: int, data: pv.Dataset) -> pv.VAE:
    with local_seed(derived_seed(seed, "initial parameters")):
        likelihood = pv.Gaussian(math.sqrt(VARIANCE))
        settings: dict[str, Any] = {"latent_dim": 2, "hidden": (128, 128), "likelihood": likelihood}
        return pv.VAE((2,), **settings, posterior=MODELS[name], data_mean=data.train_mean)


def measure(vaes: dict[str, pv.VAE], data: pv.Dataset, num_pairs: int, steps: int) -> dict[str, Any]:
    """Returns for each way the shares of its points, between the ends, that lie off the data and in the hole."""
    x1, x2 = pairs_of(data, num_pairs)
    threshold = log_density(data, data.test_x).quantile(0.01)
    found: dict[str, Any] = {}
    for way in WAYS:
        inside = way_between(way, vaes, x1, x2, steps)[:, 1:-1].flatten(0, 1)
        off = log_density(data, inside) < threshold
        found[way] = {"off": off.float().mean().item(), "hole": (inside.norm(dim=-1) < HOLE).float().mean().item()}
    return found


def way_between(way: str, vaes: dict[str, pv.VAE], x1: Tensor, x2: Tensor, steps: int) -> Tensor:
    """Returns the points of a way between each pair, `(num_pairs, steps, *event_shape)`."""
    spherical = WAYS[way]
    if spherical is None:
        t = torch.linspace(0, 1, steps).view(-1, *[1] * (x1.dim() - 1))
        return x1.unsqueeze(1) + t * (x2 - x1).unsqueeze(1)
    return vaes[way.partition(",")[0]].interpolate(x1, x2, steps, spherical=spherical)


def log_density(data: pv.Dataset, x: Tensor) -> Tensor:
    assert data.log_density is not None
    return data.log_density(x)


def pairs_of(data: pv.Dataset, num: int) -> tuple[Tensor, Tensor]:
    """Returns pairs of test data of different classes, drawn at random."""
    labels = data.test_y
    assert isinstance(labels, Tensor)
    one, other = (torch.randint(len(labels), (20 * num,)) for _ in range(2))
    differ = (labels[one] != labels[other]).nonzero().flatten()[:num]
    require(len(differ) == num, f"num_pairs must be at most those of different classes that are found, {len(differ)}")
    return data.test_x[one[differ]], data.test_x[other[differ]]


def draw_ring(vaes: dict[str, pv.VAE], data: pv.Dataset, steps: int) -> Figure:
    """Draws the ways between a few pairs in the plane of the data."""
    x1, x2 = pairs_of(data, 6)
    figure, axes = pv.plots.figure_row(len(WAYS), width=2.6, height=2.8)
    for way, each in zip(WAYS, axes, strict=True):
        pv.plots.points(data.test_x, None, way, each)
        each.collections[0].set(color="0.8")
        for index, points in enumerate(way_between(way, vaes, x1, x2, 4 * steps)):
            each.plot(points[:, 0], points[:, 1], color=f"C{index}", linewidth=1.2)
            each.plot(points[[0, -1], 0], points[[0, -1], 1], color=f"C{index}", marker="o", markersize=4, linewidth=0)
        each.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))
    return figure


def image_models(data: pv.Dataset, fit: dict[str, Any], parts: Parts) -> dict[str, pv.VAE]:
    found, of = {}, f"seed {fit['seed']}, {fit['epochs']} epochs, data {digest((data.train_x,))}"
    for name, posterior in MODELS.items():
        with local_seed(derived_seed(fit["seed"], "initial parameters")):
            settings: dict[str, Any] = {"latent_dim": 20, "hidden": (400,), "likelihood": pv.Bernoulli()}
            vae = pv.VAE(data.event_shape, **settings, posterior=posterior, data_mean=data.train_mean)
        train_once(vae, data.train_x, parts, f"digits, {name}, {of}", **fit, progress=False)
        found[name] = vae
    return found


def draw_digits(vaes: dict[str, pv.VAE], data: pv.Dataset) -> Figure:
    """Draws the ways between a few pairs of digits, the autoencoder's above the VAE's."""
    x1, x2 = pairs_of(data, PAIRS_SHOWN)
    ways = [way for way, spherical in WAYS.items() if spherical is not None]
    rows = torch.stack([way_between(way, vaes, x1, x2, COLUMNS_SHOWN) for way in ways], 1).flatten(0, 1)
    figure = Figure(figsize=(6.4, 0.5 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(rect=(0.05, 0, 0.95, 1))  # type: ignore[union-attr, call-arg]  # room for the names of the rows
    pv.plots.traversal(rows, ways * PAIRS_SHOWN, "from one digit to another", figure.subplots())
    return figure


if __name__ == "__main__":
    run_script(main)
