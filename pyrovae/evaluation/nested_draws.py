"""Weighted draws of everything where the data share latents: the weights are those of nested importance sampling.

A draw theta of the shared latents has the weight of its joint evidence,

    W = p(theta) / q(theta)  prod_n 1/K sum_k w_nk,    w_nk = p(x_n, z_nk | theta) / q(z_nk | x_n, theta)

and beside it one of the K draws of each z_n, chosen with probability w_nk / sum_j w_nj. Then E[W f(theta, z)] is p(x)
times the posterior expectation of f, whatever K is: given theta and the draws, the choice has the mean

    sum_k1 ... sum_kN  f(theta, z_1k1, ..., z_NkN)  prod_n w_nkn / sum_j w_nj

whose products with W are the weights of all combinations of draws, each of them one of importance sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.draw_runs import Run
from pyrovae.evaluation.joint_evidence import Keep, nested_draws
from pyrovae.evaluation.latent_draws import LatentDraws
from pyrovae.evaluation.rows import data_dim_of
from pyrovae.programs import Pair, frames_of, gate


def can_nest(pair: Pair) -> bool:
    """Returns True if a pair has shared latents and others along one dimension of data."""
    layout, local = pair.layout, [site for site in pair.guide_sites.values() if pair.is_local(site)]
    rows = len(pair.plates) == 1 and all(data_dim_of(site, layout) is not None for site in local)
    return layout.draws_globally and layout.draws_locally and rows


@dataclass(frozen=True)
class NestedLatents(Keep):
    """Takes shared latents and those of each datum from the runs of a pair that `can_nest`."""

    of_all: LatentDraws
    of_each: LatentDraws
    places: dict[str, int]
    """The dimension of the data among the plates of each latent of a datum."""

    @classmethod
    def of(cls, pair: Pair) -> "NestedLatents":
        latents = LatentDraws.of(pair, "posterior")
        each = {name: shape for name, shape in latents.shapes.items() if pair.is_local(pair.guide_sites[name])}
        every = {name: shape for name, shape in latents.shapes.items() if name not in each}
        masked = [tuple(name for name in latents.masked if name in names) for names in (every, each)]
        places = {}
        for name in each:
            site = pair.guide_sites[name]
            dims, own = {frame.dim for frame in frames_of(site)}, data_dim_of(site, pair.layout)
            places[name] = sum(dim < own for dim in dims if dim is not None and own is not None)
        return cls(LatentDraws(every, masked[0]), LatentDraws(each, masked[1]), places)

    def shared(self, pair: Pair) -> tuple[Tensor, ...]:
        return tuple(values[0, 0] for values in self.of_all.draws(pair))

    def local(self, pair: Pair) -> tuple[Tensor, ...]:
        return self.of_each.draws(pair)

    def by_name(self, draws: list[Tensor]) -> dict[str, Tensor]:
        """Returns draws of all latents, `(draws, 1, *shape)`, the data being a plate like any other."""
        num = len(self.of_all.shapes) + len(self.of_all.masked)
        found = self.of_all.by_name(tuple(draws[:num]))
        for name, values in self.of_each.by_name(tuple(draws[num:])).items():
            found[name] = values.movedim(1, 1 + self.places[name])
        return {name: values.unsqueeze(1) for name, values in found.items()}


def nested_run(
    model: Callable,
    guide: Callable,
    found: Opened,
    num_draws: int,
    num_particles: int,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Weights,
) -> Run:
    """Returns `num_draws` weighted draws of everything, from `num_particles` draws of the latents of each datum."""
    latents, seed = NestedLatents.of(found.pair), int(torch.randint(2**62, ()))
    needs = replace(needs, reading=found.reading)
    drawn = nested_draws(model, guide, found, num_draws, num_particles, compile, progress, needs, latents)
    log_w, *draws = (values.to(found.data.device) for values in drawn)
    return Run(found.as_one, seed, log_w.unsqueeze(1), latents.by_name(draws))
