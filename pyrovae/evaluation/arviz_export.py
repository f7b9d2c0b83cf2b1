"""Draws of latents as ArviZ holds them, for its summaries and figures."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.common import InputError

DATUM = "datum"


def as_arviz(draws: Mapping[str, Tensor]) -> Any:
    """Returns draws of equal weight, each `(draws, data, *shape)`, as ArviZ holds them: one chain, a dimension of data.

    They are an `InferenceData` of ArviZ before 1.0, and from then on a `DataTree` of xarray.

    Raises:
        InputError: If ArviZ is not installed.
    """
    try:
        with warnings.catch_warnings():  # of versions before 1.0, which announce that one
            warnings.simplefilter("ignore")
            import arviz
    except ImportError as error:
        raise InputError("to_arviz needs ArviZ: pip install 'pyrovae[arviz]'") from error
    arrays = {name: value.detach().cpu().numpy()[None] for name, value in draws.items()}
    dims = {name: [DATUM, *(f"{name}_dim_{i}" for i in range(array.ndim - 3))] for name, array in arrays.items()}
    if int(arviz.__version__.partition(".")[0]) < 1:
        return arviz.from_dict(posterior=arrays, dims=dims)
    return arviz.from_dict({"posterior": arrays}, dims=dims)
