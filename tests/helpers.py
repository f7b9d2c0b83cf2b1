"""Small models and data, files of fake images, refusals and claims in standard errors, for several test files."""

import functools
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

import pyrovae as pv

# Seeds ----------------------------------------------------------------------------------------------------------------

# Of the whole run: each_test.py sets both from --base-seed before any test file is imported, and the programs that
# tests start read the variable.
BASE_SEED = int(os.environ.get("PYROVAE_BASE_SEED", "0"))


def suite_seed(number: int = 0) -> int:
    """The seed called `number` in this run of the suite: another one under every `--base-seed`, `number` under 0."""
    return number + 1_000 * BASE_SEED


# Shorter searches -----------------------------------------------------------------------------------------------------

# Settings of `proposal_misfit` where nobody reads by which factor a bad proposal should be wider: its search takes
# longer than a small estimate.
FEW_FACTORS = {"WIDER": (2.0,), "NARROWER": (0.5,), "MOST_DRAWS": 100}

# Toy sets -------------------------------------------------------------------------------------------------------------

# The toy sets' parameters, written out once more, so that a changed default is seen.
RINGS = {"ring": (8, 3.0, 0.25), "four_clusters": (4, 1.0, 0.2)}  # number of modes, radius, standard deviation
TOYS = (*RINGS, "pinwheel")
NUM_ARMS, RADIAL_STD, TANGENTIAL_STD, RATE = 5, 0.3, 0.05, 0.25


def centres(name: str) -> Tensor:
    """The means of a ring's Gaussians, `(num_modes, 2)`."""
    num_modes, radius, _ = RINGS[name]
    angles = [2 * math.pi * k / num_modes for k in range(num_modes)]
    return torch.tensor([[radius * math.cos(a), radius * math.sin(a)] for a in angles], dtype=torch.float64)


def polar(radius: Tensor, angle: Tensor) -> Tensor:
    """Points at this radius and angle, `(..., 2)`."""
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


# Models and data ------------------------------------------------------------------------------------------------------


def linear_gaussian(
    seed: int, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7, pinned: bool = False
) -> pv.LinearGaussianVAE:
    """A random `LinearGaussianVAE` in float64; `pinned` for a test of this very model, the same at every base seed."""
    generator = torch.Generator().manual_seed(seed if pinned else suite_seed(seed))
    weight = torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64)
    bias = torch.randn(data_dim, generator=generator, dtype=torch.float64)
    prior_mean = torch.randn(latent_dim, generator=generator, dtype=torch.float64)
    return pv.LinearGaussianVAE(weight, bias, scale, prior_mean)


def correlated() -> pv.LinearGaussianVAE:
    """A `LinearGaussianVAE` of three latents, each clearly correlated with the others under p(z|x)."""
    rows = [[1.0, 0.6, 0.3], [0.4, 1.0, 0.5], [0.6, 0.2, 1.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]
    weight, zeros = torch.tensor(rows, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    return pv.LinearGaussianVAE(weight, zeros, 0.7, zeros[:3])


def draw(vae: pv.LinearGaussianVAE, num: int) -> Tensor:
    """x ~ p(x), `(num, D)`."""
    with torch.no_grad():
        return vae.decode(vae.prior.sample((num,))).sample()


def small_vae(event_shape=(2,), *, seed: int | None = 3, **settings) -> pv.VAE:
    """An untrained VAE whose initial parameters `seed` fixes; with None they come from the test's own generator."""
    defaults = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5, learn_scale=True)}
    if seed is not None:
        torch.manual_seed(suite_seed(seed))
    return pv.VAE(event_shape, **{**defaults, **settings})


def conditional_vae(condition, event_shape=(3,), **settings) -> pv.VAE:
    """A small VAE with a condition or several, whose initial parameters come from the test's own generator."""
    settings = {"likelihood": pv.Gaussian(0.5), **settings}
    return small_vae(event_shape, seed=None, condition=condition, **settings)


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Moves the parameters of `module` a little, for example off those that make a flow the identity; returns it."""
    generator = torch.Generator().manual_seed(suite_seed(seed))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


OF_MIXTURES = ("siwae", "miselbo")  # objectives that need a mixture as the guide


def every_objective() -> dict[str, pyro.infer.ELBO]:
    """All objectives by name, with two particles."""
    return {
        name: pv.objectives.from_name(name, **({} if name == "elbo_enumerated" else {"num_particles": 2}))
        for name in sorted(pv.objectives.OBJECTIVES)
    }


def parameters_of(vae: nn.Module) -> Tensor:
    """A copy of all parameters, as one vector."""
    return nn.utils.parameters_to_vector(vae.parameters()).detach().clone()


def ring(num_train=100, num_validation=40, num_test=30, **settings) -> pv.Dataset:
    return pv.load("ring", num_train=num_train, num_validation=num_validation, num_test=num_test, **settings)


class HalfPrior(dist.TorchDistribution):
    """Draws from q(z|x) and from the prior by turns of a coin: weights p(x, z) / q(z) of at most 2 p(x|z).

    An untrained guide misses some of the posterior, and the weights of its own draws can have no variance: no standard
    error would hold.
    """

    def __init__(self, q, prior):
        super().__init__(q.batch_shape, q.event_shape, validate_args=False)
        self.q, self.prior = q, prior

    @property
    def support(self):
        return self.q.support

    def expand(self, batch_shape, _instance=None):
        return HalfPrior(self.q.expand(batch_shape), self.prior)

    def sample(self, sample_shape=()):
        q = self.q.sample(sample_shape)
        coin = torch.rand(q.shape[: q.dim() - self.event_dim]) < 0.5
        coin = coin.reshape(coin.shape + (1,) * self.event_dim)
        return torch.where(coin, q, self.prior.sample((*sample_shape, *self.batch_shape)))

    def log_prob(self, value):
        return torch.logaddexp(self.q.log_prob(value), self.prior.log_prob(value)) - math.log(2)


class Pair:
    """A model and a guide as `fit` takes them."""

    def __init__(self, model, guide):
        self.model, self.guide = model, guide


def discrete_pair():
    logits = torch.zeros(3, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(3)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        free = pyro.param("logits", logits)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=free.expand(len(x), 3)).to_event(1))

    return Pair(model, guide)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


GREY_LEVELS = torch.arange(256, dtype=torch.float64) / 255


def unit_quadrature(panels: int = 64, order: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on each of the `panels` of [0, 1], in float64."""
    nodes, weights = (torch.from_numpy(values) for values in leggauss(order))
    left = torch.arange(panels, dtype=torch.float64)[:, None]
    return ((left + (nodes + 1) / 2) / panels).flatten(), (weights / (2 * panels)).repeat(panels)


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


