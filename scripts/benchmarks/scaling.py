"""Times training and evaluation with several processes, and with one process of as many threads.

python scripts/benchmarks/scaling.py
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from pyrovae.cli import run_script
from pyrovae.common import InputError, read_text, require_count, write_json
from pyrovae.runs import METRICS

SCRIPTS = Path(__file__).parent.parent
TRAININGS = {
    "ELBO, batch 128": ("--batch-size", 128),
    "ELBO, batch 1024": ("--batch-size", 1_024),
    "IWAE-5, batch 128": ("--batch-size", 128, "--objective", "iwae", "--num-particles", 5),
}


def main(
    dataset: str = "mnist",
    data_root: str | None = None,
    processes: int = 2,
    epochs: int = 5,
    rounds: int = 3,
    num_samples: int = 1_000,
    num_data: int = 1_000,
    out: str | None = None,
) -> None:
    """Time one process with one thread, one with as many threads as there are processes, and several with one each.

    Args:
        dataset: as for scripts/train.py
        data_root: folder of the image sets
        processes: how many
        epochs: of each training; the first one compiles and is left out
        rounds: run everything so many times, in turn
        num_samples: draws per datum for log p(x)
        num_data: the first so many test data
        out: file for the table, as JSON
    """
    require_count("processes", processes, 2)
    require_count("epochs", epochs, 2)
    require_count("rounds", rounds)
    kinds = {"1 process": (1, 1), f"1 process, {processes} threads": (1, processes)}
    kinds[f"{processes} processes"] = (processes, 1)
    data = ["--dataset", dataset, *(("--data-root", data_root) if data_root else ())]
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for kind, layout in kinds.items():
                for name, flags in TRAININGS.items():
                    run = Path(folder) / f"{number} {kind} {name}"
                    launch("train.py", layout, *data, *flags, "--epochs", epochs, "--out", run)
                    lines = [json.loads(line) for line in read_text(run / METRICS).splitlines()]
                    seconds = statistics.median(line["seconds"] for line in lines[1:])
                    times.setdefault(f"epoch, {name}", {}).setdefault(kind, []).append(seconds)
                launch("evaluate.py", layout, run, "--num-samples", num_samples, "--num-data", num_data)
                seconds = json.loads(read_text(run / "evaluation.json"))["seconds"]
                times.setdefault(f"evaluation, {num_samples:,} samples", {}).setdefault(kind, []).append(seconds)
    print(table(times))
    if out is not None:
        write_json(Path(out), times)


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Returns medians over rounds, and how many times faster the processes are than as many threads."""
    rows = []
    for name, row in times.items():
        alone, threads, several = (statistics.median(found) for found in row.values())
        rows.append([name, f"{alone:.3g}", f"{threads:.3g}", f"{several:.3g}", f"{threads / several:.2f}"])
    kinds = next(iter(times.values()))
    return tabulate(rows, ["seconds", *kinds, "processes to threads"], "github", disable_numparse=True)


def launch(script: str, layout: tuple[int, int], *flags: object) -> None:
    """Runs a script with a layout of (processes, threads of each)."""
    processes, threads = layout
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*start, SCRIPTS / script, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        # torchrun reports below what a process of its said
        lines = [line for line in done.stderr.splitlines() if line.strip("=- ")] or ["no message"]
        said = [line for line in lines if line.startswith("error:") or "Error: " in line] or lines
        raise InputError(f"{script} failed: {said[-1].strip()}")


if __name__ == "__main__":
    run_script(main)
