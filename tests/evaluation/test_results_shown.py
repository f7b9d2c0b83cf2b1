"""Results as they are seen: in a few lines, as data frames, as figures."""

import html
from dataclasses import replace

import pytest
import torch
from helpers import refusal, small_vae

import pyrovae as pv
from pyrovae.evaluation.annealed_importance_sampling import BidirectionalEstimate
from pyrovae.evaluation.evaluation_table import Measured

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
METHODS = ("elbo", "iwae_5", "is_20", "is_30", "ais_9")


def annealed():
    """Returns an estimate of nine distributions and four chains, which takes seconds to compute."""
    ones = torch.ones(6)
    return pv.AnnealedEstimate(-3 * ones, 0.1 * ones, 3 * ones, 0.65 * ones, torch.ones(9, 6), torch.ones(4, 6))


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.fixture(scope="module")
def marginal(vae):
    return pv.log_marginal(vae, X, num_samples=20)


@pytest.fixture(scope="module")
def evaluation(vae):
    found = pv.evaluate(vae, X, methods=METHODS[:-1])
    return replace(found, measured=(*found.measured, Measured("ais_9", annealed(), 2.0)))


def test_a_quadrature_is_one_line_and_two_tensors():
    found = pv.evaluation.exact.Integrated(torch.tensor([-1.0, -2.0]), torch.tensor([1e-7, 2e-6]))
    assert repr(found) == "log p(x) of 2 data: mean -1.500 nats (errors up to 2e-06)"
    log_px, error = found
    assert (found.mean, len(log_px), len(error)) == (-1.5, 2, 2)


def test_an_estimate_is_one_line():
    estimate = pv.Estimate(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.3, 0.0, 0.4]))
    assert repr(estimate) == "estimate of 3 data: mean 3.000 nats (standard error 0.17 Monte Carlo, 1.5 over data)"
    unknown = pv.Estimate(torch.tensor([1.0]), torch.tensor([torch.nan]))
    assert repr(unknown) == "estimate of 1 data: mean 1.000 nats (standard error unknown)"


def test_log_px_is_its_mean_its_draws_and_its_verdict(marginal):
    mean, draws, verdict = repr(marginal).splitlines()
    assert mean.startswith(f"log p(x) of 6 data: mean {marginal.mean:.3f} nats (standard error ")
    assert draws.startswith(f"20 samples, median ESS {marginal.ess.median().item():.3g}, largest Pareto k ")
    assert verdict == marginal.verdict


def test_a_joint_evidence_says_so(marginal):
    joint = replace(marginal, evidence_of="the evidence of all 6 data")
    assert repr(joint).startswith(f"joint evidence {joint.mean:.3f} nats")


def test_log_px_as_a_data_frame_has_a_row_for_each_datum(marginal):
    frame = marginal.to_pandas()
    assert len(frame) == 6
    assert frame["log_px"].tolist() == marginal.log_px.tolist()
    assert [name for name in frame if name.startswith("iwae")] == ["iwae_1", "iwae_5", "iwae_10"]
    assert frame["iwae_10"].tolist() == marginal.bounds[2].tolist()
    assert frame["ess"].between(1, 20).all()


def test_an_evaluation_prints_its_table_and_is_a_data_frame_of_it(evaluation):
    assert repr(evaluation) == f"{evaluation.table()}\n{evaluation.verdict}"
    frame = evaluation.to_pandas()
    assert frame["method"].tolist() == list(METHODS)
    assert frame["nats"].tolist() == [one.estimate.mean for one in evaluation.measured]
    assert html.escape(evaluation.verdict).replace("\n", "<br>") in evaluation._repr_html_()


def test_an_evaluation_draws_the_bounds_of_most_samples_and_the_methods_beside_their_seconds(evaluation):
    bounds, below = evaluation.plot().axes
    largest = evaluation["is_30"].estimate
    curve = bounds.lines[0]
    assert list(curve.get_xdata()) == largest.bound_sizes
    assert list(curve.get_ydata()) == pytest.approx(largest.bounds.mean(1).tolist())
    names = {text.get_text() for text in below.texts}
    assert names == set(METHODS) - {evaluation.best.method}


def test_without_importance_sampling_the_bounds_are_drawn_at_their_k(vae):
    evaluation = pv.evaluate(vae, X, methods=("iwae_5", "elbo"))
    bounds, _ = evaluation.plot().axes
    means = [evaluation["elbo"].estimate.mean, evaluation["iwae_5"].estimate.mean]
    assert list(bounds.lines[0].get_xdata()) == [1, 5]
    assert list(bounds.lines[0].get_ydata()) == pytest.approx(means)
    (alone,) = replace(evaluation, measured=(Measured("ais_9", annealed(), 2.0),)).plot().axes
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["ais_9"]


def test_other_results_are_a_few_lines(vae):
    mean, chains, verdict = repr(annealed()).splitlines()
    assert verdict == annealed().verdict
    assert mean.startswith("log p(x) of 6 data: mean -3.000 nats (standard error 0.041 Monte Carlo")
    assert chains == "9 distributions, 4 chains, median ESS 3, HMC accepts 65%"
    use = pv.diagnostics.latent_use(vae, X)
    assert repr(use).startswith(f"{use.num_active} of 2 latent dimensions are active; KL ")
    surgery = pv.elbo_surgery(vae, X)
    assert repr(surgery) == str(surgery)
    assert "mutual information" in repr(surgery)
    both = BidirectionalEstimate(annealed(), annealed(), (X,))
    assert [line.split()[0] for line in repr(both).splitlines()] == ["lower", "upper", "gap", "lower:", "upper:"]


def test_figures_of_a_result_come_from_the_result(evaluation):
    said = "plots.bounds takes arrays, got Evaluation: its own plot() draws it"
    assert refusal(pv.plots.bounds, evaluation) == said


def test_an_elbo_of_minus_infinity_is_left_out_of_the_figure(evaluation):
    """One draw outside the support makes it so, and log p(x) is known all the same."""
    x, lost = evaluation["elbo"].estimate.value, torch.full((6,), -torch.inf)
    largest = evaluation["is_30"]
    bounds = torch.cat([lost[None], largest.estimate.bounds[1:]])
    measured = (
        Measured("elbo", pv.Estimate(lost.to(x), torch.full_like(x, torch.nan)), 1.0),
        replace(evaluation["is_20"]),
        replace(largest, estimate=replace(largest.estimate, bounds=bounds)),
    )
    figure = replace(evaluation, measured=measured).plot()
    figure.canvas.draw()
    _, below = figure.axes
    assert len(below.texts) == 1
    assert len(replace(evaluation, measured=measured[::2]).plot().axes) == 1
