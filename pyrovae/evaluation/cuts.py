"""Decides whether the data of a pair may be cut into chunks: a datum's terms must be those that it has among all data.

They are not if a program reads the whole batch (its mean, its largest value, its first row), other rows of it (the next
one) or the place of a row, if it takes rows of something that it holds besides its arguments (a mask, a parameter for
each datum), or if a matrix of one row for each datum belongs to all data. Whether that is so is seen in the terms of
the chunks, at the same draws: of a few data of all chunks, of more of some. The first and the last are among them: a
row that is read by all others lies in one chunk at most, and the last chunk may be so small that it lacks what any
other has. Where the programs hold something that may have a row for each datum, all data and all chunks are compared if
memory allows, as a part of the data has other places than they have among all.

What log-weights are made of is compared, too: a guide that draws a latent from the model's own prior cancels it there.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import CapturedState, first_line, is_library, is_out_of_memory, local_seed, warn
from pyrovae.data import moved
from pyrovae.evaluation.arguments import tensors_in
from pyrovae.evaluation.chunks import Data, Opened
from pyrovae.evaluation.rows import data_dim_of
from pyrovae.programs import Pair, PairTerms, pair_at, run_pair

DATA_COMPARED = 1_024  # of more data, so many stand for all, or fewer if memory does not suffice for them
NUMBERS_AT_ONCE = 2**28  # that a decoder returns for all data: 1 GB
CHUNKS_COMPARED = 8
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
    try:
        with local_seed(0):
            fits = data.num * pair.outputs <= NUMBERS_AT_ONCE
            try:
                return _why_not_equal(model, guide, found, size, fits and _may_hold_rows(model, guide, found))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            return _why_not_equal(model, guide, found, size, all_of_them=False)
    except Exception as error:  # a program may fail in any way on a part of what it needs
        if is_out_of_memory(error):
            raise
        return f"a part of them cannot be taken alone ({first_line(error)})"


def _why_not_equal(model: Callable, guide: Callable, found: Opened, size: int, all_of_them: bool) -> str | None:
    """Returns how the terms of chunks differ from those that their data have among all, or None if they do not."""
    args, chunks = _compared(found, size, all_of_them)
    whole, first = run_pair(model, guide, *args, num_particles=1, reading=found.reading), 0
    draws, terms = whole.draws(), whole.terms()
    for chunk, is_compared in chunks:
        rows = slice(first, first + chunk.size)
        first = rows.stop
        if not is_compared:
            continue
        own_draws = rows_of_draws(draws, whole, slice(None), rows)
        own = pair_at(model, guide, own_draws, *chunk.args, like=whole)
        if own.batch != chunk.size:
            return f"a part of {chunk.size:,} has {own.batch:,}"
        ours, theirs = _parts(whole, terms, rows), _parts(own, own.terms(), slice(None))
        off = torch.where(ours == theirs, 0.0, (ours - theirs).abs())  # both may be -inf
        allowed = ROUNDINGS * torch.finfo(ours.dtype).eps * _sizes(whole, terms, rows)
        if bool((off <= allowed).all()):
            continue
        moved_draws = {name: _rounded(value) for name, value in own_draws.items()}
        nearby = pair_at(model, guide, moved_draws, *chunk.args, like=whole)
        rounding = (_parts(nearby, nearby.terms(), slice(None)) - theirs).abs()
        if not bool((off <= allowed + LATENT_ROUNDINGS * rounding.max()).all()):
            return f"alone, a part of them has other log-densities than among all, by up to {off.max().item():.3g} nats"
    return None


def _may_hold_rows(model: Callable, guide: Callable, found: Opened) -> bool:
    """Returns True if the programs hold something besides their arguments that may have a row for each datum.

    It is at least as long as the data. A weight of a library's layer rarely has rows of data, and must be as long.
    """
    state, num = CapturedState((model, guide)), found.data.num
    layers = [module for module in state.modules if is_library(type(module).__module__)]
    weights = {id(tensor) for layer in layers for tensor in (*layer._parameters.values(), *layer._buffers.values())}
    others = weights.union(map(id, tensors_in(found.data.whole)))
    held = [*state.objects, *(site["value"] for site in found.pair.parameters)]
    has_weight = any(num in _lengths(thing) for thing in held if id(thing) in weights)
    return has_weight or any(max(_lengths(thing), default=0) >= num for thing in held if id(thing) not in others)


def _lengths(thing: object) -> tuple[int, ...]:
    if isinstance(thing, Tensor | np.ndarray):
        return tuple(thing.shape)
    return (len(thing),) if isinstance(thing, list | tuple | dict) else ()


def _compared(found: Opened, size: int, all_of_them: bool) -> tuple[tuple, list[tuple[Data, bool]]]:
    """Returns the arguments that stand for all data, and their chunks, each with whether it is compared.

    Where there are more data than are run at once, chunks that are spread over them stand for all, unless all are asked
    for.
    """
    if all_of_them:
        return found.data.args, [(chunk, True) for chunk in found.data.in_chunks(size)]
    data, most = found.data, max(2, min(DATA_COMPARED, found.pairs_in_memory))
    size = size if data.size <= most else min(size, most // 2)
    chunks = list(data.in_chunks(size))
    args = data.args
    if data.size > most:
        chunks = [chunks[place] for place in _spread(len(chunks), most // size)]
        index = torch.cat([torch.arange(chunk.start, chunk.stop) for chunk in chunks])
        args = moved(data.at(index), data.device)
    compared = _spread(len(chunks), CHUNKS_COMPARED)
    return args, [(chunk, place in compared) for place, chunk in enumerate(chunks)]


def _spread(num: int, most: int) -> list[int]:
    """Returns the places among `num` of the first, the last and some between, `most` in all."""
    return torch.linspace(0, num - 1, min(num, most)).round().int().tolist()


def _local_sites(pair: Pair) -> list[dict]:
    return [s for sites in (pair.model_sites, pair.guide_sites) for s in sites.values() if pair.is_local(s)]


def _parts(pair: Pair, terms: PairTerms, rows: slice) -> Tensor:
    """Returns the log-weights of some data, what they are made of, and the log-densities that all data share.

    The last are those of the sites outside the data plate. `terms` are those of the pair, for all of its data.
    """
    parts = terms.log_weights, terms.log_likelihood, terms.log_prior, terms.log_posterior
    return _with_globals(pair, torch.cat([part[0, rows] for part in parts]))


def _sizes(pair: Pair, terms: PairTerms, rows: slice) -> Tensor:
    """Returns the sizes of what makes up those of `_parts`."""
    parts = terms.log_likelihood, terms.log_prior, terms.log_posterior
    sizes = torch.stack([part[0, rows].abs() for part in parts]).sum(0)
    return 1 + _with_globals(pair, sizes.repeat(4)).abs()


def _with_globals(pair: Pair, terms: Tensor) -> Tensor:
    return torch.cat([terms, torch.stack([term.to(terms) for term in pair.global_terms(scaled=False)])])


def _rounded(value: Tensor) -> Tensor:
    """Returns a draw that is off by a few roundings."""
    return value * (1 - 4 * torch.finfo(value.dtype).eps) if value.is_floating_point() else value
