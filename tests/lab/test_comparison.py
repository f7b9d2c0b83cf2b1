"""compare: its moments against gradients that are kept, its floors against pure noise, and nothing touched."""

import json
import math
import re
import sys
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, refusal, small_vae, suite_seed
from pyro.infer import RenyiELBO, Trace_ELBO

import pyrovae as pv
from pyrovae.common.rng import derived_seed
from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison_report import draw_comparison
from pyrovae.lab.repeats import reference_of
from pyrovae.objectives import ELBO, IWAE, MIWAE, VIMCO, AnalyticKLELBO, DReG, Renyi, ScoreFunction
from pyrovae.objectives.base import Coefficients, DifferentiableELBO

FEW = {"repeats": 6, "compile": False, "progress": False}
GUIDE = ("guide_weight", "guide_bias", "guide_log_scale")


def off(seed=0):
    """A closed-form pair whose guide is off."""
    vae = linear_gaussian(seed, data_dim=3)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.4)
        vae.guide_bias.add_(0.3)
    return vae


def kept(vae, x, objective, seeds):
    """`(repeats, parameters)` gradients of the loss per datum, of the guide."""
    rows = []
    for seed in seeds:
        vae.zero_grad()
        torch.manual_seed(seed)
        objective.loss_and_grads(vae.model, vae.guide, x)
        rows.append(torch.cat([getattr(vae, name).grad.flatten() for name in GUIDE]) / len(x))
    vae.zero_grad()
    return torch.stack(rows)


