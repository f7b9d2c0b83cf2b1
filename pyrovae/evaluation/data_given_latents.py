"""What a model says of x at given latents: p(x|z), its mean and draws of it, in the place of the cells of x.

Which cell of x an element of an observed site is, is found out by a run of the model on an x whose cells are numbered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    local_seed,
    require,
)
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.expectation import Site
from pyrovae.evaluation.rows import require_rows, shares_more_than_factors
from pyrovae.programs import (
    Given,
    Layout,
    Pair,
    base_of,
    density_of,
    differ,
    frames_of,
    interior,
    particles,
    sample_sites,
    seen,
    support_of,
)

FIRST = 1_000_003  # the number of the first cell: no label is so large by chance
MOST_CELLS = 2**23  # whose numbers float32 still holds
ROWS = 8  # of data that the model is run on to see what it reads


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
    def of(cls, model: Callable, found: Opened, name: str, independent: bool = False) -> "DataGivenLatents":
        """Returns what runs the model of this pair; raises `InputError`, on behalf of `name`, if it does not run so.

        With `independent` cells must not depend on each other but through the latents.
        """
        pair = found.pair
        layout = replace(pair.layout, has_globals=shares_more_than_factors(pair))
        require_rows(name, layout, "fix them, or draw data by the model itself")
        rule = f"{name} needs all latents and observed sites of the model in one plate, that of the data"
        require(layout.is_simple, f"{rule}, and {_elsewhere(pair)}")
        summed = f"{name} needs latents that are drawn, and the model sums some out, on which cells may depend"
        require(not layout.sums, summed)
        size = found.data.rows(0, 1).args[0][0].numel()
        require(2 * size <= MOST_CELLS, f"{name} needs data of fewer cells than {MOST_CELLS // 2:,}, got {size:,}")
        few = found.data.rows(0, max(2, min(ROWS, MOST_CELLS // size)))
        x, *y = few.args
        latents = {one: pair.guide_sites[one]["value"][:1, : len(x)] for one in pair.latent}
        with evaluation_mode(model), torch.no_grad():
            sites = _Checked(model, layout, latents, y, name).numbered(x, independent)
        found_cells = {one: _places(site, len(x), size) for one, site in sites.items()}
        cells = {one: places for one, places in found_cells.items() if places is not None}
        require(bool(cells), f"{name} needs a model that observes cells of x as they are, and none of its sites does")
        families = {type(base_of(sites[one]["fn"])).__name__: _mean(sites[one]) for one in cells}
        return cls(model, layout, cells, tuple(name for name, mean in families.items() if not mean.isfinite().all()))

    def __call__(self, latents: Site, x: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E[x|z] and a draw of x given z, each `(draws, data, ...)`, at latents `(draws, data, ...)`.

        They are nan in cells that no site observes, and the mean is nan where it does not exist.
        """
        kind = x.dtype if x.is_floating_point() else torch.float64
        sites = _run(self.model, self.layout, latents, (x, *y))
        mean = self._in_cells({name: _mean(site) for name, site in sites.items()}, latents, x, torch.nan, kind)
        draw = self._in_cells({name: site["value"] for name, site in sites.items()}, latents, x, torch.nan, kind)
        return mean, draw

    def replicated(self, latents: Site, x: Tensor, *y: Tensor) -> Tensor:
        """Returns draws of x given z, `(draws, data, ...)`; cells that are missing or that the model masks stay."""
        kind = x.dtype if x.is_floating_point() else torch.float64
        sites = _run(self.model, self.layout, latents, (x, *y))
        draw = self._in_cells({name: site["value"] for name, site in sites.items()}, latents, x, torch.nan, kind)
        masks = {name: (~seen(site).to(x.device)).expand(site["value"].shape) for name, site in sites.items()}
        stays = x.isnan() | self._in_cells(masks, latents, x, False, torch.bool)
        rule = "data are drawn anew at every cell that is there, each by a site that observes it as it is"
        require(bool((draw.isfinite() | stays).all()), f"{rule}, and the model draws no number for one")
        return torch.where(stays, x.to(draw), draw).to(x.dtype)

    def _in_cells(self, values: Site, latents: Site, x: Tensor, fill: float | bool, kind: torch.dtype) -> Tensor:
        """Returns what each site has in the place of the cells that it observes, `(draws, data, ...)`."""
        num = len(next(iter(latents.values())))
        found = torch.full((num, len(x), x[0].numel()), fill, dtype=kind, device=x.device)
        for name, cells in self.cells.items():
            rows = values[name].expand(num, len(x), *cells.shape).reshape(num, len(x), -1)
            found[:, :, cells.flatten()] = rows.to(found)
        return found.view(num, *x.shape)


