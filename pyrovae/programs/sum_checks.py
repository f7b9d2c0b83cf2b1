"""Checks the sums over the states of a model's own discrete sites."""

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch

from pyrovae.common import InputError, require
from pyrovae.programs.layout import frames_of
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.summed_sites import check_scales, summed_sites


def check_sums(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Raises `InputError` if a scale stands inside a sum, or if a site reads a state that `pyro.markov` has let go of.

    Such a site gets the state of another step without an error from Pyro, unless every state has its own dimension.
    """
    if not pair.layout.sums:
        return
    groups = pair.sums
    for group in groups:
        _check_subsamples(group)
    check_scales(groups)
    pair = replace(pair, others=())
    with torch.no_grad(), pyro.validation_enabled(False):
        found, start = [], saved_generators()
        for recycles in (True, False):
            restore_generators(start)  # the same subsample, if there is one
            try:
                at = pair_at(model, guide, pair.draws(), *args, like=pair, recycles=recycles, **kwargs)
                found.append(at.terms())
            except InputError:  # too many states for a dimension each
                return
    ours, apart = (terms.log_likelihood + terms.log_prior for terms in found)
    require(
        torch.allclose(ours, apart, rtol=1e-4, atol=1e-4, equal_nan=True),
        "a site must not read a summed site that is out of its reach: the history of pyro.markov is too short",
    )


def _check_subsamples(group: dict[str, dict]) -> None:
    """Raises `InputError` if a sum stands around a plate of which there is only a subsample."""
    for summed in summed_sites(group).values():
        inside = {frame.name for frame in frames_of(summed)}
        for site in group.values():
            for frame in frames_of(site):
                require(
                    frame.name in inside or frame.full_size in (None, -1, frame.size),
                    f'the plate "{frame.name}" must not be subsampled: the sum over the states of "{summed["name"]}" '
                    "couples all of it",
                )
