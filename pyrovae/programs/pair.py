"""What a (model, guide) pair says about each datum: the terms of its log importance weights, shape `(K, batch)`.

A pair keeps the contract if one plate at dim -1 encloses every sample site of both programs, and both take the same
arguments. K particles are K runs of the pair, vectorised: a plate at dim -2 around both programs.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution, TorchDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from pyrovae.common import InputError, first_line, is_out_of_memory, require_count
from pyrovae.programs.random_choices import Redrawn, random_mark
from pyrovae.programs.supports import base_support, bounds, contains, described, log_density

PARTICLES = "num_particles"
MANY_ROUNDINGS = 100


@dataclass(frozen=True)
class PairTerms:
    """Log-densities of a pair's sites at z ~ q(z|x), each `(num_particles, batch)`, in nats and at beta = 1."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def log_weights(self) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x); E[w] = p(x) and E[log w] is the ELBO."""
        return self.log_likelihood + self.log_prior - self.log_posterior


@dataclass(frozen=True)
class Pair:
    """The sample sites of one run of a pair, by name, after the checks of `run_pair`.

    `parameters` are the messages of the parameters that the two programs registered.
    """

    model_sites: dict[str, dict]
    guide_sites: dict[str, dict]
    batch_shape: torch.Size
    parameters: tuple[dict, ...] = ()
    is_repeatable: bool = True
    """False where a program draws from a generator of its own, which cannot be set back."""

    @property
    def observed(self) -> dict[str, dict]:
        return {name: site for name, site in self.model_sites.items() if site["is_observed"]}

    @property
    def latent(self) -> dict[str, dict]:
        return {name: site for name, site in self.model_sites.items() if not site["is_observed"]}

    def terms(self) -> PairTerms:
        """Every density is taken without its `poutine.scale`: that is what makes it the one at beta = 1, and what
        keeps a subsampled plate's N / B out of the logsumexp over particles, where it would give no bound."""
        return PairTerms(self._sum(self.observed), self._sum(self.latent), self._sum(self.guide_sites))

    def _sum(self, sites: dict[str, dict]) -> Tensor:
        total = torch.zeros(())
        for name, site in sites.items():
            try:
                log_prob = self._log_density(name, site)
            except ValueError as error:  # Pyro's validation, which does not name the site
                raise ValueError(f'at site "{name}": {outside_support(site) or error}') from error
            total = total + scale_and_mask(log_prob, mask=site["mask"])
        return total.expand(self.batch_shape)

    def _log_density(self, name: str, site: dict) -> Tensor:
        """The site's log-density, which outside its support is -inf and has no gradient."""
        fn, value = site["fn"], site["value"]
        if not self._may_lie_outside(name, site):
            return fn.log_prob(value, *site["args"], **site["kwargs"])
        alone = len(self.batch_shape) == 1  # without particles, which tell whether the support moves with them
        if site["is_observed"] and is_validation_enabled() and not alone and not self.has_support_of_its_own(site):
            found = outside_support(site)
            if found:
                raise ValueError(found)
        return log_density(fn, value)

    def _may_lie_outside(self, name: str, site: dict) -> bool:
        try:
            support = site["fn"].support
            if site["is_observed"]:
                return is_masked(site) or len(bounds(support)) > 0
            proposal = self.guide_sites.get(name)
            if proposal is None or proposal is site or isinstance(base_of(proposal["fn"]), Delta):
                return False
            return not contains(support, proposal["fn"].support)
        except NotImplementedError:  # a distribution without a support
            return False

    def has_support_of_its_own(self, site: dict) -> bool:
        """Returns whether an observed site's support differs from one particle to another, as of x ~ Uniform(0, z)."""
        event_dim = site["fn"].event_dim
        for bound in bounds(site["fn"].support):
            dim = bound.dim() - event_dim - len(self.batch_shape)
            if dim >= 0 and bound.shape[dim] > 1:
                first, *others = bound.unbind(dim)
                if any(not torch.equal(first, other) for other in others):
                    return True
        return False

    @property
    def outputs(self) -> int:
        """How many numbers the largest parameter of a site has for one particle and one datum."""
        fns = [base_of(site["fn"]) for site in self.model_sites.values()]
        sizes = [value.numel() for fn in fns for value in vars(fn).values() if isinstance(value, Tensor)]
        return max(1, max(sizes, default=1) // self.batch_shape.numel())

    def check_densities(self, auxiliary: bool = False) -> None:
        """Raises `InputError` where the weights are none of a density, and so give no log p(x) nor a bound on it.

        With `auxiliary` the sites of the guide alone may carry the density of latents that are points, as an
        autoguide's do.
        """

        def refuse(name: str, why: str) -> None:
            raise InputError(f'log p(x) does not exist or cannot be had: site "{name}" {why}')

        for name, site in (*self.model_sites.items(), *self.guide_sites.items()):
            if isinstance(base_of(site["fn"]), Unit):
                refuse(name, "is a factor, and the joint is then not normalised")
        for name, site in self.observed.items():
            found = outside_support(site)
            if found and not self.has_support_of_its_own(site):
                refuse(name, f"has data outside its support, {found} (grey pixels under a Bernoulli: a cross-entropy)")
        alone = [name for name in self.guide_sites if name not in self.model_sites]
        if alone and not auxiliary:
            refuse(alone[0], "is in the guide alone (auxiliary), and the weights would lack its density")
        for name, site in self.guide_sites.items():
            if isinstance(base_of(site["fn"]), Delta) and not alone:
                refuse(name, "is a point (Delta) in the guide: it has no density to weigh by")
        for name, site in (*self.latent.items(), *self.guide_sites.items()):
            if is_masked(site):
                refuse(name, "is latent and masked")


def base_of(fn: TorchDistribution) -> TorchDistribution:
    """The family under `to_event`, `mask` and `expand`."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def has_real_support(fn: TorchDistribution) -> bool:
    """Whether a value is a tensor of real numbers, without a constraint."""
    return isinstance(base_support(fn.support), type(constraints.real))


def outside_support(site: dict) -> str | None:
    """The first element of a site's value that its distribution cannot have and no mask excludes, in words."""
    fn = site["fn"]
    support = base_of(fn).support
    inside = support.check(site["value"])
    for mask, depth in _masks(site):
        mask = torch.as_tensor(mask)
        inside = inside | ~mask.reshape(mask.shape + (1,) * (depth if mask.dim() else 0))
    if bool(inside.all()):
        return None
    index = tuple((~inside).nonzero()[0].tolist())
    value = site["value"].expand(inside.shape + site["value"].shape[site["value"].dim() - support.event_dim :])
    return f"{str(value[index].tolist())[:80]} at index {index} is outside {described(support)}"


def is_masked(site: dict) -> bool:
    return len(_masks(site)) > 0


def _masks(site: dict) -> list[tuple[Tensor | bool, int]]:
    """The masks of the site's handlers and of its distribution, each with the number of dimensions of an element that
    lie to the right of its own."""
    fn, found, depth = site["fn"], [(site["mask"], 0)], 0
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            found.append((fn._mask, depth))
        if isinstance(fn, Independent):
            depth += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return [(mask, depth - outside) for mask, outside in found if mask is not None and mask is not True]


def check_masks(pair: Pair, allowed: bool, said: str) -> None:
    """Raises `InputError` where a latent is masked, or where masks are allowed, not by the same in model and guide."""
    for name, site in pair.latent.items():
        masks = [[mask for mask, _ in _masks(one)] for one in (site, pair.guide_sites[name])]
        if not any(masks):
            continue
        if not allowed:
            raise InputError(f'{said}, and site "{name}" has one')
        ours, theirs = masks
        if len(ours) != len(theirs) or not all(map(_are_one_mask, ours, theirs)):
            raise InputError(f'the latent site "{name}" must have the same mask in model and guide')


def _are_one_mask(one: Tensor | bool, other: Tensor | bool) -> bool:
    try:
        return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
    except RuntimeError:  # of shapes that do not go together
        return False


def run_pair(model: Callable, guide: Callable, *args, num_particles: int = 1, **kwargs) -> Pair:
    """Runs the guide, then the model at what the guide drew, `num_particles` times, vectorised.

    Raises `InputError` if the pair breaks the contract: a site outside the plate, a nested plate or one at another
    dim, a plate that does not hold every datum, latent sites that differ between model and guide, scales that differ
    between them, observed values without the data dimension.
    """
    require_count("num_particles", num_particles)
    try:
        traces = _run(model, guide, args, kwargs, num_particles)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise InputError(f"model and guide must take the same {len(args)} arguments: {first_line(error)}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        # A broken contract often shows as a clash of shapes with the particles: a run without them tells which it is.
        try:
            alone = _run(model, guide, args, kwargs, None)
        except (IndexError, RuntimeError) as without:
            if isinstance(without, InputError) or is_out_of_memory(without):
                raise
            raise InputError(f"the pair does not run: {first_line(without)}") from error
        _check_contract(*map(sample_sites, alone), args)
        raise InputError(
            "model and guide must take particles to the left of the batch (networks: any number of leading batch "
            f"dimensions); without particles they run, and with {num_particles} there was: {first_line(error)}"
        ) from error
    model_sites, guide_sites = map(sample_sites, traces)
    batch = _check_contract(model_sites, guide_sites, args)
    parameters = tuple(node for trace in traces for node in trace.nodes.values() if node["type"] == "param")
    return Pair(model_sites, guide_sites, torch.Size((num_particles, batch)), parameters)


def check_pair(model: Callable, guide: Callable, *args, **kwargs) -> Pair:
    """Two particles of the pair, once it is clear that each is what the pair gives without a particle dimension.

    A network that does something across its leading dimensions (a softmax over dim 1, batch normalisation) runs with
    particles and gives other numbers.
    """
    try:
        return _checked(model, guide, args, kwargs)
    except InputError:
        raise
    except ValueError as error:  # of Pyro's validation, over many lines: a value outside a support, for one
        raise InputError(f"the pair does not run: {first_line(error)}") from error


def _checked(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    pair = run_pair(model, guide, *args, num_particles=2, **kwargs)
    if not pair.observed:
        raise InputError("model must observe the data at a site, and observes none")
    for name, site in pair.guide_sites.items():
        if hasattr(site["value"], "_unquantize"):
            raise InputError(
                f'site "{name}" draws straight through: its density is taken at another value than the one it draws, '
                "so that the weights are of no model"
            )
    latents = {name: site["value"][0] for name, site in pair.guide_sites.items()}
    before = random_mark()
    alone = _alone(model, guide, latents, args, kwargs)
    if random_mark() != before:  # a program that draws more than its latents: no two runs have one density
        return pair
    rounding = None
    for program, ours, theirs in (
        ("model", pair._sum(pair.model_sites)[0], alone._sum(alone.model_sites)),
        ("guide", pair._sum(pair.guide_sites)[0], alone._sum(alone.guide_sites)),
    ):
        if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True):
            continue
        if rounding is None:
            again = _alone(model, guide, latents, args, kwargs)
            if not torch.equal(again.terms().log_weights, alone.terms().log_weights):
                return replace(pair, is_repeatable=False)
            rounding = _rounding(model, guide, latents, alone, args, kwargs)
        off = (ours - theirs).abs().max().item()
        if not off <= 1e-3 + MANY_ROUNDINGS * rounding[program]:
            raise InputError(
                f"the {program} must give each particle the density that it has alone, and differs by up to "
                f"{off:.3g} nats: something in it works across leading dimensions"
            )
    return pair


def _alone(model: Callable, guide: Callable, latents: dict[str, Tensor], args: tuple, kwargs: dict) -> Pair:
    """The pair at given latents without a dimension of particles."""
    at = (poutine.condition(program, data=latents) for program in (model, guide))
    sites = []
    for trace in _run(*at, args, kwargs, None):
        found = {name: s for name, s in sample_sites(trace).items() if name in latents or s["is_observed"]}
        sites.append({name: {**s, "is_observed": name not in latents} for name, s in found.items()})
    return Pair(*sites, next(iter(sites[0].values()))["fn"].batch_shape[-1:])


def _rounding(
    model: Callable, guide: Callable, latents: dict[str, Tensor], alone: Pair, args: tuple, kwargs: dict
) -> dict[str, float]:
    """How far the log-densities of model and guide move when the latents do by a few roundings."""
    moved = {
        name: z * (1 - 4 * torch.finfo(z.dtype).eps) if z.is_floating_point() else z for name, z in latents.items()
    }
    there = _alone(model, guide, moved, args, kwargs)
    both = {"model": (alone.model_sites, there.model_sites), "guide": (alone.guide_sites, there.guide_sites)}
    return {name: (alone._sum(a) - there._sum(b)).abs().max().item() for name, (a, b) in both.items()}


@torch.no_grad()
def guide_draws(guide: Callable, *args, num_particles: int) -> dict[str, Tensor]:
    """Draws of every latent site, `(num_particles, batch, *event)`, without a look at the model."""
    return {n: site["value"] for n, site in sample_sites(_trace(guide, args, {}, num_particles)).items()}


def pair_at(
    model: Callable, guide: Callable, latents: dict[str, Tensor], *args, redraw: bool = False, **kwargs
) -> Pair:
    """The pair's sites at given values, `(num_particles, batch, *event)`, of all of the guide's draws.

    With `redraw` the latents are drawn first, and the draws thrown away (see `Choices`).
    """
    num_particles = len(next(iter(latents.values())))
    at: Messenger = Redrawn(latents) if redraw else nullcontext()
    with at, pyro.plate(PARTICLES, num_particles, dim=-2):
        trace = poutine.trace(guide if redraw else _At(guide, latents)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(trace)
    return Pair(model_sites, guide_sites, torch.Size((num_particles, _check_plate({"model": model_sites}, args))))


@torch.no_grad()
def not_finite(model: Callable, guide: Callable, *args, num_particles: int = 1, **kwargs) -> str:
    """Which site of the pair has a value or a log-density that is not finite, in words, from one more run."""
    try:
        with pyro.validation_enabled(False):  # which says that a parameter of some distribution is not finite
            pair = run_pair(model, guide, *args, num_particles=num_particles, **kwargs)
            for program, sites in (("guide", pair.guide_sites), ("model", pair.model_sites)):
                for name, site in sites.items():
                    for what, value in (("value", site["value"]), ("log-density", site["fn"].log_prob(site["value"]))):
                        if not bool(value.isfinite().all()):
                            return f'the {what} at site "{name}" of the {program} is not finite'
    except ValueError as error:
        return first_line(error)
    return "in another run on the same batch the log-density of every site is finite"


def simulated(model: Callable, args: Sequence, kwargs: dict) -> tuple[list, dict, dict[str, dict]]:
    """Returns the arguments with draws in the place of all that was observed, and the sites of the model that drew.

    Raises `InputError` where a site does not observe one of the arguments as it is.
    """
    sites = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs))
    places = {**dict(enumerate(args)), **kwargs}
    for name, site in sites.items():
        if site["infer"].get("was_observed"):
            place = next((key for key, arg in places.items() if site["infer"]["obs"] is arg), None)
            if place is None or site["value"].shape != places[place].shape:
                raise InputError(f'the site "{name}" must observe one of the arguments as it is, to be drawn anew')
            places[place] = site["value"].to(places[place])
    return [places[index] for index in range(len(args))], {name: places[name] for name in kwargs}, sites


class _At:
    """A guide whose draws are given; unlike under `poutine.condition` its sites stay latent."""

    def __init__(self, guide: Callable, latents: dict[str, Tensor]) -> None:
        self.guide, self.latents = guide, latents

    def __call__(self, *args, **kwargs) -> None:
        trace = poutine.Trace()
        for name, value in self.latents.items():
            trace.add_node(name, type="sample", name=name, value=value, is_observed=False, infer={}, fn=None)
        poutine.replay(self.guide, trace=trace)(*args, **kwargs)


def at_every_datum(run: Callable[[dict[str, Tensor]], Any], latents: dict[str, Tensor], batch: int) -> Any:
    """`run` at values `(num_particles, 1, *event)`, the same for every datum: a decoder then runs once per particle.

    At their expansion to the batch where a program wants the data dimension whole.
    """
    try:
        return run(latents)
    except (IndexError, RuntimeError) as error:
        if batch == 1 or is_out_of_memory(error):
            raise
    return run({name: z.expand(len(z), batch, *z.shape[2:]) if z.shape[1] == 1 else z for name, z in latents.items()})


def log_joint(model: Callable, latents: dict[str, Tensor], *args, **kwargs) -> Tensor:
    """log p(x, z) in nats, `(num_particles, batch)`, with every latent site of the model at the value given for it.

    Values are `(num_particles, batch, *event)` or, the same for every datum, `(num_particles, 1, *event)`. Scales are
    left out as in `log_weights`.
    """
    num_particles = len(next(iter(latents.values())))

    def run(latents: dict[str, Tensor]) -> dict[str, dict]:
        return sample_sites(_trace(poutine.condition(model, data=latents), args, kwargs, num_particles))

    sites = at_every_datum(run, latents, len(args[0]))
    drawn = sorted(name for name, site in sites.items() if not site["is_observed"])
    if drawn:
        raise InputError(f"latents must hold a value for every latent site of the model, none for {drawn}")
    return Pair(sites, {}, torch.Size((num_particles, _check_plate({"model": sites}, args)))).terms().log_likelihood


def sample_sites(trace: poutine.Trace) -> dict[str, dict]:
    """The sample sites of a trace by name, without those of plates and of `pyro.deterministic`."""
    return {
        name: site
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def _trace(program: Callable, args: tuple, kwargs: dict, num_particles: int | None) -> poutine.Trace:
    with nullcontext() if num_particles is None else pyro.plate(PARTICLES, num_particles, dim=-2):
        return poutine.trace(program).get_trace(*args, **kwargs)


def _run(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, num_particles: int | None
) -> tuple[poutine.Trace, poutine.Trace]:
    """The traces of the model and of the guide, with particles, or with None without their plate."""
    guide_trace = _trace(guide, args, kwargs, num_particles)
    return _trace(poutine.replay(model, trace=guide_trace), args, kwargs, num_particles), guide_trace


def _check_contract(model_sites: dict[str, dict], guide_sites: dict[str, dict], args: tuple) -> int:
    """The number of data, of a pair that keeps the contract."""
    batch = _check_plate({"model": model_sites, "guide": guide_sites}, args)
    _check_latents(model_sites, guide_sites)
    for name, site in model_sites.items():
        event_dim, shape = site["fn"].event_dim, tuple(site["value"].shape)
        if site["is_observed"] and shape[: len(shape) - event_dim][-1:] != (batch,):
            raise InputError(
                f'the value at site "{name}" must have the {batch} data left of its {event_dim} event dimensions, '
                f"got shape {shape} (is a to_event missing?)"
            )
    return batch


def _check_latents(model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> None:
    """Model and guide have the same latent sites under the same scale."""
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    proposed = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    if latent != proposed:
        raise InputError(
            f"model and guide must have the same latent sites, got {sorted(latent)} in the model "
            f"and {sorted(proposed)} in the guide"
        )
    for name in latent:
        discrete = [_is_discrete(sites[name]["fn"]) for sites in (model_sites, guide_sites)]
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


def _is_discrete(fn: TorchDistribution) -> bool | None:
    """None of a point, which goes with either, and where a distribution does not say its support."""
    base = base_of(fn)
    try:
        return None if isinstance(base, Delta) else base.support.is_discrete
    except NotImplementedError:
        return None


def _check_plate(programs: dict[str, dict[str, dict]], args: tuple) -> int:
    """The number of data in the one plate at dim -1 that encloses every site of the programs."""
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
