"""Diagnoses of the latents: ELBO terms, KL per dimension, active units, collapse, diversity; the plain autoencoder."""

import itertools
import math

import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, refusal, suite_seed
from pyro import poutine
from pyro.infer import RenyiELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.evaluation.diagnostics import LatentUse, elbo_terms, kl_per_dimension, latent_use, sample_diversity
from pyrovae.runs import measure, results_table


def linear_vae(loc, log_variance=(0.0, 0.0, 0.0), decoder=None, **settings):
    """Returns a VAE with linear networks: E[z|x] = x `loc`^T with `loc` `(latent, data)`, and given log-variances."""
    loc = torch.as_tensor(loc)
    vae = pv.VAE(
        (loc.shape[1],),
        **{"latent_dim": loc.shape[0], "hidden": (), "likelihood": pv.Gaussian(0.5), **settings},
    )
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.output.weight[: loc.shape[0]] = loc
        vae.encoder.set_output_bias(torch.stack((torch.zeros(len(loc)), torch.tensor(log_variance))))
        if decoder is not None:
            vae.decoder.output.weight.copy_(decoder)
    return vae


# ELBO terms ---------------------------------------------------------------------------------------------------------


def linear_gaussian_off_its_posterior():
    vae = linear_gaussian(0)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.3)
        vae.guide_bias.add_(0.2)
    return vae, draw(vae, 4)


def test_the_elbo_terms_of_a_linear_gaussian_vae_are_the_closed_form_in_mean():
    vae, x = linear_gaussian_off_its_posterior()
    q = vae.encode(x)
    kl = 0.5 * (q.variance + (q.mean - vae.prior_mean) ** 2 - 1 - q.variance.log()).sum(-1)
    repeats = [elbo_terms(vae.model, vae.guide, x, num_particles=200) for _ in range(50)]
    for name, truth in (("elbo", vae.elbo(x)), ("kl", kl), ("reconstruction", vae.elbo(x) + kl)):
        mean, error = mean_and_error(torch.stack([terms[name] for terms in repeats]))
        assert mean.shape == (4,)
        assert_within_standard_errors(mean, truth, error, note=name)


@pytest.mark.parametrize("num_particles", [1, 7])
def test_the_elbo_is_reconstruction_minus_kl_and_the_mean_of_the_log_weights(num_particles):
    vae, x = linear_gaussian_off_its_posterior()
    torch.manual_seed(suite_seed(1))
    terms = elbo_terms(vae.model, vae.guide, x, num_particles=num_particles)
    torch.manual_seed(suite_seed(1))
    log_weights = pv.log_weights(vae.model, vae.guide, x, num_particles=num_particles)
    assert set(terms) == {"elbo", "reconstruction", "kl"}
    assert torch.equal(terms["elbo"], terms["reconstruction"] - terms["kl"])
    torch.testing.assert_close(terms["elbo"], log_weights.detach().mean(0), rtol=0, atol=1e-10)
    assert not any(term.requires_grad for term in terms.values())


def test_the_elbo_terms_are_at_beta_one_whatever_the_vaes_own():
    vae, x = linear_vae(torch.randn(3, 4)), torch.randn(5, 4)
    found = []
    for beta in (1.0, 7.0):
        vae.set_beta(beta)
        torch.manual_seed(suite_seed(1))
        found.append(elbo_terms(vae.model, vae.guide, x, num_particles=3))
    for name, term in found[0].items():
        assert torch.equal(term, found[1][name])


# KL per dimension ---------------------------------------------------------------------------------------------------


def test_the_kl_of_each_dimension_is_the_formula():
    loc, log_variance = torch.randn(3, 4), (-1.0, 0.0, 0.5)
    vae, x = linear_vae(loc, log_variance, beta=5.0), torch.randn(6, 4)
    s = torch.tensor(log_variance)
    expected = 0.5 * (s.exp() + (x @ loc.T) ** 2 - 1 - s)
    torch.testing.assert_close(kl_per_dimension(vae, x), expected)
    assert not kl_per_dimension(vae, x).requires_grad


def test_the_kls_of_the_dimensions_sum_to_that_of_the_elbo_terms_in_mean():
    vae, x = linear_vae(torch.randn(3, 4), (-1.0, 0.0, 0.5)), torch.randn(3, 4)
    repeats = torch.stack([elbo_terms(vae.model, vae.guide, x, num_particles=100)["kl"] for _ in range(50)])
    mean, error = mean_and_error(repeats)
    assert_within_standard_errors(mean, kl_per_dimension(vae, x).sum(-1), error)


