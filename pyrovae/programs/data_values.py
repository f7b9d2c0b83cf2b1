"""Names data that no density of a pair takes: values that are not finite, and a dtype that it cannot compute with."""

from collections.abc import Callable
from contextlib import suppress

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import (
    InputError,
    first_line,
    is_out_of_memory,
    is_validation_error,
    kept_generators,
    require_finite_data,
    scale_hint,
)
from pyrovae.programs.sites import sample_sites

_FLOATS = {torch.float32: "x.float()", torch.float64: "x.double()"}


def check_finite_data(model: Callable, args: tuple) -> None:
    """Raises `InputError` unless the first argument, if it is a tensor of real numbers, has finite values.

    NaN is a missing cell to a model that says `missing = "mask"`. To look at every batch would cost more than a small
    step does, so that objectives look at the first of each structure.
    """
    if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
        require_finite_data(args[0], model)


def check_data_values(model: Callable, args: tuple, error: Exception) -> None:
    """Raises `InputError` if values of the data are why a pair failed by `error`: not finite, or far from scaled."""
    if is_validation_error(error) or " is outside " in str(error):
        check_finite_data(model, args)  # only now, as a program may know what to do with NaN
        large = scale_hint(model, error, *args)
        if large:
            raise InputError(f"{large}{first_line(error)}") from error


def refuse_dtype(name: str, site: dict, error: Exception) -> None:
    """Raises `InputError` if the density of a site failed by `error` because of its value's dtype, and says which."""
    value = site["value"]
    if not (site["is_observed"] and isinstance(value, Tensor)) or is_out_of_memory(error):
        return
    for dtype, said in _FLOATS.items():
        if dtype != value.dtype and _takes(site, value.to(dtype)):
            found = str(value.dtype).removeprefix("torch.")
            raise InputError(f'site "{name}": data are {found}; say {said}') from error


def refuse_dtypes(model: Callable, guide: Callable, args: tuple, kwargs: dict, error: Exception) -> None:
    """Does what `refuse_dtype` does for every site of a pair, which is run once more for that."""
    sites: dict[str, dict] = {}
    with kept_generators(), torch.no_grad(), suppress(RuntimeError, TypeError, ValueError):
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = sample_sites(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs))
    for name, site in sites.items():
        if not _takes(site, site["value"]):
            refuse_dtype(name, site, error)


@torch.no_grad()
def _takes(site: dict, value: Tensor) -> bool:
    try:
        site["fn"].log_prob(value)
    except (RuntimeError, TypeError, ValueError):
        return False
    return True
