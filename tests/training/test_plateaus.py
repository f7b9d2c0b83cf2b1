"""ReduceLROnPlateau as a schedule: stepped with the validation ELBO, or with the loss where there is none."""

import warnings
from functools import partial

import pytest
import torch
from broken_off import Killed, assert_same, dies_after, ring_data, train
from helpers import small_vae
from torch.optim.lr_scheduler import ReduceLROnPlateau

import pyrovae as pv
from pyrovae.training.optimizers import make_schedule, step_schedule

X = ring_data().train_x


def rates_by_hand(values, mode, patience=1):
    """Returns the learning rate of each epoch, halved after more than `patience` epochs that bring no 5 nats."""
    rates, rate, best, waited = [], 0.1, None, 0
    for value in values:
        rates.append(rate)
        better = best is None or (value < best - 5.0 if mode == "min" else value > best + 5.0)
        best, waited = (value, 0) if better else (best, waited + 1)
        if waited > patience:
            rate, waited = rate / 2, 0
    return rates


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_rate_falls_where_the_elbo_or_the_loss_rests(mode, validation):
    def schedule(optimizer):
        return ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=1, threshold=5.0, threshold_mode="abs")

    settings = {"validation": X[:20]} if validation else {}
    history = pv.fit(small_vae(), X, epochs=8, batch_size=50, lr=0.1, seed=1, schedule=schedule, **settings)
    values = [-elbo for elbo in history.elbo] if validation else history.loss
    values = [-value for value in values] if mode == "max" else values
    assert history.lr == pytest.approx(rates_by_hand(values, mode), rel=1e-12)
    assert history.lr[-1] < 0.1  # else nothing was tested


def test_both_modes_are_the_same_schedule():
    found = []
    for mode in ("min", "max"):
        schedule = partial(ReduceLROnPlateau, mode=mode, factor=0.5, patience=0, threshold=5.0, threshold_mode="abs")
        vae = small_vae()
        history = pv.fit(vae, X, epochs=5, batch_size=50, lr=0.1, seed=1, schedule=schedule, validation=X)
        found.append((history.lr, history.loss))
    assert found[0] == found[1]
    assert found[0][0][-1] < 0.1  # else nothing was tested


def test_a_plateau_is_resumed_to_the_bit_beside_early_stopping(tmp_path):
    schedule = partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=5.0, threshold_mode="abs")
    case = (small_vae, ring_data, {"schedule": schedule, "lr": 0.1, "patience": 3, "batch_size": 25, "epochs": 4})
    whole = train(case, tmp_path / "whole")
    assert len({record["lr"] for record in whole[2]}) > 1
    for num_steps in (3, 2):  # of 2 an epoch
        with pytest.raises(Killed):
            train(case, tmp_path / "run", dies_after(num_steps))
    assert_same(train(case, tmp_path / "run"), whole)


def scheduler(**settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return make_schedule(partial(ReduceLROnPlateau, patience=0, **settings), optimizer, 4), optimizer


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_relative_threshold_on_negative_values_is_told(mode, sign):
    """There torch takes 99.5 after 100 for better: 100 (1 - 0.01) is 99, but -100 (1 - 0.01) is above -99.5."""
    made, optimizer = scheduler(mode=mode, threshold=0.01)
    elbos = [sign * 100.0, sign * 100.0 - 0.5]  # half a nat worse
    wrong = sign * (1 if mode == "max" else -1) < 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for elbo in elbos:
            step_schedule(made, {"loss": 1.0, "elbo": elbo})
    assert (optimizer.param_groups[0]["lr"] == 0.1) == wrong
    assert bool(told) == wrong
    assert all('say threshold_mode="abs", and threshold in nats' in str(one.message) for one in told)


def test_other_schedules_are_stepped_without_a_metric():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    made = make_schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=1), optimizer, 4)
    optimizer.step()
    step_schedule(made, {"loss": 1.0, "elbo": None})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
