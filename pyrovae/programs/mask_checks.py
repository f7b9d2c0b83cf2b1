"""Checks the masks of latents: a masked latent is a part of the model only if nothing that is left reads its value.

Where a latent is masked, the weights leave out its prior and its guide density. With equal masks in both they stay
weights of the density p(x) if no unmasked density depends on a masked value: what is masked then integrates to 1. The
states after the end of a short sequence are of this kind. A decoder that reads a masked latent makes an autoencoder,
which has no log p(x); it says so at the latent sites of its guide, by `infer={"is_autoencoder": True}`.

A reader is found by new draws of what is masked. One that does not yet read, as a network with weights of 0, is not
found, and neither is one that no mask of the batch shows; see `exposed`.
"""

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.programs.distribution_supports import log_density
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.sites import is_autoencoder, is_masked, seen

ROUNDS = 2  # of new values from guide and prior each: draws of few values may repeat the old ones
ALLOWED_ROUNDINGS = 1_000  # an unmasked term may move by as many, relative to it or to 1 nat

Terms = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""For each program and site its masked log-density, and which elements its masks leave."""


def check_masks(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Raises `InputError` unless the masks of latents are equal in model and guide, and nothing reads what they mask.

    `pair` is a run of the two programs. The second rule is not asked of an autoencoder.
    """
    for name, site in pair.guide_only.items():
        require(not is_masked(site), f'the site "{name}" is in the guide alone, and must not be masked')
    for name, site in pair.latent.items():
        ours, theirs = seen(site), seen(pair.guide_sites[name])
        if not _are_equal(ours, theirs):
            counts = [(~mask.to(site["value"].device)).expand_as(site["value"]).sum() for mask in (ours, theirs)]
            raise InputError(
                f'the latent site "{name}" must have the same mask in model and guide, got {counts[0]} of '
                f"{site['value'].numel()} elements masked in the model and {counts[1]} in the guide"
            )
    names = [n for n, site in pair.latent.items() if not (is_autoencoder(site) or bool(seen(site).all()))]
    if names:
        pair = replace(pair, others=())  # of particles one after another the first is enough
        with torch.no_grad(), pyro.validation_enabled(False):
            _check_unread(pair, names, model, guide, args, kwargs)


def require_no_masks(pair: Pair, said: str) -> None:
    """Raises `InputError`, which begins with `said`, if a latent is masked."""
    for name, site in pair.latent.items():
        require(not is_masked(site), f'{said}, and site "{name}" is masked')


def require_no_autoencoder(pair: Pair, said: str) -> None:
    """Raises `InputError`, which begins with `said`, if a latent is the code of an autoencoder."""
    for name, site in pair.latent.items():
        require(not is_autoencoder(site), f'{said}, and site "{name}" has one')


# Readers of masked values ---------------------------------------------------------------------------------------------


