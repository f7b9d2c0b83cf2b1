"""The VAE: its programs, names in Pyro's parameter store, samples and refusals."""

import copy
import math
from functools import partial

import helpers
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import pyrovae as pv
from pyrovae.models.param_store import unique_name

small_vae = partial(helpers.small_vae, (3,), seed=None, likelihood=pv.Gaussian(0.5))


def traces(vae, x):
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    for trace in (model, guide):
        trace.compute_log_prob()
    return model.nodes, guide.nodes


def test_the_sites_have_the_densities_of_the_equations():
    vae, x = small_vae(), torch.randn(5, 3)
    model, guide = traces(vae, x)
    z = model["z"]["value"]
    half_log_2pi = 0.5 * math.log(2 * math.pi)
    loc, log_variance = vae.encoder(x).unbind(-2)
    torch.testing.assert_close(model["z"]["log_prob"], (-0.5 * z**2 - half_log_2pi).sum(-1))
    q = -0.5 * (z - loc) ** 2 / log_variance.exp() - 0.5 * log_variance - half_log_2pi
    torch.testing.assert_close(guide["z"]["log_prob"], q.sum(-1))
    likelihood = -0.5 * ((x - vae.decoder(z)) / 0.5) ** 2 - math.log(0.5) - half_log_2pi
    torch.testing.assert_close(model["x"]["log_prob"], likelihood.sum(-1))


def test_beta_scales_the_latent_site_of_model_and_guide_and_nothing_else():
    vae, x = small_vae(), torch.randn(5, 3)
    torch.manual_seed(1)
    plain = traces(vae, x)
    vae.set_beta(4.0)
    torch.manual_seed(1)
    scaled = traces(vae, x)
    for program in (0, 1):
        torch.testing.assert_close(scaled[program]["z"]["log_prob"], 4 * plain[program]["z"]["log_prob"])
    torch.testing.assert_close(scaled[0]["x"]["log_prob"], plain[0]["x"]["log_prob"], atol=0, rtol=0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, 2.0**64])
def test_a_beta_that_pyro_cannot_scale_by_is_refused(beta):
    limit = r" and < 9.22337e\+18" if beta == 2.0**64 else ""
    with pytest.raises(pv.InputError, match=rf"^beta must be a finite number > 0{limit}, got "):
        small_vae().set_beta(beta)


def parameters_of(vae):
    return [p.detach().clone() for p in vae.parameters()]


def svi_steps(vae, x, steps=3):
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO())
    before = parameters_of(vae)
    for _ in range(steps):
        svi.step(x)
    return [not torch.equal(b, a) for b, a in zip(before, parameters_of(vae), strict=True)]


def test_two_vaes_trained_in_turn_under_plain_svi_both_move():
    """Trap 8: under a name that the parameter store already holds, the second model would silently never train."""
    x = torch.randn(20, 3)
    learned = {"likelihood": pv.Gaussian(0.5, learn_scale=True)}
    assert all(svi_steps(small_vae(**learned), x))
    assert all(svi_steps(small_vae(**learned), x))


def test_a_deep_copy_trains_apart_from_its_original():
    x, vae = torch.randn(20, 3), small_vae()
    svi_steps(vae, x)
    twin, kept = copy.deepcopy(vae), parameters_of(vae)
    assert all(svi_steps(twin, x))
    assert all(torch.equal(a, b) for a, b in zip(kept, parameters_of(vae), strict=True))


def test_a_name_is_never_used_again_when_a_vae_is_gone():
    names = set()
    for _ in range(20):
        vae = small_vae()
        names.add(unique_name(vae))
        assert unique_name(vae) in names
        del vae
    assert len(names) == 20


def test_a_likelihood_given_to_two_vaes_is_not_shared():
    likelihood = pv.Gaussian(0.5, learn_scale=True)
    one, other = small_vae(likelihood=likelihood), small_vae(likelihood=likelihood)
    svi_steps(one, torch.randn(20, 3))
    assert one.likelihood.scale.item() != pytest.approx(0.5, abs=1e-4)
    assert other.likelihood.scale.item() == likelihood.scale.item() == pytest.approx(0.5)


def test_training_moves_with_the_module_when_it_changes_dtype():
    """Pyro's parameter store holds the module's own tensors, also after `.double()`."""
    vae = small_vae()
    svi_steps(vae, torch.randn(20, 3))
    assert all(svi_steps(vae.double(), torch.randn(20, 3, dtype=torch.float64)))


def test_decoder_starts_at_the_data_mean():
    mean = torch.tensor([0.0, 0.2, 0.9])
    vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(), data_mean=mean)
    assert vae.decoder.output.bias.tolist() == pytest.approx(torch.logit(mean.clamp(0.001, 0.999)).tolist())
    gaussian = small_vae(data_mean=mean)
    assert gaussian.decoder.output.bias.tolist() == pytest.approx(mean.tolist())


