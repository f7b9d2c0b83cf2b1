"""Guides, pairs and chains that several test files of this room need."""

import pyro
import pyro.distributions as dist
import torch
from helpers import linear_gaussian, mean_and_error
from tqdm.auto import tqdm

from pyrovae.evaluation.annealed_chains import AnnealedChains
from pyrovae.evaluation.hmc import AnnealedHMC
from pyrovae.programs import Layout

FEW = {"num_distributions": 4, "num_chains": 8, "num_leapfrog": 2}


def annealer(model, guide, num_distributions=3, num_chains=8, start="prior", schedule="sigmoid", num_leapfrog=2):
    """Returns chains without a pilot. An "uneven" schedule shows mistakes that symmetric ones hide."""
    known = "linear" if schedule == "uneven" else schedule
    hmc_steps = AnnealedHMC(model, guide, start, num_leapfrog, num_distributions, False)
    hmc_steps.layout = Layout(("data",))
    chains = AnnealedChains(hmc_steps, num_distributions, num_chains, known)
    if schedule == "uneven":
        chains.t = [t**2 for t in chains.t]
    return chains


def silent():
    return tqdm(disable=True)


def mean_truth_and_error(draws, truth):
    mean, error = mean_and_error(draws)
    return mean, truth.expand_as(mean), error


def guide_of(vae, factor):
    """Returns the exact posterior as a guide, `factor` times as wide."""
    slope, mean_at_zero, precision = (part.detach() for part in vae._posterior_parts())
    scale_tril = factor * torch.linalg.cholesky(torch.linalg.inv(precision))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(x @ slope.T + mean_at_zero, scale_tril=scale_tril))

    return guide


def scaled_guide(vae, factors):
    """Returns the exact posterior as a guide, with its standard deviations along its own axes times `factors`."""
    factors = torch.as_tensor(factors, dtype=torch.float64)

    def guide(x):
        posterior = vae.posterior(x)
        scale_tril = posterior.scale_tril.detach() * factors
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(posterior.mean.detach(), scale_tril=scale_tril))

    return guide


def one_site(prior, guide_at, decode, scale):
    """Returns the model z ~ prior, x ~ N(decode(z), scale^2), and the guide that draws z from `guide_at`."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(decode(z), scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", guide_at)

    return model, guide


def number(value):
    return torch.as_tensor(value, dtype=torch.float64)


def two_site_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(number([0.5]), 1.0).to_event(1))
        z2 = pyro.sample("z2", dist.LogNormal(0.5 * z1.squeeze(-1), 0.6))
        pyro.sample("x", dist.Normal(z1.squeeze(-1) + z2, 0.6), obs=x)


def two_site_guide(x):
    """Draws the sites in the other order, z1 given z2."""
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.LogNormal(0.2 * x, 0.7))
        pyro.sample("z1", dist.Normal((0.5 * (x - z2)).unsqueeze(-1), 1.0).to_event(1))


X5 = number([0.0, 1.0, 2.0, -1.0, 0.5])


def off_its_posterior(seed=0, **settings):
    vae = linear_gaussian(seed, **settings)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.3)
        vae.guide_bias.add_(0.2)
    return vae


def with_guide(vae, loc, scale):
    """Returns the guide N(loc(x), scale^2)."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc(x), torch.as_tensor(scale, dtype=x.dtype)).to_event(1))

    return vae.model, guide


class KnownNoise(dist.Normal):
    """Draws particle k of a Gaussian as a known function of its parameters, whatever batch it is drawn in."""

    def rsample(self, sample_shape=()):
        k = torch.arange(self.batch_shape[0], dtype=self.loc.dtype).view(-1, *[1] * (self.loc.dim() - 1))
        return self.loc + self.scale * 1.3 * torch.sin(1_000 * self.loc + 7 * k)
