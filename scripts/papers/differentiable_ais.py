"""Trains a VAE on MNIST by differentiable annealed importance sampling and by IWAE, at equally many decoder runs.

python scripts/papers/differentiable_ais.py

Each training has 16 runs of the decoder per datum and step: IWAE of 16 draws, or K draws that take T leapfrog steps
each, with K (T + 1) = 16; T of those runs are differentiated with respect to z, and then once more. log p(x) of the
trained models is that of annealed importance sampling, of the VAE alone. Beside it are each training's own bound, and
its seconds, in which second derivatives count.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import time
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate
from writing import with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import check_for_parts, derived_seed, kept_parts, local_seed, require, require_count, require_seeds
from pyrovae.training import digest

RUNS_OF_THE_DECODER = 16
SHOWN = {"log_px": "log p(x), nats", "bound": "own bound", "gap": "gap", "seconds": "CPU seconds"}


def main(
    data_root: str | None = None,
    num_train: int = 5_000,
    epochs: int = 8,
    num_transitions: tuple[int, ...] = (3, 7),
    seeds: tuple[int, ...] = (0, 1, 2),
    num_data: int = 100,
    num_distributions: int = 100,
    compile: bool = True,
    out: str = "runs/differentiable_ais",
) -> None:
    """Train under IWAE and under differentiable AIS, and compare what the models are worth.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_train: the first so many training images
        epochs: passes through them
        num_transitions: T of each differentiable AIS; T + 1 divides 16
        seeds: of initial parameters and training; a training for each
        num_data: test images that log p(x) is measured on
        num_distributions: of annealed importance sampling
        compile: compile steps, which takes a part of the seconds
        out: folder for results.json, report.md and the parts; finished ones are not run again
    """
    require_seeds(seeds)
    for steps in num_transitions:
        require_count("num_transitions", steps)
        require(
            RUNS_OF_THE_DECODER % (steps + 1) == 0,
            f"num_transitions must be one less than a divisor of 16, got {steps}",
        )
    for name, count in {"num_train": num_train, "epochs": epochs, "num_distributions": num_distributions}.items():
        require_count(name, count)
    require_count("num_data", num_data, 2)
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("mnist", data_root=data_root, num_train=num_train, binarize="static")
    settings = {"num_train": num_train, "epochs": epochs, "num_data": num_data, "num_distributions": num_distributions}
    found: dict[str, list[dict[str, float]]] = {}
    with kept_parts(folder, {**settings, "data": digest((data.train_x,))}) as parts:
        for seed in seeds:
            for steps in (0, *num_transitions):
                name = name_of(steps)
                run = partial(measure, data, steps, epochs, num_data, num_distributions, compile, seed)
                found.setdefault(name, []).append(parts.get(f"{name}, seed {seed}", run))
                last = found[name][-1]
                print(
                    f"seed {seed}, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in last.items()),
                    flush=True,
                )
        write_results(folder, {**settings, "seeds": seeds, "found": found})
        report = table(found)
        print(f"\n{report}")
        write_report(folder, report + "\n")


def name_of(num_transitions: int) -> str:
    num_particles = RUNS_OF_THE_DECODER // (num_transitions + 1)
    return f"DAIS, T = {num_transitions}, K = {num_particles}" if num_transitions else f"IWAE, K = {num_particles}"


def measure(
    data: pv.Dataset, num_transitions: int, epochs: int, num_data: int, num_distributions: int, compile: bool, seed: int
) -> dict[str, float]:
    """Trains one model, and returns its log p(x), the bound that it was trained under, and the seconds of training."""
    with local_seed(derived_seed(seed, "initial parameters")):
        vae = pv.VAE(
            data.event_shape, latent_dim=50, hidden=(200, 200), activation="tanh", likelihood=pv.Bernoulli(),
            data_mean=data.train_mean,
        )  # fmt: skip
    x, num_particles = data.test_x[:num_data], RUNS_OF_THE_DECODER // (num_transitions + 1)
    pair = pv.DifferentiableAIS(vae, x[:2], num_transitions=num_transitions) if num_transitions else vae
    start = time.process_time()
    pv.fit(
        pair, data.train_x, epochs=epochs, objective=pv.objectives.IWAE(num_particles), batch_size=100, seed=seed,
        compile=compile, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    with local_seed(derived_seed(seed, "evaluation")):
        bound = pv.importance_bound(pair, x, num_particles=num_particles, num_repeats=50, progress=False).mean
        settings: dict[str, Any] = {"num_distributions": num_distributions, "num_chains": 4, "num_leapfrog": 5}
        found = pv.annealed_log_marginal(vae, x, **settings, start="guide", progress=False)
    return {"log_px": found.mean, "bound": bound, "gap": found.mean - bound, "seconds": seconds}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Returns the means over seeds with their standard errors, and the gain in log p(x) over IWAE, paired by seed."""
    reference, lines = [run["log_px"] for run in found[name_of(0)]], []
    for name, runs in found.items():
        cells = [with_error([run[key] for run in runs], 2, in_brackets=True) for key in SHOWN]
        gains = [run["log_px"] - other for run, other in zip(runs, reference, strict=True)]
        lines.append([name, *cells, "" if name == name_of(0) else with_error(gains, 2, in_brackets=True)])
    return tabulate(lines, ["objective", *SHOWN.values(), "over IWAE"], "github", disable_numparse=True)


if __name__ == "__main__":
    run_script(main)