def grey_of(num: int, seed: int = 0) -> Tensor:
    """The grey levels in the file, `(num, 1, HEIGHT, WIDTH)`."""
    return torch.from_numpy(fake_images(num, seed)[0]).unsqueeze(1)


def indices(x: Tensor) -> list[int]:
    """The index that each fake image spells, which no binarisation changes."""
    return (x.flatten(1)[:, :INDEX_BITS].long() * 2 ** torch.arange(INDEX_BITS)).sum(-1).tolist()


def write_images(root: Path, name: str = "MNIST", seed: int = 0, nums: tuple[int, int] = (NUM_TRAIN, NUM_TEST)) -> Path:
    """A folder of the images that `fake_images` gives, as torchvision names it. Returns its `raw` folder."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for num, split_seed, image_file, label_file in zip(nums, (seed, seed + 1), IMAGE_FILES, LABEL_FILES, strict=True):
        images, labels = fake_images(num, split_seed)
        (raw / image_file).write_bytes(idx(images))
        (raw / label_file).write_bytes(idx(labels))
    return raw


def write_first_images(source: Path, root: Path, nums: tuple[int, int]) -> None:
    """A folder of the first `nums` images, to train on and to test, of the MNIST in `source`."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for num, image_file, label_file in zip(nums, IMAGE_FILES, LABEL_FILES, strict=True):
        for name, shape in ((image_file, (28, 28)), (label_file, ())):
            size = math.prod(shape)
            with (source / "MNIST" / "raw" / name).open("rb") as file:
                file.seek(8 + 4 * len(shape))
                read = np.frombuffer(file.read(num * size), np.uint8)
            (raw / name).write_bytes(idx(read.reshape(num, *shape)))


def load_fake(root: Path, name: str = "mnist", **kwargs) -> pv.Dataset:
    return pv.load(name, data_root=root, **{"num_validation": 10, **kwargs})


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


CHANCE = 1e-6  # a p-value that no seed of ours meets by chance, about that of five standard errors
ROUNDING = 32  # units in the last place: what a sum of some hundred terms loses


def coarsest(*values) -> torch.dtype:
    """The floating dtype of the fewest digits among the tensors; a Python number counts as float64."""
    kinds = [v.dtype for v in values if isinstance(v, Tensor) and v.dtype.is_floating_point]
    return max([torch.float64, *kinds], key=lambda kind: torch.finfo(kind).eps)


def rounding(*values, dtype: torch.dtype | None = None) -> Tensor:
    """Returns how far apart rounding alone may put two values: `ROUNDING` units of the dtype, times max(1, |values|).

    A saturated value has a standard error of 1e-10 and less, and differs from the truth in its last bits. This is 4e-6
    in float32 and 7e-15 in float64, relative above 1. No claim here is about a fault that small: a wrong term,
    factor or sign moves a value by a thousandth at least.
    """
    size = [torch.as_tensor(v, dtype=torch.float64).detach().abs() for v in values]
    largest = functools.reduce(torch.maximum, size, torch.ones((), dtype=torch.float64))
    return ROUNDING * torch.finfo(dtype or coarsest(*values)).eps * largest


def assert_within_standard_errors(
    estimate, truth, standard_error, most: float = 5.0, note: str = "", dtype: torch.dtype | None = None
) -> None:
    """|estimate - truth| <= most * standard_error + rounding, elementwise; the message has all of the worst element.

    `rounding` is that of the coarsest dtype among the three as they come. Where a float was computed in float32 and no
    tensor beside it shows this, say `dtype=torch.float32`.
    """
    floor = rounding(estimate, truth, dtype=dtype or coarsest(estimate, truth, standard_error))
    estimate, truth, error = (
        torch.as_tensor(v, dtype=torch.float64).detach() for v in (estimate, truth, standard_error)
    )
    estimate, truth, error, floor = torch.broadcast_tensors(estimate, truth, error, floor)
    excess = (estimate - truth).abs() - most * error - floor
    worst = excess.nan_to_num(nan=math.inf).flatten().argmax()
    at = [t.flatten()[worst].item() for t in (estimate, truth, error, floor)]
    z = abs(at[0] - at[1]) / at[2] if at[2] else math.inf
    message = (
        f"estimate {at[0]:.6g}, truth {at[1]:.6g}, standard error {at[2]:.3g}: {z:.1f} standard errors apart, "
        f"more than {most:g} and {at[3]:.2g} for rounding. {note}"
    )
    assert (excess <= 0).all(), message  # false for nan, too


def mean_and_error(draws: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Mean of independent draws along `dim` and its standard error."""
    return draws.mean(dim), draws.std(dim) / math.sqrt(draws.shape[dim])
