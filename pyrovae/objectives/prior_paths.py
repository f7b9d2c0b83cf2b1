"""Gradients of a prior's parameters through the draws of the guide, taken for draws of the prior.

For a prior p(z_l|z_>l; theta), with T(e; theta) its draw at noise e, and any weights g(z) of draws z ~ q, integration
by parts in z_l alone gives, with all other latents held,

    E_q[g d log p(z_l|.)/dtheta]  =  E_q[(dg/dz_l + g d/dz_l [log q(z) - log p(z_l|.)]) dT/dtheta]

at the e for which T(e; theta) is the draw. Nothing is asked of q but a density that is differentiable in z_l and
vanishes where the prior ends. With g = w~_k, whose slope is w~_k (1 - w~_k) d log w_k/dz_l, the bracket is

    w~_k d/dz_l [log p(x, z_k) - log p(z_kl|.)] - w~_k^2 d log w_k/dz_l .
"""

from dataclasses import replace

import torch
from pyro.distributions import Delta, Logistic, TorchDistribution
from torch import Tensor
from torch.distributions import (
    Cauchy,
    ComposeTransform,
    Distribution,
    Gumbel,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
    constraints,
)

from pyrovae.objectives.coefficients import Coefficients, weighted_sum
from pyrovae.objectives.scales import WeightedTerms
from pyrovae.programs import Pair, base_of, base_support, is_autoencoder, seen

LOCATION_AND_SCALE = (Normal, Laplace, Cauchy, Gumbel, Logistic)


def moving_draws(pair: Pair) -> dict[str, Tensor]:
    """Returns the draws of the guide as draws of the priors, by site, for local latents whose priors have that form."""
    if pair.guide_only:  # the guide's density is that of auxiliary sites, and has no slope in the latents
        return {}
    in_sums = {name for group in pair.sums for name in group}
    found = {}
    for name, site in pair.latent.items():
        proposal = pair.guide_sites[name]["fn"]
        is_path = proposal.has_rsample and not isinstance(base_of(proposal), Delta)
        if is_path and pair.is_local(site) and name not in in_sums and not is_autoencoder(site):
            moved = draw_at_held_noise(site["fn"], site["value"].detach())
            if moved is not None and moved.shape == site["value"].shape:
                found[name] = moved
    return found


def prior_path_sum(pair: Pair, terms: WeightedTerms, coefficients: Coefficients, leaves: dict[str, Tensor]) -> Tensor:
    """Returns what turns the plain gradient of the priors in sum_k model_k log p(x, z_k) into that through draws.

    Args:
        pair: The run of the pair at the leaves.
        terms: Its terms.
        coefficients: The estimator's, with `prior_path`.
        leaves: The draws by site.
    """
    assert coefficients.prior_path is not None
    runs = [replace(run, others=()) for run in pair.runs]
    moved = [moving_draws(run) for run in runs]
    values = [{name: run.model_sites[name]["value"].detach().requires_grad_() for name in moved[0]} for run in runs]
    # The density of each site at its own draw, whose slope in the draw is not that of the sites below it.
    log_prior = terms.beta * torch.cat([
        run.total({name: {**run.model_sites[name], "value": z} for name, z in own.items()})
        for run, own in zip(runs, values, strict=True)
    ], -2)  # fmt: skip
    plain = weighted_sum(coefficients.model, log_prior)
    whole = weighted_sum(coefficients.model, terms.log_p) + weighted_sum(coefficients.prior_path, terms.log_weights)
    slopes = dict(zip(moved[0], _slopes(whole, [leaves[name] for name in moved[0]]), strict=True))
    surrogate = -plain
    for index, run in enumerate(runs):
        of_prior = _slopes(plain, list(values[index].values()))
        for (name, z), own in zip(moved[index].items(), of_prior, strict=True):
            slope = (slopes[name] if pair.layout.is_vectorized else slopes[name][index]) - own
            surrogate = surrogate + (torch.where(seen(run.model_sites[name]), slope, 0.0) * z).sum()
    return surrogate


def _slopes(total: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    if not (inputs and total.requires_grad):  # every latent is masked by False
        return tuple(torch.zeros_like(z) for z in inputs)
    return torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def draw_at_held_noise(fn: TorchDistribution, value: Tensor) -> Tensor | None:
    """Returns a value as a draw of a distribution: it moves with the parameters of `fn`, and the noise is held.

    Returns None for a family without such a form. Its support must not move with its parameters.

    Args:
        fn: The distribution.
        value: A value in its support, without a gradient.
    """
    return _at_held_noise(base_of(fn), value)


def _at_held_noise(base: Distribution, value: Tensor) -> Tensor | None:
    match base:
        case MultivariateNormal():
            noise = torch.linalg.solve_triangular(base.scale_tril, (value - base.loc).unsqueeze(-1), upper=False)
            return base.loc + (base.scale_tril @ noise.detach()).squeeze(-1)
        case _ if isinstance(base, LOCATION_AND_SCALE):
            return base.loc + base.scale * ((value - base.loc) / base.scale).detach()
        case Independent():  # torch's own, inside a TransformedDistribution
            return _at_held_noise(base.base_dist, value)
        case TransformedDistribution():
            return _transformed(base, value)
    return None


def _transformed(fn: TransformedDistribution, value: Tensor) -> Tensor | None:
    parts = _parts(fn.transforms)
    # A bijection of a half-line might move the end of the support.
    unbounded = all(isinstance(base_support(part.codomain), type(constraints.real)) for part in parts[:-1])
    if not (unbounded and all(part.bijective for part in parts)):
        return None
    for part in reversed(parts):
        value = part.inv(value).detach()
    moved = _at_held_noise(fn.base_dist, value)
    if moved is not None:
        for part in parts:
            moved = part(moved)
    return moved


def _parts(transforms: list[Transform]) -> list[Transform]:
    """Returns the transforms, with those that others are composed of in their place."""
    found: list[Transform] = []
    for transform in transforms:
        found += _parts(transform.parts) if isinstance(transform, ComposeTransform) else [transform]
    return found
