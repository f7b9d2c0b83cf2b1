"""Checks the contract of a (model, guide) pair, without which there are no terms for each datum.

One plate at dim -1, the data plate, encloses every sample site of both programs. Both have the same latent sites, of
the same kind and shape and under the same scale, and observed values have the data dimension.
"""

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.common import InputError
from pyrovae.programs.sites import is_discrete

PARTICLES = "num_particles"  # the name of the plate of the particles, at dim -2


def check_contract(model_sites: dict[str, dict], guide_sites: dict[str, dict], args: tuple) -> int:
    """Returns the number of data, if the pair keeps the contract. Raises `InputError` otherwise."""
    batch = check_plate({"model": model_sites, "guide": guide_sites}, args)
    _check_latents(model_sites, guide_sites)
    for name, site in model_sites.items():
        event_dim, shape = site["fn"].event_dim, tuple(site["value"].shape)
        if site["is_observed"] and shape[: len(shape) - event_dim][-1:] != (batch,):
            raise InputError(
                f'the value at site "{name}" must have the {batch} data left of its {event_dim} event dimensions, '
                f"got shape {shape} (is a to_event missing?)"
            )
    return batch


def check_plate(programs: dict[str, dict[str, dict]], args: tuple) -> int:
    """Returns the number of data in the one plate at dim -1 that encloses every site of the programs.

    `programs` has the sites of each program under the name that messages give it. Raises `InputError` if there is no
    such plate, or if it does not hold all data of the first argument.
    """
    plates = set()
    for program, sites in programs.items():
        for name, site in sites.items():
            frames = [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
            found = ", ".join(
                f'"{f.name}" at dim {f.dim}' if f.vectorized else f'"{f.name}", sequential' for f in frames
            )
            if len(frames) != 1 or frames[0].dim != -1:
                raise InputError(
                    f'every sample site must lie in one data plate at dim -1, and in no other; site "{name}" of the '
                    f"{program} lies in {found or 'none'}: per-datum terms cannot be had"
                )
            plates.add((frames[0].name, frames[0].size))
    if len(plates) != 1:
        raise InputError(f"all sites must share one data plate (name, size), got {sorted(plates)}")
    (_, size), x = plates.pop(), args[0] if args else None
    if isinstance(x, Tensor) and x.dim() > 0 and len(x) != size:
        raise InputError(f"the data plate must hold every datum: it holds {size} of the {len(x)} given")
    return size


def _check_latents(model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> None:
    """Raises `InputError` unless model and guide have the same latent sites under the same scale."""
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    proposed = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    if latent != proposed:
        raise InputError(
            f"model and guide must have the same latent sites, got {sorted(latent)} in the model "
            f"and {sorted(proposed)} in the guide"
        )
    for name in latent:
        discrete = [is_discrete(sites[name]["fn"]) for sites in (model_sites, guide_sites)]
        if None not in discrete and discrete[0] != discrete[1]:
            kinds = ["discrete" if one else "continuous" for one in discrete]
            raise InputError(
                f'the latent site "{name}" must be of one kind, got {kinds[0]} in the model and {kinds[1]} in the '
                "guide: a mass and a density do not weigh each other"
            )
        fn, value = model_sites[name]["fn"], tuple(model_sites[name]["value"].shape)
        if value[len(value) - fn.event_dim :] != tuple(fn.event_shape):
            raise InputError(
                f'the latent site "{name}" must be of one shape, got events {tuple(fn.event_shape)} in the model and '
                f"{value[len(value) - fn.event_dim :]} in the guide"
            )
        ours, theirs = (torch.as_tensor(sites[name]["scale"]) for sites in (model_sites, guide_sites))
        if is_validation_enabled() and not torch.equal(ours.to(theirs), theirs):
            raise InputError(
                f'poutine.scale must be the same in model and guide at the latent site "{name}", '
                f"got {ours.tolist()} in the model and {theirs.tolist()} in the guide"
            )
