"""Takes the terms of a pair under its scales: beta on the latents, and the factor common to all sites."""

from dataclasses import dataclass

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.objectives.kept_terms import kept_terms
from pyrovae.programs import Pair, PairTerms, inner_scale


@dataclass(frozen=True)
class WeightedTerms:
    """Holds log w = log_p - log_q with beta on the latents, and apart from it the scale common to all sites.

    `log_p`, `log_q` and `score` (log q without beta) are `(num_particles, batch)`; `scale`, a number or one per datum,
    multiplies the bound, outside any logsumexp; `beta` is the one of all local latents. `log_ratio` is
    log p(theta) - log q(theta) of global sites under their own scales, 0-dim, or None if there are none. `plain` are
    the terms without scales.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor
    scale: Tensor
    beta: Tensor
    plain: PairTerms
    log_ratio: Tensor | None = None

    @property
    def log_weights(self) -> Tensor:
        return self.log_p - self.log_q

    def keep(self) -> None:
        """Tells the reconstruction and the KL of these draws to whoever keeps them."""
        kept = kept_terms()
        if kept is not None:
            with torch.no_grad():
                kl = self.plain.log_posterior.sum() - self.plain.log_prior.sum()
                kept.add(self.plain.log_likelihood.sum(), kl, len(self.plain.log_likelihood))

    def require_no_beta(self, objective: object) -> None:
        """Raises `InputError` for a beta other than 1."""
        require(
            bool(self.beta == 1),
            f"{type(objective).__name__} is not defined for a beta on the latents, got {self.beta.item():g}",
        )


def weighted_terms(pair: Pair) -> WeightedTerms:
    """Returns the terms of a pair under its `poutine.scale`, and the log-density ratio of its global sites.

    Raises `InputError` if the local observed sites, or the latent ones, do not have one scale.
    """
    observed, latent = ([s for s in sites.values() if pair.is_local(s)] for sites in (pair.observed, pair.latent))
    terms = pair.terms()
    dtype = torch.promote_types(terms.log_likelihood.dtype, terms.log_prior.dtype)
    scale = beta = torch.ones((), dtype=dtype)
    log_p, log_q = terms.log_likelihood + terms.log_prior, terms.log_posterior
    # Most pairs have no scale, and a small step's time counts.
    if not all(_is_unscaled(pair, site) for site in (*observed, *latent)):
        scale, beta = _scale_and_beta(pair, observed, latent, dtype)
        log_p, log_q = terms.log_likelihood + beta * terms.log_prior, beta * terms.log_posterior
    if len(pair.plates) > 1:
        parts = [scale.new_full((plate.size,), plate.scale) for plate in pair.plates]
        scale = scale * torch.cat(parts).to(terms.log_likelihood.device)
    log_ratio = None
    if pair.layout.has_globals:
        of_model, of_guide = pair.global_terms(scaled=True)
        log_ratio = of_model - of_guide
    return WeightedTerms(log_p, log_q, terms.log_posterior, scale, beta, terms, log_ratio)


def _scale_and_beta(pair: Pair, observed: list[dict], latent: list[dict], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    of_observed, of_latent = ([_scale(pair, site).to(dtype) for site in sites] for sites in (observed, latent))
    scale = of_observed[0] if of_observed else torch.ones(())
    betas = [one / scale for one in of_latent]
    for sites, numbers in (("observed", of_observed), ("latent", betas)):
        if not _is_one_number(numbers):
            raise InputError(f"poutine.scale must be one number for all {sites} sites, got {numbers}")
    return scale, betas[0] if betas else torch.ones(())


def _is_unscaled(pair: Pair, site: dict) -> bool:
    if isinstance(site["scale"], Tensor) or site["scale"] != 1 or inner_scale(site, pair.plates) != 1:
        return False
    return len(pair.plates) < 2 or all(plate.scale == 1 for plate in pair.plates)


def _scale(pair: Pair, site: dict) -> Tensor:
    """Returns a site's scale without the N / B of plates inside the data plate, which belongs to its own term.

    With several data plates it is without theirs, too.
    """
    given, inner = site["scale"], inner_scale(site, pair.plates)
    scale = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64)
    if len(pair.plates) > 1:
        inner *= next((plate.scale for plate in pair.plates if plate.name in _names(site)), 1.0)
    return scale if inner == 1 else scale / inner


def _names(site: dict) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"]}


def _is_one_number(scales: list[Tensor]) -> bool:
    """Compares values only if Pyro validates: a traced step cannot look at values, and was validated before."""
    scalars = all(s.dim() == 0 for s in scales)
    return scalars and (not is_validation_enabled() or all(bool(s == scales[0]) for s in scales[1:]))