def test_the_moments_are_those_of_the_gradients_that_were_not_kept():
    vae, x, repeats = off(), None, 40
    x = draw(vae, 6)
    found = compare(vae.model, vae.guide, x, objectives=["iwae"], num_particles=[4], repeats=repeats, compile=False)
    row = found["iwae", 4]
    seeds = [derived_seed(0, f"iwae 4 {repeat}") for repeat in range(repeats)]
    gradients = kept(vae, x, IWAE(4), seeds)
    mean, deviation = gradients.mean(0), gradients.std(0)
    assert row.guide.norm == pytest.approx(mean.norm().item())
    assert row.guide.variance == pytest.approx(deviation.square().sum().item())
    assert row.guide.snr == pytest.approx((mean.abs() / deviation).mean().item())
    direction = gradients[: repeats // 2].mean(0)
    along = (gradients[repeats // 2 :] @ direction / direction.norm()).abs()
    across = (gradients[repeats // 2 :].square().sum(1) - along**2).sqrt()
    assert row.guide.dsnr == pytest.approx((along / across).mean().item())
    no_signal = gradients[: repeats // 4].mean(0) - gradients[repeats // 4 : repeats // 2].mean(0)
    noise = gradients[repeats // 2 :] - direction
    along = (noise @ no_signal / no_signal.norm()).abs()
    across = (noise.square().sum(1) - along**2).sqrt()
    assert row.guide.dsnr_floor == pytest.approx((along / across).mean().item())


def test_bounds_are_the_exact_ones_within_their_errors_and_gaps_are_to_log_px():
    vae = off()
    x = draw(vae, 20)
    exact = pv.Estimate(vae.log_px(x).detach(), torch.zeros(20))
    found = compare(
        vae.model, vae.guide, x, objectives=["elbo", "iwae"], num_particles=[1, 50], repeats=60, log_px=exact,
        compile=False,
    )  # fmt: skip
    for number in (1, 50):
        row = found["elbo", number]
        assert_within_standard_errors(row.bound, vae.elbo(x).mean(), row.bound_error)
        assert row.gap == pytest.approx(exact.mean - row.bound)
    assert found["elbo", 50].bound_error < 0.3 * found["elbo", 1].bound_error
    assert 0 < found["iwae", 50].gap < 0.3 * found["elbo", 50].gap
    assert all(row.compiled_seconds is None and row.saved_bytes > 0 for row in found.rows)
    timed = compare(vae.model, vae.guide, x, objectives=["elbo"], num_particles=[1], repeats=4, log_px=exact)
    assert timed["elbo", 1].compiled_seconds > 0
    assert found["iwae", 50].saved_bytes > 5 * found["iwae", 1].saved_bytes
    assert found.complete


def exact_variance(vae, x, sticking):
    """Of the guide's gradient of the ELBO of one draw, summed over its parameters, in closed form.

    d log w / dz = a + G s e with the draw z = c + s e; of the bias' gradient, a + G s e, each coordinate's variance is
    sum_k (G_jk s_k)^2; of the log-scale's, (a + G s e)_j s_j e_j (+ 1),
    s_j^2 (a_j^2 + sum_k (1 + [k = j]) (G_jk s_k)^2).
    """
    q, p = vae.encode(x), vae.posterior(x)
    scales, precision = vae.guide_log_scale.exp(), p.precision_matrix[0]
    slope = -precision @ (q.mean - p.mean).T  # a, (L, B)
    matrix = -precision + (torch.diag(scales**-2) if sticking else 0.0)
    squares = (matrix * scales).square()
    of_bias = squares.sum(1)
    of_log_scale = scales[:, None] ** 2 * (slope**2 + (squares.sum(1) + squares.diagonal())[:, None])
    total = of_bias.sum() * (1 + x.square().sum(1)).sum() + of_log_scale.sum()
    return (total / len(x) ** 2).detach()


def test_variances_agree_with_their_closed_form():
    vae, names, numbers = off(), ("elbo", "sticking_the_landing"), (1, 4)
    x, known = draw(vae, 5), pv.Estimate(torch.zeros(5), torch.zeros(5))
    settings = {"objectives": names, "num_particles": numbers, "repeats": 50, "log_px": known, "compile": False}
    tables = [compare(vae.model, vae.guide, x, **settings, seed=suite_seed(seed)) for seed in range(10)]
    found = torch.tensor([[[table[n, k].guide.variance for k in numbers] for n in names] for table in tables])
    exact = torch.stack([exact_variance(vae, x, name != "elbo") / torch.tensor(numbers) for name in names])
    error = found.std(0) / math.sqrt(len(found))
    assert_within_standard_errors(found.mean(0), exact, error)
    assert (error < 0.1 * exact).all()
    assert exact[1, 0] < 0.5 * exact[0, 0]


def test_the_mean_gradient_of_the_model_is_that_of_the_exact_bound():
    vae = off()
    x = draw(vae, 20)
    settings = {"objectives": ["elbo"], "num_particles": [1], "repeats": 400, "compile": False}
    found = compare(vae.model, vae.guide, x, **settings, seed=suite_seed())["elbo", 1].model
    parameters = [vae.weight, vae.bias, vae.prior_mean, vae.log_scale]
    exact = torch.autograd.grad(-vae.elbo(x).mean(), parameters)
    error = math.sqrt(found.variance / 400)
    assert (found.mean - torch.cat([g.flatten() for g in exact])).norm() < 2 * error
    assert error < 0.1 * found.norm


def test_a_biased_estimator_is_seen_beyond_the_floor_and_an_unbiased_one_is_not():
    class Naive(IWAE):
        reference = IWAE

        def coefficients(self, log_weights, beta):
            weights = log_weights.softmax(0)
            return Coefficients(weights, path=weights)

    vae = off()
    x = draw(vae, 2).repeat(64, 1)
    found = compare(vae.model, vae.guide, x, objectives=["dreg", Naive], num_particles=[4], repeats=150, compile=False)
    dreg, naive = found["dreg", 4], found["Naive", 4]
    assert dreg.reference == naive.reference == "IWAE"
    assert dreg.guide.bias < 2 * dreg.guide.bias_floor
    assert naive.guide.bias > 5 * naive.guide.bias_floor
    assert naive.model.bias < 2 * naive.model.bias_floor


def twice_dreg(number):
    return DReG(2 * number)


@dataclass(frozen=True)
class NaiveMIWAE(MIWAE):
    reference = MIWAE


@dataclass(frozen=True)
class NaiveRenyi(Renyi):
    reference = Renyi


@dataclass(frozen=True)
class BesidePyro(DReG):
    reference = Trace_ELBO


@dataclass(frozen=True)
class BesidePyrosRenyi(NaiveRenyi):
    reference = RenyiELBO


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DReG(8, chunk_size=2), IWAE(8)),
        (VIMCO(8), IWAE(8)),
        (ScoreFunction(8, baseline="leave_one_out"), ELBO(8)),
        (AnalyticKLELBO(8), ELBO(8)),
        (NaiveMIWAE(8, num_batches=3), MIWAE(8, num_batches=3)),
        (NaiveRenyi(8, alpha=2.0), Renyi(8, alpha=2.0)),
    ],
)
def test_the_reference_has_what_it_shares_of_the_objects_own_settings(objective, expected):
    assert reference_of(objective) == expected


def test_a_reference_of_pyros_has_them_too_and_is_found_again():
    for objective in (BesidePyro(8), BesidePyrosRenyi(8, alpha=2.0)):
        assert reference_of(objective).num_particles == 8
    assert reference_of(BesidePyrosRenyi(8, alpha=2.0)).alpha == 2
    assert reference_of(AnalyticKLELBO(free_bits=0.1)) is reference_of(IWAE(8)) is None
    vae = off()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[BesidePyro], num_particles=[2], **FEW)
    assert found["BesidePyro", 2].reference == "Trace_ELBO"
    assert found["BesidePyro", 2].guide.bias > 0


def test_an_objective_that_makes_another_number_of_draws_is_measured_against_that_number():
    vae = off()
    with torch.no_grad():
        vae.guide_log_scale.add_(1.0)  # weights that vary: bounds of other K have other gradients
    x = draw(vae, 2).repeat(64, 1)
    settings = {"num_particles": [2], "repeats": 100, "compile": False}
    found = compare(vae.model, vae.guide, x, objectives=[twice_dreg, "dreg", "iwae"], **settings)
    row = found["twice_dreg", 2]
    assert row.num_particles == 2
    assert row.num_draws == 4
    assert row.reference == "IWAE"
    assert row.guide.bias < 2 * row.guide.bias_floor
    apart = (row.guide.mean - found["iwae", 2].guide.mean).norm()
    assert apart > 4 * row.guide.bias_floor  # what was shown as its bias
    assert found["dreg", 2].num_draws == 2


def miwae(number):
    return MIWAE(number, num_batches=3)


def test_the_draws_stand_beside_k_where_they_are_others():
    vae = small_vae(posterior="bernoulli")
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo_enumerated", "vimco"], num_particles=[4], **FEW
    )
    assert [row.num_draws for row in found.rows] == [0, 4]
    vae = off()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=["elbo", miwae], num_particles=[4], **FEW)
    assert [row["num_draws"] for row in found.to_dict()] == [4, 12]
    assert str(found).splitlines()[0].split()[:3] == ["objective", "K", "draws"]
    alone = compare(vae.model, vae.guide, draw(vae, 5), objectives=["elbo"], num_particles=[4], **FEW)
    assert "draws" not in str(alone)


@dataclass
class Unhashable(DifferentiableELBO):
    num_particles: int = 1

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return ELBO(self.num_particles).differentiable_loss(model, guide, *args, **kwargs)


def test_a_users_objective_need_not_be_hashable():
    vae = off()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[Unhashable, "dreg"], num_particles=[2], **FEW)
    assert [row.reference for row in found.rows] == [None, "IWAE"]


