"""Measures what draws are worth: E[z] and E[z^2] against their number, and how near a sample is to the training data.

python scripts/papers/draws.py                                         # the ring
python scripts/papers/draws.py --images     # with a figure of MNIST's digits

A mean over S draws z ~ q(z|x) has the standard error sigma / sqrt(S), and that of z^2 the error
sqrt((2 sigma^4 + 4 mu^2 sigma^2) / S): the measured error is shown beside it. A model that had learned its data by
heart would draw samples nearer to the training data than new data are, which the second table compares.
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
from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    require,
    require_count,
    require_seed,
)
from pyrovae.training import digest

SIZES = (1, 10, 100, 1_000, 10_000)
NUM_SHOWN = 12
CHUNK = 500


def main(
    images: bool = False,
    data_root: str | None = None,
    num_images: int = 20_000,
    num_samples: int = 2_000,
    repeats: int = 1_000,
    epochs: int = 400,
    image_epochs: int = 10,
    lr: float = 1e-3,
    seed: int = 0,
    out: str = "runs/draws",
) -> None:
    """Train the tutorials' ring, and with --images a VAE of digits, and measure their draws.

    Args:
        images: MNIST, too
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_images: the first so many training images of MNIST
        num_samples: samples whose nearest training data are found, and as many test data
        repeats: means of S draws, over which their error is taken
        epochs: of the ring
        image_epochs: of MNIST
        lr: of Adam
        seed: fixes the initial parameters, the training and the draws
        out: folder of the runs; finished ones are not run again
    """
    for name, value in {"epochs": epochs, "image_epochs": image_epochs, "num_samples": num_samples}.items():
        require_count(name, value)
    require_count("repeats", repeats, 2)
    require_seed(seed)
    folder = Path(out)
    check_for_parts(folder)
    sets = {"ring": pv.load("ring")}
    if images:
        sets["digits"] = pv.load("mnist", data_root=data_root, num_train=num_images, binarize="static")
    least = min(min(len(data.test_x), len(data.train_x)) for data in sets.values())
    rule = f"num_samples must be <= {least:,}, as so many test and training data are compared with the samples"
    require(num_samples <= least, f"{rule}; got {num_samples:,}")
    training: dict[str, Any] = {"lr": lr, "seed": seed, "progress": False}
    told = {"epochs": epochs, "image_epochs": image_epochs, "lr": lr, "seed": seed}
    tables: list[tuple[str, list, list[str]]] = []
    figures, results = {}, {}
    # What decides the digits' part is in its key, as a call without --images knows nothing of it.
    with kept_parts(
        folder, {"epochs": epochs, "lr": lr, "seed": seed, "data": digest((sets["ring"].train_x,))}
    ) as parts:
        for name, data in sets.items():
            vae, length = model_of(name, data, seed), image_epochs if name == "digits" else epochs
            key = name if name == "ring" else f"{name}, {length} epochs, data {digest((data.train_x,))}"
            train_once(vae, data.train_x, parts, key, **{**training, "epochs": length})
            with local_seed(derived_seed(seed, f"draws of {name}")):
                moments = moment_errors(vae, data.test_x[:1], repeats)
                distances = {
                    "samples": nearest(vae.sample(num_samples), data.train_x)[0],
                    "test data": nearest(data.test_x[:num_samples], data.train_x)[0],
                    "training data, without themselves": nearest(data.train_x[:num_samples], data.train_x, True)[0],
                }
                if name == "digits":
                    means = vae.sample(NUM_SHOWN, mean=True)
                    figures["nearest"] = draw_nearest(means, data.train_x[nearest(means, data.train_x)[1]])
            results[name] = {"moments": moments, "median": {k: d.median().item() for k, d in distances.items()}}
            header = ["draws S", "error of E[z]", "sigma / sqrt(S)", "error of E[z^2]", "its theory"]
            tables.append((f"{name}: one test datum, root mean square over latents", moments, header))
            rows = [[k, *(d.quantile(p).item() for p in (0.05, 0.5, 0.95))] for k, d in distances.items()]
            tables.append((f"{name}: distance to the nearest training datum", rows, ["", "5%", "median", "95%"]))
    print("\n\n".join(f"{title}\n{tabulate(rows, header, floatfmt='.3g')}" for title, rows, header in tables))
    write_results(folder, {**told, "num_samples": num_samples, "repeats": repeats, "found": results})
    text = "\n\n".join(f"{title}\n\n{tabulate(rows, header, 'github', '.3g')}" for title, rows, header in tables)
    write_report(folder, f"# Draws, seed {seed}\n\n{text}\n", figures)


def model_of(name: str, data: pv.Dataset, seed: int) -> pv.VAE:
    settings: dict[str, Any] = {"latent_dim": 2, "hidden": (128, 128), "likelihood": pv.Gaussian(math.sqrt(0.1))}
    if name == "digits":
        settings = {"latent_dim": 20, "hidden": (400,), "likelihood": pv.Bernoulli()}
    with local_seed(derived_seed(seed, "initial parameters")):
        return pv.VAE(data.event_shape, **settings, data_mean=data.train_mean)


@torch.no_grad()
def moment_errors(vae: pv.VAE, x: Tensor, repeats: int) -> list[list[float]]:
    """Returns for each number of draws the errors of the means of z and of z^2, each with what theory says."""
    q = vae.encode(x)
    mean, variance = q.mean.double()[0], q.variance.double()[0]
    of_square = 2 * variance**2 + 4 * mean**2 * variance
    rows = []
    for size in SIZES:
        off = torch.zeros(2, len(mean), dtype=torch.float64)
        for _ in range(repeats):
            z = q.sample((size,)).double()[:, 0]
            off += torch.stack((z.mean(0) - mean, z.square().mean(0) - mean**2 - variance)).square()
        found = (off / repeats).mean(1).sqrt().tolist()
        theory = [(each.mean() / size).sqrt().item() for each in (variance, of_square)]
        rows.append([size, found[0], theory[0], found[1], theory[1]])
    return rows


def nearest(x: Tensor, others: Tensor, among_them: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the Euclidean distance of each x to the nearest of the others, and which one it is.

    With `among_them` x are the first of the others, and none is its own neighbour.
    """
    distances, indices = [], []
    for start, rows in zip(range(0, len(x), CHUNK), x.flatten(1).split(CHUNK), strict=True):
        each = torch.cdist(rows, others.flatten(1))
        if among_them:
            each[torch.arange(len(rows)), start + torch.arange(len(rows))] = math.inf
        distance, index = each.min(1)
        distances.append(distance)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def draw_nearest(samples: Tensor, neighbours: Tensor) -> Figure:
    """Draws decoded means of samples above the training images that are nearest to them."""
    figure, (axes,) = pv.plots.figure_row(1, width=8.0, height=1.7)
    pv.plots.reconstructions(samples, neighbours, "decoded means of prior draws, and the nearest training image", axes)
    return figure


if __name__ == "__main__":
    run_script(main)
