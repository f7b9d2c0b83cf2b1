"""A comparison shows its numbers in every format, and leaves a cell empty if there is no number."""

import json
import math
import sys
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from compared_pairs import FEW, poorly_guided
from helpers import draw, small_vae

import pyrovae as pv
from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison_report import draw_comparison
from pyrovae.objectives import ELBO, MIWAE, Coefficients


def miwae(number):
    return MIWAE(number, num_batches=3)


def test_the_draws_are_shown_beside_k_if_they_differ():
    vae = small_vae(posterior="bernoulli")
    found = compare(
        vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo_enumerated", "vimco"], num_particles=[4], **FEW
    )
    assert [row.num_draws for row in found.rows] == [0, 4]
    vae = poorly_guided()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=["elbo", miwae], num_particles=[4], **FEW)
    assert [row["num_draws"] for row in found.to_dict()] == [4, 12]
    assert str(found).splitlines()[0].split()[:3] == ["objective", "K", "draws"]
    alone = compare(vae.model, vae.guide, draw(vae, 5), objectives=["elbo"], num_particles=[4], **FEW)
    assert "draws" not in str(alone)


def test_an_exact_gradient_is_shown_and_drawn_without_noise():
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


def test_a_gradient_that_is_always_zero_has_an_empty_ratio_instead_of_an_infinite_one():
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


def test_noise_does_not_read_as_bias_and_what_is_empty_is_explained():
    def frozen(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ torch.ones(1, 3), 0.7).to_event(1), obs=x)

    objectives = {"objectives": ["elbo", "sticking_the_landing"], "num_particles": [1], **FEW}
    found = compare(frozen, normal_guide, torch.randn(6, 3), **objectives)
    assert "no SNR of the model: no parameter is trained that is the model's alone" in found.notes.splitlines()
    assert "no SNR of the guide" not in found.notes
    assert "in brackets: the error of a bound; beside a ratio or a bias its floor" in found.notes
    row = found["sticking_the_landing", 1]

    def bias_cell(times):
        guide = replace(row.guide, bias=times * 0.5, bias_floor=0.5)
        lines = replace(found, rows=(replace(row, guide=guide, reference="elbo"),)).to_markdown().splitlines()
        cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[2])), strict=True))
        return cells["bias guide"]

    assert [bias_cell(times) for times in (0.9, 1.9, 2.2)] == ["none seen (0.5)", "none seen (0.5)", "1.1 (0.5)"]


@pytest.mark.parametrize(("gap", "is_told"), [(0.1, False), (-0.02, False), (-0.5, True)])
def test_a_bound_above_log_px_is_told(gap, is_told):
    found = compare(dead_model, normal_guide, torch.randn(6, 3), objectives=["iwae"], num_particles=[2], **FEW)
    moved = replace(found, rows=(replace(found.rows[0], gap=gap, bound_error=0.01),), log_px=found.log_px)
    assert ("log p(x) is too low: iwae at K = 2 is above it" in moved.notes) == is_told


def test_the_ratio_of_a_gradient_that_is_not_finite_is_unknown():
    """A variance of nan is not above 0; it was once shown as an infinite signal."""

    class Broken(ELBO):
        def bound(self, log_weights):
            return super().bound(log_weights)

        def coefficients(self, log_weights, beta):
            return Coefficients.total(torch.full_like(log_weights, math.nan), beta)

    vae = poorly_guided()
    found = compare(vae.model, vae.guide, draw(vae, 5), objectives=[Broken], num_particles=[2], **FEW)
    assert math.isnan(found["Broken", 2].guide.snr)
    assert "inf" not in str(found)


def test_an_objective_without_draws_has_one_row_without_noise():
    vae = small_vae(posterior="bernoulli")
    settings = {"num_particles": [2, 4], "repeats": 6, "compile": False}
    found = compare(vae.model, vae.guide, torch.randn(6, 2), objectives=["elbo_enumerated", "vimco"], **settings)
    assert [(row.objective, row.num_particles) for row in found.rows] == [
        ("elbo_enumerated", 2), ("vimco", 2), ("vimco", 4),
    ]  # fmt: skip
    assert found["elbo_enumerated", 2].bound_error < 1e-6 < 1e-3 < found["vimco", 2].bound_error


def test_the_table_has_the_numbers_in_every_format(monkeypatch):
    vae = poorly_guided()
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
    frame = found.to_pandas()
    assert frame["bound"].tolist() == [row.bound for row in found.rows]
    assert repr(found) == str(found) == f"{found.table()}\n{found.notes}"
    assert "log p(x)" in found._repr_html_().split("</table>")[1]
    (axes,) = found.plot().axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"log p(x)", "elbo", "dreg"}
    assert [axes.get_ylabel()[:4] for axes in found.plot("snr").axes] == ["SNR "] * 2
    with pytest.raises(pv.InputError, match="quantity must be one of bounds, snr, dsnr, cost; got 'bias'"):
        found.plot("bias")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(pv.InputError, match=r"to_pandas needs pandas: pip install 'pyrovae\[tables\]'"):
        found.to_pandas()


def test_the_curves_agree_with_the_rows_and_leave_out_unknown_values():
    vae = poorly_guided()
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
