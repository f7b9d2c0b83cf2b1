"""What every figure starts with."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Array = np.ndarray | Tensor


def as_numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def axes_or_new(axes: Axes | None) -> Axes:
    return plt.subplots(figsize=(4, 4), layout="constrained")[1] if axes is None else axes


def figure_row(columns: int, width: float = 4.0, height: float = 3.6) -> tuple[Figure, list]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
