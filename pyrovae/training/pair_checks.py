"""Checks of a pair on its first batch: its log-weights, the parameters that train, batches of one datum."""

from collections.abc import Iterable
from contextlib import suppress

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrovae.common import InputError, kept_generators, local_seed, require
from pyrovae.data import Batch
from pyrovae.objectives import DifferentiableELBO, check_objective
from pyrovae.programs import Pair, ProgramPair, not_in_store, own_and_stored
from pyrovae.training.first_run import NO_PARAMETER
from pyrovae.training.pair_modules import buffers_of, in_training_mode, kept_values, modules_of


class PairChecks:
    """Checks a pair on the first batch, with random numbers of its own, so that the training's stream does not move.

    Args:
        vae: the pair.
        batch: their first batch.
        generators: the generators that the data draw from.
        seed: fixes the random numbers of the checks.
    """

    def __init__(self, vae: ProgramPair, batch: Batch, generators: list[torch.Generator], seed: int) -> None:
        self.vae, self.batch, self.generators, self.seed = vae, batch, generators, seed
        self.registered: set[str] = set()
        self.runs: list[Pair] = []
        """The run of the pair that was checked for each objective."""

    def parameters(self, elbos: Iterable[ELBO], batch_size: int | None) -> dict[str, Tensor]:
        """Returns the pair's parameters by name, after checking it under every objective.

        `batch_size` is given where a batch may hold one datum alone, on which the first objective is then tried.
        """
        elbos = list(elbos)
        with kept_generators(self.generators), local_seed(self.seed):
            for elbo in elbos:
                parameters, run = checked_pair(self.vae, elbo, self.batch)
                self.runs.append(run)
            if batch_size is not None:
                check_batch_of_one(self.vae, elbos[0], self.batch, batch_size)
        self.registered = set(pyro.get_param_store().keys())
        return parameters

    def check_again(self, elbo: ELBO) -> None:
        """Raises `InputError` if the pair no longer meets the objective's needs, as after a callback changed beta."""
        with kept_generators(self.generators), local_seed(self.seed):
            check_objective(elbo, self.vae.model, self.vae.guide, *self.batch)

    def check_registered(self) -> None:
        """Raises `InputError` if a parameter was registered after the first batch: it would not be trained."""
        new = set(pyro.get_param_store().keys()) - self.registered
        require(not new, f"parameters must all be registered at the first batch; later came {sorted(new)}")


def checked_pair(vae: ProgramPair, elbo: ELBO, batch: Batch) -> tuple[dict[str, Tensor], Pair]:
    """Returns the pair's parameters by name, and a run of it, once it is clear that `elbo` trains all of them.

    The pair runs in evaluation mode, so that batch statistics do not move.
    """
    with poutine.trace(param_only=True) as capture:
        run = check_objective(elbo, vae.model, vae.guide, *batch)
    sites = {name: site for name, site in capture.trace.nodes.items() if site["type"] == "param"}
    named = {name: site["value"].unconstrained() for name, site in sites.items()}  # type: ignore[union-attr]
    found = {id(p): (name, p) for name, p in named.items()}
    own = vae.named_parameters() if isinstance(vae, nn.Module) else ()
    names = {id(p): name for name, p in own}  # the names of sites differ from one instance to the next
    parameters = {names.get(key, name): p for key, (name, p) in found.items()}
    require(len(parameters) > 0, NO_PARAMETER)
    if isinstance(vae, nn.Module):
        known = {id(parameter) for parameter in parameters.values()}
        for name, parameter in vae.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                is_hidden = any(own is parameter for _, own, _ in own_and_stored(tuple(sites.values())))
                rule = f"parameter {name} would never train: neither model nor guide registers it (pyro.module)"
                raise InputError(not_in_store(name, parameter) if is_hidden else rule)
    if not isinstance(elbo, DifferentiableELBO):
        _set_up(vae, elbo, batch)
    return parameters, run


def _set_up(vae: ProgramPair, elbo: ELBO, batch: Batch) -> None:
    """Lets a loss of Pyro's draw the numbers that it draws in its first run, without any other trace.

    Otherwise the first step of a training that is resumed would draw others.
    """
    with kept_values(list(buffers_of(vae).values())), kept_generators(), torch.no_grad(), suppress(ValueError):
        elbo.loss(vae.model, vae.guide, *batch)  # type: ignore[attr-defined]


def check_batch_of_one(vae: ProgramPair, elbo: ELBO, batch: Batch, batch_size: int) -> None:
    """Raises `InputError` if the pair has batch normalisation that fails on a batch of one datum."""
    if not any(isinstance(module, _BatchNorm) for module in modules_of(vae)):
        return
    try:
        with torch.no_grad(), in_training_mode(vae), kept_values(list(buffers_of(vae).values())):
            elbo.loss(vae.model, vae.guide, *(part[:1] for part in batch))  # type: ignore[attr-defined]
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            rule = "batch_size must leave no batch of one datum, for which BatchNorm has no variance"
            raise InputError(f"{rule}; got {batch_size}") from error
        raise
