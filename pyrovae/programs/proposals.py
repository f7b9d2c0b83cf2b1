"""Makes guides to draw importance samples from, out of one that was trained: wider, or mixed with the prior.

An amortised Gaussian that was trained by the ELBO is too narrow more often than too wide, and a proposal with thinner
tails than the posterior has importance weights of infinite variance (Pareto k > 0.5). Each proposal is a guide for
`log_marginal(model, proposal, x)` and is taken wherever the trained guide is.
"""

from collections.abc import Callable
from typing import cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform
from torch.types import _size

from pyrovae.common import InputError, require, require_callable, require_number
from pyrovae.programs.distribution_supports import has_real_support, log_density, support_of
from pyrovae.programs.one_way_transforms import one_way_site
from pyrovae.programs.sites import base_of, drawn_sites
from pyrovae.programs.supports import EitherOf, contains, described


def widened(guide: Callable, factor: float) -> Callable:
    """Returns a guide that moves every draw of `guide` away from the mean of its distribution.

        z' = E[z] + factor (z - E[z])

    The standard deviations of a Gaussian (diagonal or not) are multiplied by `factor`. Points stay as they are: in an
    autoguide each is a function of the site that is drawn, and moves with it.

    Args:
        guide: A guide whose latents are real vectors, drawn from distributions with a known mean.
        factor: A number > 0; above 1 it widens the guide.

    Returns:
        A guide with the arguments and sites of `guide`.

    Raises:
        InputError: `factor` is no such number, or, when the new guide runs, a latent is not real or has no known mean.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> wide = pv.proposals.widened(vae.guide, 1.2)
        >>> pv.log_marginal(vae.model, wide, torch.zeros(4, 2), num_samples=50).log_px.shape
        torch.Size([4])
    """
    require_callable("guide", guide)
    require_number("factor", factor, above=0)

    class Widen(Messenger):
        def _pyro_sample(self, msg: Message) -> None:
            fn = cast(TorchDistribution, msg["fn"])
            if _is_latent(msg) and not isinstance(base_of(fn), dist.Delta):
                rule = f'widened needs latents of real numbers, got {described(support_of(fn))} at site "{msg["name"]}"'
                require(has_real_support(fn), rule)
                try:
                    msg["fn"] = _Widened(fn, factor)
                except NotImplementedError as error:
                    why = f'widened needs distributions whose mean is known, got {fn} at site "{msg["name"]}"'
                    raise InputError(why) from error

    return _under(Widen, guide)


def defensive(model: Callable, guide: Callable, prior_weight: float = 0.1) -> Callable:
    """Returns a guide that draws from a mixture of `guide` and the prior.

        q'(z|x) = (1 - prior_weight) q(z|x) + prior_weight p(z)

    Its weights are bounded by p(x|z) / prior_weight, so that their variance is finite if the likelihood is bounded.

    Args:
        model: The model whose prior p(z) is mixed in, with one latent site.
        guide: The guide q(z|x).
        prior_weight: A number between 0 and 1, exclusive.

    Returns:
        A guide with the arguments and the site of `guide`.

    Raises:
        InputError: `prior_weight` is no such number, or, when the new guide runs, the model does not have one latent
            site, that of the guide.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> safe = pv.proposals.defensive(vae.model, vae.guide, prior_weight=0.1)
        >>> pv.log_marginal(vae.model, safe, torch.zeros(4, 2), num_samples=50).log_px.shape
        torch.Size([4])

    Source: Hesterberg 1995, "Weighted average importance sampling and defensive mixture distributions".
    """
    require_callable("model", model)
    require_callable("guide", guide)
    require_number("prior_weight", prior_weight, above=0, below=1)

    def proposal(*args, **kwargs) -> None:
        with poutine.block(), torch.no_grad():  # its prior, one for all particles
            sites = drawn_sites(model, *args, **kwargs)
        latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        priors = {name: cast(TorchDistribution, site["fn"]) for name, site in latents.items()}
        require(len(priors) == 1, f"defensive needs a pair with one latent site, got {sorted(priors)}")

        class Mix(Messenger):
            def _pyro_sample(self, msg: Message) -> None:
                if _is_latent(msg):
                    if msg["name"] not in priors:
                        raise InputError(f'defensive needs the prior of site "{msg["name"]}", and the model has none')
                    fn = cast(TorchDistribution, msg["fn"])
                    held = one_way_site({msg["name"]: cast(dict, msg)})
                    require(held is None, f"defensive needs the guide's density at draws of the prior, and {held}")
                    msg["fn"] = _Defensive(fn, priors[msg["name"]], prior_weight)

        with Mix():
            guide(*args, **kwargs)

    return proposal


