"""ELBO surgery: splits the KL of a data set into information about the data and distance from the prior."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import evaluates, local_seed, progress_bar, require, require_flag, require_size
from pyrovae.evaluation import latent_marginals
from pyrovae.evaluation.arguments import home_of
from pyrovae.evaluation.chunks import PAIRS_PER_CHUNK, Data, Opened, opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.estimate import Estimate, estimate_lines
from pyrovae.evaluation.rows import as_rows, data_dim_of, from_rows, require_rows
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import Pair, gate, log_joint, one_way_site, pair_at, require_no_masks, run_pair, takes_pair

# A guide's density takes a few numbers for each latent, a decoding a few for each pixel.
DENSITIES_PER_DECODING = 64
SATURATED = 0.9  # share of its ceiling, above which the mutual information says little


@dataclass(frozen=True)
class ElboSurgery:
    """Holds the terms of the mean ELBO over the data, as `elbo_surgery` returns them; prints as a table.

        elbo = reconstruction - kl,    kl = mutual_information + marginal_kl
        marginal_kl = total_correlation + sum_j dimension_kl[j]    with `per_dimension`

    Each term is an `Estimate` in nats; its `mean` is the term, with `monte_carlo_error`. The equations hold datum by
    datum, on the same draws.

    Args:
        elbo: The ELBO.
        reconstruction: E[log p(x|z)].
        kl: KL(q(z|x) || p(z)).
        mutual_information: I_q(x; z). Its value for one datum is KL(q(z|x_n) || q(z)).
        marginal_kl: KL(q(z) || p(z)). Its value for one datum may be negative, as may those of the terms below.
        total_correlation: KL(q(z) || prod_j q(z_j)), how far the dimensions are from independent; None without
            `per_dimension`.
        dimension_kl: KL(q(z_j) || p(z_j)) for each dimension j; `()` without `per_dimension`.
        dimension_shared: I_q(z_j; all other dimensions), what dimension j has to do with the total correlation; 0 if it
            is independent of the others.
        total_correlation_by_chance: What `total_correlation` comes to where the same posteriors have independent
            dimensions: those of each dimension are dealt to the data anew. Its mean is that of 10 deals, and its
            `monte_carlo_error` how far one more deal would be from that. As the data with independent dimensions are
            one more deal, of the same draws, this is the standard error of the difference of the two means. An estimate
            that is no higher than this does not tell dependent dimensions from independent ones; narrow posteriors of
            few data never do.
        dimension_shared_by_chance: The same of `dimension_shared`.
    """

    elbo: Estimate
    reconstruction: Estimate
    kl: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    total_correlation: Estimate | None = None
    dimension_kl: tuple[Estimate, ...] = ()
    dimension_shared: tuple[Estimate, ...] = ()
    total_correlation_by_chance: Estimate | None = None
    dimension_shared_by_chance: tuple[Estimate, ...] = ()

    @property
    def ceiling(self) -> float:
        """log N, in nats, which the mutual information of N data and their latents cannot exceed."""
        return math.log(len(self.elbo.value))

    @property
    def bias(self) -> str:
        """A few sentences that say which estimates are biased, and to which side."""
        text = (
            "For these data no term is biased: q(z) is summed over all of them. As estimates for the population the "
            "mutual information is low in expectation and the marginal KL high by as much, less so the more data; "
            "ELBO, reconstruction and KL(q(z|x) || p(z)) are not biased."
        )
        if self.total_correlation is not None:
            text += (
                " The terms of dimensions are high, too: N posteriors do not fill many dimensions, and look dependent. "
                '"By chance" is what dependence comes to where there is none, ± the error of the difference to it: an '
                "estimate no higher than that does not tell."
            )
        if self.mutual_information.mean > SATURATED * self.ceiling:
            text += (
                f" The mutual information is at its ceiling log N = {self.ceiling:.2f}: the posteriors hardly overlap, "
                "and that of the population may be far larger."
            )
        return text

    def __repr__(self) -> str:
        rows = {
            "ELBO": self.elbo,
            "reconstruction": self.reconstruction,
            "KL(q(z|x) || p(z))": self.kl,
            f"mutual information (<= {self.ceiling:.2f})": self.mutual_information,
            "KL(q(z) || p(z))": self.marginal_kl,
        }
        if self.total_correlation is not None:
            rows["total correlation"] = self.total_correlation
        if self.total_correlation_by_chance is not None:
            rows["total correlation by chance"] = self.total_correlation_by_chance
        of_dimensions = zip(self.dimension_kl, self.dimension_shared, self.dimension_shared_by_chance, strict=True)
        for j, (kl, shared, chance) in enumerate(of_dimensions, 1):
            name = f"I_q(z_{j}; the others)"
            rows |= {f"KL(q(z_{j}) || p(z_{j}))": kl, name: shared, f"{name} by chance": chance}
        return "\n".join((f"{f'nats per datum, {len(self.elbo.value)} data':30s}", *estimate_lines(rows), self.bias))


@takes_pair
@evaluates
@torch.no_grad()
def elbo_surgery(
    model: Callable,
    guide: Callable,
    *args: object,
    num_draws: int = 4,
    per_dimension: bool = False,
    chunk_size: int | None = None,
    progress: bool | None = None,
) -> ElboSurgery:
    """Splits the mean ELBO over a data set into reconstruction, mutual information and marginal KL, at beta = 1.

        1/N sum_n ELBO(x_n) = E[log p(x|z)] - I_q(x; z) - KL(q(z) || p(z))
        q(z) = 1/N sum_n q(z|x_n),    I_q(x; z) = 1/N sum_n KL(q(z|x_n) || q(z)) <= log N

    q(z) is the aggregated posterior over *all* the data given. I_q is the information that z has about which of the
    data it came from. log q(z) of every draw is the exact sum over N components, so that the time grows with N^2
    `num_draws`. The Monte Carlo errors are for these data; `ElboSurgery.bias` says what the terms are worth for the
    population.

    Args:
        model: The generative program p(x, z) of a pair whose prior is the same for every datum.
        guide: Its guide.
        *args: What model and guide take, of any number and type. Grey pixels are allowed; the reconstruction is then
            minus a cross-entropy.
        num_draws: The number of draws z ~ q(z|x_n) for each datum, at least 2.
        per_dimension: Splits KL(q(z) || p(z)) further, into the total correlation and a KL for each dimension (Chen et
            al. 2018), and says how much of the former there is by chance, which takes several times as long. It needs
            a single latent site with a diagonal Gaussian in the guide and independent dimensions in the prior.
        chunk_size: The number of pairs of a draw and a datum that are decoded at a time. None is as in `log_marginal`.
            The densities of the guide are evaluated 64 times as many at a time.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `ElboSurgery`.

    Raises:
        InputError: If the pair is refused, the data share a latent, a latent of the guide has no density (a
            Delta, or masked), p(z) differs between data, or `per_dimension` is asked of another pair.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> terms = pv.elbo_surgery(vae.model, vae.guide, torch.randn(5, 3))
        >>> torch.allclose(terms.kl.value, terms.mutual_information.value + terms.marginal_kl.value)
        True
        >>> round(terms.ceiling, 4)  # log 5
        1.6094

    Source:
        Hoffman and Johnson 2016, "ELBO surgery", NIPS workshop on Advances in Approximate Bayesian Inference; Chen et
        al. 2018, arXiv:1802.04942.
    """
    require_size("num_draws", num_draws, 2)
    require_flag("per_dimension", per_dimension)
    densities = DENSITIES_PER_DECODING * (chunk_size or PAIRS_PER_CHUNK)
    found = opened(model, guide, args, chunk_size)
    found.require_one_plate("elbo_surgery")
    check_subsamples("elbo_surgery", model, guide, found)
    require_rows("elbo_surgery", found.pair.layout, "its terms are those of a datum")
    home, num_data = home_of(args), found.data.size
    size = min(num_data, max(1, found.pairs_at_a_time // num_draws))
    data = cut(model, guide, found, size)
    with local_seed(0):
        _check_pair(model, guide, found, list(data.in_chunks(size)))
        if per_dimension:
            latent_marginals.gaussian_of(run_pair(model, guide, *next(data.in_chunks(size)).args))
    terms, draws, gaussians, log_priors = [], [], [], []
    with progress_bar(progress, 2 * num_data, "ELBO surgery", "datum") as bar:
        for chunk in data.in_chunks(size):
            pair = run_pair(model, guide, *chunk.args, num_particles=num_draws)
            draws.append({name: _rows(site, pair) for name, site in pair.guide_sites.items()})
            of_chunk = pair.terms()
            terms.append(torch.stack((of_chunk.log_likelihood, of_chunk.log_prior, of_chunk.log_posterior)).double())
            if per_dimension:
                gaussians.append(latent_marginals.gaussian_of(pair))
                log_priors.append(latent_marginals.log_prior_of(pair))
            bar.update(chunk.size)
        latents = {name: torch.cat([draw[name] for draw in draws], 1) for name in draws[0]}
        log_q = _log_aggregated(guide, data, latents, pair, densities, bar)
    log_likelihood, log_prior, log_posterior = torch.cat(terms, 2)

    def estimate(value: Tensor) -> Estimate:
        return Estimate(value.mean(0).to(home), (value.std(0) / math.sqrt(num_draws)).to(home))

    def of_deals(value: Tensor) -> Estimate:
        """Returns the mean over deals, whose error is by how much one more deal differs from it."""
        deals = len(value)
        error = value.mean(1).std() * math.sqrt(1 + 1 / deals)
        # A deal moves all data together: errors that are combined as if each datum had its own must give this one.
        return Estimate(value.mean(0).to(home), (error * math.sqrt(num_data)).expand(num_data).to(home))

    of_dimensions: dict[str, Any] = {}
    if per_dimension:
        (z,) = latents.values()
        of = latent_marginals.marginals(z.double(), torch.cat(gaussians, 1), torch.cat(log_priors, 1), densities)
        shared = log_q.unsqueeze(-1) - of.log_q - of.log_rest
        correlation, shared_by_chance = latent_marginals.by_chance(
            z.double(), torch.cat(gaussians, 1), of.log_q, densities
        )
        of_dimensions = {
            "total_correlation": estimate(log_q - of.log_q.sum(-1)),
            "dimension_kl": tuple(map(estimate, (of.log_q - of.log_p).unbind(-1))),
            "dimension_shared": tuple(map(estimate, shared.unbind(-1))),
            "total_correlation_by_chance": of_deals(correlation),
            "dimension_shared_by_chance": tuple(map(of_deals, shared_by_chance.unbind(-1))),
        }
    return ElboSurgery(
        elbo=estimate(log_likelihood + log_prior - log_posterior),
        reconstruction=estimate(log_likelihood),
        kl=estimate(log_posterior - log_prior),
        mutual_information=estimate(log_posterior - log_q),
        marginal_kl=estimate(log_q - log_prior),
        **of_dimensions,
    )


def _rows(site: dict, pair: Pair) -> Tensor:
    """Returns the draws of a site, `(num_draws, data, ...)`."""
    value = site["value"]
    return as_rows(value, value.dim() - site["fn"].event_dim, data_dim_of(site, pair.layout), pair.layout)


def _log_aggregated(
    guide: Callable, data: Data, latents: dict[str, Tensor], pair: Pair, chunk_size: int, bar: tqdm
) -> Tensor:
    """Returns log q(z) = log 1/N sum_n q(z|x_n) at latents `(num_draws, N, ...)`: `(num_draws, N)`, float64.

    A chunk holds as many draws as it can, under few data: each datum then goes through the encoder once.
    """
    num_draws, num_data = next(iter(latents.values())).shape[:2]
    flat = {name: z.flatten(0, 1).unsqueeze(1) for name, z in latents.items()}
    data_dims = {name: data_dim_of(site, pair.layout) for name, site in pair.guide_sites.items()}
    draw_size = min(num_draws * num_data, chunk_size)
    data_size = max(1, chunk_size // draw_size)
    total = torch.full((num_draws * num_data,), -math.inf, dtype=torch.float64, device=data.device)
    for chunk in data.in_chunks(data_size):
        for start in range(0, len(total), draw_size):
            # A guide whose sites depend on each other may need all values in one shape.
            z = {
                name: from_rows(
                    v[start : start + draw_size].expand(-1, chunk.size, *v.shape[2:]), data_dims[name], pair.layout
                )
                for name, v in flat.items()
            }
            with pyro.validation_enabled(False):  # the draws are the guide's own
                log_q = log_joint(guide, z, *chunk.args, layout=pair.layout)
            rows = total[start : start + draw_size]
            rows.copy_(torch.logaddexp(rows, log_q.double().logsumexp(1)))
        bar.update(chunk.size)
    return total.unflatten(0, (num_draws, num_data)) - math.log(num_data)


def _check_pair(model: Callable, guide: Callable, found: Opened, chunks: list[Data]) -> None:
    """Checks that the pair has log-weights, the guide has densities, and p(z) is the same for all data."""
    log_prior: list[Tensor] = []
    first: dict[str, Tensor] = {}
    for data in chunks:
        pair = found.pair if found.is_run_of(model, guide, data) else gate.check(model, guide, None, *data.args)
        gate.check_no_zero_weights(pair)
        # Without the observed sites: the density of the likelihood does not matter here.
        replace(pair, model_sites=pair.latent).check_densities()
        held = one_way_site(pair.guide_sites)
        require(held is None, f"q(z) needs each datum's density at the draws of others, and {held}")
        require_no_masks(pair, "q(z) needs latents that every datum has")
        first = first or {name: _rows(site, pair)[:1, :1] for name, site in pair.guide_sites.items()}
        here = {
            name: from_rows(
                z.expand(1, data.size, *z.shape[2:]), data_dim_of(pair.guide_sites[name], pair.layout), pair.layout
            )
            for name, z in first.items()
        }
        at = pair_at(model, guide, here, *data.args, like=replace(pair, num_particles=1))
        log_prior.append(at.terms().log_prior[0])
    joined = torch.cat(log_prior)
    spread = (joined - joined[0]).abs().max().item()
    require(
        spread <= 1e-4 * max(1.0, joined[0].abs().item()),
        f"p(z) must be the same for every datum, and at one z its log-density differs by {spread:.3g} nats",
    )
