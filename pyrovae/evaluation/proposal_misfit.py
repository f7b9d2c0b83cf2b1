"""By which factor a bad proposal must be widened or narrowed: found by trying."""

from collections.abc import Callable
from contextlib import suppress

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyrovae.common import InputError, local_seed
from pyrovae.data import moved
from pyrovae.evaluation.chunks import Opened
from pyrovae.evaluation.cuts import why_not_cut
from pyrovae.evaluation.importance_weights import log_mean, pareto_smoothed
from pyrovae.evaluation.joint_evidence import as_one_datum
from pyrovae.evaluation.latent_draws import draws_as_rows
from pyrovae.evaluation.remedy_words import NARROWED, RESCALED, UNTRIED, WIDENED, by_factor
from pyrovae.evaluation.weights_verdict import are_few, largest_reliable_k
from pyrovae.programs import Pair, base_of, gate, is_masked, proposals, run_pair

MOST_DATA, MOST_DRAWS, MOST_LATENTS = 32, 1_000, 100
TRIALS = 16  # of a factor: several at each datum if there are fewer data, as one k may be small by chance
WIDER, NARROWER = (1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0), (0.8, 0.65, 0.5, 0.35, 0.2, 0.1)
AGREE = 0.9  # of the data
STEP = 1.2  # by which a proposal may be narrowed at least, and be better for it
BY_CHANCE = 0.001  # the most probable that such moments may be if the weights have nothing to do with the draws
OUTSIDE = 0.1  # of the draws, those that lie farthest out
FALLS = -2  # standard errors


def misfit_of(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None) -> str:
    """Returns which change of scale mends a guide whose weights are bad at some data: the name of a remedy.

    Proposals that are wider by one factor after another are tried on some of the bad data, and one is advised under
    which at most a few are still bad: of those, that of the largest effective sample size. How far a guide is too
    narrow cannot be read off its own draws, which do not reach the rest of the posterior.

    Narrower ones are tried where the guide's draws show that it is too wide, and only there, as a proposal that is too
    narrow may look good, too. They show it by where the weight is, in standard deviations of the guide around its mean:

        M = sum_s W_s u_s u_s^T,    u = (z - E_q[z]) / sd_q(z)

    If the largest eigenvalue of M is below 1, no direction needs a wider guide. It must be so, by more than a step, at
    nine of ten bad data and not by chance: where few draws have the weight, that is where they happen to lie. Besides,
    the weights of the outermost draws must fall outwards in every direction: a posterior may have most of its mass near
    the centre of the guide and still heavier tails, which a narrower guide would reach less.

    Returns `RESCALED` if no factor helps, and `UNTRIED` where none can be tried.
    """
    if found.pair.layout.has_globals and not found.pair.layout.draws_locally:
        with suppress(InputError), local_seed(0):  # all latents are shared: all data are one datum
            found = as_one_datum(model, guide, found, gate.Weights(), vectorize_particles=True)
    rows = _bad_rows(model, guide, found, is_bad)
    own = None if rows is None else _run(model, guide, found, rows)
    if rows is None or own is None:
        return UNTRIED
    name, factors = (NARROWED, NARROWER) if _is_too_wide(own) else (WIDENED, WIDER)
    best = _best(model, guide, found, rows, factors)
    return RESCALED if best is None else by_factor(name, best)


