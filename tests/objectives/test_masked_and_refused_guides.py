"""Sites of a guide that are masked, drawn without `rsample` or summed over, and guides that are refused."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, suite_seed
from mixed_pairs import Given, X, parameters
from pyro import poutine
from scalar_pairs import double
from torch import Tensor

from pyrovae.objectives import ELBO, ScoreFunction

MARK = {"enumerate": "parallel"}

# Masks ----------------------------------------------------------------------------------------------------------------


def masked_pair(logits: Tensor, draws: Tensor | None = None, marked: bool = False, autoencoder: bool = False):
    """Returns a pair whose category is masked, at the odd data, where only an autoencoder's likelihood reads it."""
    means = double(-1.0, 0.5, 2.0)
    infer = {"is_autoencoder": True} if autoencoder else {}

    def model(x):
        read = torch.arange(len(x)) % 2 == 0
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=read):
                c = pyro.sample("c", dist.Categorical(double(0.2, 0.5, 0.3)), infer=infer)
            z = pyro.sample("z", dist.Normal(torch.where(read | autoencoder, means[c], 0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x):
        read = torch.arange(len(x)) % 2 == 0
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=logits.expand(len(x), 3))
            with poutine.mask(mask=read):
                given = fn if draws is None else Given(fn, draws)
                pyro.sample("c", given, infer={**infer, **(MARK if marked else {})})
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    return model, guide


@pytest.mark.parametrize("marked", [False, True])
def test_a_masked_site_that_nothing_reads_learns_nothing(marked):
    logits = parameters(3, 4).expand(6, 3).clone().requires_grad_()
    loss = ELBO(2).differentiable_loss(*masked_pair(logits, marked=marked), X.expand(6))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[::2].abs().amax(1) > 1e-4).all()
    torch.testing.assert_close(gradient[1::2], torch.zeros(3, 3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("marked", [False, True])
def test_a_masked_site_that_is_read_learns_from_what_reads_it(marked):
    """As the code of an autoencoder: the mean gradient is that of sum_c q(c) log w, with a log w under the mask."""
    logits, x = parameters(3, 4), X.expand(6)
    copies = logits.expand(6, 3).clone().requires_grad_()
    draws = None if marked else torch.arange(6)[None] // 2  # each state at a datum without a mask, and at one with
    torch.manual_seed(suite_seed(2))
    loss = ELBO().differentiable_loss(*masked_pair(copies, draws, marked, autoencoder=True), x)
    (found,) = torch.autograd.grad(loss, copies)
    torch.manual_seed(suite_seed(2))
    leaf = logits.clone().requires_grad_()
    z = 0.5 * X + dist.Normal(torch.zeros(1, 6).double(), 1.0).sample()
    c = torch.arange(3).reshape(3, 1, 1) if marked else draws
    means, log_q = double(-1.0, 0.5, 2.0)[c], leaf.log_softmax(0)[c]
    log_p = double(0.2, 0.5, 0.3).log()[c] - log_q
    read = torch.arange(6) % 2 == 0
    log_w = dist.Normal(means, 1.0).log_prob(z) + torch.where(read, log_p, 0.0)
    log_w = log_w + dist.Normal(z, 0.8).log_prob(X) - dist.Normal(0.5 * X, 1.0).log_prob(z)
    parts = (log_q.exp() * log_w).reshape(-1, 6)
    for column in (0, 1):
        mine = slice(column, None, 2)
        if marked:
            expected = torch.autograd.grad(-parts[:, column].sum(), leaf, retain_graph=True)[0]
            torch.testing.assert_close(found[column], expected, atol=1e-10, rtol=0)
        else:
            expected = torch.autograd.grad(-parts[:, mine].sum(), leaf, retain_graph=True)[0]
            weighted = (log_q.exp().detach()[0, mine, None] * found[mine]).sum(0)
            torch.testing.assert_close(weighted, expected, atol=1e-10, rtol=0)
        assert expected.norm() > 0.05


# Refusals -------------------------------------------------------------------------------------------------------------


def marked_in(where: str):
    """Returns a pair with a marked site at a place where its sum is not for each datum, and what is said of it."""

    def model(x):
        if where == "no plate":
            c = pyro.sample("c", dist.Bernoulli(double(0.5)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            if where == "words":
                with pyro.plate("words", 2, dim=-2):
                    c = pyro.sample("c", dist.Bernoulli(double(0.5)))
                    pyro.sample("x", dist.Normal(z + c, 1.0), obs=x.expand(2, -1))
            else:
                pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)

    def guide(x):
        if where == "no plate":
            pyro.sample("c", dist.Bernoulli(double(0.5)), infer=MARK)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(double(0.0), 1.0))
            if where == "words":
                with pyro.plate("words", 2, dim=-2):
                    pyro.sample("c", dist.Bernoulli(double(0.5)), infer=MARK)

    return model, guide


@pytest.mark.parametrize(("where", "found"), [("no plate", "no plate"), ("words", "'data' and 'words'")])
def test_a_sum_that_is_not_for_each_datum_is_refused(where, found):
    assert refusal(ELBO().loss, *marked_in(where), X.expand(3)) == (
        f'a sum over a site of the guide must be for each datum of one data plate, and "c" lies in {found}: mark it in '
        "the model alone and leave it out of the guide"
    )


def test_a_sum_in_the_guide_beside_one_in_the_model_alone_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("c", dist.Bernoulli(double(0.5)), infer=MARK)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            c = pyro.sample("c", dist.Bernoulli(double(0.5)))
            d = pyro.sample("d", dist.Bernoulli(double(0.5)), infer=MARK)
            pyro.sample("x", dist.Normal(z + c + d, 1.0), obs=x)

    said = refusal(ELBO().loss, model, guide, X.expand(3))
    assert said.startswith(
        'site "c" is marked in the guide, and others are in the model alone: mark it in the model alone'
    )


@pytest.mark.parametrize("objective", [ELBO(1), ScoreFunction(1)], ids=str)
def test_a_discrete_site_that_a_global_site_depends_on_is_refused_unless_all_is_one_bound(objective):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(double(0.5)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)
        pyro.factor("few", -c.sum(-1, keepdim=True))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(double(0.3)))

    said = refusal(objective.loss, model, guide, X.expand(3))
    name = type(objective).__name__
    assert said == (
        f'site "few" lies outside the data plate and depends on latents inside it, and {name} cannot '
        "give it to a datum: put it into the plate, or use joint=True"
    )
    assert replace(objective, joint=True).loss(model, guide, X.expand(3)) > 0
