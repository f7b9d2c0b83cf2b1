"""Guides of several kinds of sites in every layout: inner plates, subsamples, globals, particles one by one."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, suite_seed
from mixed_pairs import GUIDES, STATES, Given, X, parameters, programs
from pyro.infer import TraceEnum_ELBO
from scalar_pairs import double
from torch import Tensor

from pyrovae.objectives import ELBO, IWAE, PIWAE, VIMCO, DReG, StickingTheLanding

MARK = {"enumerate": "parallel"}

# Plates inside the data plate -----------------------------------------------------------------------------------------

WORDS = double(0.3, -0.8, 1.1, 0.4)


class Documents:
    """Has a continuous z for each document, a bit c for each of its words, and a category b before both."""

    def __init__(self, a: Tensor, draws: dict[str, Tensor] | None = None, marked: bool = False) -> None:
        self.a, self.draws, self.marked = a, draws or {}, marked

    def words(self, subsample: Tensor | None):
        return pyro.plate("words", len(WORDS), subsample=subsample, dim=-2)

    def model(self, x: Tensor, subsample: Tensor | None = None) -> None:
        with pyro.plate("documents", len(x), dim=-1):
            b = pyro.sample("b", dist.Categorical(double(0.4, 0.6)))
            z = pyro.sample("z", dist.Normal(0.5 * b.double(), double(1.0)))
            with self.words(subsample) as index:
                c = pyro.sample("c", dist.Bernoulli(double(0.3)))
                loc = z + (c - 0.5) * self.a[..., 5]
                pyro.sample("x", dist.Normal(loc, 1.0), obs=(x + WORDS[:, None])[index])

    def guide(self, x: Tensor, subsample: Tensor | None = None) -> None:
        with pyro.plate("documents", len(x), dim=-1):
            mark = {"infer": MARK} if self.marked else {}
            b = pyro.sample("b", self.given("b", dist.Categorical(logits=self.a[..., 6:8])), **mark)
            z = pyro.sample("z", self.given("z", dist.Normal(self.a[..., 0] + 0.3 * b.double(), self.a[..., 1].exp())))
            with self.words(subsample) as index:
                logits = self.a[..., 2] + self.a[..., 3] * z + self.a[..., 4] * WORDS[index, None]
                pyro.sample("c", self.given("c", dist.Bernoulli(logits=logits)))

    def given(self, name: str, fn: dist.TorchDistribution) -> dist.TorchDistribution:
        return Given(fn, self.draws[name]) if name in self.draws else fn


def chance_by_hand(a: Tensor, draws: dict[str, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the chance of all discrete draws, and log w with the words scaled to all, each `(particles, data)`."""
    b, c = draws["b"], draws["c"]
    fn = dist.Normal(a[..., 0] + 0.3 * b.double(), a[..., 1].exp())
    z = fn.loc + fn.scale * draws["z"]
    of_b = dist.Categorical(logits=a[..., 6:8]).log_prob(b)
    of_c = dist.Bernoulli(logits=a[..., 2] + a[..., 3] * z + a[..., 4] * WORDS[index, None, None]).log_prob(c)
    inner = dist.Normal(z + (c - 0.5) * a[..., 5], 1.0).log_prob(X + WORDS[index, None, None])
    inner = inner + dist.Bernoulli(double(0.3)).log_prob(c) - of_c
    outer = dist.Normal(0.5 * b.double(), double(1.0)).log_prob(z) - fn.log_prob(z) + double(0.4, 0.6).log()[b] - of_b
    return (of_b + of_c.sum(0)).exp(), outer + inner.sum(0) * len(WORDS) / len(index)


def grid_of_documents(num_particles: int, num_words: int) -> tuple[dict[str, Tensor], Tensor]:
    """Returns every combination of b, two nodes of z and the words' bits, and the weight of each node."""
    each = [(0.0, 1.0), (-1.0, 1.0), *[(0.0, 1.0)] * num_words]
    one = torch.tensor(list(itertools.product(*each)), dtype=torch.float64)
    index = torch.cartesian_prod(*[torch.arange(len(one))] * num_particles).reshape(-1, num_particles).T
    draws = {"b": one[:, 0].long()[index], "z": one[:, 1][index], "c": one[:, 2:][index].movedim(-1, 0)}
    return draws, double(0.5) ** num_particles


