"""The ELBO of discrete latents as a sum over all of their values: sum_z q(z|x) log w(z)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.objectives.base import DifferentiableELBO
from pyrovae.objectives.kept_terms import kept_terms
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import (
    Pair,
    at_every_datum,
    check_no_zero_weights,
    enumerated_states,
    is_masked,
    pair_at,
    require_no_autoencoder,
    warn_of_never_drawn,
    without_mask,
)


@dataclass(frozen=True)
class EnumeratedELBO(DifferentiableELBO):
    """Sums the ELBO over every value of all latents: the bound and its gradient are exact.

        sum_z q(z|x) (log p(x, z) - log q(z|x))

    The sites are of discrete distributions that can be enumerated, or vectors of them (`to_event`), which Pyro's
    `TraceEnum_ELBO` does not take; each of several sites may depend on the others. Memory grows with the number of
    values, at most 65,536: ten bits have 1,024, at each of which the likelihood of each datum is taken. A beta on the
    latents multiplies the KL.

    Example:
        >>> bits = pv.VAE((2,), latent_dim=3, hidden=(8,), likelihood=pv.Gaussian(0.5), posterior="bernoulli")
        >>> objective, x = pv.objectives.EnumeratedELBO(), torch.zeros(4, 2)
        >>> objective.loss(bits.model, bits.guide, x) == objective.loss(bits.model, bits.guide, x)  # without noise
        True
    """

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        drawn = call.run(1, once=True)  # only its sites are used

        def run(latents: dict[str, Tensor]) -> tuple[WeightedTerms, Tensor]:
            pair = pair_at(call.model, call.guide, latents, *call.args, **call.kwargs)
            terms = weighted_terms(pair)
            if not any(map(is_masked, pair.guide_sites.values())):
                return terms, terms.score
            # Masked latents are summed over, too, with their mass under q.
            return terms, pair.total({name: without_mask(site) for name, site in pair.guide_sites.items()})

        terms, log_q = at_every_datum(run, enumerated_states(drawn.guide_sites), drawn.batch_shape[1])
        possible = log_q > -math.inf  # 0 log 0 is 0, and would be nan
        no_weight = possible & (terms.log_weights == -math.inf)  # the bound is -inf, and the rest has a gradient
        self._keep(terms, log_q, possible)
        log_w = torch.where(possible & ~no_weight, terms.log_weights, 0.0)
        bound = (torch.where(possible, torch.where(possible, log_q, 0.0).exp(), 0.0) * log_w).sum()
        return -terms.scale * (bound - torch.where(no_weight.any(), math.inf, 0.0))

    def _keep(self, terms: WeightedTerms, log_q: Tensor, possible: Tensor) -> None:
        """Tells the reconstruction and the KL, which are sums over all values, too."""
        kept = kept_terms()
        if kept is None:
            return
        with torch.no_grad():
            mass = torch.where(possible, log_q, -math.inf).exp()
            kl = terms.plain.log_posterior - terms.plain.log_prior
            reconstruction, rate = (
                (mass * torch.where(possible, term, 0.0)).sum() for term in (terms.plain.log_likelihood, kl)
            )
            kept.add(reconstruction, rate, 1)

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if the latents are not discrete, have too many values, or are an autoencoder's."""
        weighted_terms(pair)
        require(
            pair.coupled_data is None,
            f"elbo_enumerated sums over the latents of a datum, and {pair.coupled_data} depends on those of others",
        )
        require_no_autoencoder(pair, "enumeration needs latents without a mask")
        enumerated_states(pair.guide_sites)
        check_no_zero_weights(pair)
        warn_of_never_drawn(pair)
