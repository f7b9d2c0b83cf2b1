"""Pairs that can be run and for which an objective is not defined, or not in the way it is told to read them."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_pairs import ROWS, Pair, decode, guide, model, normal
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam
from refusals import Table, check_refusal

from pyrovae.objectives import (
    ELBO,
    IWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    from_text,
)

CASES = Table()
add = CASES.add


def global_only() -> Pair:
    def model(x):
        mean = pyro.sample("mean", normal(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    return Pair(model, lambda x: pyro.sample("mean", normal(3)))


def drawn_at_once() -> Pair:
    return Pair(model, AutoMultivariateNormal(model, init_loc_fn=lambda site: torch.zeros(site["fn"].shape())))


def inner_subsample() -> Pair:
    """The entries of a datum are a subsample, and with them one factor in three of its likelihood."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("entries", x.shape[1], subsample_size=1, dim=-2) as entries:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[entries])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Pair(model, guide)


def subsample() -> Pair:
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as rows:
            pyro.sample("x", decode(pyro.sample("z", normal(2))), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1):
            pyro.sample("z", normal(2))

    return Pair(model, guide)


def two_plates() -> Pair:
    """Latents of few values in two plates, which no sum over the values of all has the dimensions for."""

    def model(x):
        for plate, num in (("some", 1), ("others", 3)):
            with pyro.plate(plate, num, dim=-1):
                z = pyro.sample(f"z of {plate}", dist.Bernoulli(0.3))
                pyro.sample(f"x of {plate}", dist.Normal(z, 1.0), obs=x[:num, 0])

    def guide(x):
        for plate, num in (("some", 1), ("others", 3)):
            with pyro.plate(plate, num, dim=-1):
                pyro.sample(f"z of {plate}", dist.Bernoulli(0.4))

    return Pair(model, guide)


def autoguided() -> Pair:
    return Pair(model, AutoNormal(model, create_plates=lambda x: pyro.plate("data", len(x), dim=-1)))


plain = partial(Pair, model, guide)
AT_ONCE = (
    "{} with {} particles needs latents that the guide draws for each datum, and this guide draws all of them for all "
    "data at once: use joint=True"
)
ALL_TERMS = '{} needs all terms of a datum, and the plate "{}" subsamples them: use elbo, .+'
PLATE = "plate must name a plate that observed sites lie in, {}, got '{}'"
DOORS = {
    "loss": lambda objective, pair: objective.loss(*pair, ROWS),
    "SVI": lambda objective, pair: SVI(*pair, Adam({"lr": 0.01}), objective).step(ROWS),
}


def add_pair(name: str, make: Callable[[], Pair], objective, said: str) -> None:
    for door, call in DOORS.items():
        add(f"{name}, {type(objective).__name__}, {door}", said, lambda c=call: c(objective, make()))


for objective, num in ((IWAE(8), 8), (DReG(3), 3), (ScoreFunction(2), 2), (VIMCO(2), 2)):
    said = AT_ONCE.format(type(objective).__name__, num)
    add_pair("only globals", global_only, objective, said)
    add_pair("drawn at once", drawn_at_once, objective, said)
for objective in (IWAE(8), IWAE(1), DReG(8), VIMCO(8), ScoreFunction(2)):
    said = ALL_TERMS.format(type(objective).__name__, "entries")
    add_pair("inner subsample", inner_subsample, objective, said)
add_pair("joint and subsampled", subsample, IWAE(8, joint=True), ALL_TERMS.format("IWAE", "data"))
add_pair("unknown plate", plain, ELBO(plate="dta"), PLATE.format("data", "dta"))

TWO_PLATES = "the pair must have all of its sites in one data plate and in no other, .+"
SLEEP = "sleep_weight must be 0 for a {}: .+"
awake = ReweightedWakeSleep(2, sleep_weight=0.5)
add_pair("two plates, enumerated", two_plates, EnumeratedELBO(), TWO_PLATES)
add_pair("two plates, asleep", two_plates, awake, SLEEP.format("pair with several data plates"))
add_pair("autoguide, asleep", autoguided, awake, SLEEP.format("guide whose latents are made of auxiliary sites"))
both = "plate must not be given with joint, where all data are one datum; got 'rows'"
add("joint and a plate", both, IWAE, 2, joint=True, plate="rows")
add("joint and a plate, by text", both, from_text, "iwae(num_particles=2, joint=True, plate=rows)")
add("a plate by its number", "plate must be the name of one, got 1", IWAE, 2, plate=1)


@pytest.mark.parametrize("case", CASES.parameters())
def test_what_an_objective_is_not_defined_for_is_refused_in_one_line(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(4), StickingTheLanding(2), AnalyticKLELBO(2)], ids=str)
def test_the_elbo_takes_a_subsample_inside_a_datum(objective):
    assert objective.loss(*inner_subsample(), ROWS) > 0


@pytest.mark.parametrize("objective", [ELBO(1), ELBO(2), IWAE(1), IWAE(8, joint=True)], ids=str)
@pytest.mark.parametrize("make", [global_only, drawn_at_once])
def test_what_is_drawn_at_once_is_taken_with_one_particle_or_jointly_or_in_the_elbo(make, objective):
    assert objective.loss(*make(), ROWS) > 0