def test_sample_is_a_draw_of_x_and_mean_is_not():
    vae = small_vae(likelihood=pv.Gaussian(5.0))
    draws, means = vae.sample(4_000), vae.sample(4_000, mean=True)
    spread = (draws.var(0) - means.var(0)).mean().item()
    assert spread == pytest.approx(25.0, rel=0.1)


def test_reconstruct_decodes_the_posterior_mean():
    vae, x = small_vae(), torch.randn(4, 3)
    loc = vae.encoder(x)[:, 0]
    torch.testing.assert_close(vae.reconstruct(x), vae.decoder(loc).detach())


def test_mean_of_a_sample_is_the_probability_for_pixels():
    vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
    pixels, means = vae.sample(50), vae.sample(50, mean=True)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    assert 0 < means.min() < means.max() < 1
    assert not means.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1, got 0"),
        ({"hidden": (8, 0)}, "hidden must be a whole number >= 1, got 0"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"likelihood": "gaussian"}, "likelihood must be a pyrovae likelihood, got 'gaussian'"),
        ({"data_mean": torch.zeros(2)}, r"data_mean must be real, of shape \(3,\), got \(2,\)"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(pv.InputError, match=message):
        small_vae(**settings)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(5, 4), r"x must have shape \(batch, 3\), got \(5, 4\)"),
        (torch.zeros(3), r"x must have shape \(batch, 3\), got \(3,\)"),
        (torch.zeros(0, 3), "x must hold at least one datum, got 0"),
        (torch.zeros(5, 3).cfloat(), "x must be a floating-point tensor, got torch.complex64"),
        (1.0, "x must be a floating-point tensor, got float"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_every_method(x, message):
    vae = small_vae()
    for method in (vae.model, vae.guide, vae.encode, vae.reconstruct, vae.check_data):
        with pytest.raises(pv.InputError, match=message):
            method(x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(4, 3), "z must have shape (..., 2), got (4, 3)"),
        (torch.tensor(0.0), "z must have shape (..., 2), got ()"),
        (
            1e9 + torch.arange(22.0).double().reshape(11, 2),
            "z must be of torch.float32, got torch.float64, whose 1000000001.0 at index (0, 1) would lose digits in it",
        ),
        (torch.zeros(4, 2).cfloat(), "z must be a tensor of real numbers, got torch.complex64"),
        ([0.0, 0.0], "z must be a tensor of real numbers, got list"),
        (torch.tensor([[0.0, math.nan]]), "z must be finite, got nan at index (0, 1)"),
    ],
)
def test_codes_that_do_not_fit_are_refused(z, message):
    assert helpers.refusal(small_vae().decode, z) == message


def test_codes_have_the_shape_that_the_latent_site_has():
    codes = small_vae(posterior=pv.posteriors.RelaxedCategorical(2, num_classes=4, temperature=0.5))
    assert helpers.refusal(codes.decode, torch.zeros(5, 2, 4)) == "z must have shape (..., 2, 3), got (5, 2, 4)"
    assert codes.decode(torch.zeros(7, 5, 2, 3)).batch_shape == (7, 5)


def test_a_decoder_takes_the_shorter_codes_of_autocast():
    vae, x = small_vae(), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vae.encode(x).sample().dtype == torch.bfloat16
        assert vae.decode(vae.encode(x).sample()).batch_shape == (4,)
        assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x))
    z = torch.randn(4, 2).bfloat16()
    assert torch.equal(vae.decode(z).mean, vae.decode(z.float()).mean)


def test_within_a_program_values_are_not_read_twice_so_that_a_training_that_diverges_is_told_as_one():
    vae, x = small_vae(), torch.full((3, 3), math.nan)
    with pytest.raises(ValueError, match="invalid values") as caught, poutine.trace():
        vae.encode(x)
    assert not isinstance(caught.value, pv.InputError)


def test_check_data_names_the_first_element_that_is_not_finite():
    x = torch.zeros(5, 3)
    x[3, 1] = math.inf
    with pytest.raises(pv.InputError, match=r"x must be finite, got inf at index \(3, 1\)"):
        small_vae().check_data(x)


def test_nothing_is_left_in_the_param_store_but_what_the_programs_register():
    vae = small_vae()
    traces(vae, torch.zeros(2, 3))
    names = set(pyro.get_param_store().keys())
    prefix = unique_name(vae)
    expected = {
        f"{prefix}.{part}$$${n}" for part in ("encoder", "decoder") for n, _ in getattr(vae, part).named_parameters()
    }
    assert names == expected


def test_an_error_from_inside_a_program_is_one_line_without_pyros_shapes():
    vae = small_vae(condition=pv.OneHot(3))
    with pytest.raises(pv.InputError) as caught:
        pv.log_marginal(vae.model, vae.guide, torch.zeros(4, 3), num_samples=5)
    assert str(caught.value) == "y must hold 1 condition, got 0: give y, as in (x, y)"