def test_no_maker_is_asked_for_a_number_that_nobody_asked_for():
    asked = []

    def eighths(number):
        asked.append(number)
        return MIWAE(number // 8, num_batches=8)

    vae = off()
    compare(vae.model, vae.guide, draw(vae, 5), objectives=[eighths], num_particles=[8, 16], **FEW)
    assert asked == [8, 16]


def test_an_exact_gradient_has_no_noise_and_is_shown_and_drawn_as_such():
    vae = small_vae(posterior="bernoulli")
    settings = {"objectives": ["elbo_enumerated", "score_function"], "num_particles": [2], **FEW}
    found = compare(vae.model, vae.guide, torch.randn(6, 2), **settings)
    exact = found["elbo_enumerated", 2]
    assert exact.guide.snr == exact.guide.dsnr == exact.model.snr == math.inf
    assert exact.guide.variance <= 1e-12 * exact.guide.norm**2
    assert found.to_dict()[0]["guide_snr"] is None
    row = next(line for line in str(found).splitlines() if line.startswith("elbo_enumerated"))
    assert row.count("no noise") == 4
    assert "inf" not in str(found)
    assert set(found.curves("guide", "snr")) == {"score_function"}
    names = {text.get_text() for text in draw_comparison(found)["cost"].axes[0].texts}
    assert "score_function" in names
    alone = compare(vae.model, vae.guide, torch.randn(6, 2), **{**settings, "objectives": ["elbo_enumerated"]})
    assert "bounds" in draw_comparison(alone)


def dead_model(x):
    weight = pyro.param("weight", torch.ones(1, 3))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ (0 * weight), 0.7).to_event(1), obs=x)


