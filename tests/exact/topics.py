"""Latent Dirichlet allocation in miniature: two topics, a vocabulary of two words, a few documents of a few words.

    topic_k ~ Dirichlet(TOPIC_PRIOR)       share_d ~ Dirichlet(SHARE_PRIOR)
    assigned_wd ~ Categorical(share_d)     word_wd ~ Categorical(topic_{assigned_wd})

Topics are global and shares local; the assignments, in the model alone, are summed out. Every Dirichlet here has two
components, so that an expectation over it is that over a Beta.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from exact.expectations import beta_grid, log_mean_weight, logit_grid

TOPIC_PRIOR, SHARE_PRIOR = (1.5, 1.0), (0.9, 1.2)
TOPIC_GUIDE, SHARE_GUIDE = ((2.0, 1.2), (1.6, 1.4)), ((1.4, 1.2), (1.0, 1.5), (1.3, 1.3))  # a row a topic, a document
# One column a document: words 0 or 1.
WORDS = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 1]])
SUMMED = {"enumerate": "parallel"}


def double(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Programs -------------------------------------------------------------------------------------------------------------


def model(words: Tensor, subsample_size: int | None = None) -> None:
    """Observes words `(num_words, num_documents)`, or with `subsample_size` so many of each document's."""
    num_words, num_documents = words.shape
    with pyro.plate("topics", 2, dim=-1):
        topics = pyro.sample("topic", dist.Dirichlet(double(*TOPIC_PRIOR)))
    with pyro.plate("documents", num_documents, dim=-1):
        shares = pyro.sample("share", dist.Dirichlet(double(*SHARE_PRIOR)))
        with pyro.plate("words", num_words, subsample_size=subsample_size, dim=-2) as index:
            assigned = pyro.sample("assigned", dist.Categorical(shares), infer=SUMMED)
            pyro.sample("word", dist.Categorical(topics[assigned]), obs=words[index])


def guide(words: Tensor, subsample_size: int | None = None) -> None:
    draw_topics()
    with pyro.plate("documents", words.shape[1], dim=-1):
        pyro.sample("share", dist.Dirichlet(pyro.param("share_guide", double(*SHARE_GUIDE))))


def guide_with_points(words: Tensor, subsample_size: int | None = None) -> None:
    """A guide whose shares are points: the maximum a posteriori of the shares given the topics' distribution."""
    draw_topics()
    with pyro.plate("documents", words.shape[1], dim=-1):
        start = double(*SHARE_GUIDE) / double(*SHARE_GUIDE).sum(-1, keepdim=True)
        at = pyro.param("share_at", start, constraint=dist.constraints.simplex)
        pyro.sample("share", dist.Delta(at, event_dim=1))


def draw_topics() -> None:
    with pyro.plate("topics", 2, dim=-1):
        pyro.sample("topic", dist.Dirichlet(pyro.param("topic_guide", double(*TOPIC_GUIDE))))


# Truths ---------------------------------------------------------------------------------------------------------------


def log_evidence(words: Tensor) -> float:
    """Returns the log of the sum over all assignments, with topics and shares integrated out of each.

    Given the assignments, both are Dirichlet-multinomial: B(prior + counts) / B(prior).
    """
    terms = []
    documents = words.T.tolist()
    for assigned in itertools.product((0, 1), repeat=words.numel()):
        rows = [assigned[d * len(words) : (d + 1) * len(words)] for d in range(len(documents))]
        of_topics = [[0, 0], [0, 0]]
        for row, document in zip(rows, documents, strict=True):
            for topic, word in zip(row, document, strict=True):
                of_topics[topic][word] += 1
        term = sum(log_ratio(TOPIC_PRIOR, counts) for counts in of_topics)
        terms.append(term + sum(log_ratio(SHARE_PRIOR, (row.count(0), row.count(1))) for row in rows))
    return double(*terms).logsumexp(0).item()


def log_evidence_by_quadrature(words: Tensor) -> float:
    """Returns the same as an integral over both topics of a product of integrals over the shares."""
    (first, p), (share, p_share) = beta_grid(*TOPIC_PRIOR, num=24), beta_grid(*SHARE_PRIOR, num=24)
    likelihood = words_given(words, share, first[:, None], first[None, :]).exp()  # (shares, first, first, documents)
    each = torch.tensordot(p_share, likelihood, 1).prod(-1)
    return torch.einsum("ab,a,b->", each, p, p).log().item()


def words_given(words: Tensor, share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Returns log p(words of d | share, topics) at shares and chances of word 0, `(shares, *topics, documents)`."""
    share = share.reshape(-1, *[1] * max(first.dim(), second.dim()))
    of_zero = share * first + (1 - share) * second
    zeros = (words == 0).sum(0).double()
    return of_zero.log().unsqueeze(-1) * zeros + torch.log1p(-of_zero).unsqueeze(-1) * (len(words) - zeros)


def bound(words: Tensor, count: int, step: float = 0.4, num: int = 16) -> float:
    """Returns E_q[log p(topics) - log q(topics) + sum_d L_K(topics)]; with K = 1 the ELBO."""
    (first, p), (second, p_second) = (beta_grid(*row, num=num) for row in TOPIC_GUIDE)
    total = minus_kl_of_topics()
    for d, row in enumerate(SHARE_GUIDE[: words.shape[1]]):
        share, p_share = logit_grid(*row, step=step)
        log_w = words_given(words[:, d : d + 1], share, first[:, None], second[None, :]).squeeze(-1)
        ratio = log_density(SHARE_PRIOR, share) - log_density(row, share)
        local = log_mean_weight(log_w + ratio[:, None, None], p_share, count)
        total = total + torch.einsum("ab,a,b->", local, p, p_second).item()
    return total


def bound_at_points(words: Tensor, num: int = 20) -> float:
    """Returns the ELBO of `guide_with_points`: the shares at a point, whose log-density is that of the prior alone."""
    (first, p), (second, p_second) = (beta_grid(*row, num=num) for row in TOPIC_GUIDE)
    total = minus_kl_of_topics()
    for d, (a, b) in enumerate(SHARE_GUIDE):
        share = double(a / (a + b))
        log_w = words_given(words[:, d : d + 1], share, first[:, None], second[None, :])[0, ..., 0]
        total += (torch.einsum("ab,a,b->", log_w, p, p_second) + log_density(SHARE_PRIOR, share).sum()).item()
    return total


def minus_kl_of_topics() -> float:
    """Returns E_q[log p(topics) - log q(topics)]."""
    pairs = [(dist.Dirichlet(double(*row)), dist.Dirichlet(double(*TOPIC_PRIOR))) for row in TOPIC_GUIDE]
    return -sum(kl_divergence(*pair) for pair in pairs).item()


def log_density(concentrations: tuple[float, float], at: Tensor) -> Tensor:
    a, b = concentrations
    return (a - 1) * at.log() + (b - 1) * torch.log1p(-at) - log_beta(a, b)


def log_ratio(prior: tuple[float, float], counts) -> float:
    return log_beta(*(p + c for p, c in zip(prior, counts, strict=True))) - log_beta(*prior)


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
