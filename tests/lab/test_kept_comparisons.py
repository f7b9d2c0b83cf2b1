"""A comparison that is kept in a folder goes on after Ctrl-C, a kill or the end of its time, to the bit."""

import os
import signal

import pytest
import torch
from compared_pairs import FEW, poorly_guided
from helpers import refusal, ring, small_vae, tree
from torch import nn

import pyrovae as pv
from pyrovae.common import Parts
from pyrovae.lab import comparing
from pyrovae.lab.repeats import Repeats

X = ring().test_x[:12]
SETTINGS = {**FEW, "objectives": ["elbo", "dreg"], "num_particles": [2], "seed": 5}


def with_moving_buffers():
    """Returns a VAE whose loss depends on buffers that every run in training mode moves."""
    vae = small_vae()
    vae.decoder.layers[0] = nn.utils.parametrizations.spectral_norm(vae.decoder.layers[0])
    return vae.train()


def compared(vae=None, x=X, **more):
    vae = with_moving_buffers() if vae is None else vae
    return pv.compare(vae.model, vae.guide, x, **{**SETTINGS, **more})


def numbers(found):
    """Returns everything but the times, as text: nan is nan."""
    rows = [{n: v for n, v in row.items() if "seconds" not in n} for row in found.to_dict()]
    means = [getattr(row, side).mean.tolist() for row in found.rows for side in ("model", "guide")]
    return repr((rows, means, found.log_px.value.tolist(), found.complete))


@pytest.fixture(scope="module", autouse=True)
def _rough_log_px():
    """These tests are of what is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "LOG_PX_SAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def undisturbed():
    return numbers(compared())


def stopped_after(number, how):
    real, taken = Repeats.take_one, []

    def take_one(*args):
        taken.append(None)
        if len(taken) == number:
            how()
        real(*args)

    return take_one


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def killed():
    raise SystemExit


def test_it_goes_on_after_ctrl_c_and_after_a_kill_to_the_bit(undisturbed, tmp_path, monkeypatch):
    for number, how in ((3, ctrl_c), (4, killed), (1, ctrl_c), (5, ctrl_c)):
        with monkeypatch.context() as patch:
            patch.setattr(Repeats, "take_one", stopped_after(number, how))
            with pytest.raises(KeyboardInterrupt if how is ctrl_c else SystemExit):
                compared(folder=tmp_path)
    ended = compared(folder=tmp_path)
    assert numbers(ended) == undisturbed
    monkeypatch.setattr(Repeats, "take_one", stopped_after(1, killed))  # all is kept
    again = compared(folder=tmp_path)
    assert numbers(again) == undisturbed
    assert [row.seconds for row in again.rows] == [row.seconds for row in ended.rows]


class Toggled(nn.Module):
    """Adds 0 and 1 in turn: after an even number of runs it is as it was before them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("added", torch.zeros(()))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.added.copy_(1 - self.added)
        return self.inner(x) + self.added


def with_a_toggle():
    vae = small_vae()
    vae.decoder.layers[0] = Toggled(vae.decoder.layers[0])
    return vae.train()


@pytest.fixture(scope="module")
def undisturbed_toggles():
    return numbers(compared(with_a_toggle()))


@pytest.mark.parametrize("number", [3, 4])
def test_what_the_check_of_the_first_bound_moves_is_put_back(undisturbed_toggles, number, tmp_path, monkeypatch):
    """Of a buffer that is as it was before the first repeat nothing is kept, and the check moves it once more."""
    with monkeypatch.context() as patch:
        patch.setattr(Repeats, "take_one", stopped_after(number, ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            compared(with_a_toggle(), folder=tmp_path)
    assert numbers(compared(with_a_toggle(), folder=tmp_path)) == undisturbed_toggles


def test_what_is_not_kept_yet_is_taken_again(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "keep", lambda *args: killed())
        with pytest.raises(SystemExit):
            compared(folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert numbers(compared(folder=tmp_path / "new")) == undisturbed


def test_it_goes_on_when_its_time_had_run_out(undisturbed, tmp_path):
    first = compared(folder=tmp_path, max_seconds=1e-9)
    assert not first.complete
    assert {row.repeats for row in first.rows} == {4}
    more = compared(folder=tmp_path, max_seconds=1e-9)  # one round, as no call takes less
    assert {row.repeats for row in more.rows} == {5}
    assert numbers(compared(folder=tmp_path, max_seconds=100)) == undisturbed


SAID = ("seed", "repeats", "objectives")  # with their values; of the others there are hashes alone


def test_another_comparison_is_refused_and_its_folder_stays(tmp_path):
    def closed_form(scale=1.0):
        vae = poorly_guided()
        with torch.no_grad():
            vae.weight.mul_(scale)
        return vae

    x = torch.randn(5, 3)
    compared(closed_form(), x, folder=tmp_path)
    before = tree(tmp_path)
    for said, vae, data, settings in (
        ("seed", closed_form(), x, {"seed": 6}),
        ("repeats", closed_form(), x, {"repeats": 7}),
        ("objectives", closed_form(), x, {"objectives": ["elbo"]}),
        ("objectives", closed_form(), x, {"objectives": ["elbo", "sticking_the_landing"]}),
        ("data", closed_form(), x + 1, {}),
        ("parameters", closed_form(1.1), x, {}),
        ("log_px", closed_form(), x, {"log_px": pv.Estimate(torch.zeros(5), torch.ones(5))}),
    ):
        found = refusal(compared, vae, data, **settings, folder=tmp_path)
        start = f"{tmp_path} was begun with {said} " if said in SAID else f"{tmp_path} was begun with other {said}:"
        assert found.startswith(start), found
        assert found.endswith(": remove it, or take another folder")
        assert len(found) < 900
    assert tree(tmp_path) == before


def test_another_program_with_the_same_parameters_is_refused(tmp_path):
    compared(small_vae(activation="relu"), folder=tmp_path)
    before = tree(tmp_path)
    said = refusal(compared, small_vae(activation="tanh"), folder=tmp_path)
    assert f"{tmp_path / 'parts'} is of other programs: their first bound was " in said
    assert tree(tmp_path) == before
    path = next(tmp_path.rglob("repeats.pt"))
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(compared, small_vae(), folder=tmp_path).endswith(": remove it")


def test_times_of_compiled_steps_are_kept(tmp_path, monkeypatch):
    settings = {"compile": True, "folder": tmp_path, "objectives": ["elbo"], "num_particles": [1]}
    monkeypatch.setattr(comparing, "compiled_seconds", lambda *args: 0.125)
    compared(**settings)
    monkeypatch.setattr(comparing, "compiled_seconds", None)
    assert compared(**settings)["elbo", 1].compiled_seconds == 0.125
