"""Trains the MNIST VAEs of the tutorials on all 60,000 images and draws what each of them shows.

python scripts/papers/tutorial_gallery.py                # each at the tutorials' number of epochs
python scripts/papers/tutorial_gallery.py --epochs 3     # a shorter training
python scripts/papers/tutorial_gallery.py --only conv

For each run: the loss of training and test images while it trains, 8 reconstructions, 16 decoded draws of the prior and
the posterior means of the test images by digit; for two latents also the decoded plane.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn
from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    Parts,
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    require,
    require_seed,
    require_size,
)
from pyrovae.evaluation.diagnostics import latent_use
from pyrovae.training import digest

NUM_TRAIN = 60_000
TRAINING: dict[str, Any] = {"batch_size": 128, "lr": 1e-3}
PUBLISHED_EPOCHS = 7
NUM_POINTS = 3_000  # of the scatter
LIMIT, PLANE = 2.5, 15  # of the decoded plane: its end, and its images along one side


def encoder_of_3x3(latent_dim: int) -> nn.Module:
    """Returns convolutions with 3 x 3 kernels of stride 2: 28 x 28 to 14 x 14 to 7 x 7."""
    layers = nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64 * 7 * 7, 2 * latent_dim))


def decoder_of_3x3(latent_dim: int) -> nn.Module:
    """Returns the mirror of `encoder_of_3x3`."""
    layers = nn.Linear(latent_dim, 64 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))
    up = nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1), nn.ReLU()
    return nn.Sequential(*layers, *up, nn.ConvTranspose2d(32, 1, 3, 2, 1, output_padding=1))


@dataclass(frozen=True)
class Architecture:
    """Holds a tutorial's networks and, where it is published, its loss of the test images."""

    name: str
    latent_dim: int
    hidden: tuple[int, ...] | None  # None for the convolutions
    published: float | None = None  # after PUBLISHED_EPOCHS

    def make(self, seed: int) -> pv.VAE:
        """Returns the VAE, untrained. Grey pixels are a cross-entropy."""
        likelihood = pv.Bernoulli(allow_grey=True)
        with local_seed(derived_seed(seed, "initial parameters")):
            if self.hidden is not None:
                return pv.VAE((1, 28, 28), latent_dim=self.latent_dim, hidden=self.hidden, likelihood=likelihood)
            networks: dict[str, Any] = {
                "encoder": encoder_of_3x3(self.latent_dim),
                "decoder": decoder_of_3x3(self.latent_dim),
            }
            return pv.VAE((1, 28, 28), latent_dim=self.latent_dim, **networks, likelihood=likelihood)


ARCHITECTURES = [
    Architecture("784-400-20", 20, (400,), published=106.66),
    Architecture("784-512-256-20", 20, (512, 256)),
    Architecture("conv 3x3, 32 latents", 32, None),
    Architecture("784-400-2", 2, (400,)),
]


def train(of: Architecture, data: pv.Dataset, epochs: int, seed: int, parts: Parts) -> dict[str, Any]:
    """Returns curves, measures and parameters of a run, once it has been trained or if it was before."""

    def compute() -> dict[str, Any]:
        vae = of.make(seed)
        checkpoints = pv.Checkpoints(parts.folder_of(of.name), repeated=True)
        history = pv.fit(vae, data, epochs=epochs, **TRAINING, seed=seed, checkpoints=checkpoints)
        curves = {name: getattr(history, name) for name in ("epoch", "loss", "elbo", "reconstruction", "kl")}
        active = latent_use(vae, data.test_x).num_active
        return {"curves": curves, "active": active, "seconds": sum(history.seconds), "state": vae.state_dict()}

    return parts.get(of.name, compute)


