"""What processes that torchrun starts again have in common with those before, and how all of them are refused."""

from contextlib import suppress

import pytest
import torch.distributed as dist
from helpers import refusal

import pyrovae as pv
from pyrovae.common import current_job, process_group, workers
from pyrovae.common.workers import Workers


def block(work):
    with process_group():
        return work()


@pytest.fixture
def attempt(monkeypatch):
    """Returns a function that works in a process as torchrun starts it: on its store, for this attempt.

    `script` begins the blocks; by default it is one, of `work` alone.
    """
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **settings: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "the same for every call, if its user says so")

    def attempt(store, number, work=current_job, script=block):
        monkeypatch.setattr(workers, "_num_blocks", 0)
        monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(store, 0, 1)]))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        return script(work)

    return attempt


def test_attempts_of_one_call_of_torchrun_have_one_id_and_another_call_has_another(attempt):
    store, other = dist.HashStore(), dist.HashStore()
    one = attempt(store, 0)
    assert one is not None
    assert attempt(store, 1) == attempt(store, 2) == one
    assert attempt(other, 0) not in (None, one)
    assert current_job() is None


def refused():
    raise pv.InputError("epochs must be a whole number >= 1, got 0")


def test_a_refusal_is_repeated_before_any_work(attempt):
    store, done = dist.HashStore(), []
    said = refusal(attempt, store, 0, refused)
    for number in (1, 2):
        assert refusal(attempt, store, number, lambda: done.append(True)) == said
    assert not done
    attempt(dist.HashStore(), 1, lambda: done.append(True))
    assert done


def test_a_refusal_that_the_script_has_caught_is_not_repeated_once_it_has_gone_on(attempt):
    """After a restart every block was refused with it."""
    store, done = dist.HashStore(), []

    def script(last):
        for work in (refused, lambda: done.append("second")):
            with suppress(pv.InputError):
                block(work)
        block(last)

    def died():
        raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError, match="connection closed"):
        attempt(store, 0, died, script)
    tried = []
    attempt(store, 1, lambda: tried.append("first"))
    assert tried == ["first"]
    said = refusal(attempt, store, 2, refused, script)
    assert refusal(attempt, store, 3, lambda: done.append("third"), script) == said
    assert done == ["second"] * 3


def test_blocks_of_one_script_do_not_share_addresses(attempt, monkeypatch):
    """The second block found those of the first, whose connections are closed, and hung at times."""
    found, store = [], dist.HashStore()

    def connect(*args, store, **settings):
        found.append(store.check(["address"]))
        store.set("address", "mine")

    monkeypatch.setattr(dist, "init_process_group", connect)
    for number in (0, 1):
        attempt(store, number, current_job, lambda work: [block(work) for _ in range(3)])
    assert found == [False] * 6


def test_what_may_go_better_is_tried_again(attempt):
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="connection closed"):
        attempt(store, 0, lambda: (_ for _ in ()).throw(RuntimeError("connection closed by peer")))
    assert attempt(store, 1) is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_are_refused_what_the_first_one_is(rank, monkeypatch):
    """The others waited for it, and ended in a traceback about a closed connection."""
    sent, calls = [(None, pv.InputError("out must be a folder"))], []
    monkeypatch.setattr(workers, "_together", True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def broadcast(values, source):
        if rank == source:
            sent[:] = values
        values[:] = sent

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)

    def check():
        calls.append(True)
        raise pv.InputError("out must be a folder")

    assert refusal(Workers().by_first, check) == "out must be a folder"
    sent[:] = [(5, None)]
    assert Workers().by_first(lambda: 5) == 5
    assert len(calls) == (rank == 0)
