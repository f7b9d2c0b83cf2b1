"""Trains an encoder ahead of its decoder against posterior collapse (He et al. 2019): what z then carries.

python scripts/papers/lagging_encoders.py

Model: the autoregressive decoder of `powerful_decoder.py` to which z is only a bias, so that it does nearly without z,
on MNIST at 14 x 14, 0/1. It is trained in three ways: model and guide step by step; with several steps of the guide for
each of the model, and as many steps of the model; and step by step for as many passes through the data as that takes,
which is at equal decoder calls. All are measured on test images. He et al. (arXiv:1901.05534) report a higher KL,
mutual information and number of active units with an encoder ahead, and a log p(x) that is no lower.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path
from typing import Any

import pyro
from powerful_decoder import PixelVAE
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import avg_pool2d
from writing import mean_and_error, with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    Parts,
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    require_count,
    require_seeds,
    require_size,
)
from pyrovae.training import digest

TRAINING: dict[str, Any] = {"batch_size": 100, "lr": 5e-3, "max_grad_norm": 5.0}
WAYS = ("step by step", "guide ahead", "step by step, as long")
MEASURES = {"elbo": "ELBO", "log_px": "log p(x)", "kl": "KL", "mutual_information": "I(x; z)", "active": "active of 8"}


def train(vae: PixelVAE, way: str, x: Tensor, epochs: int, guide_steps: int, seed: int) -> None:
    """Trains the pair in one way; the first two take as many steps of the model, the last two as many passes."""
    passes = epochs if way == "step by step" else epochs * guide_steps
    pv.fit(vae, x, epochs=passes, guide_steps=guide_steps if way == "guide ahead" else 1, seed=seed, **TRAINING)


def measure(vae: PixelVAE, x: Tensor, num_samples: int) -> dict[str, float]:
    """Returns the measures of the test images, in nats per image but for the number of active units."""
    surgery = pv.elbo_surgery(vae.model, vae.guide, x, progress=False)
    log_px = pv.log_marginal(vae.model, vae.guide, x, num_samples=num_samples, progress=False)
    return {
        "elbo": surgery.elbo.mean,
        "log_px": log_px.mean,
        "kl": surgery.kl.mean,
        "mutual_information": surgery.mutual_information.mean,
        "active": float(pv.diagnostics.active_units(vae.model, vae.guide, x)),
    }


def trained_and_measured(
    way: str, seed: int, data: tuple[Tensor, Tensor], sizes: dict[str, int], parts: Parts
) -> dict[str, float]:
    """Returns the measures of one training, which is done once."""

    def compute() -> dict[str, Any]:
        pyro.clear_param_store()
        with local_seed(derived_seed(seed, "initial parameters")):
            vae = PixelVAE(sees_pixels=True, as_bias=True)
        train(vae, way, data[0], sizes["epochs"], sizes["guide_steps"], seed)
        with local_seed(derived_seed(seed, "measures")):
            return {"found": measure(vae, data[1], sizes["num_samples"])}

    return parts.get(f"{way}, seed {seed}", compute)["found"]


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    num_train: int = 2_000,
    num_test: int = 500,
    epochs: int = 10,
    guide_steps: int = 5,
    num_samples: int = 100,
    data_root: str | None = None,
    out: str = "runs/lagging_encoders",
) -> None:
    """Train a VAE with a powerful decoder, its encoder ahead or not, and measure what z carries.

    Args:
        seeds: a training of each way for each, from the same initial parameters
        num_train: the first so many training images
        num_test: the first so many test images
        epochs: of the first way; the others take guide_steps times as many
        guide_steps: steps of the encoder for each of the decoder, where it is ahead
        num_samples: draws of the importance estimate of log p(x)
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        out: folder for results.json and report.md; finished trainings are not run again
    """
    folder = Path(out)
    check_for_parts(folder)
    require_seeds(seeds)
    require_size("epochs", epochs)
    require_count("guide_steps", guide_steps, 2)
    sizes = {"epochs": epochs, "guide_steps": guide_steps, "num_samples": num_samples}
    limits: dict[str, Any] = {"num_train": num_train, "num_validation": 0, "num_test": num_test}
    grey = pv.load("mnist", binarize="none", data_root=data_root, **limits)
    x, test_x = ((avg_pool2d(images, 2) > 0.5).float() for images in (grey.train_x, grey.test_x))
    data = x, test_x
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with kept_parts(folder, {**sizes, **TRAINING, "data": digest(data)}) as parts:
        for seed in seeds:
            for way in WAYS:
                found = trained_and_measured(way, seed, data, sizes, parts)
                results[way].append(found)
                shown = ", ".join(f"{label} {found[name]:.2f}" for name, label in MEASURES.items())
                print(f"{way}, seed {seed}: {shown}", flush=True)
    write_results(folder, {"settings": sizes, "results": results})
    print(f"\n{table(results, 'simple')}")
    write_report(folder, f"# Lagging encoders\n\n{table(results, 'github')}\n")


def table(results: dict[str, list[dict[str, float]]], tablefmt: str) -> str:
    """Returns the measures, and below them those of an encoder ahead, less the others': means over seeds with errors.

    The differences are paired by seed.
    """
    lines = [[way, *(with_error([one[name] for one in found], 2, True) for name in MEASURES)]
             for way, found in results.items()]  # fmt: skip
    for other in ("step by step", "step by step, as long"):
        pairs = list(zip(results["guide ahead"], results[other], strict=True))
        differences = {name: [ours[name] - theirs[name] for ours, theirs in pairs] for name in MEASURES}
        lines.append([f"guide ahead, less {other}", *(_difference(differences[name]) for name in MEASURES)])
    return tabulate(lines, ["training", *MEASURES.values()], tablefmt, disable_numparse=True)


def _difference(values: list[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:+.2f}" if error is None else f"{mean:+.2f} ({error:.2f})"


if __name__ == "__main__":
    run_script(main)
