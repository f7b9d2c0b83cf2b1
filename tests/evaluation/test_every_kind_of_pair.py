"""Answers, missing cells, conditionals and checks of a VAE, a plain pair, conditions, codes and a state-space model.

Each is given with guides that take a part of x, and with what is exactly so.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import state_space
from helpers import assert_within_standard_errors, conditional_vae, draw, linear_gaussian, suite_seed
from torch import Tensor, nn

import pyrovae as pv

SAMPLES = 3_000


class Case(NamedTuple):
    """A pair with data, of which `given` cells are given or the others are asked, and column `cell` is left out."""

    model: Callable
    guide: Callable
    args: tuple
    cell: int
    given: Tensor
    f: Callable[[dict], Tensor]
    mean_of_f: Tensor
    cell_mean: Tensor
    conditional: Tensor


# Gaussians ------------------------------------------------------------------------------------------------------------


def normal_guide(weight: Tensor, bias: Tensor, prior_mean: Tensor, scale: Tensor, widen: float = 1.2) -> Callable:
    def guide(x, mask):
        own = weight * mask.unsqueeze(-1)
        precision = torch.eye(len(prior_mean)).double() + own.mT @ own / scale**2
        pull = torch.where(mask, x - bias, 0.0) @ weight / scale**2 + prior_mean
        mean = torch.linalg.solve(precision, pull)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / widen**2))

    return guide


def given_some(mean: Tensor, covariance: Tensor, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all of a Gaussian's elements given those that are seen, of one datum."""
    gain = covariance[:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    return mean + gain @ (x[seen] - mean[seen]), covariance - gain @ covariance[seen]


def log_p(mean: Tensor, covariance: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    return dist.MultivariateNormal(mean[seen], covariance[seen][:, seen]).log_prob(x[seen])


def of_linear(weight: Tensor, bias: Tensor, prior_mean: Tensor, scale: Tensor, x: Tensor, model: Callable) -> Case:
    cells = len(bias)
    whole = torch.cat([torch.eye(len(prior_mean)).double(), weight])  # z, and then x
    covariance = whole @ whole.T
    covariance[-cells:, -cells:] += scale**2 * torch.eye(cells)
    mean = torch.cat([prior_mean, weight @ prior_mean + bias])
    num, given, cell = len(prior_mean), torch.arange(cells) < 2, cells - 1

    def indices(seen):
        return num + seen.nonzero().flatten()

    padded = torch.cat([torch.zeros(len(x), num).double(), x], 1)
    every, but_one = indices(torch.ones(cells).bool()), indices(torch.arange(cells) != cell)
    return Case(
        *(model, normal_guide(weight, bias, prior_mean, scale), (x,), cell, given, lambda site: site["z"][..., 0]),
        torch.stack([given_some(mean, covariance, row, every)[0][0] for row in padded]),
        torch.stack([given_some(mean, covariance, row, but_one)[0][num + cell] for row in padded]),
        torch.stack([log_p(mean, covariance, r, every) - log_p(mean, covariance, r, indices(given)) for r in padded]),
    )


def a_vae() -> Case:
    """Also through the network that the VAE was given, linear here, and its own NaN."""
    decoder = nn.Linear(2, 4)
    vae = pv.VAE((4,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.6), decoder=decoder, missing="mask")
    vae = vae.double()
    x = vae.sample(5)
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    case = of_linear(weight, bias, torch.zeros(2).double(), torch.tensor(0.6).double(), x, vae.model)
    takes_mask = case.guide
    return case._replace(guide=lambda x: takes_mask(x.nan_to_num(), ~x.isnan()))


def a_plain_pair() -> Case:
    vae = linear_gaussian(0, pinned=True)
    parts = (part.detach() for part in (vae.weight, vae.bias, vae.prior_mean, vae.scale))
    return of_linear(*parts, draw(vae, 5), vae.model)


# Others ---------------------------------------------------------------------------------------------------------------


def of_states(log_prior: Tensor, log_cells: Tensor, means: Tensor, values: Tensor, given: Tensor) -> tuple[Tensor, ...]:
    """E[value | x], E[the last cell | the others] and log p(others | given) by a sum over states of the latent.

    `log_cells` and `means` are `(states, data, cells)`, `values` and `log_prior` `(states,)`.
    """
    of_state = log_prior[:, None] + log_cells.sum(-1)
    left_out = log_prior[:, None] + log_cells[..., :-1].sum(-1)
    part = log_prior[:, None] + log_cells[..., given].sum(-1)
    return (
        (of_state.softmax(0) * values[:, None]).sum(0),
        (left_out.softmax(0) * means[..., -1]).sum(0),
        of_state.logsumexp(0) - part.logsumexp(0),
    )


def conditions() -> Case:
    """A VAE with a condition and one latent, on a grid; the guide is wide at every mask."""
    vae = conditional_vae(pv.OneHot(2), latent_dim=1, missing="mask").double()
    x, y = torch.randn(4, 3).double(), torch.arange(4) % 2
    grid, given = torch.linspace(-7, 7, 1_401).double(), torch.tensor([True, False, False])

    def guide(x, y, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1).double(), 1.3).to_event(1))

    with torch.no_grad():
        p = vae.decode(grid[:, None, None].expand(-1, 4, 1), y).base_dist
        log_prior = dist.Normal(0.0, 1.0).log_prob(grid) + (grid[1] - grid[0]).log()
        exact = of_states(log_prior, p.log_prob(x), p.mean, grid, given)
    return Case(vae.model, guide, (x, y), 2, given, lambda site: site["z"][..., 0], *exact)


