"""Takes the terms of a pair under its scales: beta on the latents, and the factor common to all sites."""

from dataclasses import dataclass

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.programs import Pair


@dataclass(frozen=True)
class WeightedTerms:
    """Holds log w = log_p - log_q with beta on the latents, and apart from it the scale common to all sites.

    `log_p`, `log_q` and `score` (log q without beta) are `(num_particles, batch)`; `scale` multiplies the whole
    objective, outside any logsumexp; `beta` is the one of all latents.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor
    scale: Tensor
    beta: Tensor

    @property
    def log_weights(self) -> Tensor:
        return self.log_p - self.log_q

    def require_no_beta(self, objective: object) -> None:
        """Raises `InputError` for a beta other than 1."""
        require(
            bool(self.beta == 1),
            f"{type(objective).__name__} is not defined for a beta on the latents, got {self.beta.item():g}",
        )


def weighted_terms(pair: Pair) -> WeightedTerms:
    """Returns the terms of a pair under its `poutine.scale`s.

    Raises `InputError` if the observed sites, or the latent ones, do not have one scale.
    """
    scales = [torch.as_tensor(site["scale"]) for site in pair.observed.values()]
    scale = scales[0] if scales else torch.ones(())
    betas = [torch.as_tensor(site["scale"]) / scale for site in pair.latent.values()]
    beta = betas[0] if betas else torch.ones(())
    for sites, numbers in (("observed", scales), ("latent", betas)):
        if not _is_one_number(numbers):
            raise InputError(f"poutine.scale must be one number for all {sites} sites, got {numbers}")
    terms = pair.terms()
    return WeightedTerms(
        terms.log_likelihood + beta * terms.log_prior, beta * terms.log_posterior, terms.log_posterior, scale, beta
    )


def _is_one_number(scales: list[Tensor]) -> bool:
    """Compares values only if Pyro validates: a traced step cannot look at values, and was validated before."""
    scalars = all(s.dim() == 0 for s in scales)
    return scalars and (not is_validation_enabled() or all(bool(s == scales[0]) for s in scales[1:]))