# Active units -------------------------------------------------------------------------------------------------------


def test_a_dimension_whose_encoder_is_constant_is_found_collapsed_and_named():
    vae = linear_vae([[1.0, 0.0], [0.0, 0.0], [0.0, 0.5]], (-1.0, 0.4, -2.0))
    with torch.no_grad():
        vae.encoder.output.bias[1] = 3.0  # constant, but not at the prior: its KL is not 0
    x = torch.randn(200, 2)
    use = latent_use(vae, x)
    torch.testing.assert_close(use.variance, torch.stack((x[:, 0].var(), torch.tensor(0.0), 0.25 * x[:, 1].var())))
    torch.testing.assert_close(use.kl, kl_per_dimension(vae, x).mean(0))
    assert use.active.tolist() == [True, False, True]
    assert use.num_active == 2
    kl = 0.5 * (math.exp(0.4) + 9 - 1 - 0.4)
    assert use.warning == (
        "posterior collapse: 1 of 3 latent dimensions says nothing about the data: number 2 "
        f"(variance of E[z|x] <= 0.01, KL {kl:.3g} nats in all)"
    )


def test_every_collapsed_dimension_is_named_and_no_other():
    for active in itertools.product((False, True), repeat=3):
        vae = linear_vae(torch.diag(torch.tensor(active).float()))
        warning = latent_use(vae, torch.randn(100, 3)).warning
        names = ", ".join(str(j + 1) for j in range(3) if not active[j])
        if all(active):
            assert warning is None
        else:
            says, numbers = ("says", "number") if sum(active) == 2 else ("say", "numbers")
            expected = f"{3 - sum(active)} of 3 latent dimensions {says} nothing about the data: {numbers} {names} ("
            assert warning.startswith(f"posterior collapse: {expected}")
            assert "\n" not in warning


@pytest.mark.parametrize(("variance", "active"), [(0.0099, False), (0.0101, True), (0.01, False)])
def test_a_unit_is_active_above_a_variance_of_one_hundredth(variance, active):
    """The variance of E[z|x] over the data decides, not E[Var] and not the KL: one with a large KL is not active."""
    x = torch.randn(400, 1, dtype=torch.float64)
    x = (x - x.mean()) / x.std()
    vae = linear_vae([[math.sqrt(variance)]], (-8.0,)).double()
    with torch.no_grad():
        vae.encoder.output.weight[0] = math.sqrt(variance)
    use = latent_use(vae, x)
    assert use.variance.item() == pytest.approx(variance, rel=1e-9)
    assert use.kl.item() > 3
    if variance != 0.01:
        assert use.active.tolist() == [active]
    assert LatentUse(torch.tensor([variance]), torch.tensor([1.0])).active.tolist() == [active]


def test_a_variance_over_one_datum_is_refused_and_not_taken_for_a_collapse():
    vae = linear_vae([[1.0, 0.0], [0.0, 1.0]], (0.0, 0.0))
    message = refusal(latent_use, vae, torch.randn(1, 2))
    assert "1" in message


def test_a_posterior_that_says_nothing_is_found_by_the_evaluation_and_the_report():
    x, y = torch.randn(10, 2), torch.zeros(10, dtype=torch.long)
    data = pv.Dataset("points", "real", x, y, x, y, x, y)
    for loc, collapsed in (([[1.0, 0.0], [0.0, 0.0]], True), ([[1.0, 0.0], [0.0, 1.0]], False)):
        result = measure(linear_vae(loc, (0.0, 0.0)), data, num_samples=10)
        assert result["active_units"] == 2 - collapsed
        assert (result["collapse"] or "").startswith("posterior collapse: 1 of 2 latent dimensions says" * collapsed)
        assert (result["collapse"] is not None) == collapsed
        line = next(line for line in results_table({"run": result}).splitlines() if line.startswith("active latent"))
        assert line.split()[-1] == str(2 - collapsed)


def test_a_vae_with_nothing_to_say_collapses_in_training_and_is_told_so():
    """The data come from one isotropic Gaussian, and the decoder is wider: the optimum has no use for the latents."""
    torch.manual_seed(suite_seed(0))
    x = 0.7 * torch.randn(300, 2)
    vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(1.0))
    assert latent_use(vae, x).num_active > 0
    pv.fit(
        vae, x, epochs=30, lr=0.03, batch_size=100, schedule="cosine", objective="elbo_analytic_kl", seed=suite_seed(0)
    )
    use = latent_use(vae, x)
    assert use.warning.startswith("posterior collapse: 2 of 2 latent dimensions say")
    assert use.kl.sum() < 0.02


