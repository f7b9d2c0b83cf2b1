"""A Gaussian mixture and a hidden Markov model, whose discrete sites are in the model alone: sums over the states.

mixture   c_n ~ Categorical(WEIGHTS)   x_n ~ N(MEANS[c_n], SD)
chain     s_1 ~ Categorical(WEIGHTS)   s_t ~ Categorical(MOVES[s_{t-1}])   x_t ~ N(MEANS[s_t], SD)
"""

import itertools

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MOVES = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
MEANS, SD = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), 0.7
SUMMED = {"enumerate": "parallel"}


def mixture(x: Tensor) -> None:
    means = pyro.param("means", MEANS.clone())
    with pyro.plate("data", len(x), dim=-1):
        component = pyro.sample("component", dist.Categorical(WEIGHTS), infer=SUMMED)
        pyro.sample("x", dist.Normal(means[component], SD), obs=x)


def chain(x: Tensor) -> None:
    """Observes sequences `(num_sequences, T)`."""
    means = pyro.param("means", MEANS.clone())
    with pyro.plate("sequences", len(x), dim=-1):
        weights = WEIGHTS
        for t in pyro.markov(range(x.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(weights), infer=SUMMED)
            pyro.sample(f"x_{t}", dist.Normal(means[state], SD), obs=x[:, t])
            weights = MOVES[state]


def no_latent(x: Tensor) -> None:
    """The guide: all latent sites are summed out of the model."""


def mixture_log_px(x: Tensor, means: Tensor = MEANS) -> Tensor:
    """Returns log sum_c p(c) p(x_n | c), `(N,)`."""
    return (WEIGHTS.log() + dist.Normal(means, SD).log_prob(x[:, None])).logsumexp(-1)


def chain_log_px(x: Tensor, means: Tensor = MEANS) -> Tensor:
    """Returns log p(x_n) of each sequence by the forward algorithm, `(num_sequences,)`."""
    forward = WEIGHTS.log() + dist.Normal(means, SD).log_prob(x[:, :1])
    for t in range(1, x.shape[1]):
        moved = (forward[:, :, None] + MOVES.log()).logsumexp(1)
        forward = moved + dist.Normal(means, SD).log_prob(x[:, t : t + 1])
    return forward.logsumexp(-1)


def chain_log_px_path_by_path(x: Tensor) -> Tensor:
    """Returns the same by the sum over every path of states."""
    terms = []
    for path in itertools.product(range(len(WEIGHTS)), repeat=x.shape[1]):
        prior = WEIGHTS[path[0]].log() + sum(MOVES[i, j].log() for i, j in itertools.pairwise(path))
        terms.append(prior + dist.Normal(MEANS[list(path)], SD).log_prob(x).sum(-1))
    return torch.stack(terms).logsumexp(0)


# With globals ---------------------------------------------------------------------------------------------------------

PRIOR_SD = 1.5


def unknown_means(x: Tensor) -> None:
    """A mixture of two halves whose means are global latents."""
    with pyro.plate("components", 2, dim=-1):
        means = pyro.sample("means", dist.Normal(torch.zeros(()).double(), PRIOR_SD))
    with pyro.plate("data", len(x), dim=-1):
        component = pyro.sample("component", dist.Categorical(torch.ones(2).double()), infer=dict(SUMMED))
        pyro.sample("x", dist.Normal(means[component], SD), obs=x)


def means_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([-0.5, 1.0], dtype=torch.float64))
    with pyro.plate("components", 2, dim=-1):
        pyro.sample("means", dist.Normal(loc, 1.0))


def unknown_means_log_px(x: Tensor) -> Tensor:
    """Returns log p of all data: the sum over every assignment, of each of which the means are integrated out."""
    terms = []
    for assigned in itertools.product((0, 1), repeat=len(x)):
        same = torch.tensor([[i == j for j in assigned] for i in assigned])
        covariance = PRIOR_SD**2 * same.double() + SD**2 * torch.eye(len(x)).double()
        terms.append(dist.MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(x))
    return torch.stack(terms).logsumexp(0) - len(x) * torch.tensor(2.0).double().log()


def one_state_for_all(x: Tensor) -> None:
    """One state that all data share: a global site that is summed out, which couples the data."""
    state = pyro.sample("state", dist.Categorical(WEIGHTS), infer=dict(SUMMED))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(MEANS[state], SD), obs=x)


def one_state_log_px(x: Tensor) -> Tensor:
    return (WEIGHTS.log() + dist.Normal(MEANS, SD).log_prob(x[:, None]).sum(0)).logsumexp(0)
