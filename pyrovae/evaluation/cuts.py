"""Decides whether the data of a pair may be cut into chunks: a datum's terms must be those that it has among all data.

They are not if a program reads the whole batch, takes rows of something that it holds besides its arguments (a mask, a
parameter for each datum), or if a matrix of one row for each datum belongs to all data. Whether that is so is seen in
the log-weights of one chunk, at the same draws.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.common import first_line, is_out_of_memory, local_seed, warn
from pyrovae.evaluation.arguments import tensors_in
from pyrovae.evaluation.chunks import Data, Opened
from pyrovae.evaluation.rows import data_dim_of
from pyrovae.programs import Pair, pair_at, run_pair

DATA_COMPARED = 1_024  # of more data, the last so many stand for all, or fewer if memory does not suffice for them
ROUNDINGS = 64  # units in the last place, by which the terms of a datum may differ
LATENT_ROUNDINGS = 100  # times the effect of a few roundings of the latents, by which they may differ, too


def cut(model: Callable, guide: Callable, found: Opened, size: int) -> Data:
    """Returns the data, to be taken in chunks of `size`; or whole, with a warning, if they may not be cut."""
    data = found.data
    if size >= data.size or data.is_whole:
        return data
    why = why_not_cut(model, guide, found, size)
    if why is None:
        return data
    warn(f"all {data.size:,} data are taken at once, and not in chunks of {size:,}: {why}")
    return replace(data, is_whole=True)


def rows_of_draws(draws: dict[str, Tensor], pair: Pair, particles: slice, rows: slice) -> dict[str, Tensor]:
    """Returns the draws of some particles and of some data, as `Pair.draws` of `pair` gives those of all."""
    parts = {}
    for name, value in draws.items():
        site = pair.guide_sites[name]
        if pair.is_local(site):
            event_dim = site["fn"].event_dim
            index: list[slice] = [slice(None)] * value.dim()
            particle_dim, data_dim = pair.layout.particle_dim, data_dim_of(site, pair.layout)
            index[0 if particle_dim is None else particle_dim - event_dim] = particles
            if data_dim is not None:
                index[data_dim - event_dim] = rows
            value = value[tuple(index)]
        parts[name] = value
    return parts


@torch.no_grad()
def why_not_cut(model: Callable, guide: Callable, found: Opened, size: int) -> str | None:
    """Returns why the data cannot be taken in chunks of this size, or None if they can."""
    data, pair = found.data, found.pair
    if len(pair.plates) != 1:
        return "they lie in several plates"
    if any(data_dim_of(site, pair.layout) is None for site in _local_sites(pair)):
        return "their plate is not vectorized"
    if not any(map(data.is_data, tensors_in(data.whole))):
        return "no tensor among the arguments has a row for each"
    most = max(2, min(DATA_COMPARED, found.pairs_in_memory))
    compared = data.rows(max(0, data.size - most), data.size)
    size = size if size < compared.size else compared.size // 2
    part = compared.rows(compared.size - size, compared.size)  # the last ones: a program may well take the first
    rows = slice(compared.size - size, compared.size)
    try:
        with local_seed(0):
            whole = run_pair(model, guide, *compared.args, num_particles=1, reading=found.reading)
            draws = rows_of_draws(whole.draws(), whole, slice(None), rows)
            own = pair_at(model, guide, draws, *part.args, like=whole)
            if own.batch != size:
                return f"a part of {size:,} has {own.batch:,}"
            ours, theirs = _terms(whole, rows), _terms(own, slice(None))
            off = torch.where(ours == theirs, 0.0, (ours - theirs).abs())  # both may be -inf
            allowed = ROUNDINGS * torch.finfo(ours.dtype).eps * _sizes(whole, rows)
            if bool((off <= allowed).all()):
                return None
            moved = {name: _rounded(value) for name, value in draws.items()}
            rounding = (_terms(pair_at(model, guide, moved, *part.args, like=whole), slice(None)) - theirs).abs()
            if bool((off <= allowed + LATENT_ROUNDINGS * rounding.max()).all()):
                return None
    except Exception as error:  # a program may fail in any way on a part of what it needs
        if is_out_of_memory(error):
            raise
        return f"a part of them cannot be taken alone ({first_line(error)})"
    return f"alone, a part of them has other log-weights than among all, by up to {off.max().item():.3g} nats"


def _local_sites(pair: Pair) -> list[dict]:
    return [s for sites in (pair.model_sites, pair.guide_sites) for s in sites.values() if pair.is_local(s)]


def _terms(pair: Pair, rows: slice) -> Tensor:
    """Returns the log-weights of some data and, after them, the log-densities of the sites that all data share."""
    return _with_globals(pair, pair.terms().log_weights[0, rows])


def _sizes(pair: Pair, rows: slice) -> Tensor:
    """Returns the sizes of the terms that make up those of `_terms`."""
    terms = pair.terms()
    parts = terms.log_likelihood, terms.log_prior, terms.log_posterior
    sizes = torch.stack([part[0, rows].abs() for part in parts]).sum(0)
    return 1 + _with_globals(pair, sizes).abs()


def _with_globals(pair: Pair, terms: Tensor) -> Tensor:
    return torch.cat([terms, torch.stack([term.to(terms) for term in pair.global_terms(scaled=False)])])


def _rounded(value: Tensor) -> Tensor:
    """Returns a draw that is off by a few roundings."""
    return value * (1 - 4 * torch.finfo(value.dtype).eps) if value.is_floating_point() else value
