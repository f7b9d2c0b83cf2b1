"""One gate for every door: whether a pair can be trained or measured by what is asked of it.

An objective's loss, `fit`, `CompiledSVI`, `compare`, `race` and all estimates of log p(x) come through here. A look at
a pair takes several runs of it, and is taken once for each structure: the pair's programs, the kinds of its sites, and
what is asked. A step of plain SVI only asks whether the structure is known.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.nn.modules.batchnorm import _NormBase

from pyrovae.common import CapturedState, InputError, evaluation_mode, kept_generators, require, warn
from pyrovae.programs.pair import PARTICLES, Pair, base_of, check_pair, is_masked, sample_sites
from pyrovae.programs.random_choices import Redrawn, is_traced, owner_of
from pyrovae.programs.supports import contains, described

PRIOR_DRAWS = 100  # for each of the particles and data, where constraints do not tell what the guide never draws
MOST_DIMENSIONS = 256  # of an autoguide's latents, for a look at their Jacobian


class Needs(Protocol):
    """What is asked of a pair: an objective, or an estimate of log p(x)."""

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where the pair does not give it."""


@dataclass(frozen=True)
class Weights:
    """Importance weights of a density, for an estimate of log p(x) or of a bound on it.

    - `densities`: the data have a density (no grey pixels under a Bernoulli).
    - `everywhere`: the guide draws wherever the prior can, or the estimate converges too low. A bound with finitely
      many particles stays valid.
    - `zeros`: a weight may be 0, as it may be in a mean of weights and not in a mean of their logarithms.
    """

    densities: bool = True
    everywhere: bool = True
    zeros: bool = True

    def check(self, pair: Pair) -> None:
        if self.densities:
            pair.check_densities(auxiliary=True)
        if not self.zeros:
            check_no_zero_weights(pair)
        if self.everywhere:
            missing = never_drawn(pair)
            require(missing is None, f"{missing}: log p(x) would come out too low; see proposals.defensive")


def check(model: Callable, guide: Callable, needs: Needs | None, *args, **kwargs) -> Pair:
    """Returns two particles of the pair, run in evaluation mode, once it is clear that it gives what `needs` asks for.

    With None the pair must only keep the contract. Raises `InputError` where it does not, in one line that says why.
    """
    with evaluation_mode(model, guide), kept_generators(), pyro.validation_enabled(True):
        pair = check_pair(model, guide, *args, **kwargs)
        if not _is_known(model, guide, None, pair):
            check_trained(model, guide, args, kwargs)
            _check_auxiliary(pair, guide, args, kwargs)
            _remember(model, guide, None, pair)
        if needs is not None:
            needs.check(pair)
            _remember(model, guide, needs, pair)
    return pair


def check_once(model: Callable, guide: Callable, needs: Needs | None, pair: Pair, args: tuple, kwargs: dict) -> None:
    """`check`, where a pair of this structure has not been through it; `pair` is a run of it as it is now."""
    if is_traced():  # the eager step before it was looked at
        return
    if not _is_known(model, guide, needs, pair):
        check(model, guide, needs, *args, **kwargs)
        _remember(model, guide, needs, pair)


# Structures that were looked at --------------------------------------------------------------------------------------

_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _structure(pair: Pair) -> tuple:
    return tuple(
        (name, type(site["fn"]), type(base_of(site["fn"])), site["fn"].event_dim, site["mask"] is None)
        for sites in (pair.model_sites, pair.guide_sites)
        for name, site in sites.items()
    )


def _looked_at(model: Callable, guide: Callable) -> dict:
    """What of a pair has been looked at; forgotten with the objects that its programs belong to."""
    of_guides = _known.setdefault(owner_of(model), weakref.WeakKeyDictionary())
    return of_guides.setdefault(owner_of(guide), {})