def can_widen(fn: TorchDistribution) -> bool:
    """Returns True if `widened` takes a latent of this distribution.

    Args:
        fn: The distribution of a latent in the guide.

    Example:
        >>> from pyro.distributions import Gamma, Normal
        >>> pv.proposals.can_widen(Normal(0.0, 1.0)), pv.proposals.can_widen(Gamma(1.0, 1.0))
        (True, False)
    """
    if isinstance(base_of(fn), dist.Delta):
        return True
    try:
        return has_real_support(fn) and _Widened(fn, 1.0) is not None
    except NotImplementedError:
        return False


class _Widened(dist.TransformedDistribution):
    """Represents the distribution of mean + factor (z - mean)."""

    def __init__(self, fn: TorchDistribution, factor: float) -> None:
        self.fn, self.factor = fn, factor
        super().__init__(fn, [AffineTransform((1 - factor) * fn.mean, factor, event_dim=fn.event_dim)])

    @property
    def mean(self) -> Tensor:
        return self.fn.mean

    @property
    def variance(self) -> Tensor:
        return self.factor**2 * self.fn.variance

    def expand(self, batch_shape: _size, _instance: object = None) -> "_Widened":
        return _Widened(self.fn.expand(batch_shape), self.factor)


class _Defensive(TorchDistribution):
    """Represents the mixture (1 - weight) q + weight p; q's batch shape extends p's to the left."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, q: TorchDistribution, p: TorchDistribution, weight: float) -> None:
        self.q, self.p, self.weight = q, p, weight
        super().__init__(q.batch_shape, q.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The values of either: those of both are drawn."""
        supports = support_of(self.p), support_of(self.q)
        for one, other in (supports, supports[::-1]):
            if contains(one, other):
                return one
        return EitherOf(*supports)

    @property
    def mean(self) -> Tensor:
        return (1 - self.weight) * self.q.mean + self.weight * self.p.mean

    def expand(self, batch_shape: _size, _instance: object = None) -> "_Defensive":
        return _Defensive(self.q.expand(batch_shape), self.p, self.weight)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        shape = torch.Size(sample_shape) + self.batch_shape
        own, prior = self.q.sample(sample_shape), self.p.expand(self.batch_shape).sample(sample_shape)
        from_prior = torch.rand(shape, device=own.device) < self.weight
        return torch.where(from_prior.reshape(shape + (1,) * self.event_dim), prior, own)

    def log_prob(self, value: Tensor) -> Tensor:
        q, p = log_density(self.q, value), log_density(self.p.expand(self.batch_shape), value)
        log_weight, log_rest = (q.new_tensor(part).log() for part in (self.weight, 1 - self.weight))
        return torch.logaddexp(q + log_rest, p + log_weight)


def _is_latent(site: Message) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _under(messenger: type[Messenger], program: Callable) -> Callable:
    def inner(*args, **kwargs) -> None:
        with messenger():
            program(*args, **kwargs)

    inner.__wrapped__ = program  # type: ignore[attr-defined]  # whose arguments are seen: of a part of x, a mask
    return inner