def normal_guide(x):
    bias = pyro.param("bias", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(bias.sum() + x[:, :1], 0.5).to_event(1))


def test_a_gradient_that_is_always_zero_has_an_empty_ratio_and_not_an_infinite_one():
    found = compare(dead_model, normal_guide, torch.randn(6, 3), objectives=["iwae"], num_particles=[2], **FEW)
    row = found["iwae", 2]
    assert row.model.norm == row.model.variance == 0
    assert math.isnan(row.model.snr)
    assert math.isnan(row.model.dsnr)
    assert row.guide.snr > 0
    lines = [[cell.strip() for cell in line.split("|")] for line in found.to_markdown().splitlines()]
    cells = dict(zip(lines[0], lines[2], strict=True))
    assert cells["SNR model"] == cells["DSNR model"] == ""
    assert cells["SNR guide"] != ""
    assert found.to_dict()[0]["model_snr"] is None
    assert found.curves("model", "snr") == {}
    assert "inf" not in str(found)
    assert "bounds" in draw_comparison(found)


def test_where_a_gradient_is_not_finite_its_ratio_is_not_known():
    """The variance of what is not a number is not above 0: that was shown as infinitely much signal."""

    class Broken(ELBO):
        def bound(self, log_weights):
            return super().bound(log_weights)

        def coefficients(self, log_weights, beta):
            return Coefficients.total(torch.full_like(log_weights, math.nan), beta)

    vae = off()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[Broken], num_particles=[2], **FEW)
    assert math.isnan(found["Broken", 2].guide.snr)
    assert "inf" not in str(found)


def test_more_particles_bring_iwaes_guide_less_signal_and_dregs_not():
    vae = off()
    x = draw(vae, 1).repeat(100, 1)  # of which the gradient is a mean
    settings = {"num_particles": [2, 200], "repeats": 80, "compile": False}
    found = compare(vae.model, vae.guide, x, objectives=["iwae", "dreg"], **settings)
    assert found["iwae", 200].guide.dsnr < 0.4 * found["iwae", 2].guide.dsnr
    assert found["dreg", 200].guide.dsnr > 0.8 * found["dreg", 2].guide.dsnr
    assert found["iwae", 200].model.dsnr > 2 * found["iwae", 2].model.dsnr


def test_at_the_exact_posterior_sticking_the_landing_has_a_gradient_without_variance():
    vae = linear_gaussian(3, data_dim=2, latent_dim=1)  # whose exact posterior is in the guide's family
    x = draw(vae, 4)
    found = compare(vae.model, vae.guide, x, objectives=["sticking_the_landing"], num_particles=[2], repeats=8)
    row = found["sticking_the_landing", 2]
    assert row.guide.variance < 1e-20
    assert row.gap == pytest.approx(0, abs=0.01)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "sticking_the_landing" in str(found)


