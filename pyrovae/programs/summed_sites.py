"""Sums a model's discrete sites out of its log-density: those marked for enumeration that the guide does not draw.

    log p(x, z) = log sum_c p(x, z, c)

The model runs under `Enumerating`. The sum is exact: over states inside the product over plates, and along
`pyro.markov` one step after another. Dimensions of particles and data are kept.

A mask of a summed site changes nothing, as in Pyro: its states keep their probabilities, which sum to 1. Masks of the
sites that depend on it hold inside the sum.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.packed import pack, unpack
from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.programs.enumerated_runs import is_summed
from pyrovae.programs.log_sums import ExactLogRing


def summed_sites(sites: Mapping[str, dict]) -> dict[str, dict]:
    """Returns the sites that are summed out, of a model that ran under `Enumerating`."""
    return {name: site for name, site in sites.items() if is_summed(site)}


def summed_groups(sites: Mapping[str, dict]) -> list[dict[str, dict]]:
    """Returns the sites inside sums, in groups: the summed sites that one sum couples, and all that depend on them.

    The log-density of any other site depends on no summed site. A group without an observed site is the prior of its
    latents, as that of z in p(c) p(z|c) p(x|z).

    Raises `InputError` if a site has a dimension that belongs to no plate and to no summed site in its scope.
    """
    owners = _owners(sites)
    if not owners:
        return []
    for name, site in sites.items():
        _check_dims(name, site)
    found = {name: _states_of(site, owners) for name, site in sites.items()}
    parent = {own: own for own in owners}

    def root(own: int) -> int:
        while parent[own] != own:
            parent[own] = own = parent[parent[own]]
        return own

    for states in found.values():
        roots = [root(own) for own in states]
        for own in roots:
            parent[own] = min(roots)
    groups: dict[int, dict[str, dict]] = {}
    for name, states in found.items():
        if states:
            groups.setdefault(root(next(iter(states))), {})[name] = sites[name]
    return list(groups.values())


def log_prob_of(name: str, site: dict) -> Tensor:
    """Returns the log-density of a site at its value, without mask and scale."""
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def summed_log_prob(
    group: Mapping[str, dict],
    kept: Mapping[str, int],
    log_density: Callable[[str, dict], Tensor] = log_prob_of,
) -> Tensor:
    """Returns the log-density of a group, its summed sites summed out, without scales, in nats.

    Args:
        group: One of `summed_groups`.
        kept: Names and sizes of the plates whose dimensions the result has, in their order: those of the particles and
            of the data.
        log_density: Returns a site's log-density, without mask and scale, from its name and itself.

    Returns:
        The log-density, of the shape `kept.values()`.

    Raises:
        InputError: A site lies outside a kept plate, or outside a plate of a summed site that it depends on; or sites
            in crossing plates depend on each other, so that the sum would take exponential time.
    """
    owners = _owners(group)
    _check_plates(group, owners, kept)
    plates = dict.fromkeys(name for site in group.values() for name in _vectorized(site))
    # One character for each dimension; those of the alphabet would be too few for a long Markov chain.
    keys: list[str | int] = [*plates, *owners]
    symbols = {key: chr(0x100 + place) for place, key in enumerate(keys)}
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for name, site in group.items():
        term = _packed(site, log_density(name, site), owners, symbols, kept)
        tree.setdefault(frozenset(symbols[plate] for plate in _vectorized(site)), []).append(term)
    _check_sizes(group, tree, symbols, kept)
    ring = ExactLogRing()
    try:
        contracted = contract_tensor_tree(tree, {symbols[own] for own in owners}, ring=ring)
    except NotImplementedError as error:
        raise InputError(
            f"the sum over sites {_listed(owners.values())} grows exponentially with plates that cross: "
            "let the guide draw one of the sites"
        ) from error
    inner = frozenset(symbols[plate] for plate in plates if plate not in kept)
    places = {symbols[plate]: place - len(kept) for place, plate in enumerate(kept) if plate in plates}
    parts = [unpack(ring.product(term, inner), places) for terms in contracted.values() for term in terms]
    return _at_steps(sum(parts[1:], parts[0]), group, kept)


def _packed(
    site: dict, log_prob: Tensor, owners: Mapping[int, str], symbols: Mapping, kept: Mapping[str, int]
) -> Tensor:
    """Returns a site's masked log-density without dimensions of size 1, and with the names of the others."""
    frames = _vectorized(site).values()
    log_prob = scale_and_mask(log_prob, mask=None if is_summed(site) else site["mask"])
    inner = {frame.dim: frame.size for frame in frames if frame.name not in kept and frame.size > 1}
    if inner:  # what is the same all over an inner plate counts for each of its elements
        full = [inner.get(dim, 1) for dim in range(min(inner), 0)]
        log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, full))
    dims = {dim: symbols[own] for own, dim in _dims_of(site, owners).items()}
    dims.update({frame.dim: symbols[frame.name] for frame in frames})
    return pack(log_prob, dims)


