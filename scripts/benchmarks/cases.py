"""The VAEs that are timed, and what all columns of the table share."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.common import read_text

LEARNING_RATE = 1e-3
GAUSSIAN_SCALE = 0.3

Step = Callable[[], object]  # makes one training step
Gradient = Callable[[], tuple[float, list[Tensor]]]  # returns the loss and its gradients by all parameters


@dataclass(frozen=True)
class Case:
    """Holds a VAE, its batch and its objective."""

    name: str
    event_shape: tuple[int, ...]
    latent_dim: int
    hidden: tuple[int, ...]
    batch_size: int
    num_particles: int = 1
    network: str = "mlp"

    @property
    def binary(self) -> bool:
        return len(self.event_shape) == 3

    def vae(self, device: torch.device, posterior: str = "diagonal") -> pv.VAE:
        torch.manual_seed(0)
        likelihood = pv.Bernoulli() if self.binary else pv.Gaussian(GAUSSIAN_SCALE)
        vae = pv.VAE(
            self.event_shape,
            latent_dim=self.latent_dim,
            hidden=self.hidden,
            likelihood=likelihood,
            network=self.network,
            posterior=posterior,
        )
        return vae.to(device)

    def batch(self, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch_size, *self.event_shape, generator=generator)
        return (x > 0.8).float().to(device) if self.binary else x.to(device)


CASES = [
    Case("ring 2-128-2, B 256, ELBO", (2,), 2, (128,), 256),
    Case("MNIST 784-400-20, B 128, ELBO", (1, 28, 28), 20, (400,), 128),
    Case("MNIST 784-400-20, B 100, IWAE-50", (1, 28, 28), 20, (400,), 100, num_particles=50),
    Case("MNIST conv 32-64, B 128, ELBO", (1, 28, 28), 20, (32, 64), 128, network="conv"),
]
LOG_PX_CASE = CASES[1]
NAME_OF_CACHE = "TORCHINDUCTOR_CACHE_DIR"
LOG_PX_ROW, EPOCHS_ROW, OBJECTIVES_ROW = "log p(x)", "epochs", "objectives"


def seconds_per_call(step: Step, count: int, device: torch.device) -> float:
    """Returns the seconds per call, over `count` calls."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


@contextmanager
def first_compilations() -> Iterator[None]:
    """Within the block graphs are compiled, and none of an earlier run is loaded.

    They are kept in a folder of their own, unless `TORCHINDUCTOR_CACHE_DIR` says where.
    """
    if NAME_OF_CACHE in os.environ:
        yield
        return
    with TemporaryDirectory() as folder:
        os.environ[NAME_OF_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[NAME_OF_CACHE]


def machine(device: torch.device) -> str:
    """Returns the name of the GPU, or the number and name of the processor's cores and torch's version."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in read_text(cpuinfo).splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{os.cpu_count()} cores of an {name}, torch {torch.__version__.partition('+')[0]}"