# Sample diversity ---------------------------------------------------------------------------------------------------


def test_the_diversity_of_a_linear_decoder_is_the_mean_of_its_variances():
    """x = W z + b: the variances are diag(W W^T); those of n draws have covariance 2 (W W^T)_ij^2 / (n - 1)."""
    weight, num = torch.randn(5, 3), 4_000
    vae = linear_vae(torch.zeros(3, 5), decoder=weight, likelihood=pv.Gaussian(10.0))
    covariance = weight @ weight.T
    error = (2 * covariance.square().sum() / (num - 1)).sqrt() / 5
    assert_within_standard_errors(sample_diversity(vae, num), covariance.diagonal().mean(), error)


def test_the_diversity_of_a_decoder_that_does_not_look_at_z_is_zero():
    assert sample_diversity(linear_vae(torch.zeros(3, 5), decoder=torch.zeros(5, 3)), 50) == 0


def test_the_diversity_is_over_the_given_conditions_too():
    vae = pv.VAE((2,), latent_dim=1, hidden=(), likelihood=pv.Gaussian(0.5), condition=pv.OneHot(2))
    with torch.no_grad():
        vae.decoder.output.weight.copy_(torch.tensor([[0.0, 1.0, -1.0], [0.0, 3.0, -3.0]]))
    y = torch.arange(2).repeat(20)
    assert sample_diversity(vae, 40, y) == pytest.approx((1 + 9) / 2 * 40 / 39, rel=1e-5)
    assert sample_diversity(vae, 40, (torch.ones(40, dtype=torch.long),)) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("num", [0, 1, 2.5])
def test_too_few_samples_for_a_variance_are_refused(num):
    message = refusal(sample_diversity, linear_vae(torch.zeros(3, 5)), num)
    assert message == f"num_samples must be a whole number >= 2, got {num}"


# The plain autoencoder ----------------------------------------------------------------------------------------------


def autoencoder(seed=0, **settings):
    torch.manual_seed(suite_seed(seed))
    defaults = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5), "posterior": "delta"}
    return pv.VAE((3,), **{**defaults, **settings})


