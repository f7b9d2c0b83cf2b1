"""Trains a VAE on MNIST's digits with parts missing, and draws their lower halves given the upper ones.

python scripts/papers/half_images.py

Each training image lacks its lower half, its upper half, half of its pixels at random, or nothing. Of a test image only
the upper half is given. Beside the figure it prints how far the mean given the upper half is from the pixels below, and
how far the mean of all training images is.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path
from typing import Any

import torch
from kept_training import train_once
from matplotlib.figure import Figure
from torch import Tensor
from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import check_for_parts, derived_seed, kept_parts, local_seed, require_count, require_seeds
from pyrovae.training import digest

IMAGES_SHOWN, DRAWS_SHOWN, PARTICLES = 8, 6, 5


def main(
    seed: int = 0,
    data_root: str | None = None,
    num_images: int = 20_000,
    epochs: int = 20,
    hidden: int = 400,
    latent_dim: int = 20,
    num_samples: int = 1_000,
    num_data: int = 50,
    out: str = "runs/half_images",
) -> None:
    """Train on images with parts missing, and draw lower halves given upper ones.

    Args:
        seed: of the initial parameters, the missing parts, the batches and the draws
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_images: the first so many training images
        epochs: passes through them
        hidden: units of the hidden layer of encoder and decoder
        latent_dim: dimensions of z
        num_samples: draws of z for each image
        num_data: test images whose lower halves are filled in
        out: folder for results.json, report.md, the figure and the parts; finished ones are not run again
    """
    require_seeds((seed,))
    for name, count in {"num_images": num_images, "epochs": epochs, "hidden": hidden, "latent_dim": latent_dim}.items():
        require_count(name, count)
    require_count("num_samples", num_samples)
    require_count("num_data", num_data, IMAGES_SHOWN)
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("mnist", data_root=data_root, num_train=num_images, binarize="static")
    network: dict[str, Any] = {"hidden": (hidden,), "latent_dim": latent_dim}
    with local_seed(derived_seed(seed, "missing parts")):
        x = with_parts_missing(data.train_x)
    with local_seed(derived_seed(seed, "initial parameters")):
        vae = pv.VAE(data.event_shape, **network, likelihood=pv.Bernoulli(), missing="mask", data_mean=data.train_mean)
    settings = {"epochs": epochs, **network, "seed": seed}
    with kept_parts(folder, {**settings, "data": digest((x,))}) as parts:
        how: dict[str, Any] = {"epochs": epochs, "batch_size": 128, "schedule": "cosine", "seed": seed}
        train_once(vae, x, parts, "training", objective=pv.objectives.IWAE(PARTICLES), **how, progress=False)
        with local_seed(derived_seed(seed, "draws")):
            images = data.test_x[:num_data]
            sizes: dict[str, Any] = {"num_samples": num_samples, "num_draws": DRAWS_SHOWN, "progress": False}
            filled = pv.impute(vae, images, missing=~is_upper(images), **sizes)
        found = measure(filled, images, data.train_x.mean(0))
        lines = [f"{name}: {value:.3f}" for name, value in found.items()]
        print("\n".join(lines))
        write_results(folder, {**settings, "num_samples": num_samples, "num_data": num_data, **found})
        write_report(folder, "\n".join(f"- {line}" for line in lines) + "\n", {"half_images": draw(filled, images)})


def is_upper(x: Tensor) -> Tensor:
    """Returns True for the pixels of the upper half of an image, of the shape of x."""
    height = x.shape[-2]
    return (torch.arange(height) < height // 2).unsqueeze(-1).expand(x.shape)


def with_parts_missing(x: Tensor) -> Tensor:
    """Returns images of which each lacks its lower half, its upper half, half of its pixels or nothing, as NaN."""
    upper, kind = is_upper(x), torch.randint(4, (len(x),)).view(-1, 1, 1, 1)
    scattered = torch.rand(x.shape) < 0.5
    missing = torch.where(kind == 0, ~upper, torch.where(kind == 1, upper, (kind == 2) & scattered))
    return x.masked_fill(missing, torch.nan)


def measure(filled: pv.Imputation, x: Tensor, mean: Tensor) -> dict[str, float]:
    """Returns the mean square error of the lower pixels under E[lower | upper], and under the mean of all images."""
    lower, k = filled.missing, filled.pareto_k[filled.missing]
    return {
        "mean square error given the upper half": (filled.value - x)[lower].square().mean().item(),
        "of the mean image": (mean - x)[lower].square().mean().item(),
        "share of pixels with Pareto k > 0.7": (k > 0.7).float().mean().item(),
    }


def draw(filled: pv.Imputation, x: Tensor) -> Figure:
    """Draws images, their upper halves, the mean of the lower ones given those, and draws of them."""
    given = x.masked_fill(filled.missing, 0.0)
    rows = torch.stack([x, given, filled.value, *filled.draws])[:, :IMAGES_SHOWN]
    names = ["image", "given", "mean", *(f"draw {number}" for number in range(1, DRAWS_SHOWN + 1))]
    figure = Figure(figsize=(5.2, 0.62 * len(rows)), layout="constrained")
    pv.plots.traversal(rows, names, "lower halves given the upper ones", figure.subplots())
    return figure


if __name__ == "__main__":
    run_script(main)
