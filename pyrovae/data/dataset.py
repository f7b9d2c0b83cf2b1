"""Data sets held in memory: toy densities with their exact log-density, and image sets through torchvision."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torchvision.datasets.mnist import read_image_file, read_label_file

from pyrovae.common import InputError, derived_seed, require, require_choice, require_count, require_seed

IMAGE_SETS = {
    "mnist": torchvision.datasets.MNIST,
    "fashion_mnist": torchvision.datasets.FashionMNIST,
    "kmnist": torchvision.datasets.KMNIST,
}
BINARIZE = ("none", "static", "dynamic", "dequantise")
NUM_VALIDATION_IMAGES = 5_000
NUM_VALIDATION_POINTS = 1_000
NUM_TEST_POINTS = 2_000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test data in memory, on one device.

    `*_x` are `(num, *event_shape)` floats, `*_y` are `(num,)` integer labels, or what `with_conditions` made of them.
    `kind` says what an event is: `"real"`, `"binary"` (0 or 1), `"grey"` (one of 256 levels in [0, 1]) or
    `"dequantised"` (those with uniform noise, in [0, 1)). Under dynamic binarisation, and dequantised, `train_x` is one
    draw, fixed by the seed, and `batches` draws afresh from `train_grey` (0 to 255, `uint8`) each time it is called.
    `log_density(x)` is the exact log-density of the data in nats, `(num,)`, where it is known.
    """

    name: str
    kind: str
    train_x: Tensor
    train_y: Tensor | tuple[Tensor, ...]
    validation_x: Tensor
    validation_y: Tensor | tuple[Tensor, ...]
    test_x: Tensor
    test_y: Tensor | tuple[Tensor, ...]
    train_grey: Tensor | None = None
    log_density: Callable[[Tensor], Tensor] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.train_x.shape[1:])

    @property
    def train_mean(self) -> Tensor:
        """Mean of the training data per coordinate, `event_shape`: what a decoder's output bias starts from."""
        if self.train_grey is not None:
            return self.train_grey.sum(0) / (255.0 * len(self.train_grey))
        return self.train_x.mean(0)

    def arguments(self, split: str) -> tuple[Tensor, ...]:
        """`(x, y)` of a split, or `(x, y_1, y_2, ...)`: what a conditional model is called with."""
        x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
        return (x, *y) if isinstance(y, tuple) else (x, y)

    def with_conditions(self, condition: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> "Dataset":
        """The same data with `condition(x, y)`, a tensor or a tuple of them, in place of the labels y of each split."""
        changed = {f"{s}_y": condition(getattr(self, f"{s}_x"), getattr(self, f"{s}_y")) for s in SPLITS}
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Dataset":
        def move(value):
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """One epoch of `(x, y)` in a new random order from torch's global generator; the last batch may be smaller."""
        require_count("batch_size", batch_size)
        # The order is drawn on the CPU, so that it is the same on every device.
        return map(self.batch, torch.randperm(len(self.train_x)).split(batch_size))

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`(x, y)` of these rows of the training data, whose pixels are drawn anew where they are random."""
        index = rows.to(self.train_x.device)
        x, *y = (part[index] for part in self.arguments("train"))
        if self.train_grey is not None:
            x = (binarize_grey if self.kind == "binary" else dequantize_grey)(self.train_grey[index])
        return x, *y


def load(
    name: str,
    *,
    binarize: str | None = None,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    data_root: str | Path | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set by name: `ring`, `four_clusters`, `pinwheel`, `mnist`, `fashion_mnist` or `kmnist`.

    Toy sets are drawn anew from `seed`; each split has a stream of its own, so that the test set does not depend on
    `num_train`. Image sets are read from `data_root` (else `$PYROVAE_DATA`, else `./data`) and downloaded to it by
    torchvision where they are missing; validation images are the last of the training file. `binarize` says what
    becomes of their 256 grey levels:

    - `"dynamic"`, the default: 0/1 pixels, training images drawn again at each epoch (Burda et al. 2016,
      arXiv:1509.00519);
    - `"static"`: 0/1 pixels, drawn once, fixed by `seed`;
    - `"dequantise"`: (level + uniform noise) / 256, drawn again at each epoch: what a density on [0, 1] needs in place
      of 256 atoms (Theis et al. 2016, arXiv:1511.01844);
    - `"none"`: level / 255.

    Validation and test images are always drawn once, fixed by `seed`.

    Raises `InputError` on an unknown name, a bad count, or a missing or corrupt file.
    """
    require_choice("dataset", name, DATASETS)
    require_seed(seed)
    for field, count, minimum in (
        ("num_train", num_train, 1),
        ("num_validation", num_validation, 0),
        ("num_test", num_test, 1),
    ):
        if count is not None:
            require_count(field, count, minimum)
    if name in IMAGE_SETS:
        root = Path(data_root or os.environ.get("PYROVAE_DATA") or "data")
        counts = num_train, NUM_VALIDATION_IMAGES if num_validation is None else num_validation, num_test
        return _load_images(name, "dynamic" if binarize is None else binarize, counts, root, seed)
    require(binarize is None, f"binarize is for image sets, and {name} holds points; got {binarize!r}")
    density, default_train = TOY_DENSITIES[name]
    counts = (
        default_train if num_train is None else num_train,
        NUM_VALIDATION_POINTS if num_validation is None else num_validation,
        NUM_TEST_POINTS if num_test is None else num_test,
    )
    splits = [density.sample(n, _generator(seed, split)) for n, split in zip(counts, SPLITS, strict=True)]
    return Dataset(name, "real", *(t for split in splits for t in split), log_density=density.log_density)


# Toy densities ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianRing:
    """`num_modes` isotropic Gaussians of one standard deviation, evenly spaced on a circle, with equal weights."""

    num_modes: int
    radius: float
    std: float

    @property
    def centres(self) -> Tensor:
        angle = torch.arange(self.num_modes, dtype=torch.float64) * (2 * math.pi / self.num_modes)
        return self.radius * torch.stack((angle.cos(), angle.sin()), -1)

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(self.num_modes, (num,), generator=generator)
        noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        return (self.centres[y] + self.std * noise).float(), y

    def log_density(self, x: Tensor) -> Tensor:
        modes = Independent(Normal(self.centres, self.std), 1)
        mixture = MixtureSameFamily(Categorical(logits=torch.zeros(self.num_modes, dtype=torch.float64)), modes)
        return mixture.log_prob(x.double().cpu()).to(x)


@dataclass(frozen=True)
class Pinwheel:
    """Gaussian arms, bent: u ~ N((1, 0), diag(radial^2, tangential^2)), x = R(2 pi k / num_arms + rate exp(u_1)) u.

    Source: Johnson et al. 2016, arXiv:1603.06277 (their figure 1; scale as in u, not multiplied by ten).
    """

    num_arms: int = 5
    radial_std: float = 0.3
    tangential_std: float = 0.05
    rate: float = 0.25

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Arms are balanced: each has `num / num_arms` points, to one."""
        y = torch.arange(num) % self.num_arms
        y = y[torch.randperm(num, generator=generator)]
        std = torch.tensor([self.radial_std, self.tangential_std], dtype=torch.float64)
        u = torch.randn(num, 2, generator=generator, dtype=torch.float64) * std + torch.tensor([1.0, 0.0])
        angle = 2 * math.pi * y / self.num_arms + self.rate * u[:, 0].exp()
        x = torch.stack(
            (u[:, 0] * angle.cos() - u[:, 1] * angle.sin(), u[:, 0] * angle.sin() + u[:, 1] * angle.cos()), -1
        )
        return x.float(), y

    def log_density(self, x: Tensor, num_grid: int = 1_024) -> Tensor:
        """Change of variables. Rotation keeps the radius, so that x at (r, phi) comes from every u = r (cos a, sin a)
        on the same circle with a + 2 pi k / num_arms + rate exp(r cos a) = phi (mod 2 pi), and dphi / da =
        1 - rate exp(u_1) u_2. The roots a are bracketed on a grid and bisected to rounding (all of them for r <= 6;
        the data have r < 3).
        """
        point = x.double().cpu()
        radius, phi = point.norm(dim=-1)[:, None, None], torch.atan2(point[:, 1], point[:, 0])[:, None, None]
        arm = (2 * math.pi / self.num_arms) * torch.arange(self.num_arms, dtype=torch.float64)[:, None]
        grid = torch.linspace(-math.pi, math.pi, num_grid + 1, dtype=torch.float64)

        def mismatch(a, radius, phi, arm):
            return a + arm + self.rate * (radius * a.cos()).exp() - phi

        # Whole turns are no mismatch: within a cell, the number of turns nearest to its left end is taken off.
        left, right = (mismatch(a, radius, phi, arm) for a in (grid[:-1], grid[1:]))
        turns = 2 * math.pi * torch.ceil(torch.minimum(left, right) / (2 * math.pi))
        row, arm_index, cell = (turns < torch.maximum(left, right)).nonzero(as_tuple=True)
        turns = turns[row, arm_index, cell]
        low, high = grid[cell], grid[cell + 1]
        rising = (left < right)[row, arm_index, cell]
        at = radius[row, 0, 0], phi[row, 0, 0], arm[arm_index, 0]
        for _ in range(50):
            middle = (low + high) / 2
            beyond = (mismatch(middle, *at) > turns) == rising
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        u = at[0][:, None] * torch.stack((low.cos(), low.sin()), -1)
        std = torch.tensor([self.radial_std, self.tangential_std], dtype=torch.float64)
        base = Independent(Normal(torch.tensor([1.0, 0.0], dtype=torch.float64), std), 1)
        log_volume = (1 - self.rate * u[:, 0].exp() * u[:, 1]).abs().log()
        terms = base.log_prob(u) - log_volume - math.log(self.num_arms)
        peak = torch.full(point.shape[:1], -math.inf, dtype=torch.float64).scatter_reduce(0, row, terms, "amax")
        total = torch.zeros_like(peak).scatter_add(0, row, (terms - peak[row]).exp())
        return (peak + total.log()).to(x)


# Each toy density with the number of training points that the tutorials draw from it.
TOY_DENSITIES = {
    "ring": (GaussianRing(num_modes=8, radius=3.0, std=0.25), 2_000),
    "four_clusters": (GaussianRing(num_modes=4, radius=1.0, std=0.2), 800),
    "pinwheel": (Pinwheel(), 4_000),
}
DATASETS = (*TOY_DENSITIES, *IMAGE_SETS)
NUM_CLASSES = {"ring": 8, "four_clusters": 4, "pinwheel": 5, **dict.fromkeys(IMAGE_SETS, 10)}
SPLITS = ("train", "validation", "test")


def _generator(seed: int, split: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, split))


# Images -------------------------------------------------------------------------------------------------------------


def binarize_grey(grey: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """0/1 pixels (float) that are 1 with probability exactly grey / 255; `grey` is `uint8`."""
    level = torch.empty_like(grey).random_(0, 255, generator=generator)  # uniform on 0 ... 254
    return (level < grey).float()


def dequantize_grey(grey: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(grey + u) / 256 with u uniform on [0, 1): a density under which has as its mean a bound on the levels' mass."""
    noise = torch.rand(grey.shape, generator=generator, device=grey.device)
    return ((grey + noise) / 256).clamp(max=1 - 2**-24)  # rounding could reach 1


def _load_images(
    name: str, binarize: str, counts: tuple[int | None, int, int | None], root: Path, seed: int
) -> Dataset:
    require_choice("binarize", binarize, BINARIZE)
    (train_grey, train_y), (test_grey, test_y) = _read_images(IMAGE_SETS[name], root)
    num_train, num_validation, num_test = counts
    num_train = len(train_grey) - num_validation if num_train is None else num_train
    num_test = len(test_grey) if num_test is None else num_test
    require(
        0 < num_train <= len(train_grey) - num_validation,
        f"num_train + num_validation must be <= {len(train_grey)} and leave something to train on, "
        f"got {num_train} + {num_validation}",
    )
    require(num_test <= len(test_grey), f"num_test must be <= {len(test_grey)}, got {num_test}")
    start = len(train_grey) - num_validation
    grey = {"train": train_grey[:num_train], "validation": train_grey[start:], "test": test_grey[:num_test]}
    if binarize == "none":
        x = {split: g.float() / 255 for split, g in grey.items()}
    else:
        draw = dequantize_grey if binarize == "dequantise" else binarize_grey
        x = {split: draw(g, _generator(seed, split)) for split, g in grey.items()}
    return Dataset(
        name,
        {"none": "grey", "dequantise": "dequantised"}.get(binarize, "binary"),
        *(x["train"], train_y[:num_train], x["validation"], train_y[start:], x["test"], test_y[:num_test]),
        train_grey=grey["train"] if binarize in ("dynamic", "dequantise") else None,
    )


def _read_images(dataset: type, root: Path) -> list[tuple[Tensor, Tensor]]:
    """[(train images, labels), (test images, labels)]; images `(num, 1, height, width)` `uint8`."""
    folder = root / dataset.__name__ / "raw"
    names = [url.removesuffix(".gz") for url, _ in dataset.resources]
    try:
        missing = [name for name in names if not (folder / name).is_file()]
    except OSError as error:  # the name is too long, for one
        raise InputError(f"data_root must be a folder, got {root} ({error.strerror})") from error
    if missing:
        _download(dataset, root, f"{', '.join(missing)} not found in {folder}")
    splits = []
    for image_name, label_name in (names[:2], names[2:]):
        images, labels = _read(read_image_file, folder / image_name), _read(read_label_file, folder / label_name)
        require(
            len(images) == len(labels) > 0,
            f"{folder / label_name} must hold one label per image of {image_name}, got {len(labels)} for {len(images)}",
        )
        splits.append((images.unsqueeze(1), labels))
    return splits


def _read(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        return reader(str(path))
    except (AssertionError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        detail = str(error).split("\n")[0] or "header and length do not agree"
        raise InputError(f"{path} is not a readable IDX file ({detail})") from error


def _download(dataset: type, root: Path, reason: str) -> None:
    # Into a temporary folder first, so that a download that breaks off leaves nothing half-written in `root`.
    with tempfile.TemporaryDirectory() as temporary:
        try:
            dataset(temporary, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            hint = "name the folder that holds it with data_root or PYROVAE_DATA"
            raise InputError(f"{reason}, and {dataset.__name__} could not be downloaded; {hint}") from error
        raw = Path(temporary) / dataset.__name__ / "raw"
        shutil.copytree(raw, root / dataset.__name__ / "raw", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.gz"))
