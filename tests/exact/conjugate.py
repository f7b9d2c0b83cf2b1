"""A coin and a linear regression: programs of global latents alone, with their exact evidence and posterior.

coin         f ~ Beta(A, B)           x_n ~ Bernoulli(f)
regression   w ~ N(0, WEIGHT_SD^2 I)  y_n ~ N(x_n w, NOISE_SD)
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from exact.expectations import beta_grid

A, B = 3.0, 2.0
WEIGHT_SD, NOISE_SD = 1.2, 0.5

# The coin -------------------------------------------------------------------------------------------------------------


def tosses(heads: int, tails: int) -> Tensor:
    return torch.cat((torch.ones(heads), torch.zeros(tails))).double()


def coin(x: Tensor) -> None:
    f = pyro.sample("f", dist.Beta(torch.tensor(A).double(), torch.tensor(B).double()))
    with pyro.plate("tosses", len(x)):
        pyro.sample("x", dist.Bernoulli(f), obs=x)


def coin_guide(x: Tensor) -> None:
    """Draws from a Beta with both concentrations in the param store, 4 and 5 at first."""
    a = pyro.param("a", torch.tensor(4.0).double(), constraint=dist.constraints.positive)
    b = pyro.param("b", torch.tensor(5.0).double(), constraint=dist.constraints.positive)
    pyro.sample("f", dist.Beta(a, b))


def coin_posterior(x: Tensor) -> tuple[float, float]:
    """Returns the concentrations of p(f | x)."""
    return A + x.sum().item(), B + len(x) - x.sum().item()


def coin_log_evidence(x: Tensor) -> float:
    """Returns log p(x) = log B(A + heads, B + tails) - log B(A, B)."""
    return log_beta(*coin_posterior(x)) - log_beta(A, B)


def coin_elbo(x: Tensor, a: float, b: float) -> float:
    """Returns E_q[log p(x, f) - log q(f)] with q = Beta(a, b), from the means of log f and log(1 - f)."""
    digamma = torch.special.digamma
    total = torch.tensor(a + b, dtype=torch.float64)
    log_f, log_not_f = (digamma(torch.tensor(one, dtype=torch.float64)) - digamma(total) for one in (a, b))
    above = [one - other for one, other in zip(coin_posterior(x), (a, b), strict=True)]
    return (above[0] * log_f + above[1] * log_not_f).item() - log_beta(A, B) + log_beta(a, b)


def coin_map(x: Tensor) -> float:
    """Returns the mode of p(f | x)."""
    a, b = coin_posterior(x)
    return (a - 1) / (a + b - 2)


def coin_joint_at(x: Tensor, f: float) -> float:
    """Returns log p(x, f)."""
    a, b = coin_posterior(x)
    return (a - 1) * math.log(f) + (b - 1) * math.log1p(-f) - log_beta(A, B)


def coin_log_evidence_by_quadrature(x: Tensor) -> float:
    f, p = beta_grid(A, B)
    return (p * f ** x.sum() * (1 - f) ** (len(x) - x.sum())).sum().log().item()


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


# The regression -------------------------------------------------------------------------------------------------------


def measurements(num: int = 30, columns: int = 3) -> tuple[Tensor, Tensor]:
    """Returns inputs `(num, columns)`, the first of them 1, and outputs that do not depend on the last column."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num, columns, generator=generator, dtype=torch.float64)
    x[:, 0] = 1
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    return x, 0.7 - 1.1 * x[:, 1] + NOISE_SD * noise


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]).double(), WEIGHT_SD).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE_SD), obs=y)


def regression_log_evidence(x: Tensor, y: Tensor) -> Tensor:
    covariance = WEIGHT_SD**2 * x @ x.T + NOISE_SD**2 * torch.eye(len(x)).double()
    return dist.MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(y)


def regression_posterior(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and covariance of p(w | x, y)."""
    precision = x.T @ x / NOISE_SD**2 + torch.eye(x.shape[1]).double() / WEIGHT_SD**2
    covariance = torch.linalg.inv(precision)
    return covariance @ x.T @ y / NOISE_SD**2, covariance


def regression_elbo(x: Tensor, y: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Returns the ELBO of a Gaussian guide: the evidence less KL(q || p(w | x, y))."""
    q = dist.MultivariateNormal(mean, covariance)
    return regression_log_evidence(x, y) - kl_divergence(q, dist.MultivariateNormal(*regression_posterior(x, y)))