def minus_log_likelihood(vae, x):
    """Returns -log p(x|z) at z = the code of x, `(batch,)`, by hand for a Gaussian of scale 0.5."""
    means = vae.decoder(vae.encoder(x).squeeze(-2))
    return ((x - means) ** 2 / (2 * 0.25) + math.log(0.5) + 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize("beta", [1.0, 0.1, 30.0])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_loss_of_an_autoencoder_is_minus_log_p_of_x_at_its_code_without_a_kl(beta, num_particles):
    vae, x = autoencoder(beta=beta), torch.randn(6, 3)
    expected = minus_log_likelihood(vae, x)
    gradients = torch.autograd.grad(expected.mean(), list(vae.parameters()))
    before = [p.detach().clone() for p in vae.parameters()]
    settings = {"epochs": 1, "optimizer": torch.optim.SGD, "lr": 0.01, "num_particles": num_particles}
    history = pv.fit(vae, x, **settings)
    assert history.loss[0] == pytest.approx(expected.mean().item(), rel=1e-5)
    for start, end, gradient in zip(before, vae.parameters(), gradients, strict=True):
        torch.testing.assert_close((start - end.detach()) / 0.01, gradient, rtol=1e-3, atol=1e-3)


def test_the_code_of_an_autoencoder_is_one_point_and_its_encoder_puts_out_no_variance():
    vae, x = autoencoder(), torch.randn(6, 3)
    assert vae.encoder.out_shape == (1, 2)
    draws = [poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"] for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws[0], vae.encoder(x)[:, 0])
    torch.testing.assert_close(vae.encode(x).mean, vae.encoder(x)[:, 0])
    torch.testing.assert_close(vae.reconstruct(x), vae.decoder(vae.encoder(x)[:, 0]).detach())


def test_an_autoencoder_trains_to_a_lower_reconstruction_error_than_the_vae():
    x = torch.randn(200, 2) @ torch.randn(2, 3)
    errors = {}
    for posterior in ("delta", "diagonal"):
        vae = autoencoder(posterior=posterior, likelihood=pv.Gaussian(0.5))
        before = [p.detach().clone() for p in vae.parameters()]
        history = pv.fit(vae, x, epochs=25, lr=0.02, batch_size=50, seed=suite_seed(0), validation=x)
        assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
        errors[posterior] = (x - vae.reconstruct(x)).square().mean().item()
        if posterior == "delta":
            assert history.kl == [0.0] * 25
            assert history.elbo == history.reconstruction
            assert history.elbo[-1] == pytest.approx(-minus_log_likelihood(vae, x).mean().item(), abs=1e-4)
    assert errors["delta"] < 0.5 * errors["diagonal"]


def test_the_elbo_terms_of_an_autoencoder_are_its_reconstruction_and_a_kl_of_nothing():
    vae, x = autoencoder(beta=3.0), torch.randn(6, 3)
    terms = elbo_terms(vae.model, vae.guide, x, num_particles=2)
    torch.testing.assert_close(terms["reconstruction"], -minus_log_likelihood(vae, x).detach())
    assert torch.equal(terms["kl"], torch.zeros(6))


def test_an_autoencoder_may_be_conditional_and_convolutional():
    vae = autoencoder(condition=pv.OneHot(2))
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    assert len(pv.fit(vae, [(x, y)], epochs=2).loss) == 2
    assert vae.reconstruct(x, y).shape == (6, 3)
    settings = {"latent_dim": 2, "hidden": (4,), "likelihood": pv.Bernoulli(), "network": "conv", "posterior": "delta"}
    images = (torch.rand(6, 1, 4, 4) > 0.5).float()
    assert len(pv.fit(pv.VAE((1, 4, 4), **settings), images, epochs=2).loss) == 2


def test_an_autoencoder_has_no_log_p_of_x():
    vae, x = autoencoder(), torch.randn(6, 3)
    pair = vae.model, vae.guide
    for refused in (
        refusal(pv.log_marginal, *pair, x, num_samples=10),
        refusal(pv.importance_bound, *pair, x, num_particles=2),
        refusal(pv.quadrature_log_marginal, vae.model, x),
    ):
        assert refused.startswith('log p(x) does not exist or cannot be had: site "z" is ')
        assert "Delta" in refused or "masked" in refused


def test_what_is_had_of_an_autoencoder_by_one_particle_is_its_reconstruction():
    vae, x = autoencoder(), torch.randn(6, 3)
    bound = pv.importance_bound(vae.model, vae.guide, x, num_particles=1, num_repeats=3)
    torch.testing.assert_close(bound.value.float(), -minus_log_likelihood(vae, x).detach())
    assert (bound.standard_error == 0).all()


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("elbo_analytic_kl", {}),
        ("iwae", {"num_particles": 3}),
        ("renyi", {"num_particles": 3, "alpha": 0.5}),
        (TraceMeanField_ELBO(), {}),
        (RenyiELBO(alpha=0, num_particles=3), {}),
    ],
)
def test_an_autoencoder_under_an_objective_of_its_latents_density_is_refused(objective, settings):
    vae, x = autoencoder(), torch.randn(6, 3)
    before = [p.detach().clone() for p in vae.parameters()]
    message = refusal(pv.fit, vae, x, epochs=1, objective=objective, **settings)
    assert "objective" in message
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_an_autoencoder_has_no_kl_to_measure():
    vae, x = autoencoder(), torch.randn(6, 3)
    for function in (kl_per_dimension, latent_use):
        assert refusal(function, vae, x) == "a KL per dimension needs posterior diagonal and prior standard"


def test_the_evaluation_of_an_autoencoder_is_a_reconstruction_by_name():
    x, y = torch.randn(40, 3), torch.zeros(40, dtype=torch.long)
    vae = autoencoder()
    result = measure(vae, pv.Dataset("points", "real", x, y, x, y, x, y), num_samples=10)
    assert result["measure"] == "reconstruction"
    assert result["elbo"] == pytest.approx(-minus_log_likelihood(vae, x).mean().item(), rel=1e-5)
    nothing = ("iwae_50", "log_px", "log_px_quadrature", "active_units", "collapse", "median_ess")
    assert [result[name] for name in nothing] == [None] * 6
    table = results_table({"run": result})
    assert "reconstruction" in table
    assert "log p(x)" not in table
    assert "ELBO" not in table


@pytest.mark.parametrize("posterior", ["Delta", "full", None, 1])
def test_an_unknown_posterior_is_refused_with_the_known_ones(posterior):
    known = "diagonal, full_covariance, flow, mixture, bernoulli, relaxed_bernoulli, delta"
    hint = ": did you mean delta?" if posterior == "Delta" else ""
    assert refusal(autoencoder, posterior=posterior) == f"posterior must be one of {known}; got {posterior!r}{hint}"
