"""Runs a (model, guide) pair: with K particles at once, at given latents, or with the data drawn anew.

K particles are K runs of the pair, vectorised: a plate at dim -2 around both programs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, first_line, is_out_of_memory, require_count
from pyrovae.programs.contract import PARTICLES, check_contract, check_plate
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import Redrawn
from pyrovae.programs.sites import sample_sites


def run_pair(model: Callable, guide: Callable, *args, num_particles: int = 1, **kwargs) -> Pair:
    """Runs the guide, then the model at what the guide drew, `num_particles` times, vectorised.

    Raises `InputError` if the pair breaks the contract: a site outside the plate, a nested plate or one at another
    dim, a plate that does not hold every datum, latent sites that differ between model and guide, scales that differ
    between them, observed values without the data dimension.
    """
    require_count("num_particles", num_particles)
    try:
        traces = traces_of(model, guide, args, kwargs, num_particles)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise InputError(f"model and guide must take the same {len(args)} arguments: {first_line(error)}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        _explain(error, model, guide, args, kwargs, num_particles)
    model_sites, guide_sites = map(sample_sites, traces)
    batch = check_contract(model_sites, guide_sites, args)
    parameters = tuple(node for trace in traces for node in trace.nodes.values() if node["type"] == "param")
    return Pair(model_sites, guide_sites, torch.Size((num_particles, batch)), parameters)


def _explain(
    error: Exception, model: Callable, guide: Callable, args: tuple, kwargs: dict, num_particles: int
) -> NoReturn:
    """Raises `InputError` that says why a run with particles failed.

    A broken contract often shows as a clash of shapes with the particles: a run without them tells which it is.
    """
    try:
        alone = traces_of(model, guide, args, kwargs, None)
    except (IndexError, RuntimeError) as without:
        if isinstance(without, InputError) or is_out_of_memory(without):
            raise
        raise InputError(f"the pair does not run: {first_line(without)}") from error
    model_sites, guide_sites = map(sample_sites, alone)
    check_contract(model_sites, guide_sites, args)
    raise InputError(
        "model and guide must take particles to the left of the batch (networks: any number of leading batch "
        f"dimensions); without particles they run, and with {num_particles} there was: {first_line(error)}"
    ) from error


def traces_of(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, num_particles: int | None
) -> tuple[poutine.Trace, poutine.Trace]:
    """Returns the traces of the model and of the guide, with particles, or for None without their plate."""
    guide_trace = _trace(guide, args, kwargs, num_particles)
    return _trace(poutine.replay(model, trace=guide_trace), args, kwargs, num_particles), guide_trace


def _trace(program: Callable, args: tuple, kwargs: dict, num_particles: int | None) -> poutine.Trace:
    with nullcontext() if num_particles is None else pyro.plate(PARTICLES, num_particles, dim=-2):
        return poutine.trace(program).get_trace(*args, **kwargs)


@torch.no_grad()
def guide_draws(guide: Callable, *args, num_particles: int) -> dict[str, Tensor]:
    """Returns draws of every latent site, `(num_particles, batch, *event)`, without running the model."""
    return {n: site["value"] for n, site in sample_sites(_trace(guide, args, {}, num_particles)).items()}


@torch.no_grad()
def not_finite(model: Callable, guide: Callable, *args, num_particles: int = 1, **kwargs) -> str:
    """Runs the pair once more, and describes which site has a value or a log-density that is not finite."""
    try:
        with pyro.validation_enabled(False):  # it would say that some parameter is not finite, and no site
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
    """Returns the arguments with draws in place of all that was observed, and the sites of the model that drew them.

    Raises `InputError` if a site does not observe one of the arguments as it is.
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


# Given latents --------------------------------------------------------------------------------------------------------


def pair_at(
    model: Callable, guide: Callable, latents: dict[str, Tensor], *args, redraw: bool = False, **kwargs
) -> Pair:
    """Returns the pair's sites at given values of all of the guide's draws, `(num_particles, batch, *event)`.

    With `redraw` the latents are drawn first, and the draws are discarded (see `Choices`).
    """
    num_particles = len(next(iter(latents.values())))
    at: AbstractContextManager = Redrawn(latents) if redraw else nullcontext()
    with at, pyro.plate(PARTICLES, num_particles, dim=-2):
        trace = poutine.trace(guide if redraw else _AtGivenLatents(guide, latents)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(trace)
    return Pair(model_sites, guide_sites, torch.Size((num_particles, check_plate({"model": model_sites}, args))))


class _AtGivenLatents:
    """Runs a guide with its draws given; unlike under `poutine.condition`, its sites stay latent."""

    def __init__(self, guide: Callable, latents: dict[str, Tensor]) -> None:
        self.guide, self.latents = guide, latents

    def __call__(self, *args, **kwargs) -> None:
        trace = poutine.Trace()
        for name, value in self.latents.items():
            trace.add_node(name, type="sample", name=name, value=value, is_observed=False, infer={}, fn=None)
        poutine.replay(self.guide, trace=trace)(*args, **kwargs)


def log_joint(model: Callable, latents: dict[str, Tensor], *args, **kwargs) -> Tensor:
    """Returns log p(x, z) in nats, `(num_particles, batch)`, with every latent site of the model at a given value.

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
    return Pair(sites, {}, torch.Size((num_particles, check_plate({"model": sites}, args)))).terms().log_likelihood


def at_every_datum(run: Callable[[dict[str, Tensor]], Any], latents: dict[str, Tensor], batch: int) -> Any:
    """Calls `run` at values `(num_particles, 1, *event)`, the same for every datum: a decoder runs once per particle.

    If a program needs the whole data dimension, `run` is called again with the values expanded to the batch.
    """
    try:
        return run(latents)
    except (IndexError, RuntimeError) as error:
        if batch == 1 or is_out_of_memory(error):
            raise
    return run({name: z.expand(len(z), batch, *z.shape[2:]) if z.shape[1] == 1 else z for name, z in latents.items()})
