"""What every test has: fixtures, a seed, and the settings that spare the suite time."""

import math
import os
import random
import resource
import signal
from pathlib import Path

import helpers
import matplotlib as mpl
import numpy as np
import pyro
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes._base import _AxesBase
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyrovae.common import files, progress
from pyrovae.common.rng import seed_torch
from pyrovae.evaluation import annealed_chains
from pyrovae.lab import racing
from pyrovae.programs import gate

mpl.use("Agg")

# Half of a figure's time goes into its pixels, and half of the rest into finding room for its labels.
SHARP, COARSE = files.DOTS_PER_INCH, 20
LAY_OUT, SAVE = ConstrainedLayoutEngine.execute, Figure.savefig
# The weights are right whatever the step sizes, whose tuning is most of what an estimate of a few distributions takes.
FULL_PILOT, SHORT_PILOT = (annealed_chains.PILOT_WARMUP, annealed_chains.PILOT_TRANSITIONS), (10, 30)


def pytest_configure(config: pytest.Config) -> None:
    progress.SECONDS_BETWEEN_LINES = math.inf  # on a busy machine a test may take longer, and wants no line of it
    helpers.BASE_SEED = config.getoption("--base-seed")
    os.environ["PYROVAE_BASE_SEED"] = str(helpers.BASE_SEED)
    files.DOTS_PER_INCH = COARSE
    ConstrainedLayoutEngine.execute, Figure.savefig = lambda engine, figure: None, save_without_layout
    annealed_chains.PILOT_WARMUP, annealed_chains.PILOT_TRANSITIONS = SHORT_PILOT
    # Without an accelerator torch formats its caller's stack three times for every seed, which takes 0.5 ms.
    if not torch.accelerator.is_available():
        torch.manual_seed = seed_quickly


def seed_quickly(seed: int) -> torch.Generator:
    return torch.default_generator.manual_seed(int(seed))


def save_without_layout(figure: Figure, *args: object, **settings: object) -> None:
    """Draws once: to lay a figure out, matplotlib draws all of it a first time, without pixels.

    Titles stay where they are as well: to find their place, the labels of all ticks are measured once for each title.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "_layout_engine", None)
        patch.setattr(_AxesBase, "_update_title_position", lambda axes, renderer: None)
        SAVE(figure, *args, **settings)


def pytest_report_header(config: pytest.Config) -> str:
    return f"base seed: {helpers.BASE_SEED}; torch's instructions: {torch.backends.cpu.get_cpu_capability()}"


def global_state() -> dict[str, object]:
    """Returns what no test, and no function of ours, may change for whoever comes after it."""
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "pyro settings": tuple(sorted(pyro.settings.get().items())),
        "handlers left on the stack": len(pyro.poutine.runtime._PYRO_STACK),
        "numpy errors": tuple(sorted(np.geterr().items())),
        "working folder": os.getcwd(),
        "open figures": tuple(plt.get_fignums()),
    }


@pytest.fixture(autouse=True)
def _same_start_and_no_trace_left():
    pyro.clear_param_store()
    seed_torch(helpers.suite_seed())
    random.seed(helpers.suite_seed())
    np.random.seed(helpers.suite_seed())  # noqa: NPY002
    before = global_state()
    yield
    after = global_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"the test changed global state: {changed}"


@pytest.fixture
def float64():
    """Float64 as the default dtype during the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def two_threads():
    """Torch has two threads during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    root = Path(os.environ.get("PYROVAE_DATA", "data"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("MNIST is not at hand: set PYROVAE_DATA to the folder that holds it")
    return root


@pytest.fixture
def pairs_unchecked(monkeypatch):
    """Objectives do not check a pair before its first loss: of thousands of data that is ten times as long as the loss.

    It is for the means of estimators. That they take such a pair is then for another test, of few data.
    """
    monkeypatch.setattr(gate, "check_once", lambda *args: True)


@pytest.fixture
def entrants_unchecked(monkeypatch):
    """A race does not look at its pairs before it begins, which takes as long as a training of 2 epochs."""
    monkeypatch.setattr(racing, "check_entrant", lambda *args: None)


@pytest.fixture
def full_pilots(monkeypatch):
    """Annealed importance sampling tunes its step sizes for as long as users' runs do."""
    monkeypatch.setattr(annealed_chains, "PILOT_WARMUP", FULL_PILOT[0])
    monkeypatch.setattr(annealed_chains, "PILOT_TRANSITIONS", FULL_PILOT[1])


@pytest.fixture
def laid_out_figures(monkeypatch):
    """The parts of a figure make room for each other, as in users' figures."""
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", LAY_OUT)
    monkeypatch.setattr(Figure, "savefig", SAVE)


@pytest.fixture
def sharp_figures(monkeypatch, laid_out_figures):
    """Figures have the pixels that users get."""
    monkeypatch.setattr(files, "DOTS_PER_INCH", SHARP)


@pytest.fixture
def small_disk(monkeypatch):
    """No file can grow beyond 1,000 bytes; writing then fails as it does on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Pyro's ELBOs have an address in their repr, under which the workers of one run would not agree on the tests."""
    return type(val).__name__ if isinstance(val, pyro.infer.ELBO) and " at 0x" in repr(val) else None
