"""Checks that model and guide of a pair are of the same latents: the same sites, of one kind and shape.

Without that there are no log-weights.
"""

import torch
from pyro.infer.util import is_validation_enabled

from pyrovae.common import InputError
from pyrovae.programs.enumerated_guide import state_dims
from pyrovae.programs.enumerated_runs import is_summed
from pyrovae.programs.layout import Layout, frames_of
from pyrovae.programs.sites import is_discrete


def check_latents(model_sites: dict[str, dict], guide_sites: dict[str, dict], layout: Layout) -> None:
    """Raises `InputError` unless model and guide have the same latent sites, in the same plate and under one scale."""
    check_observed(model_sites, guide_sites)
    latent = {name for name, site in model_sites.items() if not (site["is_observed"] or is_summed(site))}
    proposed = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    if latent != proposed:
        raise InputError(
            f"model and guide must have the same latent sites, got {sorted(latent)} in the model "
            f"and {sorted(proposed)} in the guide{_hint(model_sites, latent - proposed)}"
        )
    for name in latent:
        where = ["in a data plate" if layout.is_local(s[name]) else "outside it" for s in (model_sites, guide_sites)]
        if where[0] != where[1]:
            raise InputError(
                f'the latent site "{name}" must lie in the data plate in both programs or in neither, got {where[0]} '
                f"in the model and {where[1]} in the guide"
            )
        discrete = [is_discrete(sites[name]["fn"]) for sites in (model_sites, guide_sites)]
        if None not in discrete and discrete[0] != discrete[1]:
            kinds = ["discrete" if one else "continuous" for one in discrete]
            raise InputError(
                f'the latent site "{name}" must be of one kind, got {kinds[0]} in the model and {kinds[1]} in the '
                "guide: a mass and a density do not weigh each other"
            )
        _check_plates(name, model_sites[name], guide_sites[name])
        fn, value = model_sites[name]["fn"], tuple(model_sites[name]["value"].shape)
        if value[len(value) - fn.event_dim :] != tuple(fn.event_shape):
            raise InputError(
                f'the latent site "{name}" must be of one shape, got events {tuple(fn.event_shape)} in the model and '
                f"{value[len(value) - fn.event_dim :]} in the guide"
            )
        check_scales(name, model_sites, guide_sites)


def check_observed(model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> None:
    """Raises `InputError` if the guide observes a site."""
    observed = [name for name, site in guide_sites.items() if site["is_observed"]]
    if not observed:
        return
    rule = f'the guide must observe nothing, and observes site "{observed[0]}"'
    if not any(site["is_observed"] for site in model_sites.values()):
        raise InputError(f"{rule}, while the model observes nothing: are model and guide swapped?")
    raise InputError(f"{rule}: its density would be a part of no weight; train such a term in a loss of its own")


def check_scales(name: str, model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> None:
    """Raises `InputError` if a latent has one `poutine.scale` in the model and another one in the guide.

    It looks at values, and so only if Pyro validates.
    """
    scales = [sites[name]["scale"] for sites in (model_sites, guide_sites)]
    if not is_validation_enabled() or (not any(isinstance(s, torch.Tensor) for s in scales) and scales[0] == scales[1]):
        return
    ours, theirs = map(torch.as_tensor, scales)
    if not torch.equal(ours.to(theirs), theirs):
        _check_sizes(model_sites[name], guide_sites[name])  # a plate of another size has another scale, too
        raise InputError(
            f'poutine.scale must be the same in model and guide at the latent site "{name}", '
            f"got {ours.tolist()} in the model and {theirs.tolist()} in the guide"
        )


def _check_sizes(site: dict, proposal: dict) -> None:
    """Raises `InputError` if a plate that a latent lies in has another size in the guide."""
    ours, theirs = ({frame.name: frame.full_size for frame in frames_of(one)} for one in (site, proposal))
    for plate, size in ours.items():
        other = theirs.get(plate, size)
        if size != other:
            raise InputError(
                f'the plate "{plate}" must have one size, got {size} in the model and {other} in the guide (an '
                "autoguide is made for the data that it first ran on)"
            )


def _check_plates(name: str, site: dict, proposal: dict) -> None:
    """Raises `InputError` if a latent lies in a plate of the model's and has one value for all of its elements.

    Its prior would count for each of them, and its density under the guide once.
    """
    if state_dims({name: proposal}):
        return
    value = proposal["value"].shape[: proposal["value"].dim() - proposal["fn"].event_dim]
    for frame in frames_of(site):
        if frame.dim is not None and frame.size > 1 and (len(value) < -frame.dim or value[frame.dim] != frame.size):
            raise InputError(
                f'the latent site "{name}" must have a value for each of the {frame.size} elements of the plate '
                f'"{frame.name}" that it lies in, got a guide that draws values of shape {tuple(value)}'
            )


def _hint(sites: dict[str, dict], names: set[str]) -> str:
    """Returns what can be done about discrete latents that the guide does not draw, if there are any."""
    discrete = sorted(name for name in names if is_discrete(sites[name]["fn"]))
    mark = 'infer={"enumerate": "parallel"} in the model'
    return f' (mark discrete site "{discrete[0]}" by {mark}, and it is summed out)' if discrete else ""
