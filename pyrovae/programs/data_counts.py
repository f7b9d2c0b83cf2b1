"""Finds data that count otherwise than once: in a part of a plate, or under a scale of their own.

Measuring leaves `poutine.scale` out. On latents it is a beta, and what is measured is that at beta = 1. On observed
sites beside latents that the data share it is none: it says how much the data count against the prior of those.
"""

import torch
from torch import Tensor

from pyrovae.programs.data_plates import DataPlate, inner_scale
from pyrovae.programs.layout import frames_of
from pyrovae.programs.pair import Pair


def subsampled_outside(pair: Pair) -> list[DataPlate]:
    """Returns the plates outside the data plates that hold a subsample, one for each name."""
    sites = [site for site in (*pair.model_sites.values(), *pair.guide_sites.values()) if not pair.is_local(site)]
    frames = [frame for site in sites for frame in frames_of(site)]
    held = [DataPlate(f.name, f.size, f.full_size) for f in frames if f.full_size not in (None, -1, f.size)]
    return list(dict.fromkeys(held))


def counted_otherwise(pair: Pair) -> str | None:
    """Says how often `poutine.scale` counts the data of a site against latents that the data share, if not once.

    A scale that these latents have, too, is one of everything, and changes nothing.
    """
    shared = [site for site in pair.latent.values() if not (pair.plates and pair.is_local(site))]
    if not shared:
        return None
    of_latents = [_scale(site) for site in shared]
    for name, site in pair.observed.items():
        scale = _scale(site)
        if not _is_same(scale, torch.ones(())) and not all(_is_same(scale, one) for one in of_latents):
            times = " to ".join(dict.fromkeys(f"{end.item():g}" for end in (scale.min(), scale.max())))
            return (
                f'each datum once, and poutine.scale counts those of site "{name}" {times} times against latents that '
                "the data share: take it off"
            )
    return None


def _scale(site: dict) -> Tensor:
    """Returns a site's scale without the N / B of its plates."""
    return torch.as_tensor(site["scale"]).detach().double().cpu() / inner_scale(site, ())


def _is_same(one: Tensor, other: Tensor) -> bool:
    return (
        bool(torch.isclose(one, other.to(one)).all()) if one.dim() == 0 or other.dim() == 0 else torch.equal(one, other)
    )
