"""Every command works in a locale without UTF-8, with paths and names of whatever bytes and characters."""

import csv
import os
import subprocess
import sys

import numpy as np

from pyrovae.common import read_text

# The commands, one after another in one process, in which Python takes the locale as it finds it.
PROGRAM = """if True:
    import os, sys, warnings
    warnings.simplefilter("error", UserWarning)
    from pyrovae.cli import run_command
    from functools import partial
    from matplotlib.figure import Figure
    from pyrovae.common import files
    files.DOTS_PER_INCH = 20
    save = Figure.savefig
    def draw_once(figure, *args, **settings):  # and not a first time, to lay it out; small, with few ticks
        figure._layout_engine = None
        figure.set_size_inches(figure.get_size_inches() / 3)
        save(figure, *args, **settings)
    Figure.savefig = draw_once
    from pyrovae.cli.demo import OBJECTIVES
    OBJECTIVES["IWAE-50"]["num_particles"] = 2
    from pyrovae.runs import measures
    measures.quadrature_log_marginal = partial(measures.quadrature_log_marginal, num_points=41)
    data, out = (os.fsdecode(bytes.fromhex(argument)) for argument in sys.argv[1:])
    small = ["--hidden", "4", "--epochs", "1", "--batch-size", "1000"]
    draws = ["--num-samples", "4", "--num-data", "4"]
    compared = ["--num-particles", "1", "--repeats", "4", "--num-data", "4", "--no-compile"]
    raced = ["--seeds", "0", "--budget", "epochs"]
    for flags in (
        ["train", "--dataset", data, "--out", out, *small],
        ["evaluate", out, *draws],
        ["evaluate", out, "--methods", "elbo", "is_4", "--num-data", "4"],
        ["compare", out, "--objectives", "elbo", *compared],
        ["race", "--dataset", data, "--out", out + "/race", "--objectives", "elbo", *raced, *small, *draws],
        ["demo", "--epochs", "1", "--out", out + "/demo", *draws],
    ):
        sys.argv = ["pyrovae", *flags]
        run_command()
    sys.argv = ["pyrovae", "evaluate", out + "/nowhere"]
    run_command()
"""
DATA, OUT = b"caf\xe9.csv", b"r\xff\xd0\xb6"
NAMES = ["рост", "$\\frac$ |", "日本語", "\U0001f9ff"]
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_all_commands_in_a_locale_without_utf_8(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 3)).round(3).tolist()
    with open(tmp_path / os.fsdecode(DATA), "w", encoding="utf-8", newline="") as file:
        rows = ([*row, ("Москва $\\frac$", "\U0001f600")[number % 2]] for number, row in enumerate(values))
        csv.writer(file).writerows([NAMES, *rows])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, DATA.hex(), OUT.hex()],
        env={**os.environ, "OMP_NUM_THREADS": "1", **POSIX},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    folder = r"r\udcff\udcd0\udcb6"
    assert (done.returncode, done.stderr.decode()) == (2, f"error: run folder {folder}/nowhere does not exist\n")
    assert f"report: {folder}/race/race.md" in done.stdout.decode()
    out = tmp_path / os.fsdecode(OUT)
    report = read_text(out / "report.md")
    assert all(name in report for name in NAMES if "|" not in name)
    assert r"caf\udce9.csv" in report
    for name in ("estimates.md", "comparison.md", "race/race.md", "demo/report.md", "demo/elbo/report.md"):
        assert read_text(out / name)
