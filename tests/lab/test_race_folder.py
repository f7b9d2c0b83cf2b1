"""The folder of a race: it is resumed, read and shared, and that of another race is refused."""

import dataclasses
import functools
import multiprocessing
import shutil
import time

import pytest
import torch
from helpers import refusal, ring, small_vae, tree
from pyro.infer import Trace_ELBO
from small_races import OBJECTIVES, SETTINGS, numbers, run

import pyrovae as pv
from pyrovae.common import exclusive_lock
from pyrovae.lab import racing
from pyrovae.lab.learning_curve import LearningCurve

ONE_SEED = {"seeds": (0,)}


def numbers_of_one_seed(finished_race):
    return numbers(finished_race[0])[::2]


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_race_that_was_interrupted_ends_with_the_same_numbers(finished_race, tmp_path, monkeypatch):

    class Killed(BaseException):
        pass

    real_add, calls = LearningCurve.add, []

    def add(self, record):
        real_add(self, record)
        calls.append(record)
        if len(calls) in (1, 3):  # in the middle of a run, after a point of its curve
            raise Killed

    monkeypatch.setattr(LearningCurve, "add", add)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path, **ONE_SEED)
    with monkeypatch.context() as patch:
        patch.setattr(racing, "held_out_log_px", lambda *args, **kwargs: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(tmp_path, **ONE_SEED)
    assert len(calls) == 5  # a kill comes before the checkpoint of its epoch, which is trained again
    assert numbers(run(tmp_path, **ONE_SEED)) == numbers_of_one_seed(finished_race)


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_finished_race_is_read_instead_of_run_again(finished_race, monkeypatch):
    race, folder = finished_race
    before = tree(folder)
    monkeypatch.setattr(racing, "held_out_log_px", None)
    again = run(folder)
    assert numbers(again) == numbers(race)
    assert [r.seconds for r in again.runs] == [r.seconds for r in race.runs]
    assert tree(folder) == before
    assert again.to_dict() == race.to_dict()


@pytest.mark.usefixtures("entrants_unchecked")
def test_an_elbo_of_pyro_has_the_same_folder_in_every_process(tmp_path):
    one = run(tmp_path, objectives=[Trace_ELBO()], seeds=(0,))
    assert numbers(run(tmp_path, objectives=[Trace_ELBO()], seeds=(0,))) == numbers(one)
    assert [path.name for path in tmp_path.iterdir()] == ["Trace_ELBO-seed0-2epochs"]


def in_a_process(folder, results):
    torch.set_num_threads(1)
    results.put(numbers(run(folder, **ONE_SEED)))


@pytest.mark.usefixtures("entrants_unchecked")
def test_two_processes_share_a_race(finished_race, tmp_path):
    context = multiprocessing.get_context("fork")  # which has everything imported
    results = context.Queue()
    process = context.Process(target=in_a_process, args=(tmp_path, results))
    process.start()
    while not list(tmp_path.glob("*/race.lock")):  # it has begun
        time.sleep(0.05)
    assert numbers(run(tmp_path, **ONE_SEED)) == results.get(timeout=120) == numbers_of_one_seed(finished_race)
    process.join()


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_race_waits_for_a_run_that_another_process_has(finished_race, tmp_path, monkeypatch):
    race, folder = finished_race
    name = race.runs[0].folder.name
    waits = []
    lock = exclusive_lock(tmp_path / name / "race.lock")
    lock.__enter__()

    def wait(_):
        waits.append(sorted(path.name for path in tmp_path.iterdir() if list(path.glob("log_px*"))))
        lock.__exit__(None, None, None)
        shutil.copytree(folder / name, tmp_path / name, dirs_exist_ok=True)

    monkeypatch.setattr(racing.time, "sleep", wait)
    assert numbers(run(tmp_path, **ONE_SEED)) == numbers_of_one_seed(finished_race)
    assert waits == [[race["IWAE"][0].folder.name]]


def with_activation(activation="relu", **settings):
    return lambda: small_vae(activation=activation, seed=None, **settings)


@pytest.mark.usefixtures("entrants_unchecked")
@pytest.mark.parametrize(
    ("make_vae", "settings", "message"),
    [
        (with_activation("tanh"), {}, "of another model: its loss on the same data was 1"),
        (with_activation(likelihood=pv.Gaussian(0.6, learn_scale=True)), {}, "of a training from other initial param"),
        (lambda: small_vae(seed=5), {}, "of a training from other initial parameters"),
        (with_activation(), {"optimizer": functools.partial(torch.optim.Adam, eps=0.1)}, "of other optimizer settings"),
        (with_activation(), {"optimizer": torch.optim.SGD}, "written with optimizer 'Adam', and optimizer is now"),
    ],
)
def test_a_run_of_another_model_or_optimiser_is_refused(make_vae, settings, message, finished_race):
    _, folder = finished_race
    found = refusal(pv.race, make_vae, ring(), OBJECTIVES, (0, 1), folder=folder, **SETTINGS, **settings)
    assert message in found


@pytest.mark.usefixtures("entrants_unchecked")
def test_an_old_race_whose_checkpoints_have_no_identity_is_read(finished_race, tmp_path):
    """Its runs described their data in a file of their own."""
    race, folder = finished_race
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/checkpoint*.pt"):
        state = torch.load(path)
        del state["identity"]
        torch.save(state, path)
        (path.parent / "start.json").write_text('{"data": "0123", "loss of the start": 1.0}')
    assert numbers(run(tmp_path)) == numbers(race)


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_folder_of_another_race_is_refused(finished_race, tmp_path):
    race, folder = finished_race
    assert "make_vae must return a pair with a model and a guide, got 3" in refusal(
        pv.race, lambda: 3, ring(), OBJECTIVES, **SETTINGS
    )
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = ring(seed=5)
    for name in ("training", "validation", "held-out"):
        part = {"held-out": "test_x"}.get(name, f"{name.removesuffix('ing')}_x")
        data = dataclasses.replace(ring(), **{part: getattr(other, part)})
        assert f"is of other {name} data: take another folder" in refusal(run, tmp_path, data=data)
    assert "was written with lr 0.01, and lr is now 0.02" in refusal(run, tmp_path, lr=0.02)
    assert "was written with batch_size 25, and batch_size is now 20" in refusal(run, tmp_path, batch_size=20)
    other = {"ELBO": "elbo", "IWAE": pv.objectives.IWAE(5)}
    assert "was written with objective 'IWAE(num_particles=4, " in refusal(run, tmp_path, other)
    larger = refusal(pv.race, lambda: small_vae(hidden=(9,), seed=None), ring(), OBJECTIVES, (0, 1), folder=tmp_path,
                     **SETTINGS)  # fmt: skip
    assert "does not fit the model" in larger
    result = next((tmp_path / race.runs[0].folder.name).glob("log_px*"))
    result.write_bytes(result.read_bytes()[:50])
    assert "cannot be read (it holds no tensors that torch.save wrote): remove it" in refusal(run, tmp_path)
