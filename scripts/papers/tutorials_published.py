"""The runs of the tutorials: settings and published numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import pyrovae as pv

BETAS = (0.5, 1.0, 2.0, 4.0)
VARIANCES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0)  # of the decoder, on the ring
CLUSTERS = ("four clusters", "four clusters, variance 1/2")


@dataclass(frozen=True)
class Row:
    """Holds one run: its data, the settings of its VAE and of its training, and the published numbers."""

    name: str
    data: Callable[[int], pv.Dataset]
    vae: dict
    fit: dict
    variance: float | None = None  # of the decoder; None for pixels
    published: dict[str, float] = field(default_factory=dict)
    condition: Callable[[], pv.Condition] | None = None  # made for each seed, as its initial parameters are random
    is_plain: bool = False  # also trained by a loop in plain PyTorch
    sample_y: Callable[[int], torch.Tensor] | None = None


def radius(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=1, keepdim=True)


def ring(seed: int) -> pv.Dataset:
    return pv.load("ring", seed=seed)


RING = {"latent_dim": 2, "hidden": (128, 128)}
RING_FIT = {"epochs": 400, "batch_size": 256, "lr": 1e-3}
POINTS = [
    Row("ring", ring, RING, RING_FIT, 0.1, {"loss": 3.758, "reconstruction": 0.824, "kl": 2.935, "diversity": 4.051},
        is_plain=True),
    Row("ring, one-hot", ring, RING, RING_FIT | {"epochs": 500}, 0.1,
        {"loss": 0.625, "reconstruction": 0.625, "kl": 0.0, "diversity": 4.452},
        condition=lambda: pv.OneHot(8), is_plain=True, sample_y=lambda num: torch.arange(num) % 8),
    Row("ring, radius", lambda seed: ring(seed).with_conditions(radius), RING,
        RING_FIT | {"epochs": 500}, 0.1, {"loss": 3.594, "reconstruction": 0.542, "kl": 3.051, "diversity": 1.392},
        condition=pv.Embedding, is_plain=True, sample_y=lambda num: torch.randn(num, 2).norm(dim=1, keepdim=True)),
    Row("pinwheel, beta 0.25", lambda seed: pv.load("pinwheel", seed=seed),
        {"latent_dim": 2, "hidden": (64,), "beta": 0.25}, {"epochs": 800, "batch_size": 256, "lr": 3e-3}, 0.03,
        {"loss": 1.672, "reconstruction": 0.303, "kl": 5.476}),  # of data on another scale
    Row("pinwheel, twice the size", lambda seed: pv.load("pinwheel", scale=2.0, seed=seed),
        {"latent_dim": 2, "hidden": (64,), "beta": 0.25}, {"epochs": 800, "batch_size": 256, "lr": 3e-3}, 0.03,
        {"loss": 1.672, "reconstruction": 0.303, "kl": 5.476}),
    Row(CLUSTERS[0], lambda seed: pv.load("four_clusters", seed=seed), {"latent_dim": 2, "hidden": (32, 32)},
        {"epochs": 400, "batch_size": 128, "lr": 1e-3}, 0.04),
    # Printed as 0.526 = 0.506 + 0.020, a mean of squares and a mean of KLs: half of these nats, at a variance of 1/2.
    Row(CLUSTERS[1], lambda seed: pv.load("four_clusters", seed=seed), {"latent_dim": 2, "hidden": (32, 32)},
        {"epochs": 400, "batch_size": 128, "lr": 1e-3}, 0.5, {"loss": 1.052, "reconstruction": 1.012, "kl": 0.040}),
]  # fmt: skip


def image_rows(data_root: str | None) -> list[Row]:
    def mnist(binarize: str) -> Callable[[int], pv.Dataset]:
        return lambda seed: pv.load("mnist", binarize=binarize, data_root=data_root, seed=seed)

    training = {"epochs": 10, "batch_size": 128, "lr": 1e-3}
    grey = {"likelihood": pv.Bernoulli(allow_grey=True)}
    mlp = {"latent_dim": 20, "hidden": (400,)}
    rows = [
        Row("MNIST 784-400-20, grey", mnist("none"), grey | mlp, training, None, {"loss": 106.66}),
        Row("MNIST 784-512-256-20, grey", mnist("none"), grey | {"latent_dim": 20, "hidden": (512, 256)}, training),
        Row("MNIST conv, latent 32, grey", mnist("none"),
            grey | {"latent_dim": 32, "hidden": (32, 64), "network": "conv"}, training),
    ]  # fmt: skip
    for beta in BETAS:
        settings = mlp | {"likelihood": pv.Bernoulli(), "beta": beta}
        rows.append(Row(f"MNIST dynamic, beta {beta:g}", mnist("dynamic"), settings, training))
    return rows
