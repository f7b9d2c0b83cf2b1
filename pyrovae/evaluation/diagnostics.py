"""Diagnoses of the latent space: ELBO terms per datum, KL per dimension, active units, collapse, sample diversity."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.common import evaluates, require, require_size
from pyrovae.evaluation.arguments import arguments_of, check_args, require_vae
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.rows import as_rows, data_dim_of, require_rows
from pyrovae.evaluation.subsamples import check_subsamples, check_subsamples_of
from pyrovae.models import VAE, Diagonal, Standard
from pyrovae.programs import Pair, PairTerms, gate, is_autoencoder, run_pair, seen, takes_pair

DIMENSIONS_SHOWN = 20
ACTIVE_VARIANCE = 0.01
ERRORS_OF_NOISE = 4  # by which a variance must exceed what draws add to it
DRAWS_PER_DATUM = 32
MANY_DATA = 200  # with fewer data, 16 times as many draws
DATA_PER_CHUNK = 256


@takes_pair
@evaluates
@torch.no_grad()
def elbo_terms(model: Callable, guide: Callable, *args: object, num_particles: int = 1) -> dict[str, Tensor]:
    """Estimates the terms of the ELBO for each datum, at beta = 1.

        elbo = reconstruction - kl
        reconstruction = E_q[log p(x|z)],    kl = E_q[log q(z|x) - log p(z)]

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: Its guide.
        *args: What model and guide take, of any number and type.
        num_particles: The number of draws for each datum, over which the means are taken.

    Returns:
        A dict of `elbo`, `reconstruction` and `kl`, each `(batch,)`, in nats.

    Raises:
        InputError: If the pair is refused (see docs/your_own_program.md), or its data plate draws a subsample.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> terms = pv.diagnostics.elbo_terms(vae.model, vae.exact_guide, torch.zeros(4, 3), num_particles=10)
        >>> torch.allclose(terms["elbo"], terms["reconstruction"] - terms["kl"])
        True
    """
    check_args(model, args)
    run = partial(run_pair, model, guide, *args, num_particles=num_particles)
    pair = gate.checked_run(run, model, guide, None, args, {})
    require_rows("elbo_terms", pair.layout, "use importance_bound, with one particle", vectorized=False)
    check_subsamples_of("elbo_terms", (model, guide), pair, args, takes_terms=True)
    terms: PairTerms = pair.terms()
    reconstruction, kl = terms.log_likelihood.mean(0), (terms.log_posterior - terms.log_prior).mean(0)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


@evaluates
@torch.no_grad()
def kl_per_dimension(vae: VAE, *args: Tensor) -> Tensor:
    """Returns KL(q(z_j|x) || p(z_j)) for each datum and latent dimension, in closed form.

    Args:
        vae: A VAE with the posterior "diagonal" and the prior "standard".
        *args: The data `(batch, *event_shape)`, and the conditions if it has any.

    Returns:
        The KL, `(batch, latent_dim)`, in nats.

    Raises:
        InputError: If the posterior or the prior is another one, or x is not finite.

    Example:
        >>> vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
        >>> pv.diagnostics.kl_per_dimension(vae, torch.ones(5, 4)).shape
        torch.Size([5, 2])
    """
    args = arguments_of(vae, args)
    return _kl_per_dimension(vae, vae.encode(*args))


def _kl_per_dimension(vae: VAE, q: TorchDistribution) -> Tensor:
    require(has_kl_per_dimension(vae), "a KL per dimension needs posterior diagonal and prior standard")
    return kl_divergence(q.base_dist, vae.prior.base_dist)


def has_kl_per_dimension(vae: VAE) -> bool:
    """Returns True if `kl_per_dimension` is known in closed form for this VAE."""
    return isinstance(vae.posterior_family, Diagonal) and isinstance(vae.prior_family, Standard)


@dataclass(frozen=True)
class LatentUse:
    """Holds what each latent dimension says about the data, as `latent_use` returns it.

    A unit is active if its `variance` is above 0.01 (Burda et al. 2016, arXiv:1509.00519).

    Args:
        variance: Cov_x(E_q[z_j|x]), the variance over the data of the posterior mean, `(latent_dim,)`.
        kl: The mean over the data of KL(q(z_j|x) || p(z_j)), `(latent_dim,)`, in nats.

    Example:
        >>> use = pv.diagnostics.LatentUse(torch.tensor([0.9, 0.0]), torch.tensor([1.5, 0.0]))
        >>> use.num_active
        1
        >>> use.warning
        'posterior collapse: 1 of 2 latent dimensions says nothing about the data: number 2 ...'
    """

    variance: Tensor
    kl: Tensor

    @property
    def active(self) -> Tensor:
        """True for each active dimension, `(latent_dim,)`."""
        return self.variance > ACTIVE_VARIANCE

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())

    def __repr__(self) -> str:
        shares = ", ".join(f"{kl:.2g}" for kl in self.kl.tolist()[:DIMENSIONS_SHOWN])
        more = ", ..." if len(self.kl) > DIMENSIONS_SHOWN else ""
        text = f"{self.num_active} of {len(self.variance)} latent dimensions are active; KL {shares}{more} nats"
        return text if self.warning is None else f"{text}\n{self.warning}"

    @property
    def warning(self) -> str | None:
        """A sentence that names the dimensions that have collapsed to the prior, counted from 1; None if none has."""
        collapsed = (~self.active).nonzero().flatten()
        if len(collapsed) == 0:
            return None
        names = ", ".join(str(int(j) + 1) for j in collapsed)
        share, is_one = f"{len(collapsed)} of {len(self.variance)}", len(collapsed) == 1
        say, which = ("says", "number") if is_one else ("say", "numbers")
        return (
            f"posterior collapse: {share} latent dimensions {say} nothing about the data: {which} {names} "
            f"(variance of E[z|x] <= {ACTIVE_VARIANCE}, KL {self.kl[collapsed].sum().item():.3g} nats in all)"
        )


@evaluates
@torch.no_grad()
def latent_use(vae: VAE, *args: Tensor) -> LatentUse:
    """Measures what each latent dimension says about the data.

    Args:
        vae: A VAE with the posterior "diagonal" and the prior "standard".
        *args: All the data at once, `(batch, *event_shape)`, at least 2 (the result is a variance over data), and the
            conditions if it has any.

    Returns:
        A `LatentUse`.

    Raises:
        InputError: If there are fewer than 2 data, or as `kl_per_dimension` does.

    Example:
        >>> vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
        >>> pv.diagnostics.latent_use(vae, torch.eye(4)).variance.shape
        torch.Size([2])
    """
    args = arguments_of(vae, args)
    q = vae.encode(*args)
    kl = _kl_per_dimension(vae, q)
    require(len(kl) > 1, "a variance over data needs at least 2, got 1")
    return LatentUse(q.mean.var(0), kl.mean(0))


@takes_pair
@evaluates
@torch.no_grad()
def active_units(model: Callable, guide: Callable, *args: object) -> int:
    """Counts the latent coordinates, over all sites, with Cov_x(E_q[z_j|x]) > 0.01, for any pair.

    The variance is over the data that have the coordinate: those that a mask leaves out do not count. If the
    distribution of a site has no mean, or depends on another draw, E_q is the average of 32 draws (of 512 with
    fewer than 200 data), and the variance that the draws add is subtracted. What is left must then also exceed four
    standard errors of what was subtracted, each sqrt(2 / (N - 1)) times it, so that the noise of latents with a large
    scale is not counted.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: Its guide.
        *args: What model and guide take, of any number and type; at least 2 data.

    Returns:
        The number of active units.

    Raises:
        InputError: If there are fewer than 2 data, or the pair is refused.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.eye(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> pv.diagnostics.active_units(vae.model, vae.exact_guide, torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
        1

    Source:
        Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519.
    """
    found = opened(model, guide, args)
    found.require_one_plate("active_units")
    check_subsamples("active_units", model, guide, found)
    layout, num_data = found.pair.layout, found.data.size
    require_rows("active_units", layout, "its variance is that over the data", vectorized=False)
    require(num_data > 1, "a variance over data needs at least 2, got 1")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    num_draws = DRAWS_PER_DATUM if num_data >= MANY_DATA else 16 * DRAWS_PER_DATUM
    for chunk in cut(model, guide, found, DATA_PER_CHUNK).in_chunks(DATA_PER_CHUNK):
        run = partial(run_pair, model, guide, *chunk.args, num_particles=num_draws)
        pair = gate.checked_run(run, model, guide, None, chunk.args, {})
        if not pair.layout.is_vectorized:
            gate.check_new_draws(pair, model, guide, *chunk.args)
        draws, has = (_coordinates(pair, part) for part in (_mean_or_draw, _has))
        parts.append(_moments(draws, has))
    means, variances, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    has = counts > 0
    _, variance, count = _moments(means, has)
    noise = torch.where(has, variances / counts, 0.0).sum(0) / count
    return int(
        (variance - noise > (ERRORS_OF_NOISE * noise * (2 / (count - 1)).sqrt()).clamp(min=ACTIVE_VARIANCE)).sum()
    )


def _moments(values: Tensor, has: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and variance of those values along the first dimension that `has` marks, and their number."""
    count = has.sum(0)
    mean = torch.where(has, values, 0.0).sum(0) / count
    return mean, torch.where(has, values - mean, 0.0).square().sum(0) / (count - 1), count


def _coordinates(pair: Pair, of_site: Callable[[dict], Tensor]) -> Tensor:
    """Returns `of_site` of every site of the guide, in the shape of its values: `(particles, batch, coordinates)`."""
    runs = []
    for run in pair.runs:
        sites = []
        for site in run.guide_sites.values():
            values, data_dim = of_site(site), data_dim_of(site, pair.layout)
            rows = as_rows(values, values.dim() - site["fn"].event_dim, data_dim, pair.layout)
            rows = rows if pair.layout.is_vectorized else rows.unsqueeze(0)
            sites.append(rows.reshape(*rows.shape[:2], -1))
        runs.append(torch.cat(sites, -1))
    return torch.cat(runs)


def _has(site: dict) -> Tensor:
    """Returns which elements of a site no mask excludes; those of an autoencoder all."""
    value = site["value"]
    elements = torch.tensor(True, device=value.device) if is_autoencoder(site) else seen(site).to(value.device)
    return elements.expand_as(value)


def _mean_or_draw(site: dict) -> Tensor:
    """Returns the mean of a site's distribution, or its draws if it has no mean."""
    value = site["value"]
    try:
        mean = site["fn"].mean
    except (NotImplementedError, AttributeError):
        mean = value
    mean = mean if bool(mean.isfinite().all()) else value
    return mean.expand_as(value).double()


@evaluates
def sample_diversity(vae: VAE, num_samples: int, y: Tensor | tuple[Tensor, ...] = ()) -> float:
    """Returns the mean over coordinates of the variance of E[x|z, y] over z ~ p(z), and over `y` if it is given.

    It is 0 if all samples are the same.

    Args:
        vae: The VAE.
        num_samples: The number of samples, at least 2.
        y: The conditions of the samples, `(num_samples, ...)`; none by default.

    Returns:
        The diversity, in squared units of x.

    Raises:
        InputError: If there are fewer than 2 samples.

    Example:
        >>> vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
        >>> pv.diagnostics.sample_diversity(vae, 10) > 0
        True
    """
    require_vae(vae)
    require_size("num_samples", num_samples, 2)
    return vae.sample(num_samples, y, mean=True).var(0).mean().item()
