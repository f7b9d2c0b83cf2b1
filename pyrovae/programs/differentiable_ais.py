"""Differentiable annealed importance sampling: a pair whose guide goes on from its draws towards the posterior.

The model gets a momentum beside each latent, and the guide makes both by a bijection of its own draws and of noise. So
it is a pair like any other, and every bound of its log-weights is one of the model that it was made from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Transform

from pyrovae.common import (
    RegisteredModule,
    as_arguments,
    require,
    require_number,
    require_size,
    shown,
    unique_name,
)
from pyrovae.programs import gate
from pyrovae.programs.calling import is_pair
from pyrovae.programs.distribution_supports import bijection_of, support_of
from pyrovae.programs.one_way_transforms import one_way_site
from pyrovae.programs.pair import Pair, ProgramPair
from pyrovae.programs.running import Given, subsample_indices
from pyrovae.programs.running_statistics import kept_statistics
from pyrovae.programs.sites import base_of, is_masked, sample_sites

START, NOISE, MOMENTUM = "_start", "_noise", "_momentum"
SAID = "differentiable AIS moves latents by gradients"
DAMPING = 0.9
# What `fit` and its kin ask of a VAE.
OF_THE_PAIR = ("convert_data", "check_data", "missing", "likelihood", "beta", "set_beta")


class DifferentiableAIS(RegisteredModule):
    """A pair whose guide moves its draws towards the posterior by T leapfrog steps, all of it differentiable.

        z_0 ~ q(z|x),  v_1 ~ N(0, I),  and for t = 1 ... T, from (z, v) = (z_{t-1}, v_t)
            z <- z + e_t v / 2,   v <- v + e_t d/dz [(1 - b_t) log q(z|x) + b_t log p(x, z)],   z_t <- z + e_t v / 2
            v_{t+1} <- g_t v + (1 - g_t^2)^1/2 n_t,   n_t ~ N(0, I)
        log w = log p(x, z_T) - log q(z_0|x) + sum_t log N(v after the step t) - log N(v_t)

    E[w] = p(x), as no step is rejected and each is a bijection that keeps volumes. So every objective that takes log w
    bounds log p(x) by it: `elbo` trains the bound of the papers, `iwae` with K particles log 1/K sum_k w_k. With every
    step towards 0 it is the bound of the pair itself. Latents with bounds move on the real line, through bijections.

    Beside the pair's own parameters, step sizes e_t (one for each dimension), inverse temperatures
    0 < b_1 < ... < b_T = 1 and dampings 0 < g_t < 1 are trained. A step costs T + 1 runs of the model in place of one,
    and T of them are differentiated twice. `chunk_size` keeps its gradient, and saves little of their memory.

    `model` and `guide` are the programs to train and to measure: with this in place of the pair, `fit`, `SVI`,
    `CompiledSVI`, `compare`, `race` and `log_marginal` do the rest, and the pair itself is trained in place. Their
    latents are the pair's, each with a site `"z_momentum"` beside it. Objectives that differentiate densities at held
    draws (dreg, sticking_the_landing, score functions) are refused: take elbo, iwae, renyi, miwae or ciwae.

    Args:
        pair: A VAE, or anything with a `model` and a `guide`. The guide draws every latent for each datum from a
            density of its own; the latents are continuous.
        *args: Data for a first run of the pair, which shows its latents: a batch or a few rows.
        num_transitions: T, the number of leapfrog steps, >= 1.
        step_size: The initial e_t of every dimension of the unconstrained latents, > 0.

    Raises:
        InputError: The pair has a latent that is discrete, summed out, masked, shared by data, or a point; or supports
            that differ between model and guide.

    Example:
        >>> vae, x = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5)), torch.randn(20, 2)
        >>> annealed = pv.DifferentiableAIS(vae, x, num_transitions=3)
        >>> history = pv.fit(annealed, x, epochs=2, objective="iwae", num_particles=4)
        >>> annealed.step_sizes["z"].shape, annealed.inverse_temperatures.shape
        (torch.Size([3, 2]), torch.Size([3]))
        >>> pv.log_weights(annealed.model, annealed.guide, x, num_particles=5).shape
        torch.Size([5, 20])

    Source: Zhang et al. 2021, arXiv:2107.10211; Geffner and Domke 2021, arXiv:2107.04150; Thin et al. 2021,
        arXiv:2106.15921.
    """

    def __init__(self, pair: ProgramPair, *args: Any, num_transitions: int, step_size: float = 0.1) -> None:
        super().__init__()
        require(is_pair(pair), f"pair must have a model and a guide, got {shown(pair)}")
        require_size("num_transitions", num_transitions)
        require_number("step_size", step_size, above=0)
        args = as_arguments(pair, args)
        sites = _latents(gate.check(pair.model, pair.guide, None, *args))
        self.pair, self.num_transitions, self.num_conditions = pair, num_transitions, len(args) - 1
        self.latents = tuple(sites)

        def parameter(start: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(next(iter(sites.values()))["value"].new_full(shape, start))

        shapes = (tuple(site["fn"].event_shape) for site in sites.values())
        self.log_step_sizes = nn.ParameterList(
            parameter(math.log(step_size), num_transitions, *shape) for shape in shapes
        )
        self.increments = parameter(0.0, num_transitions)
        share = 2 / math.pi * math.acos(DAMPING)
        self.angles = parameter(math.log(share / (1 - share)), num_transitions - 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pair, name) if name in OF_THE_PAIR else super().__getattr__(name)

    @property
    def step_sizes(self) -> dict[str, Tensor]:
        """The step sizes e_t by the name of the latent, each `(num_transitions, *event)`."""
        return {name: log.exp() for name, log in zip(self.latents, self.log_step_sizes, strict=True)}

    @property
    def inverse_temperatures(self) -> Tensor:
        """b_1 ... b_T = 1, `(num_transitions,)`."""
        return self.increments.softmax(0).cumsum(0)

    @property
    def damping(self) -> Tensor:
        """g_1 ... g_{T-1}, the share of a momentum that stays, `(num_transitions - 1,)`."""
        return self._rotations.cos()

    @property
    def _rotations(self) -> Tensor:
        """The angles by which momentum and noise are turned into each other, whose cosine is the damping."""
        return 0.5 * math.pi * self.angles.sigmoid()

    @property
    def model_runs(self) -> int:
        """How often the pair's model runs for each run of this one, the guide's steps included."""
        return (1 + self.num_transitions) * getattr(self.pair, "model_runs", 1)

    def model(self, *args: Any, **kwargs: Any) -> None:
        """Runs the pair's model, with a momentum of the standard normal distribution beside each latent."""
        with _Latents(self.latents) as latents:
            sites = sample_sites(poutine.trace(self.pair.model).get_trace(*args, **kwargs))
        for name in self.latents:
            self._sample_normal(name + MOMENTUM, sites[name], latents.places[name])

    def guide(self, *args: Any, **kwargs: Any) -> None:
        """Runs the pair's guide, and moves what it draws."""
        name = unique_name(self)
        for own, parameter in self.named_parameters():
            if parameter.requires_grad and not own.startswith("pair."):  # the pair registers its own
                pyro.param(f"{name}.{own}", parameter)
        with _Latents(self.latents, START) as latents:
            trace = poutine.trace(self.pair.guide).get_trace(*args, **kwargs)
        found = sample_sites(trace)
        sites = {name: found[name + START] for name in self.latents}
        noise = {
            name: self._sample_normal(name + NOISE, site, latents.places[name], {"is_auxiliary": True})
            for name, site in sites.items()
        }
        path = _Path(self.pair, args, kwargs, sites, subsample_indices((trace,)))
        start = {name: path.onto[name].inv(site["value"]) for name, site in sites.items()}
        end, momentum = self._moved(path, start, noise)
        for name, site in sites.items():
            event_dim, onto = site["fn"].event_dim, path.onto[name]
            z = onto(end[name])
            log_density = onto.log_abs_det_jacobian(start[name], site["value"]) - onto.log_abs_det_jacobian(
                end[name], z
            )
            with _Within(latents.places[name]):
                pyro.sample(name, _Point(z, log_density, event_dim))
                at = momentum[name]
                pyro.sample(name + MOMENTUM, _Point(at, torch.zeros_like(log_density), event_dim + 1))

    def _sample_normal(self, name: str, beside: dict, place: dict, infer: Any = None) -> Tensor:
        """Draws T standard normal values of the event of a site, in the plates and under the scale of its place."""
        fn, value = beside["fn"], beside["value"]
        shape = (*fn.batch_shape, self.num_transitions, *fn.event_shape)
        normal = dist.Normal(value.new_zeros(()), value.new_ones(())).expand(shape).to_event(fn.event_dim + 1)
        with _Within(place):
            return pyro.sample(name, normal, infer=infer)

    def _moved(
        self, path: "_Path", u: dict[str, Tensor], noise: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns where the leapfrog steps end, and what they make of the noise: the last momentum, then the refreshed.

        A refreshment turns momentum and noise into each other, so that the whole is a bijection that keeps volumes.
        """
        rows = {name: list(n.unbind(-1 - path.event_dims[name])) for name, n in noise.items()}
        v = {name: row[0] for name, row in rows.items()}
        left: dict[str, list[Tensor]] = {name: [] for name in rows}
        sizes, betas, rotations = self.step_sizes, self.inverse_temperatures, self._rotations
        cosines, sines = rotations.cos(), rotations.sin()
        for t in range(self.num_transitions):
            step = {name: size[t] for name, size in sizes.items()}
            u = {name: u[name] + 0.5 * step[name] * v[name] for name in u}
            slopes = path.slopes(u, betas[t])
            v = {name: v[name] + step[name] * slopes[name] for name in u}
            u = {name: u[name] + 0.5 * step[name] * v[name] for name in u}
            if t < self.num_transitions - 1:
                for name, row in rows.items():
                    left[name].append(cosines[t] * row[t + 1] - sines[t] * v[name])
                v = {name: cosines[t] * v[name] + sines[t] * row[t + 1] for name, row in rows.items()}
        return u, {name: torch.stack([v[name], *left[name]], -1 - path.event_dims[name]) for name in u}


@dataclass
class _Path:
    """Holds what one run anneals between: q(z|x) and p(x, z) at unconstrained latents, from the sites of a guide."""

    pair: ProgramPair
    args: tuple
    kwargs: dict
    sites: dict[str, dict]
    indices: dict[str, Tensor]

    def __post_init__(self) -> None:
        self.onto: dict[str, Transform] = {name: bijection_of(site, SAID) for name, site in self.sites.items()}
        self.event_dims = {name: site["fn"].event_dim for name, site in self.sites.items()}

    def slopes(self, u: dict[str, Tensor], beta: Tensor) -> dict[str, Tensor]:
        """Returns d/du [(1 - beta) log q(z|x) + beta log p(x, z) + log |det dz/du|], through which gradients go on."""
        keeps = torch.is_grad_enabled()
        # The checkpoint around a chunk of particles would run all of it again, inside itself, for these slopes.
        with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
            at = {n: v if keeps and v.requires_grad else v.detach().requires_grad_() for n, v in u.items()}
            z = {name: self.onto[name](value) for name, value in at.items()}
            log_p = self._log_density(self.pair.model, z)
            if len(z) == 1:  # the distribution does not depend on other latents
                log_q = sum(site["fn"].log_prob(z[name]).sum() for name, site in self.sites.items())
            else:
                log_q = self._log_density(self.pair.guide, z)
            jacobians = sum(onto.log_abs_det_jacobian(at[name], z[name]).sum() for name, onto in self.onto.items())
            total = (1 - beta) * log_q + beta * log_p + jacobians
            found = torch.autograd.grad(total, list(at.values()), create_graph=keeps, materialize_grads=True)
        return dict(zip(at, found, strict=True))

    def _log_density(self, program: Callable, z: dict[str, Tensor]) -> Tensor:
        """Returns the log-densities of all sites of a program at latents, without scales, summed over everything."""
        given = Given({**self.indices, **z})
        # Running statistics are to move at the latents where a draw ends, and not on its way there.
        with poutine.block(), pyro.validation_enabled(False), kept_statistics(self.pair.model, self.pair.guide), given:
            trace = poutine.trace(program).get_trace(*self.args, **self.kwargs)
        each = (
            scale_and_mask(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]), mask=site["mask"])
            for site in sample_sites(trace).values()
        )
        return torch.stack([log_prob.sum() for log_prob in each]).sum()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Latents(Messenger):
    """Keeps the plates, scale and mask of each latent, and gives the latents names with an ending, if there is one."""

    def __init__(self, names: tuple[str, ...], ending: str = "") -> None:
        super().__init__()
        self.names, self.ending = names, ending
        self.places: dict[str, dict] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            self.places[msg["name"]] = {key: msg[key] for key in ("cond_indep_stack", "scale", "mask")}
            if self.ending:
                msg["name"] += self.ending
                msg["infer"] = {**msg["infer"], "is_auxiliary": True}


class _Within(Messenger):
    """Puts a site into the plates, and under the scale and the mask, that another one was in."""

    def __init__(self, place: dict) -> None:
        super().__init__()
        self.place = place

    def _pyro_sample(self, msg: Any) -> None:
        msg.update(self.place)


class _Point(Delta):
    """A point whose density does not ask for its last bit: two runs at the same draws may round differently."""

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_density


def _latents(pair: Pair) -> dict[str, dict]:
    """Returns the latent sites of a pair's guide, after a check that each can be moved."""
    require(not pair.layout.sums, f"{SAID}, and the model sums out discrete sites")
    for name in pair.guide_only:
        require(False, f'{SAID} of its density under the guide, which makes it of the auxiliary site "{name}"')
    require(len(pair.latent) > 0, f"{SAID}, and the model has none")
    held = one_way_site(pair.guide_sites)
    require(held is None, f"{SAID} of the guide's density, and {held}")
    for name, site in pair.latent.items():
        start = pair.guide_sites[name]
        require(pair.is_local(site), f'{SAID} for each datum, and the site "{name}" lies outside the data plate')
        require(not is_masked(site), f'{SAID}, and the site "{name}" is masked')
        require(not isinstance(base_of(start["fn"]), Delta), f'{SAID}, and the guide gives a point at site "{name}"')
        of_others = pair.has_moving_support(start)
        rule = f'{SAID} within supports that stay, and that of site "{name}" depends on other draws'
        require(not of_others, rule)
        u = bijection_of(start, SAID).inv(start["value"])
        same = torch.allclose(bijection_of(site, SAID)(u), start["value"], rtol=1e-3, atol=1e-5)
        supports = f"{support_of(site['fn'])} in the model and {support_of(start['fn'])} in the guide"
        require(same, f'the latent site "{name}" must have one support in model and guide, got {supports}')
        rule = f'{SAID}, and the site "{name}" has other dimensions on the real line than in {support_of(start["fn"])}'
        require(u.shape == start["value"].shape, rule)
    return {name: pair.guide_sites[name] for name in pair.latent}
