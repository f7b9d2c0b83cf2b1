"""Starts pairs of processes on one folder and prints what became of each as JSON, for test_started_at_once.py.

Everything is imported once, and each process is a fork.
"""

import contextlib
import io
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # which torch's optimisers import: once, and not in each fork

import pyrovae as pv
from pyrovae.cli import evaluate_run, reporting
from pyrovae.runs import train_run

LENGTHS, NUM_STARTS, AT_ONCE = (2, 3), 4, 4  # lengths in epochs: `fit` alone would go on from 2 to 3
# Seconds until a process starts, and those that its data take: so long that the other one may be done meanwhile.
WAITS, LOADS = (0.0, 0.05, 0.2), (0.0, 0.0, 0.1, 1.5)
seconds_to_load = 0.0


def slow_data() -> pv.Dataset:
    """Loads slowly, as from a disk far away."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    time.sleep(seconds_to_load)
    return pv.Dataset("slow", "real", x[:40], (), x[40:50], (), x[50:], ())


def train(folder: object, epochs: int) -> None:
    train_run(config(epochs), str(folder), progress=False)


def train_for_longer(folder: object) -> None:
    train_run(config(6), str(folder), resume=True, checkpoint_epochs=1, progress=False)


def config(epochs: int) -> pv.RunConfig:
    return pv.RunConfig(dataset="started_at_once:slow_data", hidden=(4,), batch_size=20, epochs=epochs)


def child(work: Callable[[], object], wait: float = 0.0, load: float = 0.0) -> Callable[[], dict]:
    """Works in a fork that ends as a command does; the function that is returned waits for its end."""
    global seconds_to_load
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        out, err, status = io.StringIO(), io.StringIO(), 0
        try:
            sys.modules["started_at_once"] = sys.modules["__main__"]  # whose function the data are
            seconds_to_load = load
            time.sleep(wait)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), reporting():
                work()
        except SystemExit as stopped:
            status = stopped.code or 0
        except BaseException as error:  # a traceback
            status, _ = 1, err.write(repr(error))
        finally:
            os.write(writes, json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}).encode())
            os._exit(0)
    os.close(writes)

    def wait_for() -> dict:
        with os.fdopen(reads) as file:
            found = json.loads(file.read())
        os.waitpid(pid, 0)
        return found

    return wait_for


def pairs(works: list[tuple[Callable, Callable]], draws: random.Random) -> list[list[dict]]:
    """Returns what became of pairs of processes, which start after random delays and whose data take random times."""
    found = []
    for first in range(0, len(works), AT_ONCE):
        waiting = [
            [child(work, draws.choice(WAITS), draws.choice(LOADS)) for work in both]
            for both in works[first : first + AT_ONCE]
        ]
        found += [[wait_for() for wait_for in both] for both in waiting]
    return found


def main(folder: Path, seed: int) -> None:
    warnings.simplefilter("default", UserWarning)  # printed as in a process of its own, and not a test's errors
    torch.set_num_threads(1)
    os.chdir(folder)
    draws, (one, other) = random.Random(seed), LENGTHS
    for epochs in LENGTHS:
        child(partial(train, f"alone {epochs}", epochs))()
    begun = [(partial(train, number, one), partial(train, number, other)) for number in range(NUM_STARTS)]
    found = {"trained": pairs(begun, draws)}
    found["resumed"] = pairs([(partial(train_for_longer, f"alone {one}"),) * 2], draws)
    measure = partial(evaluate_run, Path(f"alone {other}"), 5, 3)
    found["evaluated"] = pairs([(partial(train_for_longer, f"alone {other}"), measure)], draws)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