def test_parameters_gradients_buffers_store_and_generators_are_as_they_were():
    vae = pv.VAE((3,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5, learn_scale=True))
    vae.encoder.register_buffer("seen", torch.zeros(()))
    forward = vae.encoder.forward
    vae.encoder.forward = lambda *args: (vae.encoder.seen.add_(1.0), forward(*args))[1]
    pyro.param("mine", torch.tensor(2.0))
    x = torch.randn(5, 3)
    for parameter in vae.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    names, state = set(pyro.get_param_store().keys()), torch.get_rng_state()
    gradients = [parameter.grad for parameter in vae.parameters()]
    one = compare(vae.model, vae.guide, x, objectives=["iwae"], repeats=4, num_particles=[2])
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(vae.parameters(), gradients, strict=True))
    assert set(pyro.get_param_store().keys()) == names
    assert pyro.param("mine").item() == 2.0
    assert torch.equal(torch.get_rng_state(), state)
    again = compare(vae.model, vae.guide, x, objectives=["iwae"], repeats=4, num_particles=[2], compile=False)
    assert [row.bound for row in one.rows] == [row.bound for row in again.rows]


def plain_model(x):
    weight = pyro.param("weight", torch.ones(1, 3))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.full((1,), 0.4)).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, 0.7).to_event(1), obs=x)


def plain_guide(x):
    bias = pyro.param("bias", torch.zeros(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=bias + x[:, :1]).to_event(1))


def test_a_plain_pair_with_discrete_latents_has_no_reference_and_vimco_not_one_particle():
    x = torch.randn(6, 3)
    settings = {"num_particles": [1, 3], "repeats": 6, "compile": False}
    found = compare(plain_model, plain_guide, x, objectives=["score_function", "vimco"], **settings)
    keys = [(row.objective, row.num_particles) for row in found.rows]
    assert keys == [("score_function", 1), ("score_function", 3), ("vimco", 3)]
    assert all(row.reference is None and row.guide.bias is None for row in found.rows)
    assert "bias" not in str(found)
    assert not pyro.get_param_store().keys()


def test_a_straight_through_gradient_is_no_ones_reference():
    parts = {"posterior": pv.posteriors.Bernoulli(2, 0.5)}
    vae = small_vae(**parts)
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo", "score_function"], num_particles=[2], repeats=6,
        compile=False,
    )  # fmt: skip
    assert all(row.reference is None and row.guide.bias is None for row in found.rows)


def test_an_objective_without_draws_has_one_row_without_noise():
    vae = small_vae(posterior="bernoulli")
    settings = {"num_particles": [2, 4], "repeats": 6, "compile": False}
    found = compare(vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo_enumerated", "vimco"], **settings)
    assert [(row.objective, row.num_particles) for row in found.rows] == [
        ("elbo_enumerated", 2), ("vimco", 2), ("vimco", 4),
    ]  # fmt: skip
    assert found["elbo_enumerated", 2].bound_error < 1e-6 < 1e-3 < found["vimco", 2].bound_error


def test_when_the_time_is_over_all_estimators_keep_what_they_have():
    vae = off()
    x = draw(vae, 50)
    found = compare(vae.model, vae.guide, x, repeats=10_000, max_seconds=0.3, compile=False)
    counts = {row.repeats for row in found.rows}
    assert len(counts) == 1
    assert 4 <= counts.pop() < 10_000
    assert not found.complete
    assert "the time ran out" in str(found)
    for row in found.rows:  # by halves of the repeats that there were
        assert math.isfinite(row.guide.dsnr)
        assert math.isfinite(row.guide.dsnr_floor)
        assert f"{row.guide.dsnr:.2g} ({row.guide.dsnr_floor:.2g})" in str(found)


def test_the_table_has_the_numbers_in_every_form(monkeypatch):
    vae = off()
    found = compare(
        vae.model, vae.guide, draw(vae, 5), objectives=["elbo", "dreg"], num_particles=[2], repeats=5, compile=False
    )
    flat = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["objective"] for row in flat] == ["elbo", "dreg"]
    for text in (str(found), found.to_markdown(), found._repr_html_()):
        for row in found.rows:
            assert f"{row.bound:.3f} ({row.bound_error:.2g})" in text
            assert f"{row.guide.snr:.2g} ({row.guide.snr_floor:.2g})" in text
    with pytest.raises(pv.InputError, match=r"key must be one of \('elbo', 2\), \('dreg', 2\); got \('elbo', 3\)"):
        found["elbo", 3]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(pv.InputError, match="to_pandas needs pandas, which is not installed"):
        found.to_pandas()


