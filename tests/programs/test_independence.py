"""A datum whose terms read another datum's latents has no weights of its own: found, and refused where it matters."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from scalar_pairs import Pair
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, AnalyticKLELBO, DReG, ScoreFunction, StickingTheLanding
from pyrovae.programs import Reading, run_pair

ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
X = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SLOPE = torch.tensor(0.3, dtype=torch.float64)


def coded(mean_of, plate=lambda x: pyro.plate("data", len(x), dim=-1)) -> Pair:
    """x_n ~ N(mean_of(z)_n, 1) with z_n ~ N(0, 1); `mean_of` is given z of all data, `(..., N)`."""

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            pyro.sample("x", dist.Normal(mean_of(z), ONE), obs=x[:, 0])

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(SLOPE * x[:, 0], 0.8))

    return Pair(model, guide)


def graph() -> Pair:
    """A row of the adjacency matrix is a datum, and reads the latents of all nodes."""

    def model(x):
        with pyro.plate("nodes", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * z.unsqueeze(-2), ONE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("nodes", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.8))

    return Pair(model, guide)


def two_plates(reads: bool = True) -> Pair:
    """The second plate's data read the latents of the first's."""

    def model(x):
        with pyro.plate("first", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=x[:, 0])
        with pyro.plate("second", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(ZERO, ONE))
            pyro.sample("y", dist.Normal(u + z if reads else u, ONE), obs=x[:, 1])

    def guide(x):
        for plate, name in (("first", "z"), ("second", "u")):
            with pyro.plate(plate, len(x), dim=-1):
                pyro.sample(name, dist.Normal(ZERO, 0.8))

    return Pair(model, guide)


def sequential() -> Pair:
    """A chain whose steps lie in a plate, although each reads the one before."""

    def model(x):
        z = ZERO
        for n in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{n}", dist.Normal(z, ONE))
            pyro.sample(f"x_{n}", dist.Normal(z, ONE), obs=x[n, 0])

    def guide(x):
        for n in pyro.plate("data", len(x)):
            pyro.sample(f"z_{n}", dist.Normal(ZERO, 0.8))

    return Pair(model, guide)


COUPLED = {
    "graph": (graph, 'site "x" of the model'),
    "chain": (lambda: coded(lambda z: z.roll(1, -1)), 'site "x" of the model'),
    "chain, one particle after another": (lambda: coded(lambda z: z.roll(1, -1)), 'site "x" of the model'),
    "mean": (lambda: coded(lambda z: z.mean(-1, keepdim=True).expand_as(z)), 'site "x" of the model'),
    "two plates": (two_plates, 'site "y" of the model'),
    "sequential": (sequential, 'site "[xz]_[0-9]" of the model'),
    "noise of its own": (
        lambda: coded(lambda z: z.roll(1, -1) + torch.randn(z.shape, dtype=torch.float64)),
        'site "x" of the model',
    ),
}


@pytest.mark.parametrize("objective", [IWAE(3), DReG(3), VIMCO(3), ScoreFunction(1)], ids=str)
@pytest.mark.parametrize("name", COUPLED)
def test_bounds_for_each_datum_are_refused_where_data_are_coupled(name, objective):
    make, said = COUPLED[name]
    if "after another" in name:
        objective = type(objective)(objective.num_particles, vectorize_particles=False)
    with pytest.raises(pv.InputError, match=f"{said} depends on the latents of other data") as caught:
        objective.loss(*make(), X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("one_by_one", [False, True], ids=["at once", "one after another"])
@pytest.mark.parametrize("num_data", [3, 5])
def test_a_single_datum_that_reads_another_is_found_whichever_two_they_are(num_data, one_by_one):
    """The first run gives half of the data other latents: two data of one half are parted by a later run."""
    objective = IWAE(3, vectorize_particles=False) if one_by_one else IWAE(3)
    for reader, read in itertools.permutations(range(num_data), 2):

        def mean_of(z, reader=reader, read=read):
            at = torch.arange(num_data) == reader
            return torch.where(at, z + 2 * z[..., read : read + 1], z)

        with pytest.raises(pv.InputError, match="depends on the latents of other data"):
            objective.loss(*coded(mean_of), torch.full((num_data, 1), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ["elements", "steps of a loop", "bits", "noise of its own"])
@pytest.mark.parametrize("num_data", [4, 16, 64])
def test_data_that_read_the_batch_from_its_end_are_found(num_data, name):
    """At these sizes a datum and its mirror image are in the same half of the first run."""
    x = torch.full((num_data, 1), 5.0, dtype=torch.float64)

    def prior(z):
        return dist.Bernoulli(logits=-6.0 + 0 * z) if name == "bits" else dist.Normal(0 * z, ONE)

    def mean_of(z):
        noise = torch.randn(z.shape, dtype=torch.float64) if name == "noise of its own" else 0.0
        return z + z.flip(-1) + noise

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior(x[:, 0]))
            pyro.sample("x", dist.Normal(mean_of(z), ONE), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", prior(x[:, 0]))

    def model_in_steps(x):
        z = []
        for n in pyro.plate("data", len(x)):
            z.append(pyro.sample(f"z_{n}", dist.Normal(ZERO, ONE)))
            pyro.sample(f"x_{n}", dist.Normal(z[n] + z[min(n, len(x) - 1 - n)], ONE), obs=x[n, 0])

    def guide_in_steps(x):
        for n in pyro.plate("data", len(x)):
            pyro.sample(f"z_{n}", dist.Normal(ZERO, ONE))

    pair = (model_in_steps, guide_in_steps) if "steps" in name else (model, guide)
    with pytest.raises(pv.InputError, match="depends on the latents of other data"):
        ScoreFunction(3).loss(*pair, x)


def test_data_that_read_each_other_are_found_where_memory_holds_two_particles():
    failed = []

    def mean_of(z):
        if z.numel() > 2 * 16:
            failed.append(z.numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return z + z.flip(-1)

    with pytest.raises(pv.InputError, match="depends on the latents of other data"):
        IWAE(2).loss(*coded(mean_of), torch.full((16, 1), 5.0, dtype=torch.float64))
    assert failed == [8 * 16]


@pytest.mark.parametrize("family", [
    lambda logits: dist.Bernoulli(logits=logits),
    lambda logits: dist.Categorical(logits=torch.stack((-logits, logits), -1)),
    lambda logits: dist.Bernoulli(logits=logits.unsqueeze(-1)).to_event(1),
], ids=["bits", "categories", "vectors of bits"])  # fmt: skip
@pytest.mark.parametrize("where", ["data", "outside"])
def test_draws_that_repeat_each_other_hide_no_dependence(where, family):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", family(0 * x))
            c = c.squeeze(-1) if c.dim() > 1 and c.shape[-1] == 1 != len(x) else c
            total = c.double().sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(total.expand(c.shape) if where == "data" else c.double(), ONE), obs=x)
        if where == "outside":
            pyro.factor("few", -total)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", family(-8.0 + 0 * x))

    with pytest.raises(pv.InputError, match=r"depends on (the )?latents"):
        ScoreFunction(1).loss(model, guide, X[:3, 0])


@pytest.mark.parametrize("estimate", ["log_marginal", "log_weights", "importance_bound"])
def test_log_px_of_a_datum_is_refused_where_data_are_coupled(estimate):
    settings = {"log_marginal": {"num_samples": 10}, "log_weights": {"num_particles": 2}}
    settings = settings.get(estimate, {"num_particles": 2, "num_repeats": 2})
    with pytest.raises(pv.InputError, match='site "x" of the model depends on the latents of other data'):
        getattr(pv, estimate)(*graph(), X, **settings)


@pytest.mark.parametrize("objective", [ELBO(3), StickingTheLanding(3), IWAE(3, joint=True)], ids=str)
def test_the_elbo_and_the_joint_bound_take_coupled_data(objective):
    pair = graph()
    objective.loss(*pair, X)
    torch.manual_seed(suite_seed(1))
    z = run_pair(*pair, X, num_particles=3, reading=Reading(joint=objective.joint)).draws()["z"]
    torch.manual_seed(suite_seed(1))
    loss = objective.loss(*pair, X)
    log_w = dist.Normal(z.unsqueeze(-1) * z.unsqueeze(-2), 1.0).log_prob(X).sum(-1)
    log_w = (log_w + dist.Normal(ZERO, ONE).log_prob(z) - dist.Normal(X.mean(-1), 0.8).log_prob(z)).sum(-1)
    bound = log_w.exp().mean().log() if objective.joint else log_w.mean()
    assert loss == pytest.approx(-bound.item(), abs=1e-10)


def reading_the_batch() -> Pair:
    """The guide reads all data, which is its right: it is their latents that it must not read."""
    pair = coded(lambda z: z)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0] - x.mean(), 0.8))

    return Pair(pair.model, guide)


def normalised() -> Pair:
    """Batch normalisation couples the data of a training step, and none in evaluation."""
    norm = nn.BatchNorm1d(1).double()
    return coded(lambda z: norm(z.reshape(-1, 1)).reshape(z.shape))


def subsampled() -> Pair:
    return coded(lambda z: z, lambda x: pyro.plate("data", 2 * len(x), subsample_size=len(x), dim=-1))


INDEPENDENT = {
    "plain": lambda: coded(lambda z: z),
    "the guide reads the batch": reading_the_batch,
    "batch normalisation": normalised,
    "subsampled": subsampled,
    "dropout": lambda: coded(lambda z: nn.functional.dropout(z, 0.5)),
    "two plates": lambda: two_plates(reads=False),
}


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_data_are_taken(name):
    assert IWAE(3).loss(*INDEPENDENT[name](), X) > 0


# Sites outside the plate ----------------------------------------------------------------------------------------------


def pooled(noise: bool) -> Pair:
    """A label of the whole set reads the latents of all data, and perhaps noise that is drawn anew at each run."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            mean = z + torch.randn(z.shape, dtype=torch.float64) if noise else z
            pyro.sample("x", dist.Normal(mean, ONE), obs=x[:, 0])
        pyro.factor("label", -z.square().sum())

    return Pair(model, coded(lambda z: z).guide)


@pytest.mark.parametrize("objective", [IWAE(3), ELBO(3), AnalyticKLELBO(3), ScoreFunction(1)], ids=str)
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("num_data", [6, 1])
def test_a_site_outside_the_plate_that_reads_latents_inside_is_refused(num_data, noise, objective):
    with pytest.raises(pv.InputError, match='site "label" lies outside the data plate and depends on latents inside'):
        objective.loss(*pooled(noise), X[:num_data])


@pytest.mark.filterwarnings("ignore:particles run one after another")  # it would sum over particles, too
@pytest.mark.parametrize("objective", [ELBO(1), AnalyticKLELBO(1), IWAE(3, joint=True)], ids=str)
def test_it_is_taken_with_one_particle_or_jointly(objective):
    assert objective.loss(*pooled(noise=False), X) > 0
