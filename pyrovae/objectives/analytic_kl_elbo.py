"""The ELBO with its KL in closed form, and with a floor under it."""

from dataclasses import dataclass

from pyro.distributions import Independent
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.common import InputError, require, require_count, require_number
from pyrovae.objectives.base import DifferentiableELBO, Program, weighted_terms
from pyrovae.objectives.elbo import ELBO
from pyrovae.programs import Pair, check_masks, check_no_zero_weights, warn_of_never_drawn


@dataclass(frozen=True)
class AnalyticKLELBO(DifferentiableELBO):
    """1/K sum_k log p(x|z_k) - KL(q(z|x) || p(z)), the KL as PyTorch has it in closed form.

    Of several latent sites, in one order in model and guide, the conditional KLs are taken at the draws of the sites
    before them. Where no closed form is registered the pair is refused: there is no silent sampling. A beta on the
    latents multiplies the KL.

    With `free_bits`, lambda nats per latent dimension, the KL of a minibatch of B data is
    B sum_j max(lambda, 1/B sum_b KL_j(q(z_j|x_b) || p(z_j))) (Kingma et al. 2016, arXiv:1606.04934, equation 15): a
    dimension below the floor costs lambda and has no KL gradient. That is no bound on log p(x) but lies below the ELBO.
    It needs latents whose dimensions are independent in model and guide.
    """

    num_particles: int = 1
    free_bits: float | None = None

    @property
    def reference(self) -> type[ELBO] | None:
        return ELBO if self.free_bits is None else None

    def __post_init__(self) -> None:
        require_count("num_particles", self.num_particles)
        if self.free_bits is not None:
            require_number("free_bits", self.free_bits, above=0)

    def _differentiable_loss(self, program: Program) -> Tensor:
        pair = program.run(self.num_particles, once=True)
        terms = weighted_terms(pair)
        loss = -pair.terms().log_likelihood.mean(0).sum()
        for name in pair.latent:
            loss = loss + terms.beta * self._kl(pair, name)
        return terms.scale * loss

    def _kl(self, pair: Pair, name: str) -> Tensor:
        """The KL of one site, summed over the data."""
        q, p = pair.guide_sites[name]["fn"], pair.latent[name]["fn"]
        if self.free_bits is None:
            return kl_divergence(q, p).expand(pair.batch_shape).mean(0).sum()
        # Under to_event the base distributions are those of the single dimensions.
        per_dimension = kl_divergence(q.base_dist, p.base_dist).mean(0)
        return len(per_dimension) * per_dimension.mean(0).clamp(min=self.free_bits).sum()

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where the KL is not to be had, or the sum of its parts is not the KL."""
        weighted_terms(pair)
        check_masks(pair, False, "objective elbo_analytic_kl needs latents without a mask")
        if self.free_bits is not None:
            for name, site in pair.guide_sites.items():
                for fn in (site["fn"], pair.latent[name]["fn"]):
                    flat = isinstance(fn, Independent) and fn.event_dim == 1 and fn.base_dist.event_dim == 0
                    require(flat, f'free_bits needs latents of independent dimensions, got {fn} at site "{name}"')
        orders = [[name for name in sites if name in pair.latent] for sites in (pair.model_sites, pair.guide_sites)]
        require(
            orders[0] == orders[1],
            f"objective elbo_analytic_kl needs the latent sites in one order, got {orders[0]} in the model and "
            f"{orders[1]} in the guide: where one depends on another, the sum of their KLs is not the KL; use elbo",
        )
        for name in pair.latent:
            require(
                pair.guide_sites[name]["fn"].has_rsample,
                f'objective elbo_analytic_kl needs a reparameterised guide, and site "{name}" has no rsample: use '
                f"score_function",
            )
            try:
                self._kl(pair, name)
            # IndexError: torch's KL of two Bernoullis does not broadcast.
            except (NotImplementedError, AttributeError, IndexError) as error:
                raise InputError(
                    f'objective elbo_analytic_kl needs a closed-form KL at site "{name}", and none is registered for '
                    f"its distributions; use objective elbo"
                ) from error
        check_no_zero_weights(pair)
        warn_of_never_drawn(pair)
