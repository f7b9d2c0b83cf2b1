"""Particles one after another: the same numbers as at once, and programs that cannot run them at once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import hierarchical, state_space
from exact.hierarchical import Copies, Hierarchy
from helpers import assert_within_standard_errors, small_vae, suite_seed
from scalar_pairs import assert_one_mean, gradients, gradients_of_each
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, DReG, ReweightedWakeSleep
from pyrovae.programs import Reading, log_mean_exp, pair_at, run_pair

ONE_BY_ONE = Reading(vectorize_particles=False)


def vae_case():
    vae = small_vae((3,), likelihood=pv.Gaussian(0.5)).double()
    return vae.model, vae.guide, (torch.randn(4, 3).double(),)


def hierarchy_case():
    pair = Hierarchy()
    return pair.model, pair.guide, (hierarchical.data(4),)


def sequences_case():
    return state_space.masked, state_space.SmoothingGuide(1.3).masked, state_space.sequences()


CASES = {"vae": vae_case, "hierarchy": hierarchy_case, "sequences": sequences_case}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_give_the_same_terms_at_the_same_draws(case):
    model, guide, args = CASES[case]()
    together = run_pair(model, guide, *args, num_particles=5)
    alone = run_pair(model, guide, *args, num_particles=5, reading=ONE_BY_ONE)
    assert together.layout.is_vectorized
    assert not alone.layout.is_vectorized
    assert len(alone.runs) == 5
    at = pair_at(model, guide, together.draws(), *args, like=alone)
    back = pair_at(model, guide, alone.draws(), *args, like=together)
    for ours, theirs in ((together, at), (alone, back)):
        for name in ("log_likelihood", "log_prior", "log_posterior"):
            assert_close(getattr(ours.terms(), name), getattr(theirs.terms(), name), rtol=0, atol=1e-10)
        assert_close(ours.global_terms(scaled=False), theirs.global_terms(scaled=False), rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", [ELBO, IWAE, DReG, VIMCO, ReweightedWakeSleep])
def test_both_ways_have_one_gradient_in_the_mean(objective):
    pair, x, found = Copies({**hierarchical.OFF, "log_sd": -3.0}, num=200), hierarchical.data(10).repeat(200), []
    for way in (True, False):
        torch.manual_seed(suite_seed(way))
        found.append(gradients_of_each(objective(3, vectorize_particles=way), (pair.model, pair.guide), x))
    assert_one_mean(*found)


def test_dreg_is_without_variance_at_the_exact_posterior_one_by_one():
    """Its second run is at each particle's own draws."""
    pair, x = Hierarchy().with_exact_local_guide(), hierarchical.data(5)
    found = gradients(DReG(4, vectorize_particles=False), (pair.model, pair.guide), x, num=3)
    of_z = [sorted(pair.parameters).index(name) for name in hierarchical.OF_Z]
    assert_close(found[:, of_z], torch.zeros(3, 4).double(), rtol=0, atol=1e-10)


# Programs that cannot run them at once --------------------------------------------------------------------------------

SAYS_SO = "particles run one after another"


class Normalised(nn.Module):
    """A VAE whose encoder and decoder normalise over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()

    def model(self, x):
        pyro.module("normalised", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("normalised", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.7).to_event(1))


def recurrent(packed: PackedSequence, net: nn.GRU) -> torch.Tensor:
    """The last state of a recurrent network that reads a packed batch, `(batch, 2)`."""
    return net(packed)[1][-1]


class OfSequences(nn.Module):
    """Reads packed sequences; z is one of each sequence, and every element is observed in a plate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(1, 2).double()

    def model(self, packed):
        pyro.module("of_sequences", self)
        padded, lengths = pad_packed_sequence(packed)
        mask = torch.arange(len(padded))[:, None] < lengths
        with pyro.plate("sequences", len(lengths), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("steps", len(padded), dim=-2), pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 0.5), obs=padded[..., 0])

    def guide(self, packed):
        pyro.module("of_sequences", self)
        mean, raw = recurrent(packed, self.encoder).unbind(-1)
        with pyro.plate("sequences", len(mean), dim=-1):
            pyro.sample("z", dist.Normal(mean, raw.exp()))


def with_fixed_batch(batch: int):
    """Two programs with their batch size written into shapes, as AIR's are."""

    def model(x):
        with pyro.plate("data", batch, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(batch, 2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.view(batch, 2).sum(-1), 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2).double())
        with pyro.plate("data", batch, dim=-1):
            mean = loc + torch.cat((x.view(batch, 1), x.view(batch, 1)), 1) / 3
            pyro.sample("z", dist.Normal(mean, 0.6).to_event(1))

    return model, guide


