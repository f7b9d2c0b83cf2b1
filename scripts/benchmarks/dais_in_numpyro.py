"""Differentiable AIS beside NumPyro's `AutoSemiDAIS`: one bound and one gradient, at copied parameters and noise.

pip install 'pyrovae[benchmark]'
python scripts/benchmarks/dais_in_numpyro.py

The model has a positive latent for each datum, log-normal, and Gaussian data. NumPyro has one step size and one damping
for all transitions, and moves all latents on the real line. In float64 both differ by rounding alone.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import InputError, local_seed, require_count
from pyrovae.programs import run_pair

NUM_DATA, DIM, STEP, DAMPING, NOISE = 5, 3, 0.05, 0.8, 0.5


class Found(NamedTuple):
    bound: float
    gradient: dict[str, Tensor]


def main(num_transitions: int = 4, seed: int = 0) -> None:
    """Print how far the two bounds, and the two gradients, are from each other.

    Args:
        num_transitions: T, the leapfrog steps
        seed: of data, parameters and noise
    """
    require_count("num_transitions", num_transitions)
    ours, theirs = compared(num_transitions, seed)
    print(f"bound: {ours.bound:.12f}, NumPyro {theirs.bound:.12f}, {abs(ours.bound - theirs.bound):.1e} apart")
    for name, gradient in ours.gradient.items():
        apart = (gradient - theirs.gradient[name]).abs().max().item()
        print(f"gradient in {name}: {gradient.abs().max().item():.6g} at most, {apart:.1e} apart")


def compared(num_transitions: int, seed: int) -> tuple[Found, Found]:
    """Returns the bound on one set of noise, summed over the data, and its gradient: ours, and NumPyro's."""
    with local_seed(seed):
        x = torch.randn(NUM_DATA, DIM, dtype=torch.float64).exp()
        loc = (0.3 * torch.randn(NUM_DATA, DIM, dtype=torch.float64)).requires_grad_()
        scale = (0.2 + 0.3 * torch.rand(NUM_DATA, DIM, dtype=torch.float64)).requires_grad_()
        increments = 0.5 + torch.rand(num_transitions, dtype=torch.float64)
        weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.LogNormal(torch.zeros(DIM, dtype=torch.float64), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(weight * z, NOISE).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.LogNormal(loc, scale).to_event(1))

        annealed = pv.DifferentiableAIS(Programs(model, guide), x, num_transitions=num_transitions, step_size=STEP)
        with torch.no_grad():
            annealed.increments.copy_(increments.log())
            share = 2 / math.pi * math.acos(DAMPING)
            annealed.angles.fill_(math.log(share / (1 - share)))
        pair = run_pair(annealed.model, annealed.guide, x)
    bound = pair.terms().log_weights.sum()
    of_steps, of_increments, of_angles, of_loc, of_scale, of_weight = torch.autograd.grad(
        bound, [annealed.log_step_sizes[0], annealed.increments, annealed.angles, loc, scale, weight]
    )
    angle = 0.5 * math.pi * share
    of_damping = of_angles.sum() / (-math.sin(angle) * angle * (1 - share))
    ours = {"step size": of_steps.sum() / STEP, "damping": of_damping, "increments": of_increments / increments}
    ours |= {"loc": of_loc, "scale": of_scale, "weight": of_weight}
    start, noise = (pair.draws()[name][0].detach() for name in ("z_start", "z_noise"))
    given = {
        "x": x,
        "start": (start.log() - loc.detach()) / scale.detach(),
        "noise": noise.roll(-1, -2).transpose(-1, -2),
    }
    at = {"loc": loc, "scale": scale, "increments": increments, "weight": weight}
    return Found(bound.item(), ours), in_numpyro(num_transitions, given, at)


class Programs(NamedTuple):
    model: Any
    guide: Any


def in_numpyro(num_transitions: int, given: dict[str, Tensor], at: dict[str, Tensor]) -> Found:
    """Returns NumPyro's bound and gradient. Its first momentum is the last of its noise, and ours the first."""
    try:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as npd
        from numpyro.infer.autoguide import AutoSemiDAIS
    except ImportError as error:
        raise InputError("this script needs NumPyro: pip install 'pyrovae[benchmark]'") from error
    numpyro.enable_x64()

    def model(x):
        weight = numpyro.param("weight", 0.9)
        with numpyro.plate("data", NUM_DATA):
            z = numpyro.sample("z", npd.LogNormal(jnp.zeros(DIM), 1.0).to_event(1))
            numpyro.sample("x", npd.Normal(weight * z, NOISE).to_event(1), obs=x)

    settings: dict[str, Any] = {"K": num_transitions, "eta_init": STEP, "eta_max": 1.0}
    guide = AutoSemiDAIS(model, model, **settings, use_global_dais_params=True, subsample_plate="data")
    x, noise = jnp.asarray(given["x"].numpy()), jnp.asarray(given["noise"].numpy())
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.block():
        guide(x)  # sets itself up
    start = jnp.asarray(given["start"].numpy())
    names = {"auto_z_0_loc": "loc", "auto_z_0_scale": "scale", "auto_beta_increments": "increments", "weight": "weight"}
    parameters = {name: jnp.asarray(at[ours].detach().numpy()) for name, ours in names.items()}
    parameters |= {"auto_eta0": jnp.asarray(STEP), "auto_gamma": jnp.asarray(DAMPING)}
    names |= {"auto_eta0": "step size", "auto_gamma": "damping"}

    def bound(parameters):
        z = parameters["auto_z_0_loc"] + parameters["auto_z_0_scale"] * start
        draws = {"auto_z_0": z, "auto_momentum": noise}
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.substitute(data={**parameters, **draws}):
            drawn = numpyro.handlers.trace(guide).get_trace(x)
        with numpyro.handlers.substitute(data=parameters):
            joint = numpyro.handlers.trace(numpyro.handlers.replay(model, drawn)).get_trace(x)
        log_q, log_p = (sum(map(log_prob, trace.values())) for trace in (drawn, joint))
        return log_p - log_q

    def log_prob(site):
        return site["fn"].log_prob(site["value"]).sum() if site["type"] == "sample" else 0.0

    value, gradient = jax.value_and_grad(bound)(parameters)
    return Found(float(value), {names[name]: torch.tensor(jax.device_get(g)) for name, g in gradient.items()})


if __name__ == "__main__":
    run_script(main)
