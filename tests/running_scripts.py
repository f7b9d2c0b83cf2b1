"""Runs the scripts and the command as a user does, in a process of their own or in this one."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from forked import called
from helpers import FEW_FACTORS
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.cli import run_command
from pyrovae.evaluation import proposal_misfit
from pyrovae.runs import measures

FOLDER = Path(__file__).parent.parent / "scripts"
# The files that are programs, by their path in scripts/; the others are imported by those beside them.
SCRIPTS = sorted(
    str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)


def run(*arguments, cwd, **environment) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own."""
    # One thread each: the suite's machines have two cores.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning", **environment}
    command = [sys.executable, str(FOLDER / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def run_here(*arguments, cwd) -> subprocess.CompletedProcess:
    """Runs a script in this process, which has everything imported.

    A script is seen to start by itself in test_every_script.py, and the command in test_streams.py.
    """
    return _called(lambda: names_of(arguments[0], run_name="__main__"), *arguments, cwd=cwd)


def run_in_fork(*arguments, cwd) -> subprocess.CompletedProcess:
    """Runs a script that changes its process, or has children of its own, in a fork: everything is imported there."""
    done = called(lambda: names_of(arguments[0], run_name="__main__"), arguments, cwd)
    return subprocess.CompletedProcess(arguments, *done)


def module_here(*arguments, cwd) -> subprocess.CompletedProcess:
    """Runs `python -m pyrovae` in this process."""
    sys.modules.pop("pyrovae.__main__", None)  # which another test may have imported
    return _called(lambda: runpy.run_module("pyrovae", run_name="__main__", alter_sys=True), "", *arguments, cwd=cwd)


def command_here(*arguments, cwd) -> subprocess.CompletedProcess:
    """Runs the command `pyrovae` in this process, as its entry point does."""
    return _called(run_command, "/usr/bin/pyrovae", *arguments, cwd=cwd)


def _called(program: Callable[[], object], *arguments, cwd) -> subprocess.CompletedProcess:
    out, error, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", list(map(str, arguments)))
        with_quick_measures(patch)
        patch.chdir(cwd)
        try:
            program()
        except SystemExit as stopped:
            status = stopped.code
    return subprocess.CompletedProcess(arguments, status or 0, out.getvalue(), error.getvalue())


def with_quick_measures(patch: pytest.MonkeyPatch) -> None:
    """Spares evaluations most of what they take."""
    # What the coarse grid misses is found by its refinement.
    patch.setattr(measures, "quadrature_log_marginal", partial(pv.quadrature_log_marginal, num_points=81))
    # Commands do not tell by which factor a bad proposal should be wider.
    for name, few in FEW_FACTORS.items():
        patch.setattr(proposal_misfit, name, few)


def without_drawing(patch: pytest.MonkeyPatch, most_axes: int = 0) -> None:
    """Leaves the files of figures empty: to draw them takes most of the time, and other tests look at them.

    Figures of at most so many axes are drawn.
    """
    draw = Figure.savefig

    def savefig(figure, target, **settings):
        if len(figure.axes) <= most_axes:
            draw(figure, target, **settings)
        else:
            target.write(b"") if hasattr(target, "write") else Path(target).write_bytes(b"")

    patch.setattr(Figure, "savefig", savefig)


def refused_script(*arguments: str) -> None:
    """Runs a script that has to exit with 2, and raises what it says."""
    done = run_here(*arguments, cwd=Path())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    raise pv.InputError(done.stderr.strip())


def names_of(script: str, run_name: str = "names") -> dict[str, object]:
    """Returns all names that a script defines and imports."""
    with _beside(script):
        return runpy.run_path(str(FOLDER / script), run_name=run_name)


def with_scikit_learn(patch: pytest.MonkeyPatch) -> None:
    """Stands in for scikit-learn, which need not be installed: a table of one factor, least squares, zeros for NaN."""
    factor = torch.randn(150, 1, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(150, 5, generator=torch.Generator().manual_seed(2))
    iris = SimpleNamespace(data=(factor + 0.2 * noise).numpy())
    sklearn = ModuleType("sklearn")
    sklearn.__spec__ = ModuleSpec("sklearn", None)  # torch asks for it
    sklearn.datasets = SimpleNamespace(load_iris=lambda: iris)  # type: ignore[attr-defined]
    linear_model = ModuleType("sklearn.linear_model")
    linear_model.LinearRegression = LeastSquares  # type: ignore[attr-defined]
    impute, experimental = ModuleType("sklearn.impute"), ModuleType("sklearn.experimental")
    impute.IterativeImputer = lambda **_: SimpleNamespace(fit_transform=np.nan_to_num)  # type: ignore[attr-defined]
    experimental.enable_iterative_imputer = None  # type: ignore[attr-defined]
    for module in (impute, experimental):
        patch.setitem(sys.modules, module.__name__, module)
    patch.setitem(sys.modules, "sklearn", sklearn)
    patch.setitem(sys.modules, "sklearn.linear_model", linear_model)


class LeastSquares:
    """What `sklearn.linear_model.LinearRegression` does."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "LeastSquares":
        self.weights = np.linalg.lstsq(_with_ones(x), y, rcond=None)[0]
        return self

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        left = np.square(y - _with_ones(x) @ self.weights).sum(0)
        return float(np.mean(1 - left / np.square(y - y.mean(0)).sum(0)))


def _with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x, np.ones((len(x), 1), x.dtype)), 1)


@contextlib.contextmanager
def _beside(script: str) -> Iterator[None]:
    """Lets the script import the files beside it, as python does and runpy does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str((FOLDER / script).parent), *sys.path])
        yield
