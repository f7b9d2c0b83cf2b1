"""Times a step of plain SVI with the check of pair and objective and without it, in turns.

python scripts/benchmarks/gate.py

"Without" is the same step with the check taken out. The first step, which checks the pair, is timed by itself.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import statistics
import time
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam  # type: ignore[attr-defined]

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import require_count
from pyrovae.programs import gate

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], int, pv.objectives.Objective]] = {
    "ring, 2-16-2, batch 128, ELBO(1)": ((2,), {"latent_dim": 2, "hidden": (16,)}, 128, pv.objectives.ELBO()),
    "ring, 2-16-2, batch 128, DReG(8)": ((2,), {"latent_dim": 2, "hidden": (16,)}, 128, pv.objectives.DReG(8)),
    "784-400-20, batch 128, ELBO(1)": ((784,), {"latent_dim": 20, "hidden": (400,)}, 128, pv.objectives.ELBO()),
}


@contextmanager
def without_gate():
    check_once, gate.check_once = gate.check_once, lambda *args: True
    try:
        yield
    finally:
        gate.check_once = check_once


def main(steps: int = 600) -> None:
    """Print milliseconds per step with the check and without it.

    Args:
        steps: how many of each kind
    """
    require_count("steps", steps)
    for name, (shape, settings, batch, objective) in CASES.items():
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = pv.VAE(shape, likelihood=pv.Gaussian(0.5), **settings)
        svi, x = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), objective), torch.randn(batch, *shape)
        started = time.perf_counter()
        svi.step(x)
        first = time.perf_counter() - started
        times: dict[bool, list[float]] = {True: [], False: []}
        for step in range(2 * steps):
            checked = step % 2 == 0
            started = time.perf_counter()
            if checked:
                svi.step(x)
            else:
                with without_gate():
                    svi.step(x)
            times[checked].append(time.perf_counter() - started)
        with_check, plain = (statistics.median(times[kind]) for kind in (True, False))
        print(
            f"{name}: {1e3 * with_check:.2f} ms with, {1e3 * plain:.2f} ms without, ratio {with_check / plain:.3f}; "
            f"the first step {1e3 * first:.0f} ms"
        )


if __name__ == "__main__":
    run_script(main)
