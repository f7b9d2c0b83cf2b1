"""Runs a (model, guide) pair with K particles: at once, where the programs can, and otherwise one after another.

Particles at once are a plate to the left of all others, around both programs, that only local sites lie in: what is
drawn for all data together is drawn once. Particles one after another share those draws and the subsample's indices.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.common import (
    InputError,
    counted,
    first_line,
    is_out_of_memory,
    is_validation_error,
    kept_generators,
    require_callable,
    require_size,
    warn,
)
from pyrovae.programs.contract import check_latents, check_scales
from pyrovae.programs.data_plates import DataPlate, UndeclaredDimension, check_dimensions, data_plates
from pyrovae.programs.enumerated_guide import AllValues, state_dims, with_means
from pyrovae.programs.enumerated_runs import Enumerating
from pyrovae.programs.known_layouts import LastRun, last_run, outline_of, reason_unsaid, remember, run_one_by_one
from pyrovae.programs.layout import PARTICLES, Layout, Reading, read_layout
from pyrovae.programs.one_way_transforms import Remembering
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import is_traced, restore_generators, saved_generators
from pyrovae.programs.running_statistics import kept_statistics, restore_statistics, saved_statistics
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.support_checks import refuse_draws_outside

AS_IT_COMES = Reading()
FROM_THE_RIGHT = "latents are indexed and multiplied from the right, as in alpha[..., g], (X * beta).sum(-1) and "
FROM_THE_RIGHT += "(z.unsqueeze(-2) @ W).squeeze(-2)"
_GUESS = Layout()  # particles at every site, to the left of one dimension of plates: what most pairs need

Traces = tuple[poutine.Trace, poutine.Trace]


def run_pair(
    model: Callable,
    guide: Callable,
    *args,
    num_particles: int = 1,
    reading: Reading = AS_IT_COMES,
    sums_marked: bool = False,
    **kwargs,
) -> Pair:
    """Runs the guide, then the model at what the guide drew, `num_particles` times.

    With `sums_marked` sites of the guide that are marked for enumeration have all of their values, and terms are means
    over them.

    Raises `InputError` if the pair has no log-weights: latent sites that differ between model and guide, scales that
    differ between them, dimensions that no plate declares, observed values without that of the data; or if it can be
    read in more than one way.
    """
    require_callable("model", model)
    require_callable("guide", guide, "a function, and come before the data")
    require_size("num_particles", num_particles)
    run = _Run(model, guide, args, kwargs, num_particles, reading, sums_marked)
    try:
        return run.pair()
    except UndeclaredDimension as error:  # a class that only this file tells apart
        raise InputError(str(error)) from None
    except TypeError as error:
        if "argument" not in str(error):
            raise
        if not args and not kwargs:
            raise InputError(f"model and guide must be given their data, and got none: {first_line(error)}") from error
        given = counted(len(args), "argument")
        raise InputError(f"model and guide must take the {given} given: {first_line(error)}") from error


class _Run:
    """Runs the pair with one set of arguments."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
        num_particles: int,
        reading: Reading,
        sums_marked: bool,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.num_particles, self.reading, self.sums_marked = num_particles, reading, sums_marked
        self.last = last_run(model, guide, reading)

    def pair(self) -> Pair:
        """Runs the pair by its layout, or finds it first, which takes no random numbers.

        That a known layout does not hold any more does take some: a step cannot afford to keep all generators' states.
        """
        known = None if self.last is None else self.last.layout
        if known is not None and not known.is_vectorized:
            return self.one_by_one(known)
        layout, error = known or _GUESS, None
        if is_traced():
            return self._traced(layout)
        start = None if known else saved_generators()
        statistics = saved_statistics(self.model, self.guide)
        for _ in range(3 if self.reading.vectorize_particles is not False else 0):
            try:
                found = self._with_layout(layout)
            except (AssertionError, IndexError, RuntimeError, ValueError) as failed:
                if _is_final(failed):
                    raise
                if layout is known and is_validation_error(failed):  # of a value, and of no shape
                    raise
                found, error = self._alone(failed), failed
            if isinstance(found, Pair):
                return found
            restore_statistics(statistics)
            if start is not None:
                restore_generators(start)
            if layout.takes(found):
                break
            layout = found
        if error is None:
            layout = self._alone(None)
        elif is_validation_error(error):
            raise error
        return self._looped(layout, error)

    def _traced(self, layout: Layout) -> Pair:
        """Runs the pair while a graph is recorded, where generators cannot be set back."""
        found = self._with_layout(layout)
        found = self._with_layout(found) if isinstance(found, Layout) else found
        if isinstance(found, Pair):
            return found
        raise InputError("the programs must have the same plates when they are run again with the same arguments")

    def _looped(self, layout: Layout, error: Exception | None) -> Pair:
        if error is not None and self.reading.vectorize_particles not in (False, "auto"):
            only, at_once = self.reading.vectorize_particles == "only", f"chains run at once: {FROM_THE_RIGHT}"
            instead = at_once if only else "vectorize_particles=False runs them one after another"
            raise InputError(
                f"model and guide must take {self.num_particles} particles in a dimension left of the batch, and there "
                f"was: {first_line(error)}; {instead}"
            ) from error
        failed = None if error is None else f"({first_line(error).rstrip('.')}): {FROM_THE_RIGHT}"
        why = failed and f"particles run one after another, which is slower, as at once they fail {failed}"
        return self.one_by_one(run_one_by_one(self.model, self.guide, self.reading, layout, why))

    # Runs -------------------------------------------------------------------------------------------------------------

    def _with_layout(self, layout: Layout) -> Pair | Layout:
        """Runs all particles at once; returns the layout that the pair has instead, if it is not the given one."""
        traces = self._traces(self.num_particles, layout)
        sites = sample_sites(traces[0]), sample_sites(traces[1])
        last, outline = self.last, None if is_traced() else outline_of(*sites)
        if outline is not None and last is not None and layout is last.layout and outline == last.outline:
            for name in sites[1]:
                check_scales(name, *sites)
            return _pair(traces, sites, self.num_particles, layout, last.plates, last.outline)
        found = read_layout(*sites, self.reading)
        # The guess gives all sites particles, and a known layout those in its plates.
        guessed = layout is _GUESS and not (found.has_globals or found.sums or found.nesting > 1)
        if not (layout.takes(found) or guessed):
            return found
        if found.nesting < layout.nesting:
            found = replace(found, nesting=layout.nesting)
        pair = pair_of(traces, self.num_particles, found, outline)
        if not is_traced():
            remember(self.model, self.guide, self.reading, LastRun(found, pair.plates, outline))
        return pair

    def _traces(self, num_particles: int | None, layout: Layout) -> Traces:
        sums_marked = self.sums_marked and not layout.sums  # of two programs with states one must be refused
        return traces_of(self.model, self.guide, self.args, self.kwargs, num_particles, layout, sums_marked)

    def one_by_one(self, layout: Layout) -> Pair:
        """Runs the particles one after another, with the first one's global draws and subsample."""
        if self.num_particles > 1:
            why = reason_unsaid(self.model, self.guide, self.reading)
            if why is not None:
                warn(why)
        runs: list[Pair] = []
        shared: dict[str, Tensor] = {}
        for index in range(self.num_particles):
            once = kept_statistics(self.model, self.guide) if index else nullcontext()
            with once, Given(shared):
                traces = self._traces(None, layout)
            found = replace(layout_of(traces, self.reading), is_vectorized=False)
            if index == 0 and found.sums != layout.sums:  # states that these data give, or give no more
                return self.one_by_one(run_one_by_one(self.model, self.guide, self.reading, found))
            runs.append(pair_of(traces, 1, found))
            shared = shared or shared_draws(traces, runs[0])
        if runs[0].layout != layout:
            remember(self.model, self.guide, self.reading, LastRun(runs[0].layout))
        return replace(runs[0], others=tuple(runs[1:]))

    def _alone(self, why: Exception | None) -> Layout:
        """Returns the layout, from a run without particles.

        A pair that is no pair often shows as a clash of shapes with the particles: this run tells what it is.
        """
        with kept_generators(), torch.no_grad(), kept_statistics(self.model, self.guide):
            try:
                traces = traces_of(self.model, self.guide, self.args, self.kwargs, None)
                layout = replace(layout_of(traces, self.reading), is_vectorized=False)
                if layout.sums:
                    traces = traces_of(self.model, self.guide, self.args, self.kwargs, None, layout)
            except (IndexError, RuntimeError) as error:
                if _is_final(error):
                    raise
                raise InputError(does_not_run(error)) from (why or error)
        pair_of(traces, 1, layout)
        return replace(layout, is_vectorized=True)


