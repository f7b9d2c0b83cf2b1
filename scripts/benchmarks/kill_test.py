"""Kills training runs, resumes them, and checks that they end like one that was never interrupted, to the bit.

python scripts/benchmarks/kill_test.py --kills 20

They are killed at random moments, and while a checkpoint is being written to a slow disk; and a disk fills up.
"""

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy.random  # noqa: F401  before the forks, which have its state in common
import torch
import torch._dynamo  # which torch's optimisers import: once, and not in each fork
from tabulate import tabulate

import pyrovae as pv
from pyrovae.cli import reporting, run_script
from pyrovae.common import require_count, require_seed
from pyrovae.runs import METRICS, train_run
from pyrovae.training.checkpoints import CURRENT
from pyrovae.training.saving import Saver

SECONDS_OF_SLOW_DISK = 0.05


def main(kills: int = 20, epochs: int = 40, compile_too: bool = False, seed: int = 0) -> None:
    """Kill and resume runs; exit with status 1 if one of them ends differently.

    Args:
        kills: how many at random moments; a quarter as many, and at least one, while a checkpoint is written
        epochs: of each run, on the ring of Gaussians
        compile_too: also kill runs with so many steps that they are compiled (takes some minutes more)
        seed: fixes the run and the moments
    """
    require_count("kills", kills)
    require_count("epochs", epochs)
    require_seed(seed)
    torch.set_num_threads(1)
    draws, rows = random.Random(seed), []
    settings: dict[str, Any] = {
        "hidden": (16,),
        "schedule": "cosine",
        "beta_schedule": "linear",
        "patience": epochs,
        "seed": seed,
    }
    config = pv.RunConfig(**settings, epochs=epochs, batch_size=200, max_grad_norm=5.0)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(("at random moments", *killed(config, Path(folder) / "random", kills, draws, slow=False)))
        few = max(1, kills // 4)
        rows.append(("while writing", *killed(config, Path(folder) / "writing", few, draws, slow=True)))
        rows.append(("the disk fills up", *filled(config, Path(folder) / "full")))
        if compile_too:
            many = pv.RunConfig(**settings, epochs=epochs, batch_size=20)
            rows.append(("compiled", *killed(many, Path(folder) / "compiled", few, draws, slow=False)))
    header = ("interrupted", "times", "runs finished", "to the bit")
    print(tabulate(rows, header, colalign=("left", "right", "right", "left")))
    if any(row[-1] != "yes" for row in rows):
        sys.exit(1)


def killed(config: pv.RunConfig, folder: Path, kills: int, draws: random.Random, slow: bool) -> tuple[int, int, str]:
    """Returns how often runs were killed, how many ended, and whether each ended like an uninterrupted one."""
    started = time.monotonic()
    wait_for(child(lambda: train(config, folder / "whole")))
    duration, whole = time.monotonic() - started, outcome(folder / "whole")
    landed, finished, same = 0, 0, True
    while landed < kills or (folder / f"{finished}").exists():
        pid = child(partial(train, config, folder / f"{finished}", slow))
        if landed < kills:
            moment = time.monotonic() + draws.uniform(0, duration / 2)
            temporary = folder / f"{finished}" / f"{CURRENT}.tmp"
            # On a slow disk wait further, until a temporary file shows that a checkpoint is being written.
            while alive(pid) and (time.monotonic() < moment or (slow and not temporary.exists())):
                time.sleep(0.001)
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
                landed += 1
        if wait_for(pid) == 0:
            same = same and outcome(folder / f"{finished}") == whole
            finished += 1
    return landed, finished, "yes" if same else "NO"


def filled(config: pv.RunConfig, folder: Path) -> tuple[int, int, str]:
    """Checks that a run without room for its second checkpoint ends in one line, and resumes when there is room."""
    wait_for(child(lambda: train(config, folder / "whole")))
    run, size = folder / "run", 0

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(config, run)

    wait_for(child(lambda: train(config, folder / "first", stop_at_once=True)))
    size = (folder / "first" / CURRENT).stat().st_size + 2_000
    status = wait_for(child(on_a_small_disk))
    begun = torch.load(run / CURRENT, weights_only=True)["position"]["epoch"] == 1
    wait_for(child(lambda: train(config, run)))
    same = status == 2 and begun and outcome(run) == outcome(folder / "whole")
    return 1, 1, "yes" if same else "NO"


def train(config: pv.RunConfig, folder: Path, slow: bool = False, stop_at_once: bool = False) -> None:
    """Trains with a checkpoint every 20 milliseconds, and continues a run that was interrupted."""
    warnings.filterwarnings("ignore", "the training in .* had ended")  # it was killed after its last checkpoint
    if slow:
        real = os.fsync

        def slow_fsync(fd: Any) -> None:
            time.sleep(SECONDS_OF_SLOW_DISK)
            real(fd)

        os.fsync = slow_fsync
    if stop_at_once:
        write = Saver.write

        def write_and_exit(self: Saver) -> None:
            write(self)
            os._exit(0)

        Saver.write = write_and_exit  # type: ignore[method-assign]
    train_run(config, folder, resume=True, checkpoint_minutes=0.02 / 60, progress=False)


def outcome(folder: Path) -> str:
    """Returns all that a run leaves behind, except its times, as text."""
    state = torch.load(folder / CURRENT, weights_only=True)
    for record in state["history"]:
        record.pop("seconds")
    for now, _ in state["generators"]:
        now.pop("python")  # differs in every fork, and nothing here draws from it
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    assert lines == state["history"]
    torch.set_printoptions(precision=17, threshold=sys.maxsize)
    kept = ("parameters", "state", "optimizer", "scheduler", "history", "position", "best", "generators")
    return repr([state[name] for name in kept])


def child(work: Callable[[], None]) -> int:
    """Does `work` in a fork, which starts quickly because everything is imported, and returns its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with reporting():
                work()
            status = 0
        except SystemExit as error:
            status = cast(int, error.code)  # from `reporting`
        finally:
            os._exit(status)
    return pid


def alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_for(pid: int) -> int:
    """Waits for a process and returns its exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    run_script(main)
