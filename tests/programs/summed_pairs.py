"""Runs models with discrete sites summed out, and sums the same sites by hand, over each of their joint states."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.programs.enumerated_runs import Enumerating
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.summed_sites import summed_groups, summed_log_prob

PARALLEL = {"enumerate": "parallel"}
PARTICLES = "num_particles"
LOCS = torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
LOGITS = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64, requires_grad=True)


def nothing(*args, **kwargs) -> None:
    """A guide without sites."""


def summed_run(
    model: Callable,
    *args,
    guide: Callable = nothing,
    num_particles: int = 1,
    nesting: int = 1,
    recycles: bool = True,
) -> dict:
    """Returns the sites of the model, run with the states of its marked sites that the guide does not draw."""
    with pyro.plate(PARTICLES, num_particles, dim=-1 - nesting):
        guide_trace = poutine.trace(guide).get_trace(*args)
        enumerated = Enumerating(-2 - nesting, guide_trace.nodes, recycles)(model)
        return sample_sites(poutine.trace(poutine.replay(enumerated, trace=guide_trace)).get_trace(*args))


def log_joint(sites: dict, kept: dict[str, int]) -> Tensor:
    """Returns log p(x, z) with the marked sites summed out, of the shape of the kept plates."""
    groups = summed_groups(sites)
    inside = {name for group in groups for name in group}
    total = torch.zeros(tuple(kept.values()), dtype=torch.float64)
    for group in groups:
        total = total + summed_log_prob(group, kept)
    for name, site in sites.items():
        if name not in inside:
            dims = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
            log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
            others = [d for d in range(-log_prob.dim(), 0) if d not in {dims[plate] for plate in kept}]
            total = total + (log_prob.sum(others) if others else log_prob).reshape(tuple(kept.values()))
    return total


def of_summed(model: Callable, *args, data: int, plate: str = "data", num_particles: int = 1, **kwargs) -> Tensor:
    """Returns log p(x, z) for each particle and datum."""
    sites = summed_run(model, *args, num_particles=num_particles, **kwargs)
    return log_joint(sites, {PARTICLES: num_particles, plate: data})


States = dict[str, tuple[tuple[int, ...], int]]  # the shape of each site, and the number of its states


def by_hand(model: Callable, *args, states: States, given: dict | None = None) -> Tensor:
    """Returns log of the sum of p(x, z, c) over every joint state of the sites named.

    The joint states lie along a dimension to the left of all plates. Two states are those of a Bernoulli.
    """
    sizes = [math.prod(shape) for shape, _ in states.values()]
    ranges = [range(num) for (_, num), size in zip(states.values(), sizes, strict=True) for _ in range(size)]
    combinations = torch.tensor(list(itertools.product(*ranges)))
    sites = sample_sites(poutine.trace(model).get_trace(*args))
    nesting = max(-frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.vectorized)
    values = {}
    for (name, (shape, num)), part in zip(states.items(), combinations.split(sizes, 1), strict=True):
        value = part.reshape(-1, *(1,) * (nesting + sites[name]["fn"].event_dim - len(shape)), *shape)
        values[name] = value.double() if num == 2 else value
    trace = poutine.trace(poutine.condition(model, data={**values, **(given or {})})).get_trace(*args)
    trace.compute_log_prob()
    total = torch.zeros(len(combinations), dtype=torch.float64)
    for site in sample_sites(trace).values():
        log_prob = site["log_prob"]
        total = total + (log_prob.flatten(1).sum(1) if log_prob.dim() > nesting else log_prob.sum())
    return total.logsumexp(0)


def gradients(value: Tensor, *parameters: Tensor) -> Tensor:
    """Returns the gradient of the sum of a value in all parameters, as one vector."""
    found = torch.autograd.grad(value.sum(), parameters, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in found])


# Programs ------------------------------------------------------------------------------------------------------------


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def mixture(x, dim=-1):
    with pyro.plate("data", len(x), dim=dim):
        c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(LOCS[c], 0.7), obs=x.reshape(-1, *(1,) * (-1 - dim)))


def draws_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, torch.ones((), dtype=torch.float64)))
