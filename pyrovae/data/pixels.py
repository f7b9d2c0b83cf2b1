"""Grey levels made into pixels: binary ones, or real numbers in [0, 1)."""

import torch
from torch import Tensor

BINARIZE = ("none", "static", "dynamic", "dequantise")  # what `load` can make of grey levels


def binarize_grey(grey: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns floating-point pixels that are 1 with probability exactly grey / 255, else 0; `grey` is `uint8`."""
    level = torch.empty_like(grey).random_(0, 255, generator=generator)  # uniform on 0 ... 254
    return (level < grey).float()


def dequantize_grey(grey: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns (grey + u) / 256 with u uniform on [0, 1).

    The mean log-density of such pixels, less log 256 per pixel, is a lower bound on the log-probability of the levels.
    """
    noise = torch.rand(grey.shape, generator=generator, device=grey.device)
    return ((grey + noise) / 256).clamp(max=1 - 2**-24)  # rounding could reach 1