def exact_and_found(objective, num_particles: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient of minus the mean bound, and the mean gradient of the objective, of one document."""
    draws, weight = grid_of_documents(num_particles, len(index))
    a = parameters(8, 1)
    leaf = a.clone().requires_grad_()
    chance, log_w = chance_by_hand(leaf, draws, index)
    mean = (weight * chance.prod(0) * objective.bound(log_w)).sum()
    (exact,) = torch.autograd.grad(-mean, leaf)
    num = log_w.shape[1]
    copies = a.expand(num, -1).clone().requires_grad_()
    # One dimension of words lies between those of the particles and of the data.
    pair = Documents(copies, {"b": draws["b"][:, None], "z": draws["z"][:, None], "c": draws["c"].movedim(0, 1)})
    loss = objective.differentiable_loss(pair.model, pair.guide, X.expand(num), index)
    (gradient,) = torch.autograd.grad(loss, copies)
    chance = chance_by_hand(a, draws, index)[0].prod(0)
    return exact, (weight * chance[:, None] * gradient).sum(0)


@pytest.mark.parametrize(("objective", "words"), [
    (ELBO(1), [0, 1, 2, 3]), (ELBO(1), [0, 2]), (ELBO(2), [3]), (IWAE(1), [0, 1, 2, 3]),
    (PIWAE(1), [0, 1, 2, 3]),
], ids=str)  # fmt: skip
def test_a_site_of_words_learns_from_the_bound_of_its_document(objective, words):
    exact, found = exact_and_found(objective, objective.num_draws, torch.tensor(words))
    torch.testing.assert_close(found, exact, atol=1e-10, rtol=0)
    assert exact.norm() > 0.1


def test_a_subsample_of_words_leaves_the_mean_gradient_as_it_is():
    whole = exact_and_found(ELBO(1), 1, torch.arange(len(WORDS)))[0]
    pairs = [torch.tensor(both) for both in itertools.combinations(range(len(WORDS)), 2)]
    found = torch.stack([exact_and_found(ELBO(1), 1, both)[1] for both in pairs])
    torch.testing.assert_close(found.mean(0), whole, atol=1e-10, rtol=0)
    assert found.std(0).max() > 0.01


def test_a_sum_stands_around_the_words_of_a_document():
    pair, found = Documents(parameters(8, 1), marked=True), []
    for objective in (ELBO(2), TraceEnum_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)):
        torch.manual_seed(suite_seed(1))
        found.append(objective.loss(pair.model, pair.guide, X + torch.arange(5.0)))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


# Particles one after another ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "marked"), [
    (ELBO, ()), (StickingTheLanding, ()), (IWAE, ()), (DReG, ()), (VIMCO, ()), (ELBO, ("b",)), (ELBO, ("c",)),
    (ELBO, ("b", "c")),
], ids=str)  # fmt: skip
def test_particles_one_after_another_have_the_same_gradient(objective, marked):
    order, num_particles, num = "z to b to u to c", 3, 4
    a, t = (parameters(size, seed).requires_grad_() for size, seed in ((12, 1), (8, 2)))
    left = {"z": (), "b": (), "u": (2,) if "b" in marked else (), "c": (2,) if "b" in marked else ()}
    shapes = {name: (*left[name], num_particles, num) for name in GUIDES[order] if name not in marked}
    draws = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    draws = {n: (d > 0).to(torch.long if n == "c" else d.dtype) if n in STATES else d for n, d in draws.items()}
    counter = itertools.count()

    def one_by_one(x):
        particle = next(counter) % num_particles
        own = {name: values.select(-2, particle) for name, values in draws.items()}
        programs(order, a, t, draws=own, marked=marked)[1](x)

    model, at_once = programs(order, a, t, draws=draws, marked=marked)
    x = X + torch.arange(4.0)
    alone = objective(num_particles, vectorize_particles=False)
    alone.loss(model, one_by_one, x)  # the gate looks at the pair
    counter = itertools.count()
    found = []
    for one, guide in ((objective(num_particles), at_once), (alone, one_by_one)):
        loss = one.differentiable_loss(model, guide, x)
        found.append((loss.detach(), *torch.autograd.grad(loss, (a, t))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


# Globals --------------------------------------------------------------------------------------------------------------


class WithGlobal:
    """Has a global theta that prior, likelihood and guide depend on, and for each datum z and then a category c."""

    def __init__(self, values: Tensor) -> None:
        self.mean, self.log_sd, self.a, self.t = values[0], values[1], values[2:10], values[10:14]

    def q(self, theta: Tensor, z: Tensor | None) -> dist.TorchDistribution:
        if z is None:
            return dist.Normal(self.a[0] + 0.5 * theta, self.a[1].exp())
        return dist.Categorical(logits=self.a[2:5] + self.a[5:8] * (z + theta)[..., None])

    def p(self, theta: Tensor, c: Tensor | None = None, z: Tensor | None = None) -> dist.TorchDistribution:
        if c is None:
            return dist.Categorical(logits=self.t[:3])
        return dist.Normal(theta + 0.5 * c.double(), 1.0) if z is None else dist.Normal(z + self.t[3] * theta * c, 2.0)

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(double(0.0), 1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.p(theta))
            z = pyro.sample("z", self.p(theta, c))
            pyro.sample("x", self.p(theta, c, z), obs=x)

    def guide(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(self.mean, self.log_sd.exp()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.q(theta, None))
            pyro.sample("c", self.q(theta, z))

    def exact(self, objective, num_data: int, num_nodes: int = 12) -> Tensor:
        """Returns the bound by quadrature over theta and each z, and a sum over each c."""
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(num_nodes))
        weights = weights / weights.sum()
        theta = (self.mean + self.log_sd.exp() * nodes)[:, None, None]
        z = self.q(theta, None).loc + self.a[1].exp() * nodes[None, :, None]
        c = torch.arange(3)[None, None]
        log_q = self.q(theta, z).log_prob(c)
        log_w = self.p(theta).log_prob(c) + self.p(theta, c).log_prob(z) + self.p(theta, c, z).log_prob(X)
        log_w = log_w - self.q(theta, None).log_prob(z) - log_q
        chance = (weights[None, :, None] * log_q.exp()).flatten(1)  # (nodes of theta, draws)
        first, second = torch.cartesian_prod(*[torch.arange(3 * num_nodes)] * 2).T
        both = torch.stack((log_w.flatten(1)[:, first], log_w.flatten(1)[:, second]))
        bounds = objective.bound(both.flatten(1)).reshape(num_nodes, -1)
        local = (chance[:, first] * chance[:, second] * bounds).sum(1)
        theta = theta.flatten()
        prior, own = dist.Normal(double(0.0), 1.0), dist.Normal(self.mean, self.log_sd.exp())
        return (weights * (prior.log_prob(theta) - own.log_prob(theta) + num_data * local)).sum()


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(2), DReG(2), VIMCO(2), StickingTheLanding(2)], ids=str)
def test_beside_a_global_the_mean_gradient_is_that_by_quadrature(objective):
    values = 0.5 * parameters(14, 3)
    values[1] = -1.5
    num, leaf = 60, values.clone().requires_grad_()
    (exact,) = torch.autograd.grad(-WithGlobal(leaf).exact(objective, num), leaf)
    found, x, pair = [], X.expand(num), WithGlobal(leaf)  # one pair, which is checked once
    with pyro.validation_enabled(False):
        for seed in range(60):
            torch.manual_seed(suite_seed(seed))
            (gradient,) = torch.autograd.grad(objective.differentiable_loss(pair.model, pair.guide, x), leaf)
            found.append(gradient)
    mean, error = mean_and_error(torch.stack(found))
    assert_within_standard_errors(mean, exact, error)
    assert (exact.abs() > 4 * error).sum() > 4
