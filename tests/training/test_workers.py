"""Several processes train and measure together the same as one alone. They run several_processes.py."""

import fcntl
import os
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which torch's optimisers import: once, and not in each fork
from forked import called
from several_processes import evaluate, train
from torch.distributed.run import main as torchrun

import pyrovae as pv
from pyrovae.common.progress import hides_progress
from pyrovae.common.workers import Workers, alone, process_group
from pyrovae.programs import AS_IT_COMES
from pyrovae.training.data_count import Rows
from pyrovae.training.gradients import BatchGradients, Step

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Returns the folder, what each of two processes found before one died, and after it.

    The run keeps two cores busy, so that one of pytest's workers makes it for all of them.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "together").open("a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        folder = Path(note.read() or tmp_path_factory.mktemp("together"))
        if not note.tell():
            run_together(folder)
            note.write(str(folder))
    before, after = ([torch.load(folder / f"{rank}{name}.pt") for rank in range(2)] for name in ("", " again"))
    return folder, before, after


def run_together(folder: Path) -> None:
    """Runs the program under torchrun, all in forks, which have everything imported.

    test_processes_beside_threads_in_small is torchrun as a user starts it. Of the process that dies and the one that
    loses it, torchrun names whichever it looks at first; the steps that were taken tell where the run stopped.
    """
    how = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "--start-method=fork", "--run-path"]
    status, _, said = called(torchrun, ["torchrun", *how, HERE / "several_processes.py", folder], folder)
    assert status == 0, said
    assert " failed (exitcode: " in said


@pytest.fixture(scope="module")
def both(together):
    return together[1]


def test_two_processes_train_as_one_under_the_same_noise_of_each_datum(both):
    alone = train()
    for found in both:
        assert found["train"]["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert found["train"]["elbo"] == pytest.approx(alone["elbo"], abs=1e-6)
        for terms, expected in zip(found["train"]["terms"], alone["terms"], strict=True):
            assert terms == pytest.approx(expected, abs=1e-6)
        for name, value in alone["state"].items():
            torch.testing.assert_close(found["train"]["state"][name], value, atol=1e-6, rtol=0)
    assert all(torch.equal(v, both[1]["train"]["state"][n]) for n, v in both[0]["train"]["state"].items())


def test_two_processes_measure_what_one_does(both):
    alone = evaluate()
    for found in both:
        assert found["evaluate"].keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found["evaluate"][name], value, atol=1e-12, rtol=0, msg=name)


def test_processes_start_again_from_the_checkpoint_when_one_dies(together):
    folder, before, after = together
    for one, other in zip((found["whole"] for found in before), after, strict=True):
        assert not one["again"]
        assert other["again"]
        assert (one["steps"], other["steps"]) == (12, 7)  # of three epochs; it died in the second step of the second
        assert one["loss"] == other["loss"]
        assert one["elbo"] == other["elbo"]
        assert all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())
    run = pv.load_run(folder / "killed")
    assert run.history.loss == before[0]["whole"]["loss"]
    lines = (folder / "killed/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_one_process_alone_is_all_workers():
    with process_group() as workers:
        assert (workers.rank, workers.size, workers.is_first) == (0, 1, True)
    rows = torch.arange(5)
    assert torch.equal(workers.share(rows), rows)
    assert workers.gathered("x") == ["x"]
    assert workers.in_turn([1, 2, 3]) == [1, 2, 3]
    assert workers.total(rows) is rows
    assert [hides_progress(p) for p in (None, True, False)] == [None, False, True]


@pytest.fixture
def second_of_three(monkeypatch):
    monkeypatch.setattr(pv.common.workers, "_together", True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return Workers()


def test_every_row_and_every_piece_is_one_processs(second_of_three):
    assert second_of_three.share(torch.arange(8)).tolist() == [1, 4, 7]
    assert second_of_three.share(torch.arange(1)).tolist() == []
    assert [second_of_three.owns(i) for i in range(5)] == [False, True, False, False, True]
    assert hides_progress(True) is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_counts_and_losses_are_exact_whatever_the_parameters_dtype(dtype, second_of_three, monkeypatch):
    """In bfloat16, which has 8 digits, 1,545 data were 1,544."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(3))
    parameter = torch.nn.Parameter(torch.ones(2, dtype=dtype))

    def compute(x):
        parameter.grad = torch.full_like(parameter, 0.375)
        loss = torch.tensor(257.0 if dtype != torch.bfloat16 else 258.0, dtype=dtype)
        return Step(loss, parameter.grad.norm(), Rows(515), None)

    gradients = BatchGradients(compute, [parameter], 1, AS_IT_COMES, False)
    loss, _, count, *_ = gradients((torch.zeros(515, 1),))
    assert (loss.item(), count.item()) == (774.0 if dtype == torch.bfloat16 else 771.0, 1_545)
    assert parameter.grad.dtype == dtype
    assert parameter.grad.tolist() == [0.375, 0.375]
    with alone():
        assert BatchGradients(compute, [parameter], 1, AS_IT_COMES, False)((torch.zeros(515, 1),))[2].item() == 515


def test_a_process_can_work_alone_and_groups_of_the_callers_own_share_nothing(second_of_three, monkeypatch):
    with alone():
        assert Workers().size == 1
    assert Workers().size == 3
    monkeypatch.setattr(pv.common.workers, "_together", False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert Workers().size == 1


def test_data_that_differ_are_refused(second_of_three, monkeypatch):
    monkeypatch.setattr(Workers, "gathered", lambda self, value: [value, value, [((10, 2), 0.5)]])
    with pytest.raises(pv.InputError, match="data must be the same for all 3 processes, which share the work on them"):
        second_of_three.check_same("data", [torch.zeros(10, 2)])
    monkeypatch.setattr(Workers, "gathered", lambda self, value: [value] * 3)
    second_of_three.check_same("data", [torch.zeros(10, 2)])


def test_data_that_cannot_be_shared_are_refused(second_of_three, monkeypatch):
    monkeypatch.setattr(Workers, "check_same", lambda self, *args: None)
    vae = pv.VAE((2,), latent_dim=1, hidden=(3,), likelihood=pv.Gaussian(0.5))
    with pytest.raises(pv.InputError, match=r"batch_size must be at least the number of processes, 3; the first .* 2"):
        pv.fit(vae, torch.randn(10, 2), epochs=1, batch_size=2)
    with pytest.raises(pv.InputError, match="free_bits must be None where several processes train"):
        pv.fit(vae, torch.randn(10, 2), epochs=1, objective="elbo_analytic_kl", free_bits=0.1)
    with pytest.raises(pv.InputError, match="data must be a Dataset or a tensor where several processes train, got li"):
        pv.fit(vae, [torch.randn(10, 2)], epochs=1)
