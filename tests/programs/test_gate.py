"""Every entrance ("door") and every refusal: what one door refuses, all others that it concerns refuse in its words.

The kind of fault: a check that only one door makes, so that another trains to a wrong number or measures one. A pair is
refused if it is a fault in mathematics for what is asked, and taken at the doors that do not ask for it.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from pyro.poutine.mask_messenger import MaskMessenger
from scalar_pairs import (
    OUTSIDE,
    SHORT,
    TAKEN,
    OnLatents,
    Pair,
    X,
    double,
    name_taken,
    normal,
    pair,
    plain,
    short_of_the_prior,
)
from torch import nn

import pyrovae as pv
from pyrovae.objectives import (
    ELBO,
    IWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.programs import gate


def discrete() -> Pair:
    return pair(lambda: dist.Bernoulli(double(0.5)), lambda loc, scale: dist.Bernoulli(logits=loc + scale))


def marked() -> Pair:
    return Pair(discrete().model, poutine.infer_config(discrete().guide, lambda site: {"enumerate": "parallel"}))


class OnLatentsMask(MaskMessenger):
    """Masks the sites that are not observed."""

    def _process_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            super()._process_message(msg)


def masked(mark: bool = False) -> Pair:
    """Returns a pair whose likelihood reads the latents of half of the data, which are masked."""

    def around(program):
        def run(x):
            marked = poutine.infer_config(config_fn=lambda site: {"is_autoencoder": mark})
            with marked, OnLatentsMask(mask=torch.arange(len(x)) % 2 == 0):
                program(x)

        return run

    return pair(normal, dist.Normal, around=around)


def autoencoder() -> Pair:
    return masked(mark=True)


def masked_guide() -> Pair:
    """Returns a pair whose guide is masked: without its density an "ELBO" is above log p(x)."""
    return Pair(plain().model, poutine.mask(plain().guide, mask=torch.tensor(False)))


def masked_distribution() -> Pair:
    return pair(normal, lambda loc, scale: dist.Normal(loc, scale).mask(torch.tensor(False)))


def auxiliary() -> Pair:
    """Returns a pair whose guide would widen without end, as the weights lack the density of `a`."""

    def guide(x):
        scale = pyro.param("scale", double(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(double(0.0), scale), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a.unsqueeze(-1), 0.5).to_event(1))

    return Pair(plain().model, guide)


def beyond_the_prior() -> Pair:
    """Returns a pair whose guide draws below 0, where `Exponential.log_prob` is finite."""
    return pair(lambda: dist.Exponential(double(1.0)), dist.Normal)


def point() -> Pair:
    return pair(normal, lambda loc, scale: dist.Delta(loc + scale))


def under_beta(beta: float = 4.0) -> Pair:
    def weighed(program):
        def run(x):
            with OnLatents(beta):
                program(x)

        return run

    return Pair(*map(weighed, plain()))


# The doors -----------------------------------------------------------------------------------------------------------

FEW = {"progress": False}


def known() -> pv.Estimate:
    return pv.Estimate(torch.zeros(len(X)), torch.zeros(len(X)))


def compiled(pair: Pair, objective) -> None:
    svi = pv.CompiledSVI(*pair, Adam({"lr": 0.01}), objective, inductor=False)
    for _ in range(2):
        svi.step(X)


def eager(pair: Pair, objective) -> None:
    with poutine.messenger.Messenger():  # under a handler of the caller's, steps are not replayed
        pv.CompiledSVI(*pair, Adam({"lr": 0.01}), objective, inductor=False).step(X)


def compare(pair: Pair, objective) -> None:
    settings = {"num_particles": [4], "repeats": 4, "log_px": known(), "compile": False}
    pv.compare(*pair, X, objectives=[lambda num: objective], **settings, **FEW)


def race(pair: Pair, objective) -> None:
    pv.race(lambda: pair, X, {"it": objective}, (0,), epochs=1, held_out=X[:8], num_samples=20, **FEW)


ANNEALED = {"start": "guide", "num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, **FEW}

TRAINS = {
    "differentiable_loss": lambda pair, objective: objective.differentiable_loss(*pair, X),
    "loss": lambda pair, objective: objective.loss(*pair, X),
    "SVI": lambda pair, objective: SVI(*pair, Adam({"lr": 0.01}), objective).step(X),
    "CompiledSVI": compiled,
    "CompiledSVI, eager": eager,
    "fit": lambda pair, objective: pv.fit(pair, X, epochs=1, objective=objective, **FEW),
    "compare": compare,
    "race": race,
}
WEIGHS = {
    "log_marginal": lambda pair: pv.log_marginal(*pair, X, num_samples=50, **FEW),
    "importance_bound": lambda pair: pv.importance_bound(*pair, X, num_particles=5, num_repeats=2, **FEW),
    "evaluate": lambda pair: pv.evaluate(*pair, X, methods=["is_50"], **FEW),
    "annealed": lambda pair: pv.annealed_log_marginal(*pair, X, **ANNEALED),
    "bidirectional": lambda pair: pv.bidirectional_gap(*pair, X, **ANNEALED),
    "surgery": lambda pair: pv.elbo_surgery(*pair, X, num_draws=2, **FEW),
    "gaps": lambda pair: pv.inference_gaps(*pair, X, num_final_draws=10, num_samples=20, **FEW),
    "calibration": lambda pair: pv.simulation_based_calibration(*pair, X, num_draws=9, num_bins=2, **FEW),
    "log_weights": lambda pair: pv.log_weights(*pair, X, num_particles=2),
    "race": lambda pair: race(pair, ELBO()),
}
RSAMPLE = 'needs a reparameterised guide, and site "z" has no rsample'
MARKED = 'draws every site of the guide, and "z" is marked for enumeration'
AUXILIARY = 'all latents must be Deltas and together a bijection of the guide\'s auxiliary site "a"'
POINT = r'site "z" is a point \(Delta\)'
MASKED = r"masked|without a mask"
READ = 'site "x" of the model must not read the latent "z" where only "z" is masked'
UNEQUAL = "must have the same mask in model and guide"

# Pair, an objective that must not train it, what is said, and the estimates that do not refuse it.
REFUSED = {
    "no rsample": (discrete, AnalyticKLELBO(), RSAMPLE),
    "marked for enumeration": (marked, IWAE(8), MARKED),
    "marked for enumeration, path derivative": (marked, DReG(8), MARKED),
    "marked for enumeration, score function": (marked, ScoreFunction(2), MARKED),
    "autoencoder, analytic KL": (autoencoder, AnalyticKLELBO(), MASKED),
    "autoencoder, IWAE": (autoencoder, IWAE(4), MASKED),
    "masked and read": (masked, ELBO(), READ),
    "masked and read, IWAE": (masked, IWAE(4), READ),
    "a mask of the guide's": (masked_guide, ELBO(), UNEQUAL),
    "a mask of the guide's distribution": (masked_distribution, ELBO(), UNEQUAL),
    "a mask of the guide's, IWAE": (masked_guide, IWAE(4), UNEQUAL),
    "a mask of the guide's, analytic KL": (masked_guide, AnalyticKLELBO(), UNEQUAL),
    "auxiliary": (auxiliary, ELBO(), AUXILIARY),
    "auxiliary, score function": (auxiliary, ScoreFunction(2), AUXILIARY),
    "name taken": (name_taken, ELBO(), TAKEN),
    "name taken, IWAE": (name_taken, IWAE(4), TAKEN),
    "outside the prior": (beyond_the_prior, ELBO(), OUTSIDE),
    "outside the prior, path derivative": (beyond_the_prior, StickingTheLanding(), OUTSIDE),
    "outside the prior, thermodynamic": (beyond_the_prior, ThermodynamicVO(4), OUTSIDE),
    "point, IWAE": (point, IWAE(4), POINT),
    "beta, wake-sleep": (under_beta, ReweightedWakeSleep(4), "is not defined for a beta on the latents, got 4"),
    "beta, thermodynamic": (under_beta, ThermodynamicVO(4), "is not defined for a beta on the latents, got 4"),
}


@pytest.mark.parametrize("door", TRAINS)
@pytest.mark.parametrize("name", REFUSED)
def test_every_door_refuses_to_train_what_one_refuses(name, door):
    make, objective, said = REFUSED[name]
    pair = make()
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    if (make, door) == (name_taken, "race"):  # every run of which has a param store of its own
        TRAINS[door](pair, objective)
        return
    with pytest.raises(pv.InputError, match=said) as caught:
        TRAINS[door](pair, objective)
    assert len(str(caught.value).splitlines()) == 1
    for name, value in before.items():
        assert torch.equal(pyro.param(name), value)


MEASURED = {
    "autoencoder": (autoencoder, MASKED, {"log_weights"}),
    "masked and read": (masked, READ, set()),
    "a mask of the guide's": (masked_guide, UNEQUAL, set()),
    "auxiliary": (auxiliary, AUXILIARY, set()),
    "name taken": (name_taken, TAKEN, {"race"}),
    "short of the prior": (
        short_of_the_prior,
        f"{SHORT}|Normal|one support in model and guide",
        {"importance_bound", "surgery", "log_weights", "calibration"},
    ),
    "point": (point, POINT, {"log_weights"}),
}


@pytest.mark.filterwarnings("ignore:the guide never draws")
@pytest.mark.parametrize("door", WEIGHS)
@pytest.mark.parametrize("name", MEASURED)
def test_every_estimate_refuses_what_one_refuses(name, door):
    make, said, allowed = MEASURED[name]
    pair = make()
    if door in allowed:
        WEIGHS[door](pair)
        return
    with pytest.raises(pv.InputError, match=said) as caught:
        WEIGHS[door](pair)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("door", [*TRAINS, *WEIGHS])
def test_every_door_takes_a_plain_pair(door):
    (TRAINS[door](plain(), ELBO(2)) if door in TRAINS else WEIGHS[door](plain()))


# Once for each structure ---------------------------------------------------------------------------------------------


def test_the_gate_is_gone_through_once_for_each_structure_and_again_when_it_changes():
    family, runs = [dist.Normal], [0]

    def guide(x):
        runs[0] += 1
        loc = pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family[0](loc, double(1.0)).expand([1]).to_event(1))

    svi = SVI(pair(lambda: dist.LogNormal(double(0.0), 1.0), None).model, guide, Adam({"lr": 0.01}), VIMCO(4))
    counts = []
    for step in range(6):
        if step == 3:
            family[0] = dist.LogNormal
        runs[0] = 0
        svi.step(X)
        counts.append(runs[0])
    assert counts[1] == counts[2] == counts[4] == counts[5] == 2  # the step's own
    assert counts[0] > 2
    assert counts[3] > 2


def test_the_gate_leaves_random_numbers_modes_and_running_statistics_alone():
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double().train()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    model = plain().model
    torch.manual_seed(1)
    first = ELBO(2).loss(model, guide, X)  # through the gate
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert ELBO(2).loss(model, guide, X) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())


def test_a_pair_is_checked_by_three_runs_of_its_data_also_if_it_is_known():
    (model, guide), runs = (plain().model, plain().guide), []

    def counted(x):
        runs.append(len(x))
        guide(x)

    for needs, count in ((None, 2), (gate.Weights(), 3)):
        runs.clear()
        gate.check(model, counted, needs, X)
        assert runs == [len(X)] * count  # with two particles, with one, and with one for each digit of a datum's number
    bad = X.clone()
    bad[1] = float("nan")
    with pytest.raises(pv.InputError, match="nan"):
        gate.check(model, counted, gate.Weights(), bad)