def main(
    data_root: str | None = None,
    num_train: int = NUM_TRAIN,
    epochs: int = 10,
    only: str = "",
    seed: int = 0,
    out: str = "runs/tutorial_gallery",
) -> None:
    """Train the tutorials' MNIST VAEs and draw the gallery of each.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_train: the first so many training images
        epochs: of every run (default: the tutorials' 10)
        only: the runs whose names contain this
        seed: fixes the initial parameters and the trainings
        out: folder for results.json, report.md and figures; finished runs are not run again
    """
    folder = Path(out)
    check_for_parts(folder)
    require_seed(seed)
    require_size("epochs", epochs)
    chosen = [of for of in ARCHITECTURES if only in of.name]
    require(len(chosen) > 0, f"only must be a part of some run's name, got {only!r}")
    data = pv.load("mnist", binarize="none", data_root=data_root, num_train=num_train, num_validation=0)
    # The curves are those of the test images, as in the tutorials; nothing is chosen by them.
    data = replace(data, validation_x=data.test_x, validation_y=data.test_y)
    settings = {"epochs": epochs, "seed": seed, **TRAINING, "data": digest((data.train_x, data.test_x))}
    results: dict[str, dict[str, Any]] = {}
    figures: dict[str, Figure] = {}
    with kept_parts(folder, settings) as parts:
        for of in chosen:
            trained = train(of, data, epochs, seed, parts)
            vae = of.make(seed)
            vae.load_state_dict(trained["state"])
            results[of.name] = {name: trained[name] for name in ("curves", "active", "seconds")}
            print(f"{of.name}: loss {-trained['curves']['elbo'][-1]:.2f}, {trained['seconds']:.0f} s", flush=True)
            with local_seed(derived_seed(seed, "figures")):
                figures[of.name.replace(" ", "_").replace(",", "")] = draw(of, vae, data, trained["curves"])
        print("\n" + table(chosen, results, "simple"))
        write_results(folder, results)
        write_report(folder, f"# The tutorials' MNIST runs\n\n{table(chosen, results, 'github')}\n", figures)


def table(chosen: list[Architecture], results: dict[str, dict[str, Any]], tablefmt: str) -> str:
    """Returns for each run the loss of the test images after the last epoch and its two terms, in nats per image."""
    lines = []
    for of in chosen:
        curves = results[of.name]["curves"]
        elbo, reconstruction, kl = (curves[name][-1] for name in ("elbo", "reconstruction", "kl"))
        numbers = [f"{value:.2f}" for value in (curves["loss"][-1], -elbo, -reconstruction, kl)]
        published = [""] * 2
        if of.published is not None:
            at = f"{-curves['elbo'][PUBLISHED_EPOCHS - 1]:.2f}" if len(curves["epoch"]) >= PUBLISHED_EPOCHS else "-"
            published = [at, f"{of.published:.2f}"]
        active = f"{results[of.name]['active']} of {of.latent_dim}"
        lines.append([of.name, len(curves["epoch"]), *numbers, *published, active])
    after = f"after epoch {PUBLISHED_EPOCHS}"
    header = ["run", "epochs", "training loss", "test loss", "reconstruction", "KL", after, "published", "active"]
    return tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)


@torch.no_grad()
def draw(of: Architecture, vae: pv.VAE, data: pv.Dataset, curves: dict[str, list]) -> Figure:
    """Draws one run: curves, 16 samples, 8 reconstructions, posterior means by digit; the plane of two latents."""
    with_plane = of.latent_dim == 2
    figure = Figure(figsize=(8.4, 7.6 if with_plane else 6.4), layout="constrained")  # not much wider than a page
    figure.suptitle(f"{of.name}, {len(curves['epoch'])} epochs")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1 if with_plane else 0.7))
    losses = {"training loss": curves["loss"], "test loss": [-value for value in curves["elbo"]]}
    pv.plots.training_curve(curves["epoch"], losses, "nats per image", figure.add_subplot(grid[0, 0]))
    shown, digits = (each[:NUM_POINTS] for each in data.arguments("test"))
    pv.plots.most_active_latents(vae.encode(shown).mean, digits, axes=figure.add_subplot(grid[0, 1]))
    x = data.test_x[:8]
    below = grid[1, 0].subgridspec(2, 1, height_ratios=(2, 4)) if with_plane else grid[1, :].subgridspec(1, 2)
    images, samples = (figure.add_subplot(below[place]) for place in range(2))
    pv.plots.reconstructions(x, vae.reconstruct(x), "test images, reconstructed below", images)
    pv.plots.image_grid(vae.sample(16, mean=True), 4, "decoded draws of N(0, I)", samples)
    if with_plane:
        ticks = torch.linspace(-LIMIT, LIMIT, PLANE)
        z = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)  # z_2 along the rows, z_1 along the columns
        pv.plots.latent_plane(vae.decode(z).mean, LIMIT, axes=figure.add_subplot(grid[1, 1]))
    return figure


if __name__ == "__main__":
    run_script(main)
