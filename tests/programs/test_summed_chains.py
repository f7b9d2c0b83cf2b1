"""Hidden Markov models with their states summed out: against the forward algorithm, sums by hand, and Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from summed_pairs import PARALLEL, PARTICLES, by_hand, gradients, log_joint, of_summed, summed_run
from torch import Tensor

from pyrovae.programs import log_sums
from pyrovae.programs.enumerated_runs import Enumerating
from pyrovae.programs.log_sums import log_sum_exp
from pyrovae.programs.sites import sample_sites

NUM = 3
START = torch.tensor([0.1, 0.4, -0.2], dtype=torch.float64, requires_grad=True)
MOVES = torch.tensor([[0.9, -0.3, 0.2], [0.0, 1.1, -0.5], [-0.7, 0.3, 0.4]], dtype=torch.float64, requires_grad=True)
LOCS = torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
PARAMETERS = (START, MOVES, LOCS)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(suite_seed(91))


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def chain(x, lengths=None, dim=-1):
    """Sequences `(sequences, steps)`, each of a length of its own."""
    with pyro.plate("sequences", len(x), dim=dim):
        c = None
        for t in pyro.markov(range(x.shape[1])):
            inside = torch.ones(len(x), dtype=torch.bool) if lengths is None else t < lengths
            with poutine.mask(mask=inside.reshape(-1, *(1,) * (-1 - dim))):
                logits = START if c is None else MOVES[c]
                c = pyro.sample(f"c_{t}", dist.Categorical(logits=logits), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Normal(LOCS[c], 0.7), obs=x[:, t].reshape(-1, *(1,) * (-1 - dim)))


def forward(log_likelihood: Tensor) -> Tensor:
    """Returns log p(x) of one sequence by the forward algorithm, from log p(x_t|c_t), `(steps, states)`."""
    alpha = START.log_softmax(0)
    for t, step in enumerate(log_likelihood):
        alpha = (alpha[:, None] + MOVES.log_softmax(-1)).logsumexp(0) if t else alpha
        alpha = alpha + step
    return alpha.logsumexp(0)


def likelihoods(x):
    return dist.Normal(LOCS, 0.7).log_prob(x[:, None])


@pytest.mark.parametrize(("steps", "dim"), [(1, -1), (5, -1), (5, -2), (80, -1)])
def test_a_chain_is_the_forward_algorithms(steps, dim):
    x = data(4, steps)
    found = of_summed(lambda x: chain(x, dim=dim), x, data=4, plate="sequences", nesting=-dim, num_particles=3)
    expected = torch.stack([forward(likelihoods(sequence)) for sequence in x])
    assert torch.allclose(found, expected.expand(3, 4), atol=1e-10)
    needed = PARAMETERS if steps > 1 else (START, LOCS)
    assert torch.allclose(gradients(found[0], *needed), gradients(expected, *needed), atol=1e-10)


def test_a_chain_is_pyros():
    x = data(4, 6)
    found = of_summed(chain, x, data=4, plate="sequences").sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(chain, lambda x: None, x)
    assert torch.allclose(found, -loss, atol=1e-10)
    assert torch.allclose(gradients(found, *PARAMETERS), -gradients(loss, *PARAMETERS), atol=1e-10)


def test_ragged_chains_end_where_their_masks_do():
    x, lengths = data(4, 6), torch.tensor([6, 1, 4, 2])
    found = of_summed(chain, x, lengths, data=4, plate="sequences", num_particles=2)
    expected = torch.stack([forward(likelihoods(s[:n])) for s, n in zip(x, lengths, strict=True)])
    assert torch.allclose(found, expected.expand(2, 4), atol=1e-10)
    assert torch.allclose(gradients(found[0], *PARAMETERS), gradients(expected, *PARAMETERS), atol=1e-10)


def second_order(x):
    moves = MOVES[:, None] + 0.5 * MOVES[None] + LOCS[:, None, None]
    with pyro.plate("sequences", len(x)):
        past = [torch.tensor(0), torch.tensor(0)]
        for t in pyro.markov(range(x.shape[1]), history=2):
            c = pyro.sample(f"c_{t}", dist.Categorical(logits=moves[past[0], past[1]]), infer=PARALLEL)
            pyro.sample(f"x_{t}", dist.Normal(LOCS[c], 0.7), obs=x[:, t])
            past = [past[1], c]


def test_a_chain_may_look_two_steps_back():
    x, needed = data(3, 5), (MOVES, LOCS)
    found = of_summed(second_order, x, data=3, plate="sequences")
    states = {f"c_{t}": ((1,), NUM) for t in range(5)}
    expected = torch.stack([by_hand(second_order, x[[n]], states=states) for n in range(3)])
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.allclose(gradients(found, *needed), gradients(expected, *needed), atol=1e-10)
    elbo = TraceEnum_ELBO(max_plate_nesting=1).loss(second_order, lambda x: None, x)
    assert found.sum().item() == pytest.approx(-elbo, abs=1e-10)


def test_each_step_may_have_a_plate_of_its_own():
    """Notes that sound together given a state, as in models of polyphonic music."""

    def notes(x):
        with pyro.plate("sequences", len(x), dim=-2):
            c = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                c = pyro.sample(f"c_{t}", dist.Categorical(logits=MOVES[c]), infer=PARALLEL)
                with pyro.plate(f"notes_{t}", x.shape[2], dim=-1):
                    pyro.sample(f"x_{t}", dist.Normal(LOCS[c], 0.7), obs=x[:, t])

    x = data(2, 3, 4)
    found = of_summed(notes, x, data=2, plate="sequences", nesting=2, num_particles=3)
    states = {f"c_{t}": ((1, 1), NUM) for t in range(3)}
    expected = torch.stack([by_hand(notes, x[[n]], states=states) for n in range(2)])
    assert torch.allclose(found, expected.expand(3, 2), atol=1e-10)


def test_chains_of_two_states_a_step_are_summed_jointly():
    """A factorial hidden Markov model."""

    def factorial(x):
        with pyro.plate("sequences", len(x)):
            a = b = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                a = pyro.sample(f"a_{t}", dist.Categorical(logits=MOVES[a]), infer=PARALLEL)
                b = pyro.sample(f"b_{t}", dist.Categorical(logits=MOVES.T[b]), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Normal(LOCS[a] - 0.3 * LOCS[b], 0.7), obs=x[:, t])

    x = data(2, 3)
    found = of_summed(factorial, x, data=2, plate="sequences")
    states = {f"{name}_{t}": ((1,), NUM) for t in range(3) for name in "ab"}
    expected = torch.stack([by_hand(factorial, x[[n]], states=states) for n in range(2)])
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(("back", "is_right"), [(1, True), (2, False)])
def test_a_chain_that_reads_beyond_its_history_differs_without_recycled_dimensions(back, is_right):
    def model(x):
        with pyro.plate("sequences", len(x)):
            past = [torch.tensor(0)] * 2
            for t in pyro.markov(range(x.shape[1])):
                c = pyro.sample(f"c_{t}", dist.Categorical(logits=MOVES[past[-1]]), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Normal(LOCS[c] + LOCS[past[-back]], 0.7), obs=x[:, t])
                past = [past[1], c]

    x = data(3, 5)
    found, checked = (of_summed(model, x, data=3, plate="sequences", recycles=recycles) for recycles in (True, False))
    expected = torch.stack([by_hand(model, x[[n]], states={f"c_{t}": ((1,), NUM) for t in range(5)}) for n in range(3)])
    assert torch.allclose(checked, expected, atol=1e-10)
    assert torch.allclose(found, expected, atol=1e-10) == is_right


# A guide that draws the continuous half -------------------------------------------------------------------------------


def switching(x):
    """z_t ~ N(a_c z_t-1, 1) under regimes c_t, x_t ~ N(z_t, 0.7): a switching state-space model."""
    with pyro.plate("sequences", len(x)):
        c, z = torch.tensor(0), torch.zeros((), dtype=torch.float64)
        for t in pyro.markov(range(x.shape[1])):
            c = pyro.sample(f"c_{t}", dist.Categorical(logits=MOVES[c]), infer=PARALLEL)
            z = pyro.sample(f"z_{t}", dist.Normal(LOCS[c] * z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.7), obs=x[:, t])


def draws_z(x):
    with pyro.plate("sequences", len(x)):
        for t in range(x.shape[1]):
            pyro.sample(f"z_{t}", dist.Normal(x[:, t], torch.ones((), dtype=torch.float64)))


def draws_z_in_markov(x):
    with pyro.plate("sequences", len(x)):
        z = x[:, 0]
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Normal(0.5 * (z + x[:, t]), torch.ones((), dtype=torch.float64)))


@pytest.mark.parametrize("guide", [draws_z, draws_z_in_markov])
def test_latents_of_the_guide_may_depend_on_the_chain(guide):
    x = data(4, 6)
    sites = summed_run(switching, x, guide=guide, num_particles=3)
    found = log_joint(sites, {PARTICLES: 3, "sequences": 4})
    z = torch.stack([sites[f"z_{t}"]["value"] for t in range(6)], -1)
    before = torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], -1)
    steps = dist.Normal(LOCS * before[..., None], 1.0).log_prob(z[..., None])
    alpha = torch.full((3, 4, 1), 0.0, dtype=torch.float64)
    for t in range(6):
        moves = MOVES.log_softmax(-1) if t else MOVES.log_softmax(-1)[:1]
        alpha = (alpha[..., None] + moves).logsumexp(-2) + steps[:, :, t]
    expected = alpha.logsumexp(-1) + dist.Normal(z, 0.7).log_prob(x).sum(-1)
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.allclose(gradients(found, MOVES, LOCS), gradients(expected, MOVES, LOCS), atol=1e-10)


def test_the_same_draws_may_be_weighed_again_in_a_run_of_another_layout():
    """Pyro leaves the dimensions of a run in the guide's sites, and they are not those of the next."""
    x = data(4, 3)
    with pyro.plate(PARTICLES, 3, dim=-3):
        guide_trace = poutine.trace(draws_z).get_trace(x)
    values = []
    for first in (-4, -6, -4):
        with pyro.plate(PARTICLES, 3, dim=-3):
            model = poutine.replay(Enumerating(first, guide_trace.nodes)(switching), trace=guide_trace)
            sites = sample_sites(poutine.trace(model).get_trace(x))
        values.append(log_joint(sites, {PARTICLES: 3, "sequences": 4}))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


# Size -----------------------------------------------------------------------------------------------------------------


def test_sums_grow_linearly_with_the_length(monkeypatch):
    def elements(steps):
        seen = []

        def watched(log_terms, dim):
            seen.append(log_terms.numel())
            return log_sum_exp(log_terms, dim)

        monkeypatch.setattr(log_sums, "log_sum_exp", watched)
        of_summed(chain, data(2, steps), data=2, plate="sequences", num_particles=3)
        return sum(seen)

    once, twice, thrice = (elements(steps) for steps in (20, 40, 60))
    assert thrice - twice == twice - once
    assert once < 20 * 3 * 2 * NUM**2 + 1
