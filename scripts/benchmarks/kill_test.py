"""Kills trainings and evaluations, repeats them, and checks that they end as if nothing had happened, to the bit.

python scripts/benchmarks/kill_test.py --kills 20

Trainings are killed at random moments, and while a checkpoint is being written to a slow disk; and a disk fills up.
Evaluations are killed at random moments, and while a report replaces an earlier one on a slow disk.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import io
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
from pyrovae.cli import evaluate_run, reporting, run_script
from pyrovae.common import load_tensors, read_text, require_count, require_seed
from pyrovae.runs import EVALUATION_FILES, METRICS, train_run
from pyrovae.training.checkpoints import CURRENT
from pyrovae.training.saving import Saver

SECONDS_OF_SLOW_DISK = 0.05
SECONDS_OF_SLOW_REPORT = 0.7  # from its last files to the end of the moves


def main(kills: int = 20, epochs: int = 40, compile_too: bool = False, seed: int = 0) -> None:
    """Kill trainings and evaluations and begin them again; exit with status 1 if one of them ends differently.

    Args:
        kills: how many: of trainings, two fifths at random moments and a fifth while a checkpoint is written; of
            evaluations, a fifth at random moments and a fifth while the report is written
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
        "latent_dim": 1,  # of which quadrature takes little time
        "schedule": "cosine",
        "beta_schedule": "linear",
        "patience": epochs,
        "seed": seed,
    }
    config = pv.RunConfig(**settings, epochs=epochs, batch_size=200, max_grad_norm=5.0)
    with tempfile.TemporaryDirectory() as folder:
        few = max(1, kills // 5)
        most = max(1, kills - 3 * few)
        whole = Whole(config, Path(folder) / "whole")
        rows.append(("training, at random moments", *killed(whole, Path(folder) / "random", most, draws, slow=False)))
        rows.append(("training, in a checkpoint", *killed(whole, Path(folder) / "writing", few, draws, slow=True)))
        rows.append(("training, the disk fills up", *filled(whole, Path(folder) / "full")))
        rows.append(("evaluation", *evaluations_killed(whole.folder, 2 * few, draws)))
        if compile_too:
            many = Whole(pv.RunConfig(**settings, epochs=epochs, batch_size=20), Path(folder) / "whole, compiled")
            rows.append(("training, compiled", *killed(many, Path(folder) / "compiled", few, draws, slow=False)))
    header = ("interrupted", "times", "finished", "to the bit")
    print(tabulate(rows, header, colalign=("left", "right", "right", "left")))
    if any(row[-1] != "yes" for row in rows):
        sys.exit(1)


class Whole:
    """A run that is not interrupted: its folder, its seconds, and what it leaves behind."""

    def __init__(self, config: pv.RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        started = time.monotonic()
        wait_for(child(lambda: train(config, folder)))
        self.duration, self.outcome = time.monotonic() - started, outcome(folder)


def killed(whole: Whole, folder: Path, kills: int, draws: random.Random, slow: bool) -> tuple[int, int, str]:
    """Returns how often runs were killed, how many ended, and whether each ended like the uninterrupted one."""
    landed, finished, same = 0, 0, True
    while landed < kills or (folder / f"{finished}").exists():
        pid = child(partial(train, whole.config, folder / f"{finished}", slow))
        if landed < kills:
            moment = time.monotonic() + draws.uniform(0, whole.duration / 2)
            temporary = folder / f"{finished}" / f"{CURRENT}.tmp"
            # On a slow disk wait further, until a temporary file shows that a checkpoint is being written.
            while alive(pid) and (time.monotonic() < moment or (slow and not temporary.exists())):
                time.sleep(0.001)
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
                landed += 1
        if wait_for(pid) == 0:
            same = same and outcome(folder / f"{finished}") == whole.outcome
            finished += 1
    return landed, finished, "yes" if same else "NO"


def filled(whole: Whole, folder: Path) -> tuple[int, int, str]:
    """Checks that a run without room for its second checkpoint ends in one line, and resumes when there is room."""
    config, run, size = whole.config, folder / "run", 0

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(config, run)

    wait_for(child(lambda: train(config, folder / "first", stop_at_once=True)))
    size = (folder / "first" / CURRENT).stat().st_size + 2_000
    status = wait_for(child(on_a_small_disk))
    begun = load_tensors(run / CURRENT)["position"]["epoch"] == 1
    wait_for(child(lambda: train(config, run)))
    same = status == 2 and begun and outcome(run) == whole.outcome
    return 1, 1, "yes" if same else "NO"


def evaluations_killed(run: Path, kills: int, draws: random.Random) -> tuple[int, int, str]:
    """Kills evaluations that replace an earlier one; returns how often, how many ended, and whether all were whole.

    Evaluations that differ in their seed take turns. After a kill each file is that of the earlier one or of the new
    one. The next evaluation, which may not overwrite, finds all files of one of the two, and a last one replaces them.
    """
    started, wholes = time.monotonic(), []
    for seed in (0, 1):
        wait_for(child(partial(evaluate, run, seed)))
        wholes.append(evaluation_of(run))
    duration = (time.monotonic() - started) / 2
    landed, finished, same, seed = 0, 0, wholes[0] != wholes[1], 1
    while landed < kills:
        seed, slow = 1 - seed, landed % 2 == 1
        pid = child(partial(evaluate, run, seed, slow))
        moment = time.monotonic() + draws.uniform(0, duration)
        # On a slow disk wait until a temporary file shows that the report is being written.
        while alive(pid) and not ((run / ".evaluation.tmp/report.md").exists() if slow else time.monotonic() > moment):
            time.sleep(0.001)
        time.sleep(draws.uniform(0, SECONDS_OF_SLOW_REPORT) if slow else 0)
        killed_it = alive(pid)
        if killed_it:
            os.kill(pid, signal.SIGKILL)
        wait_for(pid)
        landed += killed_it
        left = evaluation_of(run)
        same = same and all(content in (wholes[0][name], wholes[1][name]) for name, content in left.items())
        refused = wait_for(child(partial(evaluate, run, seed, overwrite=False))) == 2
        same = same and refused and evaluation_of(run) in wholes
        ended = wait_for(child(partial(evaluate, run, seed))) == 0
        finished += killed_it and ended
        same = same and evaluation_of(run) == wholes[seed]
    return landed, finished, "yes" if same and finished == landed else "NO"


def evaluate(run: Path, seed: int, slow: bool = False, overwrite: bool = True) -> None:
    """Evaluates a run as the command does."""
    if slow:
        os.fsync, os.rename, os.replace = slowed(os.fsync), slowed(os.rename), slowed(os.replace)
    sys.stdout = sys.stderr = io.StringIO()
    evaluate_run(run, num_samples=20, num_data=50, seed=seed, overwrite=overwrite)


def evaluation_of(run: Path) -> dict[str, object]:
    """Returns the content of all files of an evaluation by name, except its time."""
    content = json.loads(read_text(run / "evaluation.json"))
    content.pop("seconds")
    files = {name: run / name for name in EVALUATION_FILES if (run / name).exists()}
    return {name: content if path.suffix == ".json" else path.read_bytes() for name, path in files.items()}


def slowed(call: Callable) -> Callable:
    """Returns a call of the system as it is on a slow disk."""

    def slow(*args: Any) -> Any:
        time.sleep(SECONDS_OF_SLOW_DISK)
        return call(*args)

    return slow


def train(config: pv.RunConfig, folder: Path, slow: bool = False, stop_at_once: bool = False) -> None:
    """Trains with a checkpoint every 20 milliseconds, and continues a run that was interrupted."""
    warnings.filterwarnings("ignore", "the training in .* is finished")  # it was killed after its last checkpoint
    if slow:
        os.fsync = slowed(os.fsync)
    if stop_at_once:
        write = Saver.write

        def write_and_exit(self: Saver) -> None:
            write(self)
            os._exit(0)

        Saver.write = write_and_exit  # type: ignore[method-assign]
    train_run(config, folder, resume=True, checkpoint_minutes=0.02 / 60, progress=False)


def outcome(folder: Path) -> str:
    """Returns all that a run leaves behind, except its times, as text."""
    state = load_tensors(folder / CURRENT)
    for record in state["history"]:
        record.pop("seconds")
    for now, _ in state["generators"]:
        now.pop("python")  # differs in every fork, and nothing here draws from it
    lines = [json.loads(line) for line in read_text(folder / METRICS).splitlines()]
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
