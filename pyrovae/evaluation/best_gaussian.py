"""The best diagonal Gaussian posterior of each datum, found by optimisation from the guide's own."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from pyrovae.common import InputError, local_seed
from pyrovae.evaluation.rows import as_rows, data_dim_of, from_rows, require_rows
from pyrovae.programs import Layout, base_of, gate, log_joint, require_no_masks

STEPS_PER_ROUND = 25  # between two looks at the ELBO
MAX_HALVINGS = 8
MIN_GAIN = 1e-3
NUM_CHECK_DRAWS = 128


class BestGaussian(NamedTuple):
    """Holds the best Gaussian of each datum, and the ELBOs of it and of the guide from the same draws.

    `loc` and `scale` are `(batch, latent_dim)`, all others `(batch,)`, in nats.
    """

    loc: Tensor
    scale: Tensor
    elbo: Tensor
    guide_elbo: Tensor
    elbo_error: Tensor
    guide_elbo_error: Tensor
    gain_error: Tensor
    """Standard error of elbo - guide_elbo."""


def fit_best_gaussian(
    model: Callable,
    guide: Callable,
    args: tuple,
    num_steps: int,
    num_draws: int,
    num_final_draws: int,
    lr: float,
    chunk_size: int,
) -> tuple[BestGaussian, bool]:
    """Finds the best diagonal Gaussian of each of some data, as `inference_gaps` says.

    Returns it, and True if the search has converged.
    """
    of_guide = guide_gaussian(model, guide, args)
    loc, scale = of_guide.loc, of_guide.scale

    def draw(num: int) -> Tensor:
        return torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)

    def log_weights(at_loc: Tensor, at_scale: Tensor, noise: Tensor) -> Tensor:
        """Returns log p(x, z) - log q(z), `(draws, data)`, at z = loc + scale noise."""
        z = at_loc + at_scale * noise
        # The density's own parameters are detached: the gradient through the draws alone has the same mean, and no
        # noise where q is the posterior (Roeder et al. 2017, arXiv:1703.09194).
        log_q = Normal(at_loc.detach(), at_scale.detach(), validate_args=False).log_prob(z).sum(-1)
        with pyro.validation_enabled(False):
            return log_joint(model, {of_guide.name: of_guide.shaped(z)}, *args, layout=of_guide.layout) - log_q

    @torch.no_grad()
    def all_log_weights(at_loc: Tensor, at_scale: Tensor, noise: Tensor) -> Tensor:
        chunks = noise.split(max(1, chunk_size // len(loc)))
        return torch.cat([log_weights(at_loc, at_scale, chunk) for chunk in chunks]).double()

    # In units of the guide's scales: a step of Adam is then a fraction of them, the same for every latent and datum.
    shift, log_ratio = (torch.zeros_like(loc, requires_grad=True) for _ in range(2))

    def current() -> tuple[Tensor, Tensor]:
        return loc + scale * shift, scale * log_ratio.exp()

    optimizer = torch.optim.Adam([shift, log_ratio], lr=lr, betas=(0.9, 0.99))
    check = draw(NUM_CHECK_DRAWS)
    start = all_log_weights(loc, scale, check)
    best, halvings = start.mean(), 0
    for step in range(1, num_steps + 1):
        with torch.enable_grad():
            loss = -log_weights(*current(), draw(num_draws)).sum() / num_draws
            shift.grad, log_ratio.grad = torch.autograd.grad(loss, (shift, log_ratio))
        optimizer.step()
        if step % STEPS_PER_ROUND == 0:
            now = all_log_weights(*current(), check).mean()
            if not now > best + MIN_GAIN:  # also if it is nan
                halvings += 1
                optimizer.param_groups[0]["lr"] = lr / 2**halvings
            best = torch.fmax(best, now)
            if halvings == MAX_HALVINGS:
                break
    with torch.no_grad():
        # A loss that noise alone may explain is no reason to go back: otherwise only the small gaps that noise favours
        # would be left.
        gain = all_log_weights(*current(), check) - start
        kept = (gain.mean(0) >= -2 * gain.std(0) / math.sqrt(NUM_CHECK_DRAWS)).unsqueeze(-1)  # False if it is nan
        best_loc, best_scale = (torch.where(kept, a, b) for a, b in zip(current(), (loc, scale), strict=True))
    final = draw(num_final_draws)
    ours, own = all_log_weights(best_loc, best_scale, final), all_log_weights(loc, scale, final)
    errors = ((w.std(0) / math.sqrt(num_final_draws)) for w in (ours, own, ours - own))
    found = BestGaussian(best_loc, best_scale, ours.mean(0), own.mean(0), *errors)
    return found, halvings == MAX_HALVINGS


class OfGuide(NamedTuple):
    """Holds the guide's own Gaussian of each datum, `loc` and `scale` `(batch, latent_dim)`, and where it is drawn."""

    name: str
    loc: Tensor
    scale: Tensor
    shape: torch.Size
    data_dim: int | None
    layout: Layout

    def shaped(self, z: Tensor) -> Tensor:
        """Returns values `(draws, batch, latent_dim)` as the model takes them."""
        return from_rows(z.reshape(*z.shape[:2], *self.shape), self.data_dim, self.layout)


@torch.no_grad()
def guide_gaussian(model: Callable, guide: Callable, args: tuple) -> OfGuide:
    """Returns the Gaussians of the guide.

    Raises `InputError` if the pair has no inference gaps, because it is refused or its guide is another one.
    """
    with local_seed(0):
        pair = gate.check(model, guide, None, *args)
    require_rows("inference_gaps", pair.layout, "compare log_marginal with importance_bound")
    pair.check_densities()
    require_no_masks(pair, "inference gaps need a latent that every datum has")
    gate.check_no_zero_weights(pair)
    sites = pair.guide_sites
    (name, site), *others = sites.items()
    q = base_of(site["fn"])
    if others or type(q) is not Normal or site["fn"].event_dim != 1:
        families = {n: f"{type(base_of(s['fn'])).__name__}, event_dim {s['fn'].event_dim}" for n, s in sites.items()}
        raise InputError(f"the guide must have one latent site, Normal(...).to_event(1), got {families}")
    shape, data_dim = site["value"].shape, data_dim_of(site, pair.layout)
    loc, scale = (as_rows(one.expand(shape), len(shape) - 1, data_dim, pair.layout)[0] for one in (q.loc, q.scale))
    flat = loc.reshape(len(loc), -1).clone(), scale.reshape(len(loc), -1).clone()
    return OfGuide(name, *flat, loc.shape[1:], data_dim, pair.layout)
