"""In which way a proposal is bad, as its own weighted draws tell: too narrow, too wide, or it cannot be told."""

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyrovae.common import InputError, local_seed
from pyrovae.data import moved
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.cuts import why_not_cut
from pyrovae.evaluation.latent_draws import draws_as_rows
from pyrovae.evaluation.remedy_words import NARROWED, RESCALED, WIDENED
from pyrovae.programs import Pair, base_of, is_masked, run_pair

MOST_DATA, MOST_DRAWS, MOST_LATENTS = 32, 1_000, 100
AGREE = 0.9  # of the data
STEP = 1.2  # by which a proposal may be widened or narrowed, and be better for it
BY_CHANCE = 0.001  # the most probable that such moments may be if the weights have nothing to do with the draws
OUTSIDE = 0.1  # of the draws, those that lie farthest out
FALLS = -2  # standard errors


def misfit_of(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None) -> str:
    """Returns which change of scale helps a guide whose weights are bad at some data: the name of a remedy.

    It compares where the weight is with where the guide is, in standard deviations of the guide around its mean:

        M = sum_s W_s u_s u_s^T,    u = (z - E_q[z]) / sd_q(z)

    M / D has the trace of the squared factor by which a guide must be widened to be nearest to the posterior in
    KL(p||q). If the largest eigenvalue of M is below 1, no direction needs a wider guide; if no diagonal element is,
    none needs a narrower one. A guide is called too wide or too narrow only if M is so, by more than the step that is
    advised, at nine of ten bad data, and if that is not by chance: where few draws have the weight, that is where they
    happen to lie. Too wide it is only if, besides, the weights of the outermost draws fall outwards in every direction:
    a posterior may have most of its mass near the centre of the guide and still heavier tails, which a narrower guide
    would reach less. What this does not tell is `RESCALED`.
    """
    try:
        return _of_pair(_run(model, guide, found, is_bad))
    except (InputError, NotImplementedError):  # the latter from a distribution whose variance is not known
        return RESCALED


def _run(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None) -> Pair | None:
    """Returns the pair on some bad data, or None where it has no draws of the latents of each datum alone."""
    layout, data = found.pair.layout, found.data
    sites = found.pair.guide_sites.values()
    if is_bad is None or len(is_bad) != data.size or layout.has_globals or not (layout.plates and layout.is_vectorized):
        return None
    if not bool(is_bad.any()) or len(found.pair.plates) > 1 or any(is_masked(site) for site in sites):
        return None
    rows = is_bad.nonzero().flatten()[:MOST_DATA].cpu()
    if len(rows) < data.size and why_not_cut(model, guide, found, len(rows)) is not None:
        return None
    args = moved(data.at(rows) if len(rows) < data.size else data.whole, data.device)
    num_draws = max(1, min(MOST_DRAWS, found.pairs_in_memory // len(rows)))
    with torch.no_grad(), local_seed(0), pyro.validation_enabled(False):
        return run_pair(model, guide, *args, num_particles=num_draws, reading=found.reading)


def _of_pair(pair: Pair | None) -> str:
    if pair is None or not pair.layout.is_vectorized:
        return RESCALED
    parts = []
    for site in pair.guide_sites.values():
        fn = site["fn"]
        if not isinstance(base_of(fn), Delta):
            away = (site["value"] - fn.mean) / fn.variance.sqrt()
            parts.append(draws_as_rows(pair, site, away).reshape(*pair.batch_shape, -1))
    log_w = pair.terms().log_weights.double()
    share = log_w.softmax(0)
    away = torch.cat([part.double() for part in parts], -1) if parts else share.new_zeros(*share.shape, 0)
    if not 0 < away.shape[-1] <= MOST_LATENTS:
        return RESCALED
    moments = torch.einsum("sn,sni,snj->nij", share, away, away)
    if not bool(moments.isfinite().all()):
        return RESCALED
    squares = moments.diagonal(dim1=-2, dim2=-1)
    below, above = _by_chance(share, squares)
    if (torch.linalg.eigvalsh(moments)[:, -1] < STEP**-2).double().mean() >= AGREE:
        return NARROWED if below < BY_CHANCE and _falls_outwards(log_w, away) else RESCALED
    agree = (squares.mean(1) > STEP**2).double().mean() >= AGREE
    return WIDENED if agree and above < BY_CHANCE and squares.mean(0).min() > STEP**-2 else RESCALED


def _by_chance(share: Tensor, squares: Tensor) -> tuple[float, float]:
    """Returns how probable moments as small, and as large, are if the weights have nothing to do with the draws.

    The draws that have the weight, as many as the effective sample size, are then any draws of the guide.
    """
    ess = 1 / share.square().sum(0)
    half = ess.sum() * squares.shape[1] / 2
    below = torch.special.gammainc(half, (ess[:, None] * squares).sum() / 2).item()
    return below, 1 - below


def _falls_outwards(log_w: Tensor, away: Tensor) -> bool:
    """Returns True if in every direction the log-weights of the outermost draws fall with the squared distance."""
    least = torch.where(log_w.isfinite(), log_w, torch.inf).amin(0)
    log_w = torch.where(log_w == -torch.inf, least, log_w)  # of draws outside the prior's support
    num = int(OUTSIDE * len(away))
    if num < 3:
        return False
    squares, outside = away.square().topk(num, dim=0)
    x = squares - squares.mean(0)
    y = log_w.unsqueeze(-1).expand_as(away).gather(0, outside)
    y = y - y.mean(0)
    spread = x.square().sum((0, 1))
    slope = (x * y).sum((0, 1)) / spread
    error = ((y - slope * x).square().sum((0, 1)) / ((num - 1) * y.shape[1] - 1) / spread).sqrt()
    return bool((slope < FALLS * error).all())
