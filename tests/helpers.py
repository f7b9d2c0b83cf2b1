"""What several test files need: small models and data, files of fake images, refusals, claims in standard errors."""

import functools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

# Models and data ------------------------------------------------------------------------------------------------------


def linear_gaussian(seed: int, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7) -> pv.LinearGaussianVAE:
    """A random `LinearGaussianVAE` in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(data_dim, generator=generator, dtype=torch.float64)
    prior_mean = torch.randn(latent_dim, generator=generator, dtype=torch.float64)
    return pv.LinearGaussianVAE(weight, bias, scale, prior_mean)


def draw(vae: pv.LinearGaussianVAE, num: int) -> Tensor:
    """x ~ p(x), `(num, D)`."""
    with torch.no_grad():
        return vae.decode(vae.prior.sample((num,))).sample()


def small_vae(event_shape=(2,), *, seed: int | None = 3, **settings) -> pv.VAE:
    """An untrained VAE whose initial parameters `seed` fixes; with None they come from the test's own generator."""
    defaults = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5, learn_scale=True)}
    if seed is not None:
        torch.manual_seed(seed)
    return pv.VAE(event_shape, **{**defaults, **settings})


def parameters_of(vae: nn.Module) -> Tensor:
    """A copy of all parameters, as one vector."""
    return nn.utils.parameters_to_vector(vae.parameters()).detach().clone()


def ring(num_train=100, num_validation=40, num_test=30, **settings) -> pv.Dataset:
    return pv.load("ring", num_train=num_train, num_validation=num_validation, num_test=num_test, **settings)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Files ----------------------------------------------------------------------------------------------------------------

IMAGE_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
LABEL_FILES = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
HEIGHT, WIDTH, INDEX_BITS, NUM_TRAIN, NUM_TEST = 4, 5, 8, 40, 12


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the IDX format."""
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">4B", 0, 0, 8, array.ndim) + shape + array.astype(np.uint8).tobytes()


@functools.cache
def fake_images(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(num, HEIGHT, WIDTH)` whose first pixels spell their index in 0 and 255, the rest grey; and labels."""
    generator = np.random.default_rng(seed)
    images = generator.integers(30, 226, size=(num, HEIGHT * WIDTH))
    images[:, :INDEX_BITS] = 255 * (np.arange(num)[:, None] // 2 ** np.arange(INDEX_BITS) % 2)
    return images.reshape(num, HEIGHT, WIDTH), generator.integers(0, 10, size=num)


def write_images(root: Path, name: str = "MNIST", seed: int = 0, nums: tuple[int, int] = (NUM_TRAIN, NUM_TEST)) -> Path:
    """A folder of the images that `fake_images` gives, as torchvision names it. Returns its `raw` folder."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for num, split_seed, image_file, label_file in zip(nums, (seed, seed + 1), IMAGE_FILES, LABEL_FILES, strict=True):
        images, labels = fake_images(num, split_seed)
        (raw / image_file).write_bytes(idx(images))
        (raw / label_file).write_bytes(idx(labels))
    return raw


def load_fake(root: Path, **kwargs) -> pv.Dataset:
    return pv.load("mnist", data_root=root, **{"num_validation": 10, **kwargs})


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything under `root`, with what is in it."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


# Claims ---------------------------------------------------------------------------------------------------------------


def refusal(call: Callable, *args, **kwargs) -> str:
    """The one line with which `call` refuses its arguments."""
    with pytest.raises(pv.InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def assert_within_standard_errors(estimate, truth, standard_error, most: float = 5.0, note: str = "") -> None:
    """|estimate - truth| <= most * standard_error, elementwise; the message has all three of the worst element."""
    estimate, truth, error = (
        torch.as_tensor(v, dtype=torch.float64).detach() for v in (estimate, truth, standard_error)
    )
    z = ((estimate - truth) / error).abs()
    worst = z.flatten().argmax()
    values = [t.expand_as(z).flatten()[worst].item() for t in (estimate, truth, error)]
    message = (
        f"estimate {values[0]:.6g}, truth {values[1]:.6g}, standard error {values[2]:.3g}: "
        f"{z.max().item():.1f} standard errors apart. {note}"
    )
    assert z.max() <= most, message  # false for nan, too


def mean_and_error(draws: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Mean of independent draws along `dim` and its standard error."""
    return draws.mean(dim), draws.std(dim) / math.sqrt(draws.shape[dim])