def does_not_run(error: Exception) -> str:
    """Returns what is said of a pair that failed as its own error says."""
    text = first_line(error)
    hint = ": to_event missing?" if text.startswith("Shape mismatch inside plate") else ""
    return f"the pair does not run: {text}{hint}"


def _is_final(error: Exception) -> bool:
    """Returns True for an error that a run without particles would not change."""
    return is_out_of_memory(error) or (isinstance(error, InputError) and not isinstance(error, UndeclaredDimension))


def layout_of(traces: Traces, reading: Reading) -> Layout:
    """Returns the layout of the pair that two traces hold."""
    model_sites, guide_sites = map(sample_sites, traces)
    return read_layout(model_sites, guide_sites, reading)


def pair_of(traces: Traces, num_particles: int, layout: Layout, outline: tuple | None = None) -> Pair:
    """Returns the pair that two traces hold, after checks of its sites."""
    model_sites, guide_sites = sites = sample_sites(traces[0]), sample_sites(traces[1])
    check_latents(model_sites, guide_sites, layout)
    plates = data_plates(layout, model_sites, guide_sites)
    states = state_dims(guide_sites)
    for own in sites:
        check_dimensions(own, layout, plates, states)
    return with_means(_pair(traces, sites, num_particles, layout, plates, outline))