def counts_rows(x):
    """Takes the number of rows of its latents for that of the data: alone it is, and together that of particles."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) / len(z), 0.5), obs=x)


class Mixing(nn.Module):
    """Mixes latents across their leading dimension, by as much as a weight that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()).double())

    def model(self, x):
        pyro.module("mixing", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            mixed = z + self.weight * z.softmax(1 if z.dim() == 3 else -1)
            pyro.sample("x", dist.Normal(mixed.sum(-1), 0.5), obs=x)


def test_what_a_weight_of_0_hid_is_found_when_other_data_are_asked_about():
    mixing, guide, x = Mixing(), with_fixed_batch(5)[1], torch.randn(5).double()
    pv.log_marginal(mixing.model, guide, x, num_samples=10)
    mixing.weight.data.fill_(3.0)
    with pytest.warns(UserWarning, match=SAYS_SO):
        pv.log_marginal(mixing.model, guide, x, num_samples=10)


def test_latents_that_are_transposed_are_found_among_two_data_too():
    def transposed(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            z = z.transpose(0, 1).reshape(z.shape) if z.dim() == 3 else z
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    with pytest.warns(UserWarning, match=SAYS_SO):
        pv.log_marginal(transposed, with_fixed_batch(2)[1], torch.randn(2).double(), num_samples=10)


PACKED = pack_sequence([torch.randn(n, 1, generator=torch.Generator().manual_seed(n)).double() for n in (4, 2, 1)])


def impossible():
    """Pairs and arguments, by what does not take a dimension of particles."""
    normalised, of_sequences = Normalised(), OfSequences()
    return {
        "BatchNorm": (normalised.model, normalised.guide, torch.randn(6, 3).double()),
        "fixed batch": (*with_fixed_batch(5), torch.randn(5).double()),
        "counted rows": (counts_rows, with_fixed_batch(5)[1], torch.randn(5).double()),
        "PackedSequence": (of_sequences.model, of_sequences.guide, PACKED),
    }


@pytest.mark.parametrize("case", ["BatchNorm", "fixed batch", "counted rows"])
def test_a_program_that_cannot_run_them_at_once_is_found_out_and_told(case):
    model, guide, x = impossible()[case]
    with pytest.warns(UserWarning, match=SAYS_SO):
        loss = IWAE(3).loss(model, guide, x)
    assert loss > 0
    for _ in range(2):  # and told once
        IWAE(3).loss_and_grads(model, guide, x)
    for pair in (model, guide, x), impossible()[case]:  # whether or not it has been found out before
        with pytest.raises(pv.InputError):
            IWAE(3, vectorize_particles=True).loss(*pair)


@pytest.mark.parametrize("case", ["BatchNorm", "fixed batch", "counted rows", "PackedSequence"])
def test_its_bound_is_that_of_separate_runs(case):
    """The log of the mean of weights that were each taken with a single particle."""
    model, guide, x = impossible()[case]
    settings = {"vectorize_particles": False}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ours = IWAE(3, **settings).loss(model, guide, x)
    runs = run_pair(model, guide, x, num_particles=3, reading=ONE_BY_ONE)
    log_w = runs.terms().log_weights
    singles = [
        pair_at(model, guide, {"z": z[None]}, x, like=run_pair(model, guide, x, reading=ONE_BY_ONE)).terms().log_weights
        for z in runs.draws()["z"]
    ]
    assert_close(log_w, torch.cat(singles), rtol=0, atol=1e-10)
    torch.manual_seed(5)
    again = run_pair(model, guide, x, num_particles=3, reading=ONE_BY_ONE).terms().log_weights
    assert ours == pytest.approx(-log_mean_exp(again).sum().item(), abs=1e-8)


@pytest.mark.parametrize("objective", [ELBO(2), DReG(3), ReweightedWakeSleep(3)], ids=str)
def test_packed_sequences_are_trained(objective):
    pair = OfSequences()
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), objective)
    losses = [svi.step(PACKED) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_packed_sequences_are_measured():
    pair = OfSequences()
    result = pv.log_marginal(pair.model, pair.guide, PACKED, num_samples=600)
    truth = torch.stack([log_px(row) for row in unpacked()])
    assert_within_standard_errors(result.log_px, truth, result.standard_error)


def unpacked():
    padded, lengths = pad_packed_sequence(PACKED)
    return [padded[:length, n, 0] for n, length in enumerate(lengths)]


def log_px(row):
    """z ~ N(0, 1) and x_t ~ N(z, 0.5), jointly Gaussian."""
    covariance = torch.ones(len(row), len(row)).double() + 0.25 * torch.eye(len(row)).double()
    return dist.MultivariateNormal(torch.zeros(len(row)).double(), covariance).log_prob(row)


def test_statistics_of_batch_normalisation_move_once_a_step():
    pair, x = Normalised(), torch.randn(6, 3).double()
    layer = pair.encoder[1]
    with pytest.warns(UserWarning, match=SAYS_SO):
        IWAE(4).loss_and_grads(pair.model, pair.guide, x)
    before = layer.num_batches_tracked.item()
    for step in range(3):
        DReG(4).loss_and_grads(pair.model, pair.guide, x) if step else IWAE(4).loss_and_grads(pair.model, pair.guide, x)
    assert layer.num_batches_tracked.item() == before + 3
