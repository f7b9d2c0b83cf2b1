"""Inference gaps: what of log p(x) - ELBO is the guide's family, and what is its network."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import (
    InputError,
    device_of,
    evaluates,
    hides_progress,
    local_seed,
    require,
    require_count,
    require_finite,
    require_number,
    warn,
)
from pyrovae.evaluation.importance_sampling import (
    DATA_CHUNK,
    Estimate,
    check_args,
    log_marginal,
    pairs_at_a_time,
)
from pyrovae.programs import base_of, gate, log_joint

ROUND = 25  # steps between two looks at the ELBO
HALVINGS = 8
TOLERANCE = 1e-3
NUM_CHECK = 128


@dataclass(frozen=True)
class InferenceGaps:
    """What `inference_gaps` returns: per-datum estimates in nats, `total` = `approximation` + `amortisation`.

    `loc` and `scale` `(batch, latent_dim)` are the best diagonal Gaussian found for each datum, `best_elbo` its ELBO
    and `elbo` the guide's, on the same draws, so that their difference has a smaller error than either. `converged` is
    false where `num_steps` ran out while the ELBO still rose: the amortisation gap is then a lower bound, and the
    approximation gap an upper one.
    """

    log_px: Estimate
    elbo: Estimate
    best_elbo: Estimate
    total: Estimate
    approximation: Estimate
    amortisation: Estimate
    loc: Tensor
    scale: Tensor
    converged: bool

    def __str__(self) -> str:
        rows = {
            "log p(x)": self.log_px,
            "ELBO of the guide": self.elbo,
            "ELBO of the best Gaussian": self.best_elbo,
            "total gap": self.total,
            "approximation gap": self.approximation,
            "amortisation gap": self.amortisation,
        }
        lines = [f"{name:30s} {term.mean:12.4f} ± {term.monte_carlo_error:.2g}" for name, term in rows.items()]
        head = f"nats per datum, {len(self.total.value)} data"
        return "\n".join((head, *lines, *(() if self.converged else (NOT_CONVERGED,))))


NOT_CONVERGED = (
    "the best Gaussian of some data was still improving after num_steps: "
    "their amortisation gap is at least the one given, their approximation gap at most"
)


@evaluates
def inference_gaps(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    log_px: Tensor | Estimate | None = None,
    num_samples: int = 5_000,
    num_steps: int = 1_000,
    num_draws: int = 32,
    num_final_draws: int = 1_000,
    lr: float = 0.1,
    chunk_size: int | None = None,
    progress: bool | None = None,
) -> InferenceGaps:
    """log p(x) - ELBO(q) in two parts (Cremer et al. 2018, arXiv:1801.03558), per datum, in nats, at beta = 1:

    approximation = log p(x) - ELBO(q*)    what no diagonal Gaussian can do,
    amortisation  = ELBO(q*) - ELBO(q)     what the guide's network leaves undone,

    q* = N(loc, diag(scale^2)) the best for each datum alone. It is found from the guide's own by Adam on loc and
    log-scale, with `num_draws` fresh draws a step and steps of `lr` guide scales, halved each time that 25 of them gain
    less than 0.001 nats in the mean over data; after the eighth time it has converged, and may still lack some
    thousandths of a nat (0.03 at most for a datum of linear Gaussian models of four latents, whose q* is known). A
    datum whose q* became clearly worse keeps the guide's. Both ELBOs are then estimated from `num_final_draws` draws
    that the optimisation has not seen (on its own they would be too high), the same for q* and q.

    `log_px` is `(batch,)` where it is known, or an `Estimate`; None takes `log_marginal` with `num_samples`. That is
    low where the guide is far from p(z|x), and the approximation gap with it: look at `gaps.log_px.pareto_k`.

    `model` and `guide` are any pair that keeps the contract, with one latent site that is Normal(...).to_event(1) in
    the guide; `args` what they take: tensors of one length, the data first. `chunk_size` pairs of a draw and a datum
    are decoded at a time (at least `num_draws` with gradient); None is as in `log_marginal`. `progress=None` shows a
    bar on a terminal.

    Warns where it has not converged. Raises `InputError` for other guides and for data without a density.
    """
    require_count("num_steps", num_steps, ROUND)
    require_count("num_draws", num_draws)
    require_count("num_final_draws", num_final_draws, 2)
    require_number("lr", lr, above=0)
    check_args(args)
    chunk_size = pairs_at_a_time(model, guide, args, chunk_size)
    home, device = args[0].device, device_of(model, args)
    size = min(DATA_CHUNK, max(1, chunk_size // num_draws))
    _gaussian(model, guide, [arg[:size].to(device) for arg in args])  # refused before log p(x) takes its time
    if isinstance(log_px, Tensor):
        log_px = Estimate(log_px.detach().double(), torch.zeros_like(log_px, dtype=torch.float64))
    elif log_px is None:
        log_px = log_marginal(model, guide, *args, num_samples=num_samples, chunk_size=chunk_size, progress=progress)
    require(isinstance(log_px, Estimate), f"log_px must be a tensor, an Estimate or None, got {type(log_px).__name__}")
    shape = tuple(log_px.value.shape)
    require(shape == (len(args[0]),), f"log_px must have shape ({len(args[0])},), got {shape}")
    settings = {"num_steps": num_steps, "num_draws": num_draws, "num_final_draws": num_final_draws, "lr": lr}
    parts, converged = [], True
    disable = hides_progress(progress)
    with tqdm(total=len(args[0]), unit="datum", desc="inference gaps", disable=disable, leave=False) as bar:
        for data in zip(*(arg.split(size) for arg in args), strict=True):
            *part, done = _gaps_of(model, guide, [d.to(device) for d in data], chunk_size=chunk_size, **settings)
            parts.append([tensor.to(home) for tensor in part])
            converged = converged and done
            bar.update(len(data[0]))
    loc, scale, best, own, best_error, own_error, gain_error = (torch.cat(part) for part in zip(*parts, strict=True))
    require_finite("the ELBO of the guide", own)
    if not converged:
        warn(NOT_CONVERGED)

    elbo, best_elbo = Estimate(own, own_error), Estimate(best, best_error)
    return InferenceGaps(
        log_px=log_px,
        elbo=elbo,
        best_elbo=best_elbo,
        total=log_px.minus(elbo),  # of other draws
        approximation=log_px.minus(best_elbo),
        amortisation=Estimate(best - own, gain_error),
        loc=loc,
        scale=scale,
        converged=converged,
    )


def _gaps_of(
    model: Callable,
    guide: Callable,
    data: list[Tensor],
    num_steps: int,
    num_draws: int,
    num_final_draws: int,
    lr: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """(loc, scale, ELBO(q*), ELBO(q), errors of both and of their difference, converged) of some data."""
    name, loc, scale = _gaussian(model, guide, data)

    def draw(num: int) -> Tensor:
        return torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)

    def log_weights(at_loc: Tensor, at_scale: Tensor, noise: Tensor) -> Tensor:
        """log p(x, z) - log q(z), `(draws, data)`, at z = loc + scale noise."""
        z = at_loc + at_scale * noise
        # The density's own parameters are held: the gradient through the draws alone has the same mean, and no noise
        # where q is the posterior (Roeder et al. 2017, arXiv:1703.09194).
        log_q = Normal(at_loc.detach(), at_scale.detach(), validate_args=False).log_prob(z).sum(-1)
        with pyro.validation_enabled(False):
            return log_joint(model, {name: z}, *data) - log_q

    @torch.no_grad()
    def all_log_weights(at_loc: Tensor, at_scale: Tensor, noise: Tensor) -> Tensor:
        chunks = noise.split(max(1, chunk_size // len(loc)))
        return torch.cat([log_weights(at_loc, at_scale, chunk) for chunk in chunks]).double()

    # In units of the guide's scales, which a step of Adam is then a fraction of, for every latent and datum alike.
    shift, log_ratio = (torch.zeros_like(loc, requires_grad=True) for _ in range(2))

    def current() -> tuple[Tensor, Tensor]:
        return loc + scale * shift, scale * log_ratio.exp()

    optimizer = torch.optim.Adam([shift, log_ratio], lr=lr, betas=(0.9, 0.99))
    check = draw(NUM_CHECK)
    start = all_log_weights(loc, scale, check)
    best, halvings = start.mean(), 0
    for step in range(1, num_steps + 1):
        with torch.enable_grad():
            loss = -log_weights(*current(), draw(num_draws)).sum() / num_draws
            shift.grad, log_ratio.grad = torch.autograd.grad(loss, (shift, log_ratio))
        optimizer.step()
        if step % ROUND == 0:
            now = all_log_weights(*current(), check).mean()
            if not now > best + TOLERANCE:  # nor where it is not a number
                halvings += 1
                optimizer.param_groups[0]["lr"] = lr / 2**halvings
            best = torch.fmax(best, now)
            if halvings == HALVINGS:
                break
    with torch.no_grad():
        # What noise alone may give is no reason to go back: of small gaps that would leave only those that it favours.
        gain = all_log_weights(*current(), check) - start
        kept = (gain.mean(0) >= -2 * gain.std(0) / math.sqrt(NUM_CHECK)).unsqueeze(-1)  # not where it is not a number
        best_loc, best_scale = (torch.where(kept, a, b) for a, b in zip(current(), (loc, scale), strict=True))
    final = draw(num_final_draws)
    ours, own = all_log_weights(best_loc, best_scale, final), all_log_weights(loc, scale, final)
    errors = ((w.std(0) / math.sqrt(num_final_draws)) for w in (ours, own, ours - own))
    return best_loc, best_scale, ours.mean(0), own.mean(0), *errors, halvings == HALVINGS


@torch.no_grad()
def _gaussian(model: Callable, guide: Callable, data: list[Tensor]) -> tuple[str, Tensor, Tensor]:
    """The one latent site's name, and the guide's loc and scale there, `(batch, latent_dim)`, after all checks."""
    with local_seed(0):
        pair = gate.check(model, guide, None, *data)
    pair.check_densities()
    gate.check_no_zero_weights(pair)
    sites = pair.guide_sites
    (name, site), *others = sites.items()
    q = base_of(site["fn"])
    if others or type(q) is not Normal or site["fn"].event_dim != 1:
        families = {n: f"{type(base_of(s['fn'])).__name__}, event_dim {s['fn'].event_dim}" for n, s in sites.items()}
        raise InputError(f"the guide must have one latent site, Normal(...).to_event(1), got {families}")
    shape = site["value"].shape
    return name, *(parameter.expand(shape)[0].clone() for parameter in (q.loc, q.scale))
