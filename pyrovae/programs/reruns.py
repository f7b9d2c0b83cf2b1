"""Runs a (model, guide) pair at given latents, runs one of its programs alone, and draws its data anew."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, first_line, is_out_of_memory, require
from pyrovae.programs.data_plates import data_plates
from pyrovae.programs.enumerated_runs import is_summed
from pyrovae.programs.layout import Layout, read_layout
from pyrovae.programs.one_way_transforms import Remembering
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import Redrawn
from pyrovae.programs.running import (
    AS_IT_COMES,
    Given,
    particles,
    run_pair,
    shared_draws,
    subsample_indices,
    trace_of,
    with_all_states,
)
from pyrovae.programs.sites import drawn_sites, sample_sites


def pair_at(
    model: Callable,
    guide: Callable,
    latents: dict[str, Tensor],
    *args,
    like: Pair | None = None,
    redraw: bool = False,
    recycles: bool = True,
    **kwargs,
) -> Pair:
    """Returns the pair's sites at given values of all of the guide's draws, as `Pair.draws` returns them.

    `like` is an earlier run, with the layout and number of particles; without it the pair must have a simple layout,
    and the values are `(num_particles, batch, *event)`. The subsamples are those of `like`. With `redraw` the latents
    and subsamples are drawn first, and the draws are discarded (see `Choices`). For `recycles` see `Enumerating`.
    """
    shared = {} if like is None or redraw else dict(like.indices)
    known = () if like is None else tuple(run.guide_sites for run in like.runs)
    if like is None or like.layout.is_vectorized:
        num_particles = len(next(iter(latents.values()))) if like is None else like.num_particles
        layout = Layout() if like is None else like.layout
        with particles(num_particles, layout), Given(shared):
            given = None if like is None else layout
            return _at(model, guide, latents, args, kwargs, num_particles, given, redraw, recycles, known)[0]
    runs: list[Pair] = []
    for index in range(len(like.runs)):
        own = {name: z[index] if like.is_local(like.guide_sites[name]) else z for name, z in latents.items()}
        with Given({name: own.get(name, value) for name, value in shared.items()}):  # only the first run drew them
            pair, traces = _at(model, guide, own, args, kwargs, 1, like.layout, redraw, recycles, known)
        runs.append(pair)
        shared = shared_draws(traces, pair) if index == 0 else shared
    return replace(runs[0], others=tuple(runs[1:]))


def _at(
    model: Callable,
    guide: Callable,
    latents: dict[str, Tensor],
    args: tuple,
    kwargs: dict,
    num_particles: int,
    layout: Layout | None,
    redraw: bool,
    recycles: bool,
    known: tuple[dict[str, dict], ...],
) -> tuple[Pair, tuple[poutine.Trace, poutine.Trace]]:
    with Remembering(known), Redrawn(latents) if redraw else nullcontext():
        trace = poutine.trace(guide if redraw else _AtGivenLatents(guide, latents)).get_trace(*args, **kwargs)
        states = model if layout is None else with_all_states(model, layout, trace.nodes, recycles)
        model_trace = poutine.trace(poutine.replay(states, trace=trace)).get_trace(*args, **kwargs)
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(trace)
    if layout is None:
        layout = simple_layout(model_sites, guide_sites)
        if layout.sums:
            return _at(model, guide, latents, args, kwargs, num_particles, layout, redraw, recycles, known)
    plates, traces = data_plates(layout, model_sites, guide_sites), (model_trace, trace)
    return Pair(model_sites, guide_sites, num_particles, layout, plates, indices=subsample_indices(traces)), traces


def simple_layout(model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> Layout:
    """Returns the layout of a pair whose sites all lie in data plates; raises `InputError` on any other."""
    layout = read_layout(model_sites, guide_sites, AS_IT_COMES)
    require(
        layout.is_simple,
        "the pair must have all of its sites in one data plate and in no other, because each datum is taken alone",
    )
    return layout


class _AtGivenLatents:
    """Runs a guide with its draws given; unlike under `poutine.condition`, its sites stay latent."""

    def __init__(self, guide: Callable, latents: dict[str, Tensor]) -> None:
        self.guide, self.latents = guide, latents

    def __call__(self, *args, **kwargs) -> None:
        trace = poutine.Trace()
        for name, value in self.latents.items():
            trace.add_node(name, type="sample", name=name, value=value, is_observed=False, infer={}, fn=None)
        poutine.replay(self.guide, trace=trace)(*args, **kwargs)


@torch.no_grad()
def guide_draws(guide: Callable, *args, num_particles: int, layout: Layout | None = None) -> dict[str, Tensor]:
    """Returns draws of every latent site, without running the model, as `Pair.draws` does.

    They are `(num_particles, batch, *event)`, or as a layout without global sites has them.
    """
    if layout is None or layout.is_vectorized:
        trace = trace_of(guide, args, {}, num_particles, layout or Layout())
        return {name: site["value"] for name, site in sample_sites(trace).items()}
    runs = [sample_sites(trace_of(guide, args, {}, None)) for _ in range(num_particles)]
    return {name: torch.stack([run[name]["value"] for run in runs]) for name in runs[0]}


def log_joint(model: Callable, latents: dict[str, Tensor], *args, layout: Layout | None = None, **kwargs) -> Tensor:
    """Returns log p(x, z) in nats, `(num_particles, batch)`, with every latent site of the model at a given value.

    Values are `(num_particles, batch, *event)` or, the same for every datum, `(num_particles, 1, *event)`; with a
    `layout` they are as it has them, with all data. Scales are left out as in `log_weights`.
    """
    num_particles = len(next(iter(latents.values()), (None,)))  # all latents may be summed out

    def run(latents: dict[str, Tensor]) -> dict[str, dict]:
        def trace(program: Callable) -> dict[str, dict]:
            conditioned = poutine.condition(program, data=latents)
            return sample_sites(trace_of(conditioned, args, kwargs, num_particles, layout or Layout()))

        if layout is not None:
            return trace(with_all_states(model, layout, latents))
        sites = trace(model)
        found = simple_layout(sites, {})
        return trace(with_all_states(model, found, latents)) if found.sums else sites

    sites = at_every_datum(run, latents, len(args[0])) if layout is None else run(latents)
    drawn = sorted(name for name, site in sites.items() if not (site["is_observed"] or is_summed(site)))
    if drawn:
        raise InputError(f"latents must hold a value for every latent site of the model, none for {drawn}")
    pair = model_alone(sites, num_particles) if layout is None else pair_of_sites(sites, {}, num_particles, layout)
    return pair.terms().log_likelihood


def model_alone(sites: dict[str, dict], num_particles: int) -> Pair:
    """Returns a pair of a model's sites without a guide, for its densities."""
    return simple_pair(sites, {}, num_particles)