def _at_steps(log_prob: Tensor, group: Mapping[str, dict], kept: Mapping[str, int]) -> Tensor:
    """Returns the log-density for all data, 0 but for one of them if each is a step of a sequential plate."""
    for place, (name, size) in enumerate(kept.items()):
        step = next(frame for frame in next(iter(group.values()))["cond_indep_stack"] if frame.name == name)
        if not step.vectorized:
            shape = (size,) + (1,) * (len(kept) - 1 - place)
            is_there = torch.arange(size, device=log_prob.device).reshape(shape) == step.counter - 1
            log_prob = torch.where(is_there, log_prob, 0.0)
    return log_prob.expand(tuple(kept.values()))


# Summed sites and the dimensions of their states ----------------------------------------------------------------------


def _owners(sites: Mapping[str, dict]) -> dict[int, str]:
    """Returns the name of each summed site under the number that Pyro gives to its states.

    Along `pyro.markov` a dimension is used again, and a number is not.
    """
    infers = {name: site["infer"] for name, site in sites.items() if is_summed(site)}
    return {infer["_dim_to_id"][infer["_enumerate_dim"]]: name for name, infer in infers.items()}


def _dims_of(site: dict, owners: Mapping[int, str]) -> dict[int, int]:
    """Returns the dimension of the states of each summed site that is in scope at a site."""
    return {own: dim for dim, own in site["infer"].get("_dim_to_id", {}).items() if own in owners}


def _states_of(site: dict, owners: Mapping[int, str]) -> dict[int, int]:
    """Returns the dimension of the states of each summed site that a site's log-density depends on."""
    own = {site["infer"]["_enumerate_dim"]} if is_summed(site) else set()
    dims = _dims_in_use(site) | own
    return {number: dim for number, dim in _dims_of(site, owners).items() if dim in dims}


def _dims_in_use(site: dict) -> set[int]:
    """Returns the dimensions along which a site's log-density may differ, mask included."""
    value = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
    mask = site["mask"].shape if isinstance(site["mask"], Tensor) else ()
    shapes = (site["fn"].batch_shape, value, mask)
    return {dim for shape in shapes for dim in range(-len(shape), 0) if shape[dim] > 1}


def _check_dims(name: str, site: dict) -> None:
    """Raises `InputError` if a dimension belongs to no plate and to no summed site in the site's scope."""
    known = {frame.dim for frame in _vectorized(site).values()} | site["infer"].get("_dim_to_id", {}).keys()
    unknown = sorted(_dims_in_use(site) - known)
    require(
        not unknown,
        f'every dimension of site "{name}" must be that of a plate, or of a summed site within reach of pyro.markov, '
        f"got another at {unknown[:1]} (is a to_event missing, or the markov's history too short?)",
    )


# Plates ---------------------------------------------------------------------------------------------------------------


def _vectorized(site: dict) -> dict[str, Any]:
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def _steps(site: dict, names: Iterable[str]) -> dict[str, int]:
    """Returns the step of each sequential plate among the named ones that a site lies in."""
    return {
        frame.name: frame.counter for frame in site["cond_indep_stack"] if frame.name in names and not frame.vectorized
    }


def _check_plates(group: Mapping[str, dict], owners: Mapping[int, str], kept: Mapping[str, int]) -> None:
    """Raises `InputError` if a sum couples what plates declare to be independent."""
    for name, site in group.items():
        inside = {frame.name for frame in site["cond_indep_stack"]}
        for plate in kept:
            require(
                plate in inside,
                f'site "{name}" lies outside the plate "{plate}" and inside the sum over {_listed(owners.values())}, '
                "which couples all data",
            )
        for own in _states_of(site, owners):
            summed = group[owners[own]]
            missing = next((plate for plate in _vectorized(summed) if plate not in inside), None)
            require(
                missing is None,
                f'site "{name}" depends on the summed site "{owners[own]}" and must lie in its plate "{missing}", too',
            )
            require(
                _steps(site, kept) == _steps(summed, kept),
                f'site "{name}" depends on the summed site "{owners[own]}" of another datum',
            )


def _check_sizes(
    group: Mapping[str, dict], tree: Mapping[frozenset[str], list[Tensor]], symbols: Mapping, kept: Mapping[str, int]
) -> None:
    """Raises `InputError` if a site counts once for a plate without a size, or for each of its elements: who knows."""
    for site in group.values():
        for name, frame in _vectorized(site).items():
            if frame.size < 0 and name not in kept:
                inside = [term for plates, terms in tree.items() if symbols[name] in plates for term in terms]
                has = {symbols[name] in term._pyro_dims for term in inside}  # type: ignore[attr-defined]
                require(
                    len(has) == 1,
                    f'the plate "{name}" needs a size: some sites inside it, and inside the sum over their states, '
                    "have one value for all of it",
                )


def check_scales(groups: Iterable[Mapping[str, dict]]) -> None:
    """Raises `InputError` if a `poutine.scale` stands inside a sum, where it gives no density.

    A scale common to a whole group stands outside: that of the data plate, N / B.
    """
    for group in groups:
        (first, one), *others = group.items()
        for name, site in others:
            ours, theirs = (torch.as_tensor(scale) for scale in (one["scale"], site["scale"]))
            require(
                ours.dim() == theirs.dim() == 0 and bool(ours == theirs),
                f"poutine.scale must be one number for all sites inside the sum over {_listed(summed_sites(group))}, "
                f'got {ours.tolist()} at site "{first}" and {theirs.tolist()} at site "{name}"',
            )


def _listed(names: Iterable[str]) -> str:
    shown = [f'"{name}"' for name in names]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
