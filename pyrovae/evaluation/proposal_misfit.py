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


def misfit_of(model: Callable, guide: Callable, found: Opened, is_bad: Tensor | None) -> str:
    """Returns which change of scale helps a guide whose weights are bad at some data: the name of a remedy.

    It compares where the weight is with where the guide is, in standard deviations of the guide around its mean:

        M = sum_s W_s u_s u_s^T,    u = (z - E_q[z]) / sd_q(z)

    M / D has the trace of the squared factor by which a guide must be widened to be nearest to the posterior in
    KL(p||q). If the largest eigenvalue of M is below 1, no direction needs a wider guide; if no diagonal element is,
    none needs a narrower one. A guide is called too wide or too narrow only if M is so, by more than the step that is
    advised, at nine of ten bad data. What M does not tell is `RESCALED`: where few draws have the weight, they would
    have to agree by chance.
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
    share = pair.terms().log_weights.double().softmax(0)
    away = torch.cat([part.double() for part in parts], -1) if parts else share.new_zeros(*share.shape, 0)
    if not 0 < away.shape[-1] <= MOST_LATENTS:
        return RESCALED
    moments = torch.einsum("sn,sni,snj->nij", share, away, away)
    if not bool(moments.isfinite().all()):
        return RESCALED
    if (torch.linalg.eigvalsh(moments)[:, -1] < STEP**-2).double().mean() >= AGREE:
        return NARROWED
    squares = moments.diagonal(dim1=-2, dim2=-1)
    agree = (squares.mean(1) > STEP**2).double().mean() >= AGREE
    return WIDENED if agree and squares.mean(0).min() > STEP**-2 else RESCALED