def _key(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> tuple:
    names = getattr(model, "__name__", ""), getattr(guide, "__name__", "")
    differing = tuple((id(own), id(stored)) for _, own, stored in _own_and_stored(pair.parameters))
    return (*names, needs, _structure(pair), differing)


def _is_known(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> bool:
    try:
        return _key(model, guide, needs, pair) in _looked_at(model, guide)
    except TypeError:  # a program or an objective that cannot be hashed, or not be referred to weakly
        return False


def _remember(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> None:
    try:
        _looked_at(model, guide)[_key(model, guide, needs, pair)] = True
    except TypeError:
        return


def running_statistics(model: Callable, guide: Callable) -> list[tuple[dict, str]]:
    """Returns where the pair's batch normalisation keeps its running statistics."""
    try:
        known = _looked_at(model, guide)
    except TypeError:
        known = {}
    if "statistics" not in known:
        modules = [module for module in CapturedState((model, guide)).modules if isinstance(module, _NormBase)]
        names = ((module._buffers, name) for module in modules for name in module._buffers)
        known["statistics"] = [(container, name) for container, name in names if container[name] is not None]
    return known["statistics"]


# Parameters ----------------------------------------------------------------------------------------------------------


def _own_and_stored(messages: tuple[dict, ...]) -> list[tuple[str, Tensor, Tensor]]:
    """A module's own parameters for which Pyro's param store has another tensor, and that tensor."""
    found = []
    for message in messages:
        own = message["args"][1] if len(message["args"]) > 1 else None
        if isinstance(own, torch.nn.Parameter):
            stored = message["value"].unconstrained()
            if stored is not own:
                found.append((message["name"], own, stored))
    return found


def check_parameters(messages: tuple[dict, ...], model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    """`check_trained` where the messages of the parameters, from a run of the pair, raise the question."""
    if _own_and_stored(messages):
        check_trained(model, guide, args, kwargs)


def check_trained(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Raises `InputError` where a step would move the param store's tensor, and the programs compute with another.

    That is so where a module was registered under a name that the store already had, from a notebook's cell that was
    run before or from a file. A program that computes with what `pyro.param` returns is as it should be.
    """
    with torch.enable_grad(), kept_generators(), poutine.trace(param_only=True) as capture:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        messages = tuple(site for site in capture.trace.nodes.values() if site["type"] == "param")
        differing = _own_and_stored(messages)
        if not differing:
            return
        total = torch.zeros(())
        for sites in map(sample_sites, (guide_trace, model_trace)):
            for site in sites.values():
                total = total + site["fn"].log_prob(site["value"]).sum()
                if site["value"].requires_grad:
                    total = total + site["value"].sum()
        owned = [own for _, own, _ in differing]
        gradients = torch.autograd.grad(total, owned, allow_unused=True) if total.requires_grad else [None] * len(owned)
    for (name, _, _), gradient in zip(differing, gradients, strict=True):
        require(
            gradient is None,
            f"parameter {name.replace('$$$', '.')} would never train: Pyro's param store holds another tensor under "
            "its name (a name used before, a store that was read from a file, or a parameter that is not contiguous)",
        )


# Densities -----------------------------------------------------------------------------------------------------------


def _check_auxiliary(pair: Pair, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Auxiliary sites of a guide are legal where the latents are a bijection of them, as in Pyro's autoguides.

    The auxiliary sites then carry the density, and each latent is a `Delta` with log_density = -log |det J|. With any
    other auxiliary site the weights lack a density, and an objective runs off to a value above log p(x).
    """
    alone = {name: site for name, site in pair.guide_sites.items() if name not in pair.model_sites}
    auxiliary = {name: site for name, site in alone.items() if not isinstance(base_of(site["fn"]), Unit)}
    if not auxiliary:
        return
    names = ", ".join(f'"{name}"' for name in auxiliary)
    latent = {name: site for name, site in pair.guide_sites.items() if name in pair.model_sites}
    drawn = [name for name, site in latent.items() if not isinstance(base_of(site["fn"]), Delta)]
    why = f"the guide's auxiliary site {names} must be what all latents are a bijection of, each a Delta"
    require(not drawn, f"{why}, and {drawn[0] if drawn else ''!r} is drawn: the weights lack the density of {names}")
    values = {name: site["value"][0, 0].reshape(-1) for name, site in auxiliary.items()}
    size = sum(value.numel() for value in values.values())

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of one datum on the real line, and the log-density of their points, at auxiliary values."""
        parts = dict(zip(values, flat.split([value.numel() for value in values.values()]), strict=True))
        at = {}
        for name, site in auxiliary.items():
            z = site["value"][:1].clone()
            z[0, 0] = parts[name].reshape(z.shape[2:])
            at[name] = z
        with Redrawn(at), pyro.plate(PARTICLES, 1, dim=-2):
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        reals, log_density = [], torch.zeros(())
        for name, site in pair.latent.items():
            z, bijection = sites[name]["value"], biject_to(site["fn"].support)
            u = bijection.inv(z)
            point = base_of(sites[name]["fn"])
            jacobian = bijection.log_abs_det_jacobian(u, z)
            log_density = log_density + point.log_density.expand(1, z.shape[1])[0, 0] + jacobian[0, 0].sum()
            reals.append(u[0, 0].reshape(-1))
        return torch.cat(reals), log_density

    start = torch.cat(list(values.values()))
    try:
        reals, log_density = run(start)
    except NotImplementedError:
        raise InputError(f"{why}, and a latent has a support without a bijection to the real line") from None
    require(len(reals) == size, f"{why}, and it has {size} dimensions where they have {len(reals)}")
    if size > MOST_DIMENSIONS:
        return
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda flat: run(flat)[0], start)
    expected = -torch.linalg.slogdet(jacobian.double())[1]
    fits = torch.allclose(log_density.double(), expected, rtol=1e-3, atol=1e-3)
    require(
        fits,
        f"{why} with log_density = -log |det J|, {expected.item():.4g} at a draw, got {log_density.item():.4g}",
    )


def check_no_zero_weights(pair: Pair) -> None:
    """Raises `InputError` where the guide draws what the prior cannot give: the weight is 0, and the ELBO is -inf."""
    for name, site, prior, proposal in _supports(pair):
        inside = contains(prior, proposal, look=True)
        if inside is None:
            inside = bool(prior.check(site["value"]).all())
        require(
            inside,
            f'the guide must draw what the prior can give at site "{name}", {described(prior)}, got a guide on '
            f"{described(proposal)}: the ELBO is then -inf; log p(x) and bounds of several particles are defined",
        )


def never_drawn(pair: Pair) -> str | None:
    """Returns, in words, where the prior gives what the guide never draws, which no number of draws will find."""
    for name, site, prior, proposal in _supports(pair):
        covered = contains(proposal, prior, look=True)
        if covered is None:
            covered = bool(proposal.check(site["fn"].sample((PRIOR_DRAWS,))).all())
        if not covered:
            return (
                f'the guide never draws a part of what the prior gives at site "{name}": the prior is on '
                f"{described(prior)}, the guide on {described(proposal)}"
            )
    return None


def warn_of_never_drawn(pair: Pair) -> None:
    missing = never_drawn(pair)
    if missing is not None:
        warn(f"{missing}: the bound is valid but never tight")


def _supports(pair: Pair) -> Iterator[tuple[str, dict, constraints.Constraint, constraints.Constraint]]:
    """Name, site, and the supports of prior and guide, of each latent that is drawn."""
    for name, site in pair.latent.items():
        proposal = pair.guide_sites[name]["fn"]
        if not (isinstance(base_of(proposal), Delta) or is_masked(site)):
            try:
                yield name, site, site["fn"].support, proposal.support
            except NotImplementedError:  # a distribution that does not say its support
                continue