def simple_pair(model_sites: dict[str, dict], guide_sites: dict[str, dict], num_particles: int) -> Pair:
    """Returns a pair of given sites; raises `InputError` unless all lie in one data plate and in no other."""
    return pair_of_sites(model_sites, guide_sites, num_particles, simple_layout(model_sites, guide_sites))


def pair_of_sites(
    model_sites: dict[str, dict], guide_sites: dict[str, dict], num_particles: int, layout: Layout
) -> Pair:
    """Returns a pair of given sites in a known layout."""
    return Pair(model_sites, guide_sites, num_particles, layout, data_plates(layout, model_sites, guide_sites))


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


@torch.no_grad()
def not_finite(model: Callable, guide: Callable, *args, num_particles: int = 1, **kwargs) -> str:
    """Runs the pair once more, and describes which site has a value or a log-density that is not finite."""
    try:
        with pyro.validation_enabled(False):  # it would say that some parameter is not finite, and no site
            pair = run_pair(model, guide, *args, num_particles=num_particles, **kwargs)
            for run in pair.runs:
                for program, sites in (("guide", run.guide_sites), ("model", run.model_sites)):
                    for name, site in sites.items():
                        log_prob = site["fn"].log_prob(site["value"])
                        for what, value in (("value", site["value"]), ("log-density", log_prob)):
                            if not bool(value.isfinite().all()):
                                return f'the {what} at site "{name}" of the {program} is not finite'
    except ValueError as error:
        return first_line(error)
    return "in another run on the same batch the log-density of every site is finite"


def simulated(model: Callable, args: Sequence, kwargs: dict) -> tuple[list, dict, dict[str, dict]]:
    """Returns the arguments with draws in place of all that was observed, and the sites of the model that drew them.

    Raises `InputError` if a site does not observe one of the arguments as it is. A site whose value is an argument with
    its missing cells filled in says so by `infer={"observes": argument}`.
    """
    sites = drawn_sites(poutine.uncondition(model), *args, **kwargs)
    places = {**dict(enumerate(args)), **kwargs}
    for name, site in sites.items():
        if site["infer"].get("was_observed"):
            observed = site["infer"].get("observes", site["infer"]["obs"])
            place = next((key for key, arg in places.items() if observed is arg), None)
            if place is None or site["value"].shape != places[place].shape:
                raise InputError(f'the site "{name}" must observe one of the arguments as it is, to be drawn anew')
            places[place] = drawn_anew(site, places[place])
    return [places[index] for index in range(len(args))], {name: places[name] for name in kwargs}, sites


def drawn_anew(site: dict, argument: Tensor) -> Tensor:
    """Returns the draw of a site in place of the argument that it observed, with the argument's missing cells."""
    value = site["value"].to(argument)
    return torch.where(argument.isnan(), argument, value) if "observes" in site["infer"] else value
