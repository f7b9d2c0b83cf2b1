"""Validation, early stopping and the history."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import parameters_of, ring, small_vae, suite_seed

import pyrovae as pv
from pyrovae.training.validation import VALIDATION_SEED


def test_validation_is_the_elbo_at_beta_one_of_all_validation_data_at_the_epochs_end():
    vae, data = small_vae(beta=3.0), ring()
    history = pv.fit(vae, data, epochs=2)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(VALIDATION_SEED)
        log_w = pv.log_weights(vae.model, vae.guide, data.validation_x, num_particles=1)
    assert history.elbo[-1] == pytest.approx(log_w.mean().item(), abs=1e-5)
    assert history.elbo[-1] == pytest.approx(history.reconstruction[-1] - history.kl[-1], abs=1e-9)
    # KL at beta 1 against the closed form of two Gaussians, in standard errors of the one draw per datum.
    q = vae.encode(data.validation_x)
    kl = torch.distributions.kl_divergence(q.base_dist, vae.prior.base_dist).sum(-1).detach()
    assert abs(history.kl[-1] - kl.mean().item()) < 5 * math.sqrt(2 / 40)


def test_early_stopping_goes_back_to_the_best_parameters():
    data, vae, seen = ring(), small_vae(), []

    def look(record):
        seen.append((record["elbo"], parameters_of(vae)))

    # A step size at which training runs away after a while.
    history = pv.fit(vae, data, epochs=200, lr=0.3, batch_size=20, patience=3, seed=suite_seed(0), on_epoch=look)
    best = max(range(len(seen)), key=lambda i: seen[i][0])
    assert len(history.epoch) == best + 1 + 3 < 200
    assert torch.equal(parameters_of(vae), seen[best][1])
    assert not torch.equal(seen[best][1], seen[-1][1])


def test_without_patience_the_last_parameters_stay():
    vae, seen = small_vae(), []
    pv.fit(vae, ring(), epochs=3, lr=0.3, on_epoch=lambda _: seen.append(parameters_of(vae)))
    assert torch.equal(parameters_of(vae), seen[-1])


def test_the_history_has_one_record_per_epoch_as_on_epoch_sees_them():
    seen = []
    history = pv.fit(small_vae(), ring(), epochs=3, schedule="cosine", lr=0.1, on_epoch=seen.append)
    assert history.records() == seen
    assert history.epoch == [1, 2, 3]
    assert history.lr == pytest.approx([0.1, 0.075, 0.025])


def test_a_schedule_of_torchs_is_stepped_once_an_epoch():
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    history = pv.fit(small_vae(), ring(), epochs=3, schedule=schedule, lr=0.1)
    assert history.lr == pytest.approx([0.1, 0.05, 0.025])


class BatchNormPair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.net = torch.nn.BatchNorm1d(2, affine=False, momentum=1.0), torch.nn.Linear(2, 2)

    def encode(self, x):
        return self.net(self.norm(x))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("batch_norm_net", self.net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


def test_validation_data_do_not_move_batch_statistics():
    pair = BatchNormPair()
    pv.fit(pair, torch.zeros(8, 2), epochs=1, validation=torch.full((8, 2), 100.0))
    assert pair.norm.running_mean.tolist() == [0.0, 0.0]
    assert not pair.training


def test_progress_is_quiet_when_not_on_a_terminal(capsys):
    pv.fit(small_vae(), ring(), epochs=1)
    assert capsys.readouterr() == ("", "")
    pv.fit(small_vae(), ring(), epochs=2, progress=True)
    assert "epoch" in capsys.readouterr().err
