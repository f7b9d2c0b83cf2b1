"""`log_marginal` with compiled log-weights gives the estimates of eager ones."""

import pytest
import torch
from compiled_steps import POINTS, branching_pair, data, small_vae
from helpers import draw, linear_gaussian

import pyrovae as pv


@pytest.fixture
def replays(monkeypatch):
    """Lists what log_marginal has traced, with machine code only where a test sets `inductor` of the list."""

    class Made(list):
        inductor = False

    made = Made()

    class Exact(pv.evaluation.sampled_weights.Replay):
        def __init__(self, *args):
            super().__init__(*args, inductor=made.inductor)
            made.append(self)

    monkeypatch.setattr(pv.evaluation.sampled_weights, "Replay", Exact)
    return made


def assert_same_estimate(ours, theirs, **tolerance):
    for name in ("log_px", "standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(("num_data", "num_samples", "chunk_size"), [(6, 60, 60), (5, 26, 8), (7, 25, 6)])
def test_log_marginal_is_the_same_where_chunks_do_not_divide(num_data, num_samples, chunk_size, replays):
    vae, x = small_vae(), data(num_data, 3)
    results = []
    for compile in (False, True):
        torch.manual_seed(5)
        settings = {"num_samples": num_samples, "chunk_size": chunk_size, "compile": compile}
        results.append(pv.log_marginal(vae.model, vae.guide, x, **settings))
    assert len(replays) == 1
    assert replays[0].why is None
    assert_same_estimate(results[1], results[0], rtol=0, atol=0)


def test_log_marginal_in_machine_code_is_the_same_to_rounding(replays):
    replays.inductor = True
    vae, x = small_vae().float(), data(10, 3).float()
    results = []
    for compile in (False, True):
        torch.manual_seed(5)
        results.append(pv.log_marginal(vae.model, vae.guide, x, num_samples=500, chunk_size=450, compile=compile))
    (replay,) = replays
    assert replay.why is None
    assert replay.graph.inductor
    torch.testing.assert_close(results[1].log_px, results[0].log_px, rtol=1e-5, atol=0)
    assert_same_estimate(results[1], results[0], rtol=1e-3, atol=1e-3)


def test_log_marginal_of_what_cannot_be_traced_warns_once_and_is_the_eager_one(replays):
    model, guide, line = branching_pair()
    (x,) = POINTS[0]
    settings = {"num_samples": 50, "chunk_size": 30}
    torch.manual_seed(5)
    theirs = pv.log_marginal(model, guide, x, compile=False, **settings)
    torch.manual_seed(5)
    with pytest.warns(match="log-weights are computed eagerly") as caught:
        ours = pv.log_marginal(model, guide, x, compile=True, **settings)
    assert len(caught) == 1
    assert f"(compiled_steps.py, line {line})" in str(caught[0].message)
    assert_same_estimate(ours, theirs, rtol=0, atol=0)


def test_log_marginal_of_a_closed_form_is_exact_compiled(replays):
    vae = linear_gaussian(1)
    x = draw(vae, 4)
    found = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=40, chunk_size=20, compile=True)
    assert len(replays) == 1
    torch.testing.assert_close(found.log_px, vae.log_px(x).detach(), rtol=1e-10, atol=0)
