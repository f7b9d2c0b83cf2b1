"""Arrays to draw, and what was drawn, for the tests of figures."""

import numpy as np
import pytest
import torch

AS_ARRAY_OR_TENSOR = pytest.mark.parametrize("given", [np.asarray, torch.from_numpy], ids=["array", "tensor"])


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


POINTS, LABELS = random(12, 2) * 6 - 3, np.arange(12) % 4


def lines_of(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def filled_of(collection) -> list[bool]:
    return [tuple(face[:3]) != (1, 1, 1) for face in collection.get_facecolors()]
