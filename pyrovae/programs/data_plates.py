"""Sums the log-densities of a site for each datum: over every dimension but those of the particles and of the data."""

from collections.abc import Collection
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.common import InputError, counted, require
from pyrovae.programs.layout import Layout, frames_of


class DataPlate(NamedTuple):
    """States a data plate's name, its number of data in this run, and the number that they are a subsample of."""

    name: str
    size: int
    full_size: int

    @property
    def scale(self) -> float:
        """N / B, by which the sum over B data stands for that over N."""
        return self.full_size / self.size


def data_plates(layout: Layout, model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> tuple[DataPlate, ...]:
    """Returns the data plates of a run, with their numbers of data.

    Raises `InputError` if a plate has different sizes at different sites.
    """
    if not layout.plates:
        return ()
    sizes: dict[str, set[tuple[int, int | None]]] = {name: set() for name in layout.plates}
    without: dict[str, int] = {}
    for site in (*model_sites.values(), *guide_sites.values()):
        for frame in site["cond_indep_stack"]:
            if frame.name in sizes:
                if frame.size == -1:
                    without[frame.name] = max(size_at(site, frame.dim), without.get(frame.name, 1))
                else:
                    sizes[frame.name].add((frame.size, frame.full_size))
    for name, size in without.items():
        sizes[name].add((size, size))
    for name, found in sizes.items():
        require(len(found) == 1, f'the data plate "{name}" must have one size, got {sorted(found)}')
    return tuple(DataPlate(name, size, full or size) for name, ((size, full),) in sizes.items())


def size_at(site: dict, dim: int) -> int:
    """Returns the number of data that a site has along the dimension of a plate without a size."""
    shape = site["fn"].batch_shape
    size = shape[dim] if len(shape) >= -dim else 1
    value = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
    return max(size, value[dim] if len(value) >= -dim else 1)


def by_datum(log_prob: Tensor, site: dict, layout: Layout, plates: tuple[DataPlate, ...]) -> Tensor:
    """Returns a site's log-densities summed for each datum, in a shape that broadcasts to `(num_particles, batch)`.

    Dimensions of states, to the left of the particles, are kept.
    """
    frames = frames_of(site)
    own = next((frame for frame in frames if frame.name in layout.plates), None)
    data_dim = None if own is None else own.dim
    if data_dim == -1 and layout.nesting == 1 and layout.is_vectorized and len(plates) == 1 and log_prob.dim() < 3:
        return log_prob  # as it is in most pairs
    while layout.sums and log_prob.dim() >= -layout.state_dim and len(log_prob) == 1:  # the only state of a summed site
        log_prob = log_prob.squeeze(0)
    leftmost = max(-log_prob.dim(), layout.state_dim + 1)
    others = [dim for dim in range(leftmost, 0) if dim not in (layout.particle_dim, data_dim)]
    if others:
        sizes = {frame.dim: frame.size for frame in frames if frame.vectorized}
        for dim in others:  # a density that is the same all over a plate counts for each of its elements
            if log_prob.shape[dim] == 1 and sizes.get(dim, 1) > 1:
                log_prob = log_prob * sizes[dim]
        has_data = data_dim is not None and log_prob.dim() >= -data_dim
        log_prob = log_prob.sum(others)
        log_prob = log_prob if has_data else log_prob.unsqueeze(-1)
    elif data_dim is None:
        log_prob = log_prob.unsqueeze(-1)
    while log_prob.dim() > 1 + layout.is_vectorized and log_prob.shape[0] == 1:  # a dimension of nothing
        log_prob = log_prob[0]
    if not layout.is_vectorized and log_prob.dim() > 1:  # it has states
        log_prob = log_prob.unsqueeze(-2)
    if own is not None and own.dim is None:  # one step of a sequential plate
        size = next(plate.size for plate in plates if plate.name == own.name)
        log_prob = torch.where(torch.arange(size, device=log_prob.device) == own.counter - 1, log_prob, 0.0)
    return log_prob if own is None else in_columns(log_prob, own.name, plates)


def in_columns(values: Tensor, name: str, plates: tuple[DataPlate, ...]) -> Tensor:
    """Returns values of the data of one plate, `(..., data)`, with 0 at the data of the others."""
    if len(plates) < 2:
        return values
    parts = []
    for plate in plates:
        shape = (*values.shape[:-1], plate.size)
        parts.append(values.expand(shape) if plate.name == name else values.new_zeros(shape))
    return torch.cat(parts, -1)


def inner_scale(site: dict, plates: tuple[DataPlate, ...]) -> float:
    """Returns N / B of the subsampled plates that a site lies in besides the data plate."""
    names = {plate.name for plate in plates}
    scale = 1.0
    for frame in frames_of(site):
        if frame.name not in names and frame.full_size not in (None, -1, frame.size):
            scale *= frame.full_size / frame.size
    return scale


class UndeclaredDimension(InputError):
    """A site has a dimension that no plate declares; with particles it may be one that they gave to a local value."""


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the larger size in each dimension: for shapes that fit each other, the shape of both together."""
    if one == other:
        return one
    pairs = zip_longest(reversed(one), reversed(other), fillvalue=1)
    return tuple(max(sizes) for sizes in pairs)[::-1]


def _where(event_dim: int) -> str:
    """Returns where the dimensions of a batch lie in a value."""
    return f", left of its {counted(event_dim, 'event dimension')}" if event_dim else ""


def check_dimensions(
    sites: dict[str, dict], layout: Layout, plates: tuple[DataPlate, ...], states: Collection[int] = ()
) -> None:
    """Raises `InputError` if a site has a dimension that no plate declares, or lacks that of its data.

    `states` are the dimensions of the states of the guide's sites.
    """
    sizes = {plate.name: plate.size for plate in plates}
    for name, site in sites.items():
        frames, event_dim = frames_of(site), site["fn"].event_dim
        value = tuple(site["value"].shape)
        value_shape = value[: len(value) - event_dim]
        declared = {frame.dim for frame in frames if frame.vectorized} | {layout.particle_dim, *states}
        if layout.sums:
            declared |= site["infer"].get("_dim_to_id", {}).keys()
        batch = _broadcast(tuple(site["fn"].batch_shape), value_shape)
        for dim in range(-len(batch), 0):
            if batch[dim] > 1 and dim not in declared:
                raise UndeclaredDimension(
                    f'every dimension of a site must be declared: site "{name}" has {batch[dim]} values along dim '
                    f"{dim}, where no plate is (is a to_event or a plate missing?)"
                )
        for frame in frames:
            if frame.name in sizes and frame.dim is not None:
                size = sizes[frame.name]
                found = value_shape if site["is_observed"] else batch
                if len(found) < -frame.dim or found[frame.dim] != size:
                    raise InputError(
                        f'the value at site "{name}" must have a dimension of the {size} data'
                        f"{_where(event_dim)}, got shape {value} (is a to_event missing?)"
                    )
