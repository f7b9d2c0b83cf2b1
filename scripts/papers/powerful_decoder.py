"""Trains a VAE whose decoder sees the pixels before each: its KL goes to 0, and what free bits and warm-up do about it.

python scripts/papers/powerful_decoder.py

Model: p(x|z) = prod_i p(x_i | x_1 ... x_{i-1}, z), by masked convolutions, on MNIST at 14 x 14, 0/1. The same network
without the pixels before (`independent pixels`) is the usual decoder. Trainings of each seed: the usual decoder, the
autoregressive one by the ELBO, with free bits, and with beta warmed up; and one where z has only a bias for each
channel, the same at all places, by the ELBO and with free bits. All are measured at beta = 1.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
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
from pyrovae.evaluation.diagnostics import elbo_terms
from pyrovae.training import digest

SIDE, LATENT_DIM, CHANNELS = 14, 8, 8
TRAINING: dict[str, Any] = {"batch_size": 100, "lr": 5e-3, "schedule": "cosine"}
FREE_BITS = 1.0  # nats for each latent
WAYS: dict[str, dict[str, Any]] = {
    "independent pixels": {},
    "autoregressive": {},
    "autoregressive, free bits": {"objective": "elbo_analytic_kl", "free_bits": FREE_BITS},
    "autoregressive, warm-up": {"beta_schedule": "linear"},
    "z as a bias": {},
    "z as a bias, free bits": {"objective": "elbo_analytic_kl", "free_bits": FREE_BITS},
}


class MaskedConv(nn.Conv2d):
    """A convolution that sees only the pixels before each in reading order, and that pixel itself unless `first`."""

    mask: Tensor

    def __init__(self, channels_in: int, channels_out: int, size: int, first: bool) -> None:
        super().__init__(channels_in, channels_out, size, padding=size // 2)
        mask = torch.zeros(size * size)
        mask[: size * size // 2 + (0 if first else 1)] = 1
        self.register_buffer("mask", mask.reshape(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class PixelVAE(nn.Module):
    """A VAE of 0/1 images as two Pyro programs; `sees_pixels` makes its decoder autoregressive.

    z has an input of its own for each place, or with `as_bias` the same for all.
    """

    beta: Tensor

    def __init__(self, sees_pixels: bool, as_bias: bool = False) -> None:
        super().__init__()
        self.sees_pixels = sees_pixels
        self.places = 1 if as_bias else SIDE
        pixels = SIDE * SIDE
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 200), nn.ReLU(), nn.Linear(200, 2 * LATENT_DIM))
        self.from_z = nn.Sequential(nn.Linear(LATENT_DIM, 200), nn.ReLU(), nn.Linear(200, CHANNELS * self.places**2))
        self.first = MaskedConv(1, CHANNELS, 7, first=True)
        self.layers = nn.ModuleList(MaskedConv(CHANNELS, CHANNELS, 5, first=False) for _ in range(2))
        self.last = nn.Conv2d(CHANNELS, 1, 1)
        self.register_buffer("beta", torch.tensor(1.0))

    def set_beta(self, beta: float) -> None:
        """Sets the weight of the KL, as a schedule does in training."""
        self.beta.fill_(beta)

    def logits(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns the logits of each pixel given those before it, `(..., 1, side, side)`, for z `(..., latent_dim)`."""
        leading = z.shape[:-1]
        images = x.expand(*leading, 1, SIDE, SIDE).reshape(-1, 1, SIDE, SIDE)
        maps = self.from_z(z).reshape(-1, CHANNELS, self.places, self.places).expand(-1, -1, SIDE, SIDE)
        if self.sees_pixels:
            maps = maps + self.first(images - 0.5)
        for layer in self.layers:
            maps = maps + layer(maps.relu())
        return self.last(maps.relu()).reshape(*leading, 1, SIDE, SIDE)

    def model(self, x: Tensor) -> None:
        """Runs p(z) p(x|z), a density of x because no logit sees its own pixel or a later one."""
        pyro.module("pixel_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(x, z), validate_args=False).to_event(3), obs=x)

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z|x)."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        """Runs q(z|x)."""
        pyro.module("pixel_vae", self)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.beta):
            pyro.sample("z", self.encode(x))

    @torch.no_grad()
    def draw(self, z: Tensor) -> Tensor:
        """Returns images drawn from p(x|z), pixel by pixel."""
        x = torch.zeros(len(z), 1, SIDE, SIDE)
        for row in range(SIDE):
            for column in range(SIDE):
                x[..., row, column] = self.logits(x, z)[..., row, column].sigmoid().bernoulli()
        return x


def made(way: str, seed: int) -> PixelVAE:
    """Returns the model of this way, untrained, and the only one in Pyro's param store."""
    pyro.clear_param_store()
    with local_seed(derived_seed(seed, "initial parameters")):
        return PixelVAE(sees_pixels=way != "independent pixels", as_bias="as a bias" in way)


