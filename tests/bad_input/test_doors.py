"""Something of another kind, in place of each setting of every public function and class, is refused in one line."""

import numpy as np
import pytest
import torch
from doors import DOORS, NO_DOORS

import pyrovae as pv

TEN_MB = "y" * 10_000_000
# No setting takes one of these.
WRONG = (object(), 1j, b"3", {3}, np.array([2.0, 3.0]), torch.zeros(3, device="meta"), [TEN_MB] * 3, 2**70 * 1j)
TEXTS = ("name", "plate", "data_root", "folder", "device", "source")  # which any text may be, or one that is there


@pytest.mark.parametrize("name", DOORS)
def test_a_setting_of_another_kind_is_refused_in_one_line_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    door = DOORS[name]
    for setting in door.names:
        for value in WRONG if setting in TEXTS else (*WRONG, TEN_MB):
            with pytest.raises(pv.InputError) as caught:
                door.call(**{**door.given, setting: value})
            message = str(caught.value)
            assert len(message) <= 500, setting
            assert len(message.splitlines()) == 1, setting
    assert not list(tmp_path.iterdir())


SIZES = ("num_", "latent_dim", "code_dim", "repeats")
SEQUENCES = ("shape", "hidden", "latent_dims", "num_particles")


@pytest.mark.parametrize("name", [name for name in DOORS if "fit" not in name])
def test_a_size_that_no_memory_holds_is_refused_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    door = DOORS[name]
    for setting in door.names:
        if setting.startswith(SIZES) and setting != "num_data":  # the most that are used
            values = [2**62, -(2**62)]
        elif setting.endswith(SEQUENCES):
            values = [(2**62,), (2**30, 2**30, 2**30)] if setting.endswith("shape") else [(2**62,)]
        else:
            continue
        for value in values:
            with pytest.raises(pv.InputError, match=r"2\^40|>= |must|needs"):
                door.call(**{**door.given, setting: value})


def test_every_public_name_is_a_door_or_known_to_be_none():
    assert {name.partition(".")[0] for name in DOORS} | NO_DOORS >= set(pv.__all__)
    assert not NO_DOORS & DOORS.keys()
    assert set(pv.__all__) >= NO_DOORS
