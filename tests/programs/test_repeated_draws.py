"""Programs with a seed of their own: where draws come from several runs, these would be the same draws again.

The kind of fault: repeated runs are counted as new ones, and a standard error over them says 0 at a wrong number.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scalar_pairs import Pair

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, AnalyticKLELBO
from pyrovae.programs import gate
from pyrovae.programs.repeated_draws import repeated_site

X = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
FEW = {"progress": False}
REFUSED = r'must draw anew in every run, and draws the same at site "{}": take out the seed'


def zero():
    return torch.zeros((), dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(zero(), 1.0)), 0.5), obs=x)


def guide_of(family):
    """Returns a guide that draws z from a family of a loc and a scale."""

    def guide(x):
        loc = pyro.param("loc", zero)
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(0.7 * x + loc, torch.full_like(x, 0.6)))

    return guide


guide = guide_of(dist.Normal)


def shared_model(x):
    mu = pyro.sample("mu", dist.Normal(zero(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(mu, 1.0)), 0.5), obs=x)


def shared_guide(x):
    mu = pyro.sample("mu", dist.Normal(0.8 * x.mean() + pyro.param("loc", zero), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * x + 0.2 * mu, 0.6))


def setting(program):
    def sets(x):
        pyro.set_rng_seed(1)
        program(x)

    return sets


class Kept(dist.Normal):
    """Draws from a generator that it makes anew each time."""

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=self.loc.dtype)
        return self.loc + self.scale * noise

    def expand(self, batch_shape, _instance=None):
        return Kept(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def one_of_two(x):
    """Draws z by a seed, after mu."""
    mu = pyro.sample("mu", dist.Normal(0.8 * x.mean() + pyro.param("loc", zero), 0.5))
    with pyro.plate("data", len(x)), poutine.seed(rng_seed=3):
        pyro.sample("z", dist.Normal(0.8 * x + 0.2 * mu, 0.6))


SEEDED = {
    "a guide under poutine.seed": (Pair(model, poutine.seed(guide, rng_seed=3)), "z"),
    "a guide that sets the seed": (Pair(model, setting(guide)), "z"),
    "a model that sets the seed": (Pair(setting(model), guide), "z"),
    "a generator made anew": (Pair(model, guide_of(Kept)), "z"),
    "shared latents": (Pair(shared_model, poutine.seed(shared_guide, rng_seed=3)), "mu"),
    "shared latents, and a model that sets the seed": (Pair(setting(shared_model), shared_guide), "mu"),
    "one site of two": (Pair(shared_model, one_of_two), "z"),
}


def race(pair):
    pv.race(lambda: pair, X, {"it": ELBO()}, (0,), epochs=1, held_out=X, num_samples=20, **FEW)


def compare(pair):
    pv.compare(*pair, X, objectives=["elbo"], num_particles=[1], repeats=4, compile=False, **FEW)


DOORS = {
    "log_marginal": lambda pair: pv.log_marginal(*pair, X, num_samples=20, chunk_size=20, **FEW),
    "posterior": lambda pair: pv.posterior(*pair, X, num_samples=20, chunk_size=20, **FEW),
    "importance_bound": lambda pair: pv.importance_bound(*pair, X, num_particles=2, chunk_size=20, **FEW),
    "chunks of particles": lambda pair: IWAE(4, chunk_size=2).loss(*pair, X),
    "one after another": lambda pair: IWAE(4, vectorize_particles=False).loss(*pair, X),
    "compare": compare,
    "race": race,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", SEEDED)
def test_several_runs_that_repeat_are_refused_at_every_door(case, door):
    pair, site = SEEDED[case]
    with pytest.raises(pv.InputError, match=REFUSED.format(site)):
        DOORS[door](pair)


def test_particles_that_turn_out_to_run_one_after_another_are_several_runs():
    def takes_no_particles(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(zero(), 1.0)).view(len(x)), 0.5), obs=x)

    with pytest.warns(UserWarning, match="one after another"), pytest.raises(pv.InputError, match=REFUSED.format("z")):
        AnalyticKLELBO(2).loss(takes_no_particles, poutine.seed(guide, rng_seed=3), X)


def test_draws_of_shared_latents_are_several_runs_without_chunks():
    pair, site = SEEDED["shared latents"]
    for door in (pv.log_marginal, pv.posterior):
        with pytest.raises(pv.InputError, match=REFUSED.format(site)):
            door(*pair, X, num_samples=20, **FEW)


@pytest.mark.parametrize("case", ["a guide under poutine.seed", "a model that sets the seed", "a generator made anew"])
def test_one_run_of_a_program_with_a_seed_is_taken(case):
    pair, _ = SEEDED[case]
    found = pv.log_marginal(*pair, X, num_samples=2_000, **FEW)
    truth = dist.Normal(zero(), 1.25**0.5).log_prob(X)
    assert bool(((found.log_px - truth).abs() < 5 * found.standard_error).all())
    assert IWAE(4).loss(*pair, X) > 0


def test_chains_refuse_what_repeats_their_momenta_and_take_a_seed_of_the_start():
    settings = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, **FEW}
    for pair, start in ((Pair(setting(model), guide), "prior"), (Pair(model, setting(guide)), "guide")):
        with pytest.raises(
            pv.InputError, match="a run of the programs sets torch's generator, whose draws then repeat"
        ):
            pv.annealed_log_marginal(*pair, X, start=start, **settings)
    pv.annealed_log_marginal(model, setting(guide), X, **settings)  # the guide is not run
    pair = Pair(model, poutine.seed(guide, rng_seed=3))
    pv.annealed_log_marginal(*pair, X, start="guide", **settings)
    with pytest.raises(pv.InputError, match=REFUSED.format("z")):  # in chunks of data
        pv.annealed_log_marginal(*pair, X, start="guide", chunk_size=4, **settings)
    with pytest.raises(pv.InputError, match=REFUSED.format("z")):
        pv.annealed_log_marginal(poutine.seed(model, rng_seed=3), guide, X, chunk_size=4, **settings)


@pytest.mark.parametrize(
    ("pair", "program"),
    [(Pair(poutine.seed(model, rng_seed=3), guide), "model"), (Pair(model, poutine.seed(guide, rng_seed=3)), "guide")],
)
def test_calibration_in_chunks_draws_anew(pair, program):
    settings = {"num_draws": 4, "num_bins": 5, **FEW}
    with pytest.raises(pv.InputError, match=f"the {program} {REFUSED.format('z')}"):
        pv.simulation_based_calibration(*pair, torch.zeros(40, dtype=torch.float64), chunk_size=80, **settings)
    pv.simulation_based_calibration(*pair, torch.zeros(40, dtype=torch.float64), **settings)


# What is no seed ------------------------------------------------------------------------------------------------------


def of_few_values(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(zero())), 0.5), obs=x)


def sure_of_one(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.full_like(x, 1e-9)))


def lost_to_rounding(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(1e9 + x, 1e-9))


def seeds_what_is_no_latent(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torch.randn(())
    guide(x + 0 * features)


HONEST = {
    "plain": Pair(model, guide),
    "shared latents": Pair(shared_model, shared_guide),
    "few values": Pair(of_few_values, sure_of_one),
    "a scale lost to rounding": Pair(model, lost_to_rounding),
    "a point": Pair(model, guide_of(lambda loc, scale: dist.Delta(loc))),
    "AutoDelta": Pair(shared_model, AutoDelta(shared_model)),
    "AutoNormal": Pair(shared_model, AutoNormal(shared_model)),
    "AutoMultivariateNormal": Pair(shared_model, AutoMultivariateNormal(shared_model)),
    "a seed of something else": Pair(model, seeds_what_is_no_latent),
}


@pytest.mark.parametrize("case", HONEST)
def test_what_is_no_seed_is_taken_and_takes_no_random_numbers(case):
    pair = gate.check(*HONEST[case], None, X)
    before = torch.get_rng_state()
    assert repeated_site(pair, *HONEST[case], (X,), {}) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_in_several_runs_is_as_before():
    """The check of the first call and its absence in the second give the same numbers."""
    for door in (lambda: IWAE(4, chunk_size=2).loss(model, guide, X), lambda: DOORS["log_marginal"](HONEST["plain"])):
        found = []
        for _ in range(2):
            pyro.set_rng_seed(0)
            found.append(str(door()))
        assert found[0] == found[1]
