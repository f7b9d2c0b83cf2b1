"""What a model says of x at given latents: p(x|z), its mean and draws of it, in the place of the cells of x.

Which cell of x an element of an observed site is, is found out by a run of the model on an x whose cells are numbered.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import (
    InputError,
    evaluation_mode,
    first_line,
    is_out_of_memory,
    kept_generators,
    require,
)
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.expectation import Site
from pyrovae.evaluation.rows import require_rows
from pyrovae.programs import Given, Layout, base_of, particles, sample_sites

FIRST = 1_000_003  # the number of the first cell: no label is so large by chance
MOST_CELLS = 2**23  # whose numbers float32 still holds


@dataclass(frozen=True)
class DataGivenLatents:
    """Runs a model at latents that are given as rows, and reads p(x|z) at its observed sites.

    Args:
        model: The model, of x and perhaps more.
        layout: That of its pair: all sites in one data plate.
        cells: For each observed site of cells of x, which cell of a datum each element of an event is, `(*event)`.
        without_mean: The families of those sites whose mean is unknown or does not exist.
    """

    model: Callable
    layout: Layout
    cells: dict[str, Tensor]
    without_mean: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Callable, found: Opened, name: str) -> "DataGivenLatents":
        """Returns what runs the model of this pair; raises `InputError`, on behalf of `name`, if it does not run so."""
        layout, pair = found.pair.layout, found.pair
        require_rows(name, layout, "fix them, or draw data by the model itself")
        rule = f"{name} needs all latents and observed sites of the model in one plate, that of the data"
        require(layout.is_simple, rule)
        few = found.data.rows(0, 2)
        x, *y = few.args
        size = x[0].numel()
        require(2 * size <= MOST_CELLS, f"{name} needs data of fewer cells than {MOST_CELLS // 2:,}, got {size:,}")
        numbers = torch.arange(FIRST, FIRST + x.numel(), device=x.device).view_as(x).to(x)
        latents = {one: pair.guide_sites[one]["value"][:1, : len(x)] for one in pair.latent}
        with evaluation_mode(model), torch.no_grad(), kept_generators():
            try:
                sites = _run(model, layout, latents, (numbers, *y))
            except (IndexError, RuntimeError, ValueError) as error:
                if is_out_of_memory(error) or isinstance(error, InputError):
                    raise
                why = f"{name} needs a model that reads x at its observed sites alone"
                raise InputError(f"{why}: with other numbers it fails ({first_line(error)})") from error
        found_cells = {one: _places(site, len(x), size) for one, site in sites.items()}
        cells = {one: places for one, places in found_cells.items() if places is not None}
        require(bool(cells), f"{name} needs a model that observes cells of x as they are, and none of its sites does")
        families = {type(base_of(sites[one]["fn"])).__name__: _mean(sites[one]) for one in cells}
        return cls(model, layout, cells, tuple(name for name, mean in families.items() if not mean.isfinite().all()))

    def __call__(self, latents: Site, x: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E[x|z] and a draw of x given z, each `(draws, data, ...)`, at latents `(draws, data, ...)`.

        They are nan in cells that no site observes, and the mean is nan where it does not exist.
        """
        num, sites = len(next(iter(latents.values()))), _run(self.model, self.layout, latents, (x, *y))
        kind = x.dtype if x.is_floating_point() else torch.float64
        shape = (num, len(x), x[0].numel())
        mean, draw = (torch.full(shape, torch.nan, dtype=kind, device=x.device) for _ in ("mean", "draw"))
        for name, cells in self.cells.items():
            site = sites[name]
            for whole, value in ((mean, _mean(site)), (draw, site["value"])):
                rows = value.expand(num, len(x), *cells.shape).reshape(num, len(x), -1)
                whole[:, :, cells.flatten()] = rows.to(whole)
        return mean.view(num, *x.shape), draw.view(num, *x.shape)

    def replicated(self, latents: Site, x: Tensor, *y: Tensor) -> Tensor:
        """Returns draws of x given z, `(draws, data, ...)`; cells that are missing or that no site has stay."""
        draw = self(latents, x, *y)[1]
        return torch.where(draw.isnan() | x.isnan(), x.to(draw), draw).to(x.dtype)


def _run(model: Callable, layout: Layout, latents: Site, args: tuple) -> dict[str, dict]:
    """Returns the sites that the model observes, with draws in place of what it observes."""
    num = len(next(iter(latents.values())))
    with pyro.validation_enabled(False), particles(num, layout), Given(latents):
        sites = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*args))
    return {name: site for name, site in sites.items() if site["infer"].get("was_observed")}


def _places(site: dict, num: int, size: int) -> Tensor | None:
    """Returns which cell of a datum each element of an event is, `(*event)`; None if they are no cells of x.

    The site observed numbered cells of `num` data of this size.
    """
    found = site["infer"].get("observes", site["infer"]["obs"])
    event_dim = site["fn"].event_dim
    if found.dim() <= event_dim or found.shape[-1 - event_dim] != num:
        return None
    rows = found.reshape(-1, *found.shape[found.dim() - event_dim :])
    if len(rows) != num:
        return None
    start = FIRST + size * torch.arange(num, device=rows.device).view(-1, *[1] * event_dim)
    places = rows.double() - start
    are_cells = (places == places[0]) & (places >= 0) & (places < size) & (places == places.floor())
    return places[0].long() if bool(are_cells.all()) else None


def _mean(site: dict) -> Tensor:
    try:
        return site["fn"].mean
    except NotImplementedError:
        return torch.full_like(site["value"], torch.nan, dtype=torch.get_default_dtype())