def _check_unread(pair: Pair, names: list[str], model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Redraws the masked elements of the latents `names`, and raises `InputError` if an unmasked term moves."""
    values = pair.draws()
    draws = [_redrawn(sites, names, pair) for _ in range(ROUNDS) for sites in (pair.guide_sites, pair.model_sites)]
    start = saved_generators()  # after the new draws, which the runs would otherwise draw again

    def run(new: dict[str, Tensor]) -> Terms:
        restore_generators(start)
        return _terms(pair_at(model, guide, {**values, **new}, *args, like=pair, **kwargs))

    before = run({})
    for redrawn in draws:
        after = run(redrawn)
        moved = next((key for key, term in before.items() if differ(term, after[key])), None)
        if moved is None:
            continue
        program, site = moved
        require(
            not differ(before[moved], run({})[moved]),
            f'masks of latents cannot be checked: site "{site}" of the {program} draws from a generator of its own, '
            "which cannot be set back: use torch's",
        )
        alone = (name for name in redrawn if differ(before[moved], run({name: redrawn[name]})[moved]))
        name = next(alone, names[0])
        why = "weights then have no density" if program == "model" else f'gradients then lack the density of "{name}"'
        raise InputError(
            f'site "{site}" of the {program} must not read the latent "{name}" where only "{name}" is masked: '
            f'{why} (an autoencoder marks its latent by infer={{"is_autoencoder": True}})'
        )


def _redrawn(sites: dict[str, dict], names: list[str], pair: Pair) -> dict[str, Tensor]:
    """Returns the latents with new draws of one of the programs in place of the masked elements."""
    found = {}
    for name in names:
        value = pair.guide_sites[name]["value"]
        try:
            drawn = sites[name]["fn"].sample()
        except (NotImplementedError, RuntimeError, ValueError):  # a prior without draws, or none at padding
            continue
        is_new = ~seen(pair.model_sites[name]).to(value.device) & drawn.isfinite()
        new = torch.where(is_new, drawn.to(value.dtype), value)
        found[name] = new.unsqueeze(0) if pair.is_local(sites[name]) and not pair.layout.is_vectorized else new
    return found


def _terms(pair: Pair) -> Terms:
    programs = {"guide": pair.guide_sites, "model": pair.model_sites}
    return {
        (program, name): (scale_and_mask(density_of(site), mask=site["mask"]), seen(site))
        for program, sites in programs.items()
        for name, site in sites.items()
    }


def density_of(site: dict) -> Tensor:
    """Returns the log-density of a site at its value, without masks of handlers."""
    try:
        return log_density(site["fn"], site["value"])
    except NotImplementedError:  # a distribution that does not declare its support
        return site["fn"].log_prob(site["value"])


def differ(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Returns True if two terms, each with what its masks leave, differ by more than rounding."""
    (term, mask), (other_term, other_mask) = one, other
    allowed = min(1e-3, ALLOWED_ROUNDINGS * torch.finfo(term.dtype).eps)
    is_close = torch.allclose(term, other_term, rtol=allowed, atol=allowed, equal_nan=True)
    return not (is_close and _are_equal(mask, other_mask))


def _are_equal(one: Tensor, other: Tensor) -> bool:
    try:
        return bool((one == other).all())
    except RuntimeError:  # their shapes do not broadcast
        return False


# What a batch shows ---------------------------------------------------------------------------------------------------


def exposed(pair: Pair) -> Tensor | None:
    """Returns which sites are unmasked somewhere where a latent is masked, which is what a check of the pair has seen.

    It has a row for each latent with a mask and a column for each site with one, of both programs, and a last column
    for the sites without; None if no latent has a mask. Sequences of other lengths are of the same structure unless
    they show a new pair.
    """
    sites = [site for program in (pair.model_sites, pair.guide_sites) for site in program.values() if is_masked(site)]
    latent = [i for i, site in enumerate(sites) if not (site["is_observed"] or is_autoencoder(site))]
    if not latent:
        return None
    masks = [(seen(site), site["fn"].event_dim) for site in sites]
    device = next(iter(pair.model_sites.values()))["value"].device
    whole, some = (_of_events(masks, reduced, device) for reduced in (torch.all, torch.any))
    always = torch.ones_like(some[:1])
    return (~whole[latent]).float() @ torch.cat((some, always)).float().T > 0


def _of_events(masks: list[tuple[Tensor, int]], reduced: Callable, device: torch.device) -> Tensor:
    """Returns a row for each site, which says whether all, or any, elements of each of its events are unmasked."""
    parts = [reduced(mask.flatten(-num), -1) if num and mask.dim() else mask for mask, num in masks]
    try:
        shape = torch.broadcast_shapes(*{part.shape for part in parts})
    except RuntimeError:  # plates of different sizes at one dim: their elements do not lie side by side
        parts, shape = [reduced(part) for part in parts], torch.Size()
    return torch.stack([part.to(device).expand(shape) for part in parts]).reshape(len(parts), -1)