def _pair(
    traces: Traces,
    sites: tuple[dict, dict],
    num_particles: int,
    layout: Layout,
    plates: tuple[DataPlate, ...],
    outline: tuple | None,
) -> Pair:
    parameters = tuple(node for trace in traces for node in trace.nodes.values() if node["type"] == "param")
    indices = subsample_indices(traces)
    return Pair(*sites, num_particles, layout, plates, parameters, indices=indices, outline=outline)


def traces_of(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    num_particles: int | None,
    layout: Layout = _GUESS,
    sums_marked: bool = False,
) -> Traces:
    """Returns the traces of the model and of the guide, with particles, or for None without their plate."""
    with AllValues(layout.state_dim) if sums_marked else nullcontext():
        guide_trace = trace_of(guide, args, kwargs, num_particles, layout)
    replayed = poutine.replay(with_all_states(model, layout, guide_trace.nodes), trace=guide_trace)
    try:
        return trace_of(replayed, args, kwargs, num_particles, layout), guide_trace
    except ValueError as error:
        if is_validation_error(error):
            sites = {}
            with suppress(Exception), pyro.validation_enabled(False), torch.no_grad():
                sites = sample_sites(trace_of(replayed, args, kwargs, num_particles, layout))
            refuse_draws_outside(sites, sample_sites(guide_trace), error)
        raise


def with_all_states(model: Callable, layout: Layout, given: Collection[str], recycles: bool = True) -> Callable:
    """Returns the model with every state of the sites that are summed out, if the layout has any.

    `given` are the names of sites that get their values from elsewhere.
    """
    return Enumerating(layout.state_dim, given, recycles)(model) if layout.sums else model


def trace_of(
    program: Callable, args: tuple, kwargs: dict, num_particles: int | None, layout: Layout = _GUESS
) -> poutine.Trace:
    """Returns the trace of a program, with particles, or for None without their plate."""
    with Remembering(), nullcontext() if num_particles is None else particles(num_particles, layout):
        return poutine.trace(program).get_trace(*args, **kwargs)


def particles(num_particles: int, layout: Layout = _GUESS) -> AbstractContextManager:
    """Returns the plate of the particles: to the left of all other plates, around local sites only."""
    return _Particles(layout, num_particles)


class _Particles(pyro.plate):
    def __init__(self, layout: Layout, num_particles: int) -> None:
        super().__init__(PARTICLES, num_particles, dim=layout.particle_dim)
        self.layout = layout

    def _process_message(self, msg) -> None:
        if self.layout.is_local(msg):
            super()._process_message(msg)


class Given(Messenger):
    """Gives sites the values held here, in place of draws; they stay latent."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def shared_draws(traces: Traces, pair: Pair) -> dict[str, Tensor]:
    """Returns what all particles share: the draws of global sites, and the indices of subsamples."""
    sites = {name: site for name, site in _nodes(traces) if site["type"] == "sample" and not site["is_observed"]}
    of_globals = {name: site["value"] for name, site in sites.items() if not pair.is_local(site)}
    return {**of_globals, **subsample_indices(traces)}


def subsample_indices(traces: Sequence[poutine.Trace]) -> dict[str, Tensor]:
    """Returns the indices of the plates that drew a part of their data."""
    sites = {name: site for name, site in _nodes(traces) if site_is_subsample(site)}
    return {n: s["value"] for n, s in sites.items() if s["fn"].subsample_size not in (None, s["fn"].size)}


def _nodes(traces: Sequence[poutine.Trace]) -> list[tuple[str, Any]]:
    return [item for trace in traces for item in trace.nodes.items()]
