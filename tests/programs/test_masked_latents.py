"""Masked latents: weights as of programs trimmed by hand, and a refusal where something reads what is masked."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from ragged_pairs import MASKS, chain, log_px, sequences, trimmed
from scalar_pairs import Pair, double, gradients

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, DReG, ReweightedWakeSleep
from pyrovae.programs import pair_at, run_pair

X, L = sequences()


def moved_guide() -> None:
    """Moves the guide off the posterior, so that weights differ."""
    pyro.param("shift", double(0.3))
    pyro.param("widening", double(0.2))


def log_weights_and_gradients(pair: Pair, draws: dict, *args) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    log_w = pair_at(*pair, draws, *args).terms().log_weights
    parameters = [pyro.param(name) for name in ("a", "shift", "widening")]
    return log_w, torch.autograd.grad(log_w.square().sum(), parameters)


@pytest.mark.parametrize("mask", MASKS)
def test_weights_and_their_gradients_are_those_of_the_programs_trimmed_by_hand(mask):
    moved_guide()
    torch.manual_seed(suite_seed(1))
    ragged = chain(MASKS[mask])
    sites = run_pair(*ragged, X, L, num_particles=5).guide_sites
    draws = {name: site["value"].detach() for name, site in sites.items()}
    log_w, slopes = log_weights_and_gradients(ragged, draws, X, L)
    assert log_w.std(0).min() > 0.01
    totals = [0.0, 0.0, 0.0]
    for rows, pair in trimmed(L):
        flat = {name: z.reshape(5, len(L))[:, rows] for name, z in draws.items() if int(name[2:]) < L[rows[0]]}
        expected, found = log_weights_and_gradients(pair, flat, X[rows], L[rows])
        torch.testing.assert_close(log_w[:, rows], expected, atol=1e-10, rtol=0)
        totals = [total + slope for total, slope in zip(totals, found, strict=True)]
    torch.testing.assert_close(torch.stack(slopes), torch.stack(totals), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mask", MASKS)
def test_under_the_exact_posterior_every_weight_is_the_density_of_the_sequence(mask):
    log_w = pv.log_weights(*chain(MASKS[mask]), X, L, num_particles=5)
    torch.testing.assert_close(log_w.detach(), log_px(X, L).expand(5, -1), atol=1e-10, rtol=0)


# Every door takes them ------------------------------------------------------------------------------------------------

OBJECTIVES = {
    "elbo": ELBO(3),
    "path": pv.objectives.StickingTheLanding(3),
    "iwae": IWAE(3),
    "dreg": DReG(3),
    "vimco": VIMCO(3),
    "wake-sleep": ReweightedWakeSleep(3),
    "score function": pv.objectives.ScoreFunction(3),
    "thermodynamic": pv.objectives.ThermodynamicVO(3),
    "renyi": pv.objectives.Renyi(3, alpha=0.5),
    "chunks": IWAE(3, chunk_size=2),
    "pyro": pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
}


class Ragged:
    """The pair for `fit`, with the lengths as a condition."""

    num_conditions = 1

    def __init__(self):
        self.model, self.guide = chain()


def svi(objective) -> float:
    return SVI(*chain(), Adam({"lr": 1e-6}), objective).step(X, L)


def compiled(objective) -> float:
    step = pv.CompiledSVI(*chain(), Adam({"lr": 1e-6}), objective, inductor=False).step
    return [step(X, L) for _ in range(3)][-1]


def fit(objective) -> float:
    settings = {"epochs": 1, "lr": 1e-6, "progress": False, "compile": False}
    return pv.fit(Ragged(), [(X, L)], objective=objective, **settings).loss[-1] * len(X)


def compare(objective) -> float:
    settings = {"num_particles": [3], "repeats": 4, "compile": False, "progress": False}
    found = pv.compare(*chain(), X, L, objectives=[lambda num: objective], **settings)
    return -found.rows[0].bound * len(X)


MAIN = ["elbo", "iwae", "dreg", "vimco", "wake-sleep"]
# Every objective at one door, and every door with some: what a door does is the same for all of them.
DOORS = [(svi, name) for name in OBJECTIVES]
DOORS += [
    (compiled, "elbo"),
    (compiled, "dreg"),
    (fit, "iwae"),
    (fit, "vimco"),
    (compare, "dreg"),
    (compare, "wake-sleep"),
]


@pytest.mark.parametrize(("door", "name"), DOORS, ids=lambda one: getattr(one, "__name__", one))
def test_under_the_exact_posterior_every_loss_is_minus_log_px(name, door):
    assert door(OBJECTIVES[name]) == pytest.approx(-log_px(X, L).sum().item(), abs=1e-3)


@pytest.mark.parametrize("name", MAIN)
def test_under_the_exact_posterior_the_mean_gradient_in_the_model_is_that_of_log_px(name):
    torch.manual_seed(suite_seed(2))
    found = gradients(OBJECTIVES[name], chain(), X.repeat(2, 1), L.repeat(2), num=30)[:, 0] / 2
    a = double(0.8).requires_grad_()
    (expected,) = torch.autograd.grad(-log_px(X, L, a).sum(), a)
    assert_within_standard_errors(found.mean(), expected, found.std() / math.sqrt(len(found)))


@pytest.mark.parametrize("name", ["path", "dreg"])
def test_under_the_exact_posterior_path_derivatives_have_no_gradient_in_the_guide(name):
    found = gradients(OBJECTIVES[name], chain(), X, L)[0, 1:]
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64), atol=1e-10, rtol=0)


# What is refused ------------------------------------------------------------------------------------------------------

READ = 'site "x_1" of the model must not read the latent "z_1" where only "z_1" is masked: weights then have no '


@pytest.mark.parametrize("mask", MASKS)
def test_a_likelihood_that_reads_a_masked_state_is_refused_and_both_sites_are_named(mask):
    read, first = chain(MASKS[mask], masks_data=False), mask == next(iter(MASKS))
    for use in (
        *(partial(one.loss, *read, X, L) for one in ((ELBO(), IWAE(3), DReG(3)) if first else (IWAE(3),))),
        lambda: pv.log_marginal(*read, X, L, num_samples=10, progress=False),
        lambda: pv.log_weights(*read, X, L, num_particles=2),
    ):
        with pytest.raises(pv.InputError) as caught:
            use()
        assert str(caught.value).startswith(READ)
        assert len(str(caught.value).splitlines()) == 1


def test_a_guide_that_reads_a_masked_latent_is_refused():
    """As one that draws the states backwards."""

    def guide(x, lengths):
        z = double(0.0)
        with pyro.plate("data", len(x), dim=-1):
            for t in reversed(range(4)):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, double(1.0)))

    said = 'site "z_2" of the guide must not read the latent "z_3" where only "z_3" is masked: gradients then lack'
    with pytest.raises(pv.InputError, match=said):
        ELBO().loss(chain().model, guide, X, L)


def one_latent(
    prior_mask=True, guide_mask=True, reads=True, mark: dict | None = None, data_mask=True, near: float = 1.0
) -> Pair:
    """Returns a pair of one scalar latent for x, `(batch,)`, whose likelihood may read it; masks may be functions."""

    def masked(mask, x):
        return poutine.mask(mask=mask(x) if callable(mask) else mask)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with masked(prior_mask, x):
                z = pyro.sample("z", dist.Normal(double(0.0), 1.0), infer=dict(mark or {}))
            with masked(data_mask, x):
                pyro.sample("x", dist.Normal(near * z if reads else 0 * z, double(0.7)), obs=x)

    def guide(x):
        loc = pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1), masked(guide_mask, x):
            pyro.sample("z", dist.Normal(loc.expand(x.shape), double(1.0)), infer=dict(mark or {}))

    return Pair(model, guide)


def first_half(x):
    return torch.arange(len(x)) < len(x) // 2


UNEQUAL = 'the latent site "z" must have the same mask in model and guide'
READ_Z = 'site "x" of the model must not read the latent "z" where only "z" is masked'
VARIOUS = {
    "the guide's alone": (one_latent(guide_mask=first_half), UNEQUAL),
    "the prior's alone": (
        one_latent(prior_mask=False),
        f"{UNEQUAL}, got 12 of 12 elements masked in the model and 0 in the guide",
    ),
    "other data": (one_latent(prior_mask=first_half, guide_mask=lambda x: ~first_half(x)), UNEQUAL),
    "read": (one_latent(first_half, first_half), READ_Z),
    "all, and read": (one_latent(False, False), READ_Z),
    "hardly read": (one_latent(first_half, first_half, near=1e-6), READ_Z),
    "data masked elsewhere": (one_latent(first_half, first_half, data_mask=lambda x: ~first_half(x)), READ_Z),
}


@pytest.mark.parametrize("name", VARIOUS)
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), pv.objectives.AnalyticKLELBO()], ids=lambda o: type(o).__name__)
def test_unequal_masks_and_readers_are_refused(objective, name):
    pair, said = VARIOUS[name]
    with pytest.raises(pv.InputError, match=said):
        objective.loss(*pair, X[:, 0])


TAKEN = {
    "none": one_latent(),
    "all unmasked": one_latent(torch.tensor(True), torch.tensor(True)),
    "of the model, which masks nothing": one_latent(torch.tensor(True), True),
    "data alone": one_latent(data_mask=first_half),
    "both": one_latent(first_half, first_half, data_mask=first_half),
    "all latents, not read": one_latent(False, False, reads=False),
    "some latents, not read": one_latent(first_half, first_half, reads=False),
    "everything": one_latent(False, False, data_mask=False),
}


@pytest.mark.parametrize("name", TAKEN)
def test_masks_that_nothing_reads_through_are_taken(name):
    """With everything masked the density is that of nothing, 1."""
    pair, x = TAKEN[name], X[:, 0]
    for objective in (ELBO(), DReG(3), VIMCO(3), ReweightedWakeSleep(3), pv.objectives.AnalyticKLELBO()):
        assert math.isfinite(objective.loss_and_grads(*pair, x))
    found = pv.log_marginal(*pair, x, num_samples=2_000, progress=False)
    scale = 0.7 if "not read" in name else math.sqrt(1 + 0.7**2)
    truth = dist.Normal(double(0.0), scale).log_prob(x)
    if name in ("data alone", "both"):
        truth = torch.where(first_half(x), truth, 0.0)
    truth = torch.zeros_like(truth) if name == "everything" else truth
    assert_within_standard_errors(found.value, truth, found.standard_error)


@pytest.mark.parametrize("where", ["masked", "unmasked"])
def test_supports_must_fit_where_a_latent_is_not_masked(where):
    """Intervals that are given by tensors, and differ between data."""

    def program(wide, observe):
        def run(x):
            there = first_half(x)
            tops = torch.where(~there if where == "masked" else there, wide, 1.0)
            with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=there):
                z = pyro.sample("z", dist.Uniform(0 * pyro.param("edge", double(1.0)), tops))
                if observe:
                    pyro.sample("x", dist.Normal(z, double(0.7)), obs=x)

        return run

    model, guide, x = program(2.0, True), program(5.0, False), X[:, 0].repeat(10)
    if where == "masked":
        assert math.isfinite(ELBO().loss(model, guide, x))
        assert pv.log_marginal(model, guide, x, num_samples=10, progress=False).value.isfinite().all()
        return
    with pytest.raises(pv.InputError, match="the guide must draw what the prior can give"):
        ELBO().loss(model, guide, x)
    with pytest.raises(pv.InputError, match='the guide never draws a part of what the prior gives at site "z"'):
        pv.log_marginal(program(5.0, True), program(2.0, False), x, num_samples=10, progress=False)


# Autoencoders ---------------------------------------------------------------------------------------------------------


def test_an_autoencoder_is_one_by_its_mark():
    marked = one_latent(False, False, mark={"is_autoencoder": True})
    assert math.isfinite(ELBO().loss_and_grads(*marked, X[:, 0]))
    for objective, said in (
        (IWAE(3), r"objective IWAE needs latents without a mask \(an autoencoder needs objective elbo\), and site "),
        (pv.objectives.AnalyticKLELBO(), "objective elbo_analytic_kl needs latents without a mask, and site "),
    ):
        with pytest.raises(pv.InputError, match=f'{said}"z" has one'):
            objective.loss(*marked, X[:, 0])
    with pytest.raises(pv.InputError, match='site "z" is latent and masked'):
        pv.log_marginal(*marked, X[:, 0], num_samples=10)
    with pytest.raises(pv.InputError, match="an autoencoder needs objective elbo, got Trace_ELBO"):
        pv.objectives.check_objective(pyro.infer.Trace_ELBO(), *marked, X[:, 0])
    unequal = one_latent(False, True, mark={"is_autoencoder": True})
    with pytest.raises(pv.InputError, match=UNEQUAL):
        ELBO().loss(*unequal, X[:, 0])
    unmasked = one_latent(mark={"is_autoencoder": True})
    assert math.isfinite(IWAE(3).loss(*unmasked, X[:, 0]))
