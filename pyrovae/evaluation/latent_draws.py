"""The guide's draws of a model's latents as rows, one for each particle and each datum, beside their log-weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.evaluation.rows import as_rows, data_dim_of
from pyrovae.programs import Pair, frames_of, is_autoencoder, is_masked, seen


@dataclass(frozen=True)
class LatentDraws:
    """Takes the draws of latents of a run, `(num_particles, batch, *shape)`, where `shape` is that of one datum's.

    Dimensions of plates inside the data plate come before those of the event. All data are one datum if they share
    latents.

    Args:
        shapes: `shape` of each latent, by name, in the order of the guide.
        masked: The names of latents that some data do not have, because a mask leaves them out.
    """

    shapes: dict[str, torch.Size]
    masked: tuple[str, ...]

    @classmethod
    def of(cls, pair: Pair, name: str) -> "LatentDraws":
        """Returns what takes the draws of this pair; raises `InputError`, on behalf of `name`, if they are no rows."""
        rule = f"{name} needs data along one dimension"
        require(len(pair.plates) < 2, f"{rule}, got the plates {', '.join(plate.name for plate in pair.plates)}")
        sites = {name: site for name, site in pair.guide_sites.items() if name in pair.model_sites}
        require(len(sites) > 0, f"{name} needs a latent site, and the guide draws none")
        for site in sites.values():
            alone = bool(pair.plates) and pair.is_local(site) and data_dim_of(site, pair.layout) is None
            require(not alone, f'{rule}, and site "{site["name"]}" is of one datum alone')
        shapes = {name: draws_as_rows(pair, site, site["value"]).shape[2:] for name, site in sites.items()}
        masked = tuple(name for name, site in sites.items() if is_masked(site) and not is_autoencoder(site))
        return cls(shapes, masked)

    @property
    def numbers(self) -> int:
        """How many numbers the draws of one datum take, with its log-weight."""
        return 1 + sum(shape.numel() for shape in (*self.shapes.values(), *(self.shapes[n] for n in self.masked)))

    def take(self, pair: Pair) -> tuple[Tensor, ...]:
        """Returns the log-weights of a run, its draws of each latent, and where the masked ones are there."""
        return pair.terms().log_weights, *self.draws(pair)

    def draws(self, pair: Pair) -> tuple[Tensor, ...]:
        """Returns what `take` does but for the log-weights."""
        values, there = ([], [])  # type: tuple[list[Tensor], list[Tensor]]
        for name in self.shapes:
            runs = [run.guide_sites[name] for run in pair.runs]
            values.append(torch.cat([draws_as_rows(pair, site, site["value"]) for site in runs]))
            if name in self.masked:
                masks = [seen(site).to(site["value"].device).expand_as(site["value"]) for site in runs]
                there.append(torch.cat([draws_as_rows(pair, run, mask) for run, mask in zip(runs, masks, strict=True)]))
        return *values, *there

    def by_name(self, draws: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Returns the draws of each latent by its name, with NaN in place of those that are masked."""
        found = dict(zip(self.shapes, draws, strict=False))
        for name, there in zip(self.masked, draws[len(self.shapes) :], strict=True):
            found[name] = torch.where(there, found[name], torch.nan)
        return found


def draws_as_rows(pair: Pair, site: dict, value: Tensor) -> Tensor:
    """Returns a value, `(particles, batch, ...)`, without the dimensions of plates that the site does not lie in."""
    layout, batch_dim = pair.layout, value.dim() - site["fn"].event_dim
    data_dim = data_dim_of(site, layout)
    rows = as_rows(value, batch_dim, data_dim, layout)
    if not (layout.is_vectorized and batch_dim > layout.nesting):
        rows = rows.unsqueeze(0)
    own = {frame.dim for frame in frames_of(site)}
    others = [dim for dim in range(-layout.nesting, 0) if dim != data_dim]
    empty = [2 + place for place, dim in enumerate(others) if dim not in own]
    num_particles = pair.num_particles if layout.is_vectorized else 1
    return rows.squeeze(empty).expand(num_particles, pair.batch, *[-1] * (rows.dim() - 2 - len(empty)))
