"""Measures how sharp the decoded images of a VAE are under several likelihoods, beside those of a VQ-VAE.

python scripts/papers/sharpness.py

Sharpness is the mean square of the discrete Laplacian of images divided by that of the data: 1 is as sharp as the data,
and less is blurred. It is of decoded means, since a draw of every pixel by itself adds noise that has a large
Laplacian, too. All models have the same networks and are trained on the same grey images.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
    require_seeds,
    require_size,
)
from pyrovae.training import digest

TRAINING: dict[str, Any] = {"batch_size": 128, "lr": 1e-3}
EVENT, HIDDEN = (1, 28, 28), (400,)


def vae_of(likelihood: Callable[[], Any]) -> Callable[[], pv.VAE]:
    return lambda: pv.VAE(EVENT, latent_dim=20, hidden=HIDDEN, likelihood=likelihood())


def vq_vae() -> pv.VQVAE:
    likelihood = pv.Bernoulli(allow_grey=True)
    return pv.VQVAE(EVENT, num_tokens=8, num_codes=64, code_dim=4, hidden=HIDDEN, likelihood=likelihood)


MODELS: dict[str, Callable[[], Any]] = {
    "Gaussian, scale 1": vae_of(lambda: pv.Gaussian(1.0)),
    "Gaussian, scale 0.3": vae_of(lambda: pv.Gaussian(0.3)),
    "Gaussian, scale 0.1": vae_of(lambda: pv.Gaussian(0.1)),
    "Bernoulli, grey": vae_of(lambda: pv.Bernoulli(allow_grey=True)),
    "DiscretizedLogistic": vae_of(lambda: pv.DiscretizedLogistic()),
    "VQ-VAE, Bernoulli, grey": vq_vae,
}


def laplacian_power(images: Tensor) -> float:
    """Returns the mean square of 4 x - (the four neighbours), for images `(num, 1, height, width)`."""
    inner = images[..., 1:-1, 1:-1]
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return (4 * inner - around).square().mean().item()


def made(name: str, seed: int) -> Any:
    with local_seed(derived_seed(seed, "initial parameters")):
        return MODELS[name]()


def train(name: str, seed: int, data: pv.Dataset, epochs: int, parts: Parts) -> dict[str, Any]:
    """Returns sharpness and error of a run and its parameters, once it has been trained or if it was before."""
    key = f"{name}, seed {seed}"

    def compute() -> dict[str, Any]:
        model = made(name, seed)
        with local_seed(derived_seed(seed, "codes")):
            if isinstance(model, pv.VQVAE):
                model.restart_unused(data.train_x[:1_000])
        checkpoints = pv.Checkpoints(parts.folder_of(key), repeated=True)
        history = pv.fit(model, data, epochs=epochs, **TRAINING, seed=seed, checkpoints=checkpoints)
        reconstructed = model.reconstruct(data.test_x)
        with local_seed(derived_seed(seed, "samples")):
            samples = model.sample(len(data.test_x), mean=True)
        of_data = laplacian_power(data.test_x)
        found = {
            "reconstructions": laplacian_power(reconstructed) / of_data,
            "samples": laplacian_power(samples) / of_data,
            "error": (reconstructed - data.test_x).square().mean().sqrt().item(),
        }
        shown = {"reconstructed": reconstructed[:8], "sampled": samples[:8]}
        return {"found": found, "seconds": sum(history.seconds), **shown}

    return parts.get(key, compute)


def main(
    seeds: tuple[int, ...] = (0, 1),
    num_train: int = 10_000,
    num_test: int = 2_000,
    epochs: int = 10,
    data_root: str | None = None,
    out: str = "runs/sharpness",
) -> None:
    """Train the same networks under several likelihoods and measure the sharpness of what they decode.

    Args:
        seeds: a training of each model for each
        num_train: the first so many training images
        num_test: the first so many test images
        epochs: of each training
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        out: folder for results.json, report.md and the figure; finished trainings are not run again
    """
    folder = Path(out)
    check_for_parts(folder)
    require_seeds(seeds)
    require_size("epochs", epochs)
    sizes: dict[str, Any] = {"num_train": num_train, "num_validation": 0, "num_test": num_test}
    data = pv.load("mnist", binarize="none", data_root=data_root, **sizes)
    settings = {"epochs": epochs, **TRAINING, "data": digest((data.train_x, data.test_x))}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
    first: dict[str, dict[str, Any]] = {}
    with kept_parts(folder, settings) as parts:
        for seed in seeds:
            for name in MODELS:
                trained = train(name, seed, data, epochs, parts)
                results[name].append(trained["found"])
                sharp = trained["found"]["reconstructions"]
                print(f"{name}, seed {seed}: reconstructions {sharp:.3f}, {trained['seconds']:.0f} s", flush=True)
                first.setdefault(name, trained)
        print("\n" + table(results, "simple"))
        write_results(folder, results)
        text = f"# Sharpness, seeds {', '.join(map(str, seeds))}\n\n{table(results, 'github')}\n"
        write_report(folder, text, {"sharpness": draw(data.test_x[:8], first)})


def table(results: dict[str, list[dict[str, float]]], tablefmt: str) -> str:
    """Returns for each model the mean over seeds of sharpness and error, with standard errors."""
    lines = []
    for name, runs in results.items():
        measures = ("reconstructions", "samples", "error")
        lines.append([name, *(with_error([run[what] for run in runs], in_brackets=True) for what in measures)])
    header = ["model", "sharpness of reconstructions", "of decoded prior draws", "rms error of a pixel"]
    return tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)


def draw(x: Tensor, first: dict[str, dict[str, Any]]) -> Figure:
    """Draws test images, and below them what each model makes of them, beside decoded draws of its prior."""
    figure = Figure(figsize=(11, 0.7 * (len(first) + 1) + 0.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = torch.stack([x, *(trained["reconstructed"] for trained in first.values())])
    pv.plots.traversal(rows, ["data", *first], "reconstructions", left)
    blank = torch.zeros_like(x)
    rows = torch.stack([blank, *(trained["sampled"] for trained in first.values())])
    pv.plots.traversal(rows, [""] * len(rows), "decoded draws of the prior", right)
    return figure


if __name__ == "__main__":
    run_script(main)