def train(way: str, seed: int, x: Tensor, test_x: Tensor, epochs: int, parts: Parts) -> dict[str, Any]:
    """Returns ELBO and KL of the test images, the KL of each latent and the parameters."""
    key = f"{way}, seed {seed}"

    def compute() -> dict[str, Any]:
        vae = made(way, seed)
        checkpoints = pv.Checkpoints(parts.folder_of(key), repeated=True)
        history = pv.fit(vae, x, epochs=epochs, **TRAINING, **WAYS[way], seed=seed, checkpoints=checkpoints)
        with local_seed(derived_seed(seed, "measures")):
            terms = elbo_terms(vae.model, vae.guide, test_x, num_particles=5)
        with torch.no_grad():
            q = vae.encode(test_x).base_dist
            means = q.mean
        found: dict[str, Any] = {name: term.mean().item() for name, term in terms.items()}
        found["active"] = int((means.var(0) > 0.01).sum())
        return {"found": found, "seconds": sum(history.seconds), "state": vae.state_dict()}

    return parts.get(key, compute)


def main(
    seeds: tuple[int, ...] = (0, 1),
    num_train: int = 5_000,
    num_test: int = 2_000,
    epochs: int = 12,
    data_root: str | None = None,
    out: str = "runs/powerful_decoder",
) -> None:
    """Train the usual and the autoregressive decoder and measure what the latents carry.

    Args:
        seeds: a training of each way for each
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
    grey = pv.load("mnist", binarize="none", data_root=data_root, **sizes)
    x, test_x = ((avg_pool2d(images, 2) > 0.5).float() for images in (grey.train_x, grey.test_x))
    settings = {"epochs": epochs, **TRAINING, "free_bits": FREE_BITS, "data": digest((x, test_x))}
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    models: dict[str, PixelVAE] = {}
    with kept_parts(folder, settings) as parts:
        for seed in seeds:
            for way in WAYS:
                trained = train(way, seed, x, test_x, epochs, parts)
                found = trained["found"]
                results[way].append(found)
                line = f"{way}, seed {seed}: ELBO {found['elbo']:.2f}, KL {found['kl']:.3f}, {trained['seconds']:.0f} s"
                print(line, flush=True)
                if seed == seeds[0]:
                    models[way] = made(way, seed)
                    models[way].load_state_dict(trained["state"])
        print("\n" + table(results, "simple"))
        write_results(folder, results)
        with local_seed(derived_seed(seeds[0], "figure")):
            figure = draw(models, test_x[:12])
        write_report(folder, f"# A powerful decoder\n\n{table(results, 'github')}\n", {"powerful_decoder": figure})


def table(results: dict[str, list[dict[str, Any]]], tablefmt: str) -> str:
    """Returns for each way the mean over seeds of the ELBO and its terms, with standard errors, in nats per image."""
    lines = []
    for way, runs in results.items():
        names = ("elbo", "reconstruction", "kl")
        cells = [with_error([run[name] for run in runs], 2, in_brackets=True) for name in names]
        lines.append([way, *cells, "/".join(str(run["active"]) for run in runs)])
    header = ["decoder", "ELBO", "reconstruction", "KL", f"active of {LATENT_DIM}"]
    return tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)


@torch.no_grad()
def draw(models: dict[str, PixelVAE], x: Tensor) -> Figure:
    """Draws images, and below each a draw of p(x|z) at its own z ~ q(z|x), a row for each way."""
    rows = [x, *(vae.draw(vae.encode(x).sample()) for vae in models.values())]
    figure = Figure(figsize=(9, 0.65 * len(rows)), layout="constrained")
    names = ["test images", *(way.replace(", ", ",\n") for way in models)]
    pv.plots.traversal(torch.stack(rows), names, "draws of p(x|z) with z of the image above", figure.subplots())
    return figure


if __name__ == "__main__":
    run_script(main)
