"""Topic models: documents outside, words inside, topics for all of them."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

from programs_of_users.program import Program, TwoHeads, mlp, source

TOPICS, VOCABULARY, DOCUMENTS, WORDS = 2, 5, 4, 3


class LDA(nn.Module):
    """Blei, Ng and Jordan 2003: the topic of each word is summed out in the model, and the guide does not draw it.

    Documents are columns, so that the plate of the topics and that of the documents are both at dim -1.
    """

    def __init__(self, words_at_a_time: int | None = None) -> None:
        super().__init__()
        self.predictor, self.words_at_a_time = mlp(VOCABULARY, 6, TOPICS), words_at_a_time

    def model(self, data):
        with pyro.plate("topics", TOPICS):
            weights = pyro.sample("topic_weights", dist.Gamma(1.0 / TOPICS, 1.0))
            words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(VOCABULARY) / VOCABULARY))
        with pyro.plate("documents", data.shape[1]) as documents:
            data = data[:, documents]
            topics = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", data.shape[0], subsample_size=self.words_at_a_time) as rows:
                topic = pyro.sample("word_topics", dist.Categorical(topics), infer={"enumerate": "parallel"})
                pyro.sample("doc_words", dist.Categorical(words[topic]), obs=data[rows])

    def guide(self, data, of_documents=lambda shares: dist.Dirichlet(1 + 5 * shares)):
        positive = dist.constraints.positive
        weights = pyro.param("topic_weights_posterior", 3 * torch.ones(TOPICS), constraint=positive)
        words = pyro.param("topic_words_posterior", 3 * torch.ones(TOPICS, VOCABULARY), constraint=positive)
        with pyro.plate("topics", TOPICS):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(words))
        pyro.module("predictor", self.predictor)
        with pyro.plate("documents", data.shape[1]) as documents:
            counts = torch.zeros(VOCABULARY, len(documents)).scatter_add(0, data, torch.ones(data.shape))
            pyro.sample("doc_topics", of_documents(self.predictor(counts.T).softmax(-1)))


def _lda(words_at_a_time: int | None = None, **guide) -> Program:
    pair, data = LDA(words_at_a_time), torch.randint(VOCABULARY, (WORDS, DOCUMENTS), generator=source(9))
    return Program(pair.model, partial(pair.guide, **guide), (data,), pyro_loss=TraceEnum_ELBO(max_plate_nesting=2))


def lda() -> Program:
    return _lda()


def lda_points() -> Program:
    """The documents' topics are points in the guide, as in Pyro's example."""
    return _lda(of_documents=partial(dist.Delta, event_dim=1))


def lda_some_words() -> Program:
    """Two of the three words of each document are drawn for a step."""
    return _lda(2)


class ProdLDA(nn.Module):
    """Srivastava and Sutton 2017: a product of experts with batch normalisation and dropout in both networks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.drop, self.spread = TwoHeads(VOCABULARY, TOPICS), nn.Dropout(0.2), nn.BatchNorm1d(TOPICS)
        self.beta, self.normal = nn.Linear(TOPICS, VOCABULARY, bias=False), nn.BatchNorm1d(VOCABULARY, affine=False)

    def model(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", docs.shape[0]):
            logtheta = pyro.sample("logtheta", dist.Normal(docs.new_zeros(len(docs), TOPICS), 1.0).to_event(1))
            shares = self.normal(self.beta(self.drop(logtheta.softmax(-1)))).softmax(-1)
            pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), shares), obs=docs)

    def guide(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = self.encoder(docs)
            pyro.sample("logtheta", dist.Normal(self.spread(loc), scale).to_event(1))


def prodlda() -> Program:
    pair, docs = ProdLDA(), torch.poisson(2 * torch.ones(DOCUMENTS, VOCABULARY), generator=source(10))
    return Program(pair.model, pair.guide, (docs,), DOCUMENTS)
