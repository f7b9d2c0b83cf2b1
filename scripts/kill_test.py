"""Kills training runs and resumes them: do they end as one that was never interrupted, to the bit?

python scripts/kill_test.py --kills 20

SIGKILL at random moments; SIGKILL while a checkpoint is being written to a slow disk; a disk that fills up.
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
from pathlib import Path

import torch
from tabulate import tabulate

import pyrovae as pv
from pyrovae.cli.command_line import reporting, run_script
from pyrovae.common.errors import require_count, require_seed
from pyrovae.runs.run import METRICS, train_run
from pyrovae.training.checkpoints import CURRENT

SLOW = 0.05  # seconds that the slow disk takes


def main(kills: int = 20, epochs: int = 40, compile_too: bool = False, seed: int = 0) -> None:
    """Kill and resume runs; exit status 1 if one of them ends otherwise.

    Args:
        kills: how many at random moments; a quarter as many, and at least one, while a checkpoint is written
        epochs: of each run, on the ring of Gaussians
        compile_too: with steps enough that they are compiled, too (some minutes more)
        seed: fixes the run and the moments
    """
    require_count("kills", kills)
    require_count("epochs", epochs)
    require_seed(seed)
    torch.set_num_threads(1)
    draws, rows = random.Random(seed), []
    settings = {"hidden": (16,), "schedule": "cosine", "beta_schedule": "linear", "patience": epochs, "seed": seed}
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
    """How often runs were killed, how many came to their end, and whether each was what an uninterrupted one is."""
    started = time.monotonic()
    wait_for(child(lambda: train(config, folder / "whole")))
    duration, whole = time.monotonic() - started, outcome(folder / "whole")
    landed, finished, same = 0, 0, True
    while landed < kills or (folder / f"{finished}").exists():
        pid = child(lambda run=folder / f"{finished}": train(config, run, slow))
        if landed < kills:
            moment = time.monotonic() + draws.uniform(0, duration / 2)
            temporary = folder / f"{finished}" / f"{CURRENT}.tmp"
            # While it is written: some time into the run, as soon as there is a file that is not in its place yet.
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
    """A run that finds no room for its second checkpoint ends in one line, and goes on when there is room."""
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
    """A run with a checkpoint every 20 milliseconds, which goes on where an earlier one was broken off."""
    warnings.filterwarnings("ignore", "the training in .* had ended")  # it was killed after its last checkpoint
    if slow:
        real = os.fsync
        os.fsync = lambda file: (time.sleep(SLOW), real(file))
    if stop_at_once:
        write = pv.training.saving.Saver.write
        pv.training.saving.Saver.write = lambda saver: (write(saver), os._exit(0))
    train_run(config, folder, resume=True, checkpoint_minutes=0.02 / 60, progress=False)


def outcome(folder: Path) -> str:
    """All that a run leaves behind, but for its times, as text."""
    state = torch.load(folder / CURRENT, weights_only=True)
    for record in state["history"]:
        record.pop("seconds")
    for now, _ in state["generators"]:
        now.pop("python")  # a fork begins with another, and nothing here draws from it
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    assert lines == state["history"]
    torch.set_printoptions(precision=17, threshold=sys.maxsize)
    kept = ("parameters", "state", "optimizer", "scheduler", "history", "position", "best", "generators")
    return repr([state[name] for name in kept])


def child(work: Callable[[], None]) -> int:
    """The process id of a fork that does it: it has everything imported, so that it is quick to start."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with reporting():
                work()
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    return pid


def alive(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_for(pid: int) -> int:
    """Its exit status; below 0 that of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    run_script(main)
