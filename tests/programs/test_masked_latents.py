"""Masked latents: weights as of programs trimmed by hand, and a refusal where something reads what is masked."""

import math

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
DOORS = [(svi, name) for name in OBJECTIVES] + [(door, name) for door in (compiled, fit, compare) for name in MAIN]


@pytest.mark.parametrize(("door", "name"), DOORS, ids=lambda one: getattr(one, "__name__", one))
def test_under_the_exact_posterior_every_loss_is_minus_log_px(name, door):
    assert door(OBJECTIVES[name]) == pytest.approx(-log_px(X, L).sum().item(), abs=1e-3)


@pytest.mark.parametrize("name", MAIN)
def test_under_the_exact_posterior_the_mean_gradient_in_the_model_is_that_of_log_px(name):
    torch.manual_seed(suite_seed(2))
    found = gradients(OBJECTIVES[name], chain(), X, L, num=50)[:, 0]
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
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), DReG(3)], ids=lambda one: type(one).__name__)
def test_a_likelihood_that_reads_a_masked_state_is_refused_and_both_sites_are_named(objective, mask):
    read = chain(MASKS[mask], masks_data=False)
    for use in (
        lambda: objective.loss(*read, X, L),
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
    "the prior's alone": (one_latent(prior_mask=False), UNEQUAL),
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


# Masks that depend on a latent ----------------------------------------------------------------------------------------


def switched() -> Pair:
    """Returns a pair whose z is there only if a coin says so: x ~ N(z, 0.7) or N(-1, 0.7)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(double(0.4))).bool()
            with poutine.mask(mask=on):
                z = pyro.sample("z", dist.Normal(double(0.5), 1.0))
            pyro.sample("x", dist.Normal(torch.where(on, z, -1.0), double(0.7)), obs=x)

    def guide(x):
        logit, loc = pyro.param("logit", double(0.3)), pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(logits=logit.expand(x.shape))).bool()
            with poutine.mask(mask=on):
                pyro.sample("z", dist.Normal(loc, double(1.2)))

    return Pair(model, guide)


def test_a_mask_that_depends_on_a_latent_is_that_of_each_particle():
    on = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)  # (particles, data)
    z, x = torch.randn(3, 3, dtype=torch.float64), X[:3, 0]
    found = pair_at(*switched(), {"on": on, "z": z}, x).terms()
    there = on.bool()
    prior = dist.Bernoulli(double(0.4)).log_prob(on) + there * dist.Normal(double(0.5), 1.0).log_prob(z)
    proposal = dist.Bernoulli(logits=double(0.3)).log_prob(on) + there * dist.Normal(double(0.2), 1.2).log_prob(z)
    likelihood = dist.Normal(torch.where(there, z, -1.0), 0.7).log_prob(x)
    torch.testing.assert_close(found.log_prior, prior, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.log_posterior.detach(), proposal, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.log_likelihood, likelihood, atol=1e-12, rtol=0)


def test_log_px_under_a_mask_that_depends_on_a_latent_is_that_of_the_mixture():
    torch.manual_seed(suite_seed(3))
    x = X[:, 0]
    truth = torch.logaddexp(
        math.log(0.4) + dist.Normal(double(0.5), math.sqrt(1 + 0.49)).log_prob(x),
        math.log(0.6) + dist.Normal(double(-1.0), 0.7).log_prob(x),
    )
    pair = switched()
    found = pv.log_marginal(*pair, x, num_samples=20_000, progress=False)
    assert_within_standard_errors(found.value, truth, found.standard_error)
    for objective in (VIMCO(3), ReweightedWakeSleep(3), pv.objectives.ScoreFunction(3)):
        losses = torch.tensor([objective.loss(*pair, x) for _ in range(40)])
        assert -losses.mean() < truth.sum() + 5 * losses.std() / math.sqrt(40)


def test_data_that_a_latent_masks_have_no_normalised_joint():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            on = pyro.sample("on", dist.Bernoulli(double(0.4))).bool()
            with poutine.mask(mask=on):
                pyro.sample("x", dist.Normal(double(0.5), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logit", double(0.3)).expand(x.shape)))

    x = X[:, 0].repeat(20)
    assert math.isfinite(VIMCO(3).loss(model, guide, x))
    with pytest.raises(pv.InputError, match='site "x" has a mask that differs between draws of the latents'):
        pv.log_marginal(model, guide, x, num_samples=10)


# Once for each structure ----------------------------------------------------------------------------------------------


def test_other_lengths_are_checked_again_only_if_they_show_something_new():
    ragged, runs = chain(), [0]

    def model(x, lengths):
        runs[0] += 1
        ragged.model(x, lengths)

    svi = SVI(model, ragged.guide, Adam({"lr": 1e-6}), IWAE(3))
    counts = []
    for lengths in ([4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4], [4, 2, 1, 3, 4, 2], [1, 2, 1, 3, 4, 4], [4, 4, 4, 4, 3, 2]):
        runs[0] = 0
        svi.step(X, torch.tensor(lengths))
        counts.append(runs[0])
    assert counts[1] == counts[3] == counts[4] == 1  # the step's own
    assert counts[0] > 1
    assert counts[2] > counts[0]  # with the runs for new values


def test_a_fault_that_only_a_later_batch_shows_is_found_there():
    read = chain(masks_data=False)
    svi = SVI(*read, Adam({"lr": 1e-6}), IWAE(3))
    for _ in range(2):
        svi.step(X, torch.full_like(L, 4))  # nothing is masked
    with pytest.raises(pv.InputError, match='site "x_3" of the model must not read the latent "z_3"'):
        svi.step(X, torch.full_like(L, 3))


def test_a_compiled_step_takes_other_lengths_and_is_checked_again_from_time_to_time():
    step = pv.CompiledSVI(*chain(), Adam({"lr": 1e-6}), IWAE(3), inductor=False).step
    for lengths in (L, L, L.flip(0), torch.full_like(L, 1)):
        x, _ = sequences(lengths)
        assert step(x, lengths) == pytest.approx(-log_px(x, lengths).sum().item(), abs=1e-3)
    step = pv.CompiledSVI(*chain(masks_data=False), Adam({"lr": 1e-6}), IWAE(3), inductor=False).step
    for _ in range(16):
        step(X, torch.full_like(L, 4))  # nothing is masked
    with pytest.raises(pv.InputError, match='site "x_3" of the model must not read the latent "z_3"'):
        step(X, torch.full_like(L, 3))


def test_the_check_leaves_random_numbers_alone():
    objective, losses = IWAE(3), []
    moved_guide()
    pair = chain()
    for _ in range(2):
        torch.manual_seed(suite_seed(4))
        losses.append(objective.loss(*pair, X, L))  # the first goes through the gate
        losses.append(torch.rand(()).item())
    assert losses[:2] == losses[2:]


def test_programs_that_draw_more_than_latents_are_checked_at_the_same_random_choices():
    ragged = chain()

    def model(x, lengths):
        ragged.model(x + 0.1 * torch.rand(x.shape), lengths)

    assert math.isfinite(IWAE(3).loss(model, ragged.guide, X, L))
    own = torch.Generator().manual_seed(0)

    def of_its_own(x, lengths):
        ragged.model(x + 0.1 * torch.rand(x.shape, generator=own), lengths)

    with pytest.raises(pv.InputError, match='masks of latents cannot be checked: site "x_0" of the model draws from a'):
        IWAE(3).loss(of_its_own, ragged.guide, X, L)


def test_a_latent_of_few_values_is_redrawn_until_it_differs():
    """Bits that are masked and read, one of them in all data."""

    def program(observe):
        def run(x):
            last = torch.arange(len(x)) < len(x) - 1
            with pyro.plate("data", len(x), dim=-1):
                with poutine.mask(mask=last):
                    fn = dist.Bernoulli(double(0.5)) if observe else dist.Bernoulli(logits=pyro.param("l", double(0.1)))
                    z = pyro.sample("z", fn)
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    refused = 0
    for seed in range(20):
        torch.manual_seed(suite_seed(seed))
        try:
            VIMCO(2).loss(program(True), program(False), X[:, 0])
        except pv.InputError:
            refused += 1
    assert refused >= 18  # each of four rounds leaves both particles with a chance of 1/4
