"""Kingma's M2, with labels for a part of the data and y summed out for the others: losses equal a sum by hand."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact.semi_supervised import CLASSES, M2, data
from helpers import assert_within_standard_errors, refusal
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG

X, LABELS = data()
COUNT = 5
WAYS = ["obs_mask", "label site", "two plates"]


@pytest.fixture
def m2():
    return M2()


def draws_of_last_run(m2: M2, way: str) -> torch.Tensor:
    """The guide's draws with `COUNT` particles, `(COUNT, batch, 2)`, in the order of the data."""
    drawn = [z for z in m2.drawn if len(z) == COUNT]
    if way != "two plates":
        return drawn[-1]
    z = torch.empty(COUNT, len(X), 2).double()
    z[:, LABELS >= 0], z[:, LABELS < 0] = drawn[-2:]
    return z


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", [IWAE(COUNT), ELBO(COUNT), DReG(COUNT)], ids=str)
def test_the_loss_is_the_sum_by_hand(m2, way, objective):
    model, guide = m2.programs[way]
    loss = objective.loss(model, guide, X, LABELS)
    log_w = m2.log_weights(draws_of_last_run(m2, way), X, LABELS)
    truth = -log_w.mean(0).sum() if isinstance(objective, ELBO) else m2.iwae_loss(draws_of_last_run(m2, way), X, LABELS)
    assert loss == pytest.approx(truth.item(), abs=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_that_of_the_sum_by_hand(m2, way):
    """For the decoder's parameters, at the guide's draws."""
    model, guide = m2.programs[way]
    IWAE(COUNT).loss_and_grads(model, guide, X, LABELS)
    hand = m2.iwae_loss(draws_of_last_run(m2, way), X, LABELS)
    for name in ("weight", "of_class"):
        parameter = getattr(m2, name)
        assert_close(parameter.grad, torch.autograd.grad(hand, parameter, retain_graph=True)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_fit_takes_such_a_pair(m2, way):
    """The first epoch's loss, of one step, is that by hand; and training lowers the loss."""
    model, guide = m2.programs[way]
    start = {name: value.clone() for name, value in m2.state_dict().items()}
    pair = SimpleNamespace(model=model, guide=guide, num_conditions=1)
    history = pv.fit(pair, [(X, LABELS)], epochs=1, objective=IWAE(COUNT), seed=0, progress=False)
    draws = draws_of_last_run(m2, way)
    m2.load_state_dict(start)
    with torch.no_grad():
        assert history.loss[0] == pytest.approx(m2.iwae_loss(draws, X, LABELS).item() / len(X), abs=1e-8)
    history = pv.fit(pair, [(X, LABELS)], epochs=12, objective=IWAE(COUNT), lr=0.1, seed=0, progress=False)
    assert sum(history.loss[-4:]) < sum(history.loss[:4]) - 0.4


@pytest.mark.parametrize(("way", "names"), [("obs_mask", ["elbo", "iwae", "dreg"]), ("label site", ["iwae"])])
def test_compare_takes_such_a_pair(m2, way, names):
    model, guide = m2.programs[way]
    found = pv.compare(
        model,
        guide,
        X,
        LABELS,
        objectives=names,
        num_particles=[COUNT],
        repeats=24,
        compile=False,
        progress=False,
    )
    with torch.no_grad():
        exact = {"elbo": m2.bound(X, LABELS, 1).mean(), "iwae": m2.bound(X, LABELS, COUNT).mean()}
        log_px = m2.log_px(X, LABELS)
    for name in names:
        row, of = found[name, COUNT], "elbo" if name == "elbo" else "iwae"
        assert_within_standard_errors(row.bound, exact[of], row.bound_error)
        assert row.gap == pytest.approx((log_px.mean() - row.bound).item(), abs=0.02)
    assert_within_standard_errors(found.log_px.value, log_px, found.log_px.standard_error)


def test_log_px_is_that_of_data_and_known_labels(m2):
    model, guide = m2.programs["obs_mask"]
    result = pv.log_marginal(model, guide, X, LABELS, num_samples=4_000)
    assert_within_standard_errors(result.log_px, m2.log_px(X, LABELS).detach(), result.standard_error)


def test_a_class_that_is_neither_drawn_nor_summed_is_refused(m2):
    """Without its mark the model would draw "y", and no weight would account for it."""

    def unmarked(x, labels):
        with pyro.plate("data", len(x), dim=-1):
            m2.observe(x, pyro.sample("y", dist.Categorical(CLASSES)))

    assert "y" in refusal(IWAE(COUNT).loss, unmarked, m2.guide, X, LABELS)