def test_the_curves_are_what_the_rows_hold_and_leave_out_what_is_not_known():
    vae = off()
    settings = {"objectives": ["iwae", "dreg"], "num_particles": [2, 3], "repeats": 8, "compile": False}
    found = compare(vae.model, vae.guide, draw(vae, 5), **settings)
    for side in ("model", "guide"):
        for quantity in ("snr", "dsnr"):
            for name, (sizes, values, floors) in found.curves(side, quantity).items():
                gradients = [getattr(found[name, size], side) for size in (2, 3)]
                assert sizes == [2, 3]
                assert values == [getattr(gradient, quantity) for gradient in gradients]
                assert floors == [getattr(gradient, f"{quantity}_floor") for gradient in gradients]
    assert set(found.curves("guide", "snr")) == {"iwae", "dreg"}
    assert set(found.curves("guide", "bias")) == {"dreg"}
    for bad, message in (
        (("both", "snr"), "side must be one of model, guide, shared; got 'both'"),
        (("guide", "norm"), "quantity must be one of snr, dsnr, bias; got 'norm'"),
    ):
        with pytest.raises(pv.InputError, match=message):
            found.curves(*bad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": []}, "objectives and num_particles must name at least one each"),
        ({"objectives": ["vae"]}, "objective must be one of elbo, "),
        ({"objectives": [ELBO(3)]}, "objectives must be names, or take a number of particles"),
        ({"objectives": [lambda k: k]}, "objectives must be names, or take a number of particles .* got 1"),
        ({"objectives": ["vimco"], "num_particles": [1]}, r"no objective takes num_particles \[1\]"),
        ({"num_particles": [0]}, "num_particles must be a whole number >= 1, got 0"),
        ({"objectives": ["elbo", "iwae", "elbo"]}, "objectives must differ, got elbo, iwae, elbo"),
        ({"num_particles": [2, 2]}, "num_particles must differ, got 2, 2"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"repeats": 3}, "repeats must be a whole number >= 4, got 3"),
        ({"max_seconds": 0}, "max_seconds must be a finite number > 0, got 0"),
        ({"log_px": 3.0}, r"log_px must be an Estimate, got 3\.0"),
        ({"log_px": torch.zeros(5)}, "log_px must be an Estimate, got tensor"),
        (
            {"log_px": pv.Estimate(torch.zeros(4), torch.zeros(4))},
            r"log_px must be of the 5 data given, got values of shape \(4,\)",
        ),
        ({"compile": "auto"}, "compile must be true or false, got 'auto'"),
        ({"objectives": "elbo"}, "objectives must be a list or a tuple, got 'elbo'"),
        ({"num_particles": 8}, "num_particles must be a list or a tuple, got 8"),
        ({"num_particles": []}, "objectives and num_particles must name at least one each"),
        ({"objectives": [ELBO, lambda k: ELBO(k) if k == 1 else "elbo"]}, "must be names, or .* got 'elbo'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(settings, message):
    vae = off()

    def model(x):
        raise AssertionError("the work has begun")

    assert "\n" not in refusal(compare, model, vae.guide, draw(vae, 5), **settings)
    assert re.search(message, refusal(compare, model, vae.guide, draw(vae, 5), **settings))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(5, 9), r"x must have shape \(batch, 2\), got \(5, 9\)"),
        (torch.full((5, 2), math.nan), r"x must be finite, got nan at index \(0, 0\)"),
        (torch.randn(0, 2), "x must hold at least one datum, got 0"),
    ],
)
def test_data_of_the_wrong_shape_are_refused(x, message):
    vae = small_vae()
    with pytest.raises(pv.InputError, match=message):
        compare(vae.model, vae.guide, x)


def test_an_objective_that_does_not_fit_the_pair_is_refused():
    with pytest.raises(pv.InputError, match='DReG needs a reparameterised guide, and site "z" has no rsample'):
        compare(plain_model, plain_guide, torch.randn(6, 3), objectives=[DReG], num_particles=[2])