def _best(model: Callable, guide: Callable, found: Opened, rows: Tensor, factors: tuple[float, ...]) -> float | None:
    """Returns the factor of the largest effective sample size among those that leave few bad data; None if none does.

    Factors go away from 1, and the first that is worse than a good one ends the search.
    """
    best, largest = None, 0.0
    for factor in factors:
        pair = _run(model, proposals.widened(guide, factor), found, rows, trials := max(1, TRIALS // len(rows)))
        ess = 0.0 if pair is None else _size_if_good(pair.terms().log_weights.double(), trials)
        if ess > largest:
            best, largest = factor, ess
        elif best is not None:
            break
    return best


def _size_if_good(log_w: Tensor, trials: int) -> float:
    """Returns the median effective sample size, or 0 if Pareto k is too large or unknown at more than a few data."""
    log_w = torch.cat(log_w[: len(log_w) // trials * trials].chunk(trials), 1)  # each trial as data of its own
    if bool((log_w.isnan() | (log_w == torch.inf)).any() | (log_w == -torch.inf).all(0).any()):
        return 0.0
    k, _ = pareto_smoothed(log_w)
    num_bad = int((~(k <= largest_reliable_k(len(log_w)))).sum())
    return log_mean(log_w)[2].median().item() if are_few(num_bad, len(k)) else 0.0


def _bad_rows(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None) -> Tensor | None:
    """Returns which bad data are tried, or None where draws of the latents of each datum alone cannot be had."""
    layout, data = found.pair.layout, found.data
    sites = found.pair.guide_sites.values()
    if is_bad is None or len(is_bad) != data.size or layout.has_globals or not layout.is_vectorized:
        return None
    if not bool(is_bad.any()) or len(found.pair.plates) > 1 or any(is_masked(site) for site in sites):
        return None
    rows = is_bad.nonzero().flatten()[:MOST_DATA].cpu()
    cut = len(rows) < data.size
    return None if cut and why_not_cut(model, guide, found, len(rows)) is not None else rows


def _run(model: Callable, guide: Callable, found: Opened, rows: Tensor, trials: int = 1) -> Pair | None:
    """Returns the pair on some data, or None if it does not run, as models may not far away from their posterior."""
    data = found.data
    args = moved(data.at(rows) if len(rows) < data.size else data.whole, data.device)
    num_draws = max(trials, min(trials * MOST_DRAWS, found.pairs_in_memory // len(rows)))
    with torch.no_grad(), local_seed(0), pyro.validation_enabled(False):
        try:
            pair = run_pair(model, guide, *args, num_particles=num_draws, reading=found.reading)
        except (InputError, NotImplementedError, ValueError):
            return None
    return pair if pair.layout.is_vectorized else None


def _is_too_wide(pair: Pair) -> bool:
    if not pair.layout.plates:
        return False
    try:
        away = _away(pair)
    except NotImplementedError:  # from a distribution whose variance is not known
        return False
    log_w = pair.terms().log_weights.double()
    share = log_w.softmax(0)
    if not 0 < away.shape[-1] <= MOST_LATENTS:
        return False
    moments = torch.einsum("sn,sni,snj->nij", share, away, away)
    if not bool(moments.isfinite().all()):
        return False
    if (torch.linalg.eigvalsh(moments)[:, -1] < STEP**-2).double().mean() < AGREE:
        return False
    return _by_chance(share, moments.diagonal(dim1=-2, dim2=-1)) < BY_CHANCE and _falls_outwards(log_w, away)


def _away(pair: Pair) -> Tensor:
    """Returns how far draws lie from the mean of the guide, in its standard deviations, `(draws, data, latents)`."""
    parts = [torch.zeros(*pair.batch_shape, 0, dtype=torch.float64)]
    for site in pair.guide_sites.values():
        fn = site["fn"]
        if not isinstance(base_of(fn), Delta):
            away = (site["value"] - fn.mean) / fn.variance.sqrt()
            parts.append(draws_as_rows(pair, site, away).reshape(*pair.batch_shape, -1).double())
    return torch.cat([part.to(parts[-1].device) for part in parts], -1)


def _by_chance(share: Tensor, squares: Tensor) -> float:
    """Returns how probable moments as small are if the weights have nothing to do with the draws.

    The draws that have the weight, as many as the effective sample size, are then any draws of the guide.
    """
    ess = 1 / share.square().sum(0)
    half = ess.sum() * squares.shape[1] / 2
    return torch.special.gammainc(half, (ess[:, None] * squares).sum() / 2).item()


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
