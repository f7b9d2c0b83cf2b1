"""Runs on one GPU what has been run on CPUs only: tests, the speed table, and Burda's short schedule; writes a report.

python scripts/benchmarks/gpu.py

Each part is a process of its own with a time limit. The report is written anew after each part, so that a machine that
is taken away leaves what was done by then. Burda's runs resume where they stopped if this is called again.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import subprocess
import sys
import time
from pathlib import Path

import torch

from pyrovae.cli import run_script
from pyrovae.common import require, require_choice, require_number, write_text

ROOT = Path(__file__).parents[2]
PARTS = ("tests", "speed", "burda")
LINES = 30


def main(
    data_root: str | None = None,
    out: str = "runs/gpu",
    device: str = "cuda",
    limit: float = 480.0,
    total: float = 600.0,
    parts: tuple[str, ...] = PARTS,
) -> None:
    """Run the parts one after another and keep what each printed.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        out: folder for report.md, and for a log and the results of each part; an earlier report is written over
        device: cuda; cpu tries the script itself out
        limit: seconds after which a part is stopped
        total: seconds after which no part begins, and the one that runs is stopped
        parts: which of tests, speed and burda
    """
    for name, value in (("limit", limit), ("total", total)):
        require_number(name, value, above=0)
    require_choice("device", device, ("cuda", "cpu"))
    for name in parts:
        require(name in PARTS, f"parts must be of {', '.join(PARTS)}, got {name!r}")
    require(device != "cuda" or torch.cuda.is_available(), "device must be cpu where there is no GPU, got 'cuda'")
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    images = ("--data-root", str(Path(data_root).resolve())) if data_root else ()
    commands = {
        "tests": ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--gpu-device", device, str(ROOT / "tests")),
        "speed": (str(ROOT / "scripts/benchmarks/speed.py"), "--device", device, "--rounds", "6",
                  "--num-samples", "500", "--out", _new_folder(folder / "speed")),
        "burda": (str(ROOT / "scripts/papers/burda2016.py"), "--schedule", "short", "--k", "1", "5", "50", "--swap",
                  "--seeds", "0", "--device", device, "--out", str(folder / "burda"), *images),
    }  # fmt: skip
    ends, lines = time.monotonic() + total, [f"# {_name(device)}, torch {torch.__version__}", ""]
    for name in parts:
        left = min(limit, ends - time.monotonic())
        if left <= 0:
            lines += [f"## {name}", "", "not begun: the time was over", ""]
            continue
        print(f"{name}: at most {left:.0f} s", flush=True)
        began = time.time()
        status, seconds = _run(commands[name], folder / f"{name}.log", left)
        found = ((path.stat().st_mtime, path) for path in folder.glob(f"{name}*/report.md"))
        reports = [path for written, path in sorted(found) if written >= began - 1]  # and none of an earlier call
        told = reports[-1] if reports else folder / f"{name}.log"
        shown = told.read_bytes().decode(errors="replace").splitlines()
        shown = shown if reports else ["```", *shown[-LINES:], "```"]
        lines += [f"## {name}: {status}, {seconds:.0f} s", "", *shown, ""]
        write_text(folder / "report.md", "\n".join(lines))
    write_text(folder / "report.md", "\n".join(lines))
    print(f"report: {folder / 'report.md'}")


def _run(command: tuple[str, ...], log: Path, limit: float) -> tuple[str, float]:
    """Runs Python with these arguments; returns how it ended, and after how many seconds."""
    started = time.monotonic()
    write_text(log, "")  # which replaces a link
    with open(log, "ab") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = f"exit status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "stopped by the time limit"
    return status, time.monotonic() - started


def _new_folder(folder: Path) -> str:
    """Returns the folder, or one with a number after its name if there is one already."""
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('-')[0]}-{number}")
    return str(folder)


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    run_script(main)