def codes() -> Case:
    """Three states, cells of several families, and a guide that draws them evenly."""
    prior, rate = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([1.0, 3.0, 8.0]).double()
    shift, given = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([True, False, False])
    x = torch.tensor([[-0.5, 2.0, 1.0], [1.0, 5.0, 0.0], [0.1, 9.0, 1.0]]).double()

    def families(c):
        return dist.Normal(shift[c], 1.0), dist.Poisson(rate[c]), dist.Bernoulli(0.2 + 0.3 * c.double())

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(prior))
            for i, fn in enumerate(families(c)):
                pyro.sample(f"x_{i}", fn, obs=x[:, i])

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.full((len(x), 3), 1 / 3).double()))

    states = torch.arange(3)
    cells = torch.stack([fn.log_prob(x[:, i, None]).T for i, fn in enumerate(families(states))], -1)
    means = torch.stack([fn.mean for fn in families(states)], -1)[:, None].expand(-1, 3, -1)
    exact = of_states(prior.log(), cells, means, states.double(), given)
    return Case(model, guide, (x,), 2, given, lambda site: site["c"].double(), *exact)


def a_state_space_model() -> Case:
    """Sequences of several lengths; what lies after an end is nobody's, and the third step is asked for."""
    x, lengths = state_space.sequences()
    x, lengths = x[lengths > 2], lengths[lengths > 2]
    smoothing, steps = state_space.SmoothingGuide(1.1), x.shape[1]

    def guide(x, lengths, mask):
        """Steps that are not observed add nothing to what is to come."""
        pull, precision, found = torch.zeros(len(x)).double(), torch.zeros(len(x)).double(), []
        for t in reversed(range(steps)):
            shrink = 1 + state_space.MOVE_SD**2 * precision
            pull, precision = state_space.STAY * pull / shrink, state_space.STAY**2 * precision / shrink
            here = ((lengths > t) & mask[:, t]).double() / state_space.NOISE_SD**2
            pull, precision = pull + here * x[:, t], precision + here
            found.insert(0, (pull, precision))
        with pyro.plate("sequences", len(x), dim=-1):
            z = 0.0
            for t in pyro.markov(range(steps)):
                with pyro.poutine.mask(mask=lengths > t):
                    z = pyro.sample(f"z_{t}", smoothing.step(z, t, *found[t]))

    variance = [state_space.START_SD**2]
    for _ in range(1, steps):
        variance.append(state_space.STAY**2 * variance[-1] + state_space.MOVE_SD**2)
    index = torch.arange(steps)
    covariance = torch.tensor(variance).double()[torch.minimum(index[:, None], index)]
    covariance = covariance * state_space.STAY ** (index[:, None] - index).abs()
    both = torch.cat([torch.cat([covariance, covariance], 1)] * 2)
    both[steps:, steps:] += state_space.NOISE_SD**2 * torch.eye(steps)
    zeros, given, exact = torch.zeros(2 * steps).double(), index < 2, []
    for row, length in zip(torch.cat([torch.zeros_like(x), x], 1), lengths, strict=True):
        there, but_one = steps + index[index < length], steps + index[(index < length) & (index != 2)]
        exact.append(
            (
                given_some(zeros, both, row, there)[0][0],
                given_some(zeros, both, row, but_one)[0][steps + 2],
                log_p(zeros, both, row, there) - log_p(zeros, both, row, steps + index[given]),
            )
        )
    f_mean, cell_mean, conditional = (torch.stack(one) for one in zip(*exact, strict=True))
    return Case(
        state_space.masked, guide, (x, lengths), 2, given, lambda site: site["z_0"], f_mean, cell_mean, conditional
    )


CASES = {
    "VAE": a_vae,
    "plain pair": a_plain_pair,
    "conditions": conditions,
    "codes": codes,
    "state space": a_state_space_model,
}


@pytest.mark.parametrize("name", CASES)
def test_every_question_is_answered_as_it_exactly_is(name):
    torch.manual_seed(suite_seed(21))
    case = CASES[name]()
    x, *y = case.args
    whole = case.guide if name == "VAE" else lambda x, *y: case.guide(x, *y, mask=torch.ones_like(x).bool())
    found = pv.posterior(case.model, whole, x, *y, num_samples=SAMPLES).expectation(case.f)
    assert_within_standard_errors(found.value, case.mean_of_f, found.standard_error)

    missing = torch.zeros_like(x).bool()
    missing[:, case.cell] = True
    filled = pv.impute(case.model, case.guide, x, *y, missing=missing, num_samples=SAMPLES, num_draws=200)
    assert_within_standard_errors(filled.value[missing], case.cell_mean, filled.standard_error[missing])
    assert torch.equal(filled.value[~missing], x[~missing])
    spread = filled.standard_deviation[missing]
    off = (filled.draws[:, missing].mean(0) - case.cell_mean) / (spread / 200**0.5)
    assert (off.abs() < 5).all()

    conditional = pv.conditional_log_marginal(case.model, case.guide, x, *y, given=case.given, num_samples=SAMPLES)
    assert_within_standard_errors(conditional.value, case.conditional, conditional.standard_error)

    check = pv.predictive_check(
        case.model, case.guide, x, *y, statistic=lambda x: x[..., 0], num_samples=50, num_replicates=20
    )
    assert check.replicated.shape == (20, len(x))
    assert check.p_values.value.shape == (len(x),)