def _elsewhere(pair: Pair) -> str:
    """Returns which site does not lie in one plate, that of the data, whose dimension is the last."""
    for name, site in (*pair.latent.items(), *pair.observed.items()):
        plates = [f'"{frame.name}"' for frame in frames_of(site)]
        if len(plates) != 1:
            return f'site "{name}" lies in {" and ".join(plates) or "none"}'
    return "it is at another dimension than -1"


def _run(model: Callable, layout: Layout, latents: Site, args: tuple) -> dict[str, dict]:
    """Returns the sites that the model observes, with draws in place of what it observes."""
    return {name: site for name, site in _sites(model, layout, latents, args).items() if _was_observed(site)}


def _sites(model: Callable, layout: Layout, latents: Site, args: tuple) -> dict[str, dict]:
    """Returns all sites, with draws in place of what the model observes where no value is given."""
    num = len(next(iter(latents.values())))
    with pyro.validation_enabled(False), particles(num, layout), Given(latents):
        return sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*args))


@dataclass(frozen=True)
class _Checked:
    """Runs the model of some data several times, at the same latents and random numbers, and compares the runs."""

    model: Callable
    layout: Layout
    latents: Site
    y: Sequence
    name: str

    def numbered(self, x: Tensor, independent: bool) -> dict[str, dict]:
        """Returns the sites that observed numbered cells, where x has no other part in what the model says.

        Raises `InputError` if a distribution moves with x, at values of other data or at other numbers; or, where sites
        must be `independent`, with the values of other sites.
        """
        filled = torch.where(x.isnan(), 0, x)
        other = filled.flip(0) if len(x) > 1 else filled.flatten().roll(1).view_as(x)
        numbers = torch.arange(FIRST, FIRST + x.numel(), device=x.device).view_as(x).to(x)
        backwards = numbers.flatten().flip(0).view_as(x)
        drawn = {one: site["value"] for one, site in self._run(filled, {}).items() if _was_observed(site)}
        rule = f"{self.name} needs a model that reads x at its observed sites alone"
        try:
            found = self._run(filled, drawn)  # with the data's own values first: a table would be read at its numbers
            self._require_same(found, self._run(other, drawn), f"{rule}; what it says of another one depends on x")
            sites = self._run(numbers, drawn)
            self._require_same(sites, self._run(backwards, drawn), f"{rule}; what it says of another one depends on x")
        except (IndexError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            raise InputError(f"{rule}: with other numbers it fails ({first_line(error)})") from error
        rule = f"{self.name} needs cells that depend on each other through latents alone"
        for second in (False, True) if independent else ():
            points = {one: _point(found[one], second) for one in drawn}
            self._require_same(found, self._run(filled, points), f"{rule}; one site reads what another one returns")
        return {one: site for one, site in sites.items() if _was_observed(site)}

    def _run(self, x: Tensor, values: Site) -> dict[str, dict]:
        with kept_generators(), local_seed(0):
            return _sites(self.model, self.layout, {**self.latents, **values}, (x, *self.y))

    def _require_same(self, sites: dict[str, dict], others: dict[str, dict], rule: str) -> None:
        """Raises `InputError` unless two runs have the same densities at the values of the first."""
        for name, site in sites.items():
            second = {**others[name], "value": site["value"]} if name in others else None
            same = second is not None and not differ(*((density_of(one), seen(one)) for one in (site, second)))
            require(same, f'{rule}, at the site "{name}"')


def _was_observed(site: dict) -> bool:
    return bool(site["infer"].get("was_observed"))


def _point(site: dict, second: bool) -> Tensor:
    """Returns a value inside the support of a site, or another one, in the shape of its draw; the draw if unknown."""
    value = site["value"]
    try:
        found = interior(support_of(site["fn"]), value, second)
    except NotImplementedError:
        found = None
    return value if found is None else found.to(value).expand_as(value)


def _places(site: dict, num: int, size: int) -> Tensor | None:
    """Returns which cell of a datum each element of an event is, `(*event)`; None if they are no cells of x.

    The site observed numbered cells of `num` data of this size.
    """
    found = site["infer"].get("observes", site["infer"]["obs"])
    event_dim = site["fn"].event_dim
    if found.dim() <= event_dim or found.shape[-1 - event_dim] != num or not found.numel():  # a factor has no value
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
