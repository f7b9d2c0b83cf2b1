"""Times training steps and log p(x): ours beside stock Pyro, PyTorch and NumPyro, in ms and in decodes per second.

python scripts/benchmarks/speed.py            # make benchmark; NumPyro's column needs pip install -e '.[benchmark]'

Everything is timed in one run, interleaved, and given as medians: on a noisy machine only the ratios mean something.
All columns train the same VAE from the same parameters, and their losses and gradients are compared first. The floor is
the step's matrix products alone, each by the fastest float32 routine of this PyTorch.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import math
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import (
    CASES,
    EPOCHS_ROW,
    LEARNING_RATE,
    LOG_PX_CASE,
    LOG_PX_ROW,
    OBJECTIVES_ROW,
    Case,
    Gradient,
    Step,
    first_compilations,
    machine,
    seconds_per_call,
)
from contenders import objective_of, ours_compiled, ours_eager, plain_pytorch, stock_pyro
from floor import floor
from in_numpyro import STEPS_PER_CALL, in_numpyro, numpyro
from log_px import full_log_px, time_log_px
from speed_report import draw, report

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import choose_device, require, require_count, write_figure, write_json, write_text, written_together
from pyrovae.evaluation.chunks import DATA_PER_CHUNK
from pyrovae.runs import require_new_folder


def main(
    rounds: int = 12,
    num_data: int = 384,
    num_samples: int = 5_000,
    device: str = "cpu",
    full: bool = False,
    only: str = "",
    out: str = "runs/benchmark",
) -> None:
    """Time training steps and log p(x).

    Args:
        rounds: how often the columns take turns
        num_data: images for decodes per second
        num_samples: draws of z for each of them
        device: cpu or cuda
        full: also log p(x) of 10,000 images in a process of its own, with its peak memory
        only: the rows whose names contain this (the last three are log p(x), epochs and objectives)
        out: folder for results.json, report.md and benchmark.png, new or empty
    """
    require_count("rounds", rounds)
    require_count("num_data", num_data, 2 * DATA_PER_CHUNK)  # the first run of data is not timed
    require_count("num_samples", num_samples)
    folder, where = Path(out), choose_device(device)
    require_new_folder(folder)
    if numpyro is None:
        print("NumPyro is not installed: no column for it (pip install -e '.[benchmark]')")
    results: dict[str, Any] = {"machine": machine(where), "threads": torch.get_num_threads(), "rows": []}
    cases = [case for case in CASES if only in case.name]
    require(
        len(cases) > 0 or any(only in row for row in (LOG_PX_ROW, OBJECTIVES_ROW, EPOCHS_ROW)) or full,
        f"only must be in a row's name, got {only!r}",
    )
    for case in cases:
        results["rows"].append(time_steps(case, rounds, where))
        print(f"{case.name}: " + ", ".join(f"{k} {v:.2f}" for k, v in results["rows"][-1]["ms"].items()), flush=True)
    if only in LOG_PX_ROW:
        results["log_px"] = time_log_px(LOG_PX_CASE, num_data, num_samples, where)
    if only in EPOCHS_ROW:
        results["epochs"] = [time_epochs(case, 2 * rounds, where) for case in CASES if case.network == "mlp"]
    if only in OBJECTIVES_ROW:
        results["objectives"] = time_objectives(LOG_PX_CASE, rounds, where)
    if full:
        results["full"] = full_log_px(num_samples)
    print("\n" + report(results, "simple"))
    with written_together(folder, "report", ("results.json", "report.md", "benchmark.png"), overwrite=False) as beside:
        write_json(beside / "results.json", results)
        write_text(beside / "report.md", report(results, "github") + "\n")
        write_figure(beside / "benchmark.png", draw(results))
    print(f"\nreport: {folder / 'report.md'}")


def time_steps(case: Case, rounds: int, device: torch.device) -> dict:
    """Returns the milliseconds per step of each column, and how far their losses and gradients are apart."""
    steps: dict[str, Step] = {}
    gradients: dict[str, Gradient] = {}
    makers = {"stock Pyro": stock_pyro, "plain PyTorch": plain_pytorch, "ours eager": ours_eager, "ours": ours_compiled}
    for name, make in makers.items():
        steps[name], gradients[name] = make(case, device)
    if numpyro is not None and device.type == "cpu":
        steps["NumPyro"], gradients["NumPyro"], _ = in_numpyro(case)
    if case.network == "mlp":
        steps["floor"] = floor(case, device)
    differences = compare(gradients)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    slowest = max(seconds_per_call(step, 1, device) for step in steps.values())
    count = max(2, min(50, int(0.5 / slowest)))
    for _ in range(rounds):
        for name, step in steps.items():
            in_one_call = STEPS_PER_CALL if name == "NumPyro" else 1
            times[name].append(seconds_per_call(step, -(-count // in_one_call), device) / in_one_call)
    return {
        "row": case.name,
        "ms": {name: 1e3 * median(values) for name, values in times.items()},
        **differences,
    }


def compare(gradients: dict[str, Gradient]) -> dict[str, float]:
    """Returns the largest relative distances of a column's loss and gradient to plain PyTorch's, on the same noise.

    The seconds that ours takes for it are those of its compilation.
    """
    outcomes, seconds = {}, {}
    for name, gradient in gradients.items():
        torch.manual_seed(2)
        started = time.perf_counter()
        outcomes[name] = gradient()
        seconds[name] = time.perf_counter() - started
    loss, reference = outcomes["plain PyTorch"]
    norm = math.sqrt(sum(g.double().square().sum().item() for g in reference))
    off = {
        name: math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in zip(g, reference, strict=True)))
        for name, (_, g) in outcomes.items()
    }
    return {
        "compile_seconds": seconds["ours"],
        "loss_difference": max(abs(other - loss) / abs(loss) for other, _ in outcomes.values()),
        "gradient_difference": max(off.values()) / norm,
    }


def time_epochs(case: Case, rounds: int, device: torch.device) -> dict:
    """Returns the milliseconds per step of `fit`, compiled, and of a scan over an epoch by NumPyro, in turns.

    Both shuffle the data of an epoch. `fit` checks every loss and gradient before it takes the step.
    """
    num_steps = 100 if case.num_particles == 1 else 10
    data = torch.cat([case.batch(torch.device("cpu"))] * num_steps)
    epoch = in_numpyro(case)[2](data) if numpyro is not None and device.type == "cpu" else None
    scanned: list[float] = []

    def turn(record: dict) -> None:
        if epoch is not None:
            scanned.append(seconds_per_call(epoch, 1, device))

    elbo = objective_of(case)
    history = pv.fit(
        case.vae(device),
        data,
        epochs=rounds,
        objective=elbo,
        batch_size=case.batch_size,
        compile=True,
        device=device,
        on_epoch=turn,
        progress=False,
    )
    warm = rounds // 4  # the first epochs compile, and compare the graph with the eager program
    columns = {"fit": history.seconds[warm:], "NumPyro": scanned[warm:]}
    ms = {name: 1e3 * median(values) / num_steps for name, values in columns.items() if values}
    return {"row": case.name, "ms": ms}


def time_objectives(case: Case, rounds: int, device: torch.device, draws: int = 16) -> dict[str, float]:
    """Returns the milliseconds per compiled step of each objective for continuous latents, all with `draws` of z.

    Those of a mixture have a mixture of four Gaussians as the posterior, and the others one Gaussian. The last is IWAE
    of a quarter of the draws, each annealed by three transitions, so that the decoder runs as often.
    """
    settings = {name: {"num_particles": draws} for name in pv.objectives.OBJECTIVES if name != "elbo_enumerated"}
    settings["miwae"] = settings["piwae"] = {"num_particles": draws // 4, "num_batches": 4}
    objectives = {name: pv.objectives.from_name(name, **own) for name, own in settings.items()}
    objectives["iwae of DifferentiableAIS"] = pv.objectives.IWAE(draws // 4)
    steps = {}
    for name, objective in objectives.items():
        posterior = "mixture" if name in ("siwae", "miselbo") else "diagonal"
        vae, x = case.vae(device, posterior), case.batch(device)
        pair = pv.DifferentiableAIS(vae, x, num_transitions=3) if "AIS" in name else vae
        optimizer = torch.optim.Adam(pair.parameters(), lr=LEARNING_RATE, fused=True)
        svi = pv.CompiledSVI(pair.model, pair.guide, optimizer, objective)
        steps[name] = partial(svi.step, x)
        for _ in range(3):
            steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds_per_call(step, 3, device))
    return {name: 1e3 * median(values) for name, values in times.items()}


if __name__ == "__main__":
    with first_compilations():
        run_script(main)
