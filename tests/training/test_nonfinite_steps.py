"""Steps whose loss or gradient is not finite are left out, or stop the training."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.training.checkpoints import CURRENT, Checkpoints


class Fragile(torch.nn.Module):
    """A model whose gradient is not a number where x is 7."""

    def __init__(self, validated):
        super().__init__()
        pyro.clear_param_store()
        self.loc = torch.nn.Parameter(torch.zeros(1))
        self.validated = validated

    def model(self, x):
        pyro.module("fragile", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            bad = (x == 7).float()
            loc = self.loc + z + 0 * bad / (1 - bad)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=self.validated).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x.clamp(max=1), 0.5).to_event(1))


def batches_with_a_bad_one():
    good = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    return [good[0], good[1], torch.full((6, 1), 7.0), good[2], good[3]]


def test_a_step_that_is_left_out_moves_no_buffer():
    class Seen(Fragile):
        def __init__(self):
            super().__init__(False)
            self.register_buffer("largest", torch.zeros(()))

        def guide(self, x):
            if self.training:
                self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
            super().guide(x)

    vae = Seen()
    with pytest.warns(UserWarning, match="1 of 5 steps"):
        pv.fit(vae, batches_with_a_bad_one(), epochs=1, nonfinite="skip", seed=1)
    assert 0 < vae.largest < 7


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_that_is_not_finite_is_left_out_counted_and_told(compile, without_machine_code):
    vae = Fragile(False)
    with pytest.warns(UserWarning, match="1 of 5 steps of epoch 1 had no finite loss or gradient"):
        history = pv.fit(vae, batches_with_a_bad_one(), epochs=1, nonfinite="skip", seed=1, compile=compile)
    assert history.skipped == [1]
    assert vae.loc.isfinite()
    assert vae.loc.item() != 0
    assert torch.tensor(history.loss).isfinite().all()


def test_the_loss_of_an_epoch_with_a_step_left_out_is_that_of_the_other_data():
    losses = []
    for batches in (batches_with_a_bad_one(), batches_with_a_bad_one()[:2]):
        history = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = pv.fit(Fragile(False), batches[:3], epochs=1, nonfinite="skip", seed=1)
        losses.append(history.loss[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_step_that_pyros_validation_refuses_is_left_out_too():
    vae = Fragile(True)
    with pytest.warns(UserWarning, match="1 of 4 steps"):
        history = pv.fit(vae, batches_with_a_bad_one()[1:], epochs=1, nonfinite="skip", seed=1)
    assert history.skipped == [1]


def test_an_epoch_of_which_no_step_is_finite_stops_the_training():
    vae = Fragile(False)
    bad = [batches_with_a_bad_one()[2]] * 2
    with pytest.raises(pv.InputError, match="every step of epoch 1 was skipped: none had a finite gradient"):
        pv.fit(vae, bad, epochs=2, nonfinite="skip", seed=1)
    assert vae.loc.item() == 0


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path):
    vae = Fragile(False)
    with pytest.raises(FloatingPointError, match="not finite at epoch 1, step 3"):
        pv.fit(vae, batches_with_a_bad_one(), epochs=2, seed=1, checkpoints=Checkpoints(tmp_path, minutes=1e-9))
    state = torch.load(tmp_path / CURRENT)
    assert state["position"]["step"] == 2
    assert state["parameters"]["loc"].isfinite()
