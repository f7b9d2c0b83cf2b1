"""Refuses, at the first step of a loss of Pyro's, a pair of which Pyro only warns, or says nothing.

`pv.objectives` and `fit` check their pairs before a step. The losses of Pyro's take most pairs, some of which train
nonsense: those are refused here, and what Pyro's users do on purpose is not.
"""

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine.guide import GuideMessenger

from pyrovae.common import InputError
from pyrovae.programs import check_observed, sample_sites

_LOSSES = (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, RenyiELBO)
Program = Callable[..., Any]
NO_PARAMETER = "model and guide must register a parameter (pyro.module or pyro.param), found none"


def checked_as_they_run(model: Program, guide: Program, loss: object) -> tuple[Program, Program]:
    """Returns the programs, which are checked once the model has run, if the loss is one of Pyro's own classes.

    A run for the check alone would draw numbers, and might register parameters. A subclass may ask for another pair. A
    `GuideMessenger`, which runs the model itself, is told from other guides by its type, and goes as it is.

    The programs raise `InputError` where the guide has latents and

    - it observes, and the model does not, as if they were swapped;
    - it draws a site that the model lacks and that is not marked as auxiliary;
    - the model observes nothing and draws a latent that the guide does not: an `obs=` is missing. A model of priors
      alone whose latents the guide draws, as that of a density to be approximated, is one that Pyro's users have.
    """
    if type(loss) not in _LOSSES or isinstance(poutine.unwrap(guide), GuideMessenger):
        return model, guide
    of_guide: dict[str, dict] = {}

    def recorded_guide(*args: Any, **kwargs: Any) -> Any:
        with poutine.trace() as capture:
            result = guide(*args, **kwargs)
        of_guide.clear()
        of_guide.update(sample_sites(capture.trace))
        return result

    def recorded_model(*args: Any, **kwargs: Any) -> Any:
        with poutine.trace() as capture:
            result = model(*args, **kwargs)
        _check(sample_sites(capture.trace), of_guide)
        return result

    recorded_model.__wrapped__ = model  # type: ignore[attr-defined]  # which says whether NaN is a missing cell
    return recorded_model, recorded_guide


def has_parameter(trace: poutine.Trace) -> bool:
    """Returns True if a program that was traced registered a parameter."""
    return any(site["type"] == "param" for site in trace.nodes.values())


def _check(of_model: dict[str, dict], of_guide: dict[str, dict]) -> None:
    own = {name: site for name, site in of_guide.items() if not site["infer"].get("is_auxiliary")}
    observes = any(site["is_observed"] for site in of_model.values())
    if not observes:
        check_observed(of_model, own)
    drawn = [name for name, site in own.items() if not site["is_observed"]]
    lacking = sorted(name for name in drawn if name not in of_model)
    if lacking:
        found = f"the model has {sorted(of_model)}" if of_model else "the model has no site"
        raise InputError(
            f'the guide must draw latents of the model, or mark a site as auxiliary, got "{lacking[0]}", and {found}'
        )
    latent = [name for name, site in of_model.items() if not (site["is_observed"] or site["infer"].get("enumerate"))]
    undrawn = sorted(name for name in latent if name not in of_guide)
    if drawn and undrawn and not observes:
        raise InputError(
            f'model must observe the data at a site, and observes none; the guide does not draw "{undrawn[0]}": is an '
            "obs= missing?"
        )
