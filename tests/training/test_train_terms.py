"""Reconstruction and KL of the training batches: the terms of the very loss that was minimised, at every door."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import (
    OF_MIXTURES,
    assert_within_standard_errors,
    conditional_vae,
    draw,
    every_objective,
    linear_gaussian,
    parameters_of,
    ring,
    small_vae,
    suite_seed,
)

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, AnalyticKLELBO, EnumeratedELBO, keeping_terms
from pyrovae.training.checkpoint_content import history_of, position_of

STILL = {"optimizer": torch.optim.SGD, "lr": 1e-30, "progress": False}  # parameters that do not move


def terms_of(vae, data, objective, **settings):
    """Reconstruction and KL of one epoch in which nothing moves."""
    history = pv.fit(vae, data, epochs=1, objective=objective, **{**STILL, **settings})
    return history.train_reconstruction[0], history.train_kl[0]


def truth_of(vae, x):
    """E_q[log p(x|z)] and KL of each datum of a linear Gaussian VAE."""
    with torch.no_grad():
        q = vae.encode(x)
        kl = torch.distributions.kl_divergence(q.base_dist, vae.prior.base_dist).sum(-1)
        return vae.elbo(x) + kl, kl


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_loss_of_an_elbo_is_their_difference_whatever_the_sizes_of_batches(compile, beta, without_machine_code):
    vae = small_vae(beta=beta)
    history = pv.fit(vae, ring(), epochs=2, batch_size=32, compile=compile, lr=0.01, seed=1, progress=False)
    for loss, reconstruction, kl in zip(history.loss, history.train_reconstruction, history.train_kl, strict=True):
        assert loss == pytest.approx(beta * kl - reconstruction, abs=1e-5)
        assert kl > 0


@pytest.mark.parametrize("name", every_objective())
def test_under_every_objective_they_are_those_of_the_elbo_in_closed_form(name):
    vae = linear_gaussian(1)
    x = draw(vae, 40)
    if name == "elbo_enumerated" or name in OF_MIXTURES:
        pytest.skip("sums over values, and over the components of a mixture, have tests of their own")
    objective = pv.objectives.from_name(name, num_particles=200)
    with keeping_terms() as kept, torch.no_grad():
        objective.loss(vae.model, vae.guide, x)
    found = kept.total() / 40
    truth = torch.stack([term.mean() for term in truth_of(vae, x)])
    with torch.no_grad():
        q = vae.encode(x)
        z = q.sample((4_000,))
        draws = torch.stack((vae.decode(z).log_prob(x), q.log_prob(z) - vae.prior.log_prob(z)))
    error = draws.var(1).mean(1).div(200 * 40).sqrt()
    assert_within_standard_errors(found, truth, error)


def test_in_chunks_of_particles_they_are_the_mean_over_all_of_them():
    vae = linear_gaussian(1)
    x = draw(vae, 30)
    whole, cut = (terms_of(vae, x, IWAE(64, chunk_size=size), compile=False) for size in (None, 10))
    assert whole == pytest.approx(cut, abs=0.2)
    history = pv.fit(vae, x, epochs=1, objective=ELBO(5, chunk_size=2), compile=False, **STILL)
    assert history.loss[0] == pytest.approx(history.train_kl[0] - history.train_reconstruction[0], abs=1e-9)


@pytest.mark.parametrize("free_bits", [None, 3.0])
def test_the_kl_in_closed_form_is_exact_and_without_its_floor(free_bits):
    vae = linear_gaussian(1)
    x = draw(vae, 30)
    vae.double()
    _, kl = terms_of(vae, x, AnalyticKLELBO(free_bits=free_bits), batch_size=7)
    assert kl == pytest.approx(truth_of(vae, x)[1].mean().item(), abs=1e-9)


def test_a_sum_over_all_codes_gives_their_exact_expectation():
    vae, x = small_vae((3,), posterior="bernoulli", latent_dim=3), torch.randn(6, 3)
    codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    with torch.no_grad():
        log_q = vae.encode(x).log_prob(codes[:, None])
        likelihood = vae.decode(codes[:, None]).log_prob(x)
        kl = log_q - vae.prior.log_prob(codes)[:, None]
        truth = [(log_q.exp() * term).sum(0).mean().item() for term in (likelihood, kl)]
    assert terms_of(vae, x, EnumeratedELBO(), compile=False) == pytest.approx(truth, abs=1e-5)


def test_an_autoencoder_has_no_kl():
    vae = small_vae(posterior="delta")
    x = torch.randn(10, 2)
    reconstruction, kl = terms_of(vae, x, "elbo", batch_size=4)
    with torch.no_grad():
        expected = vae.decode(vae.encode(x).mean).log_prob(x).mean().item()
    assert reconstruction == pytest.approx(expected, abs=1e-5)
    assert kl == 0


def test_losses_of_which_only_the_value_is_known_have_none(without_machine_code):
    x = torch.randn(20, 2)
    for compile in (False, True):
        history = pv.fit(small_vae(), x, epochs=1, objective=pyro.infer.Trace_ELBO(), compile=compile, progress=False)
        assert history.train_reconstruction == history.train_kl == [None]
        assert "train_kl" not in history.table()
        assert len(history.plot().axes) == 1


def test_an_epoch_under_each_of_two_losses_has_those_of_its_own():
    objective = {1: pyro.infer.Trace_ELBO(), 2: "elbo"}
    history = pv.fit(small_vae(), torch.randn(20, 2), epochs=3, objective=objective, progress=False)
    assert history.train_kl[0] is None
    assert all(kl > 0 for kl in history.train_kl[1:])
    history.plot().draw_without_rendering()
    assert "train_kl" in history.table()


def test_data_that_a_program_declares_to_stand_for_more_count_as_those_that_there_are():
    def model(x):
        with pyro.plate("data", 1_000, subsample_size=len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", 1_000, subsample_size=len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, scale))

    pair = type("Pair", (), {"model": staticmethod(model), "guide": staticmethod(guide)})()
    history = pv.fit(pair, [(torch.randn(10),)] * 3, epochs=1, **STILL)
    assert history.loss[0] == pytest.approx(history.train_kl[0] - history.train_reconstruction[0], abs=1e-5)


def test_steps_that_are_skipped_are_not_in_them():
    x = torch.randn(8, 2)
    x[4:] = 1e25  # whose squares no float32 holds
    with pytest.warns(UserWarning, match="1 of 2 steps"):
        history = pv.fit(small_vae(), [(x[:4],), (x[4:],)], epochs=1, nonfinite="skip", compile=False, **STILL)
    assert history.skipped == [1]
    assert history.loss[0] == pytest.approx(history.train_kl[0] - history.train_reconstruction[0], abs=1e-5)


def test_keeping_them_changes_no_bit_of_a_training_and_nothing_is_kept_for_nobody(monkeypatch):
    vae, x = small_vae(), torch.randn(16, 2)
    torch.manual_seed(suite_seed())
    plain = ELBO().differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(suite_seed())
    with keeping_terms() as kept:
        loss = ELBO().differentiable_loss(vae.model, vae.guide, x)
    assert torch.equal(plain, loss)
    assert kept.total().shape == (2,)
    assert not kept.total().requires_grad
    monkeypatch.setattr("pyrovae.objectives.kept_terms.KeptTerms.add", lambda *args: pytest.fail("it was kept"))
    ELBO().loss(vae.model, vae.guide, x)
    pv.CompiledSVI(vae.model, vae.guide, inductor=False).step(x)


def test_conditions_and_replayed_steps_make_no_difference(without_machine_code):
    found = []
    for compile in (False, True):
        torch.manual_seed(suite_seed())
        vae = conditional_vae(pv.OneHot(3))
        x, y = torch.randn(12, 3), torch.arange(12) % 3
        history = pv.fit(vae, (x, y), epochs=2, compile=compile, seed=3, progress=False)
        found.append((history.train_reconstruction, history.train_kl, parameters_of(vae)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


def test_a_checkpoint_of_an_older_version_has_none_for_the_epochs_before_and_the_present_one():
    old = {"epoch": 2, "step": 3, "total": 5.0, "count": 30, "skipped": 0, "seconds": 1.0, "done": False}
    position = position_of({"position": old})
    assert (position.mean_of(position.reconstruction), position.mean_of(position.kl)) == (None, None)
    begun = position_of({"position": {**old, "step": 0, "total": 0.0, "count": 0}})
    assert (begun.reconstruction, begun.kl) == (0.0, 0.0)
    record = {"epoch": 1, "loss": 2.0, "elbo": None, "reconstruction": None, "kl": None}
    history = history_of({"history": [{**record, "lr": 0.1, "skipped": None, "seconds": 1.0}]})
    assert history.train_reconstruction == history.train_kl == [None]
