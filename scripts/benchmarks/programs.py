"""Times `SVI` beside `CompiledSVI` on programs as Pyro's users write them, each with the loss of its author.

python scripts/benchmarks/programs.py                  # the table of docs/performance.md; a quarter of an hour
python scripts/benchmarks/programs.py --only Markov

The programs are those of `tests/programs_of_users`, in the small sizes that they have there, and Pyro's VAE tutorial in
the sizes of speed.py. Both columns start from the same parameters and draw the same numbers, with `pyro.optim.Adam`.
They take turns; a speed-up is the median over the turns of their times' ratio, with the quartiles.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import pyro
import torch
from cases import CASES, LEARNING_RATE, first_compilations, machine, seconds_per_call
from contenders import tutorial_vae
from pyro.infer import SVI
from tabulate import tabulate
from torch import Tensor

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import require, require_count, write_json, write_text, written_together
from pyrovae.runs import require_new_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from programs_of_users import PROGRAMS

NAMES = (
    "VAE that draws its own minibatch", "VAE with batch normalisation", "VAE with a flow in the guide",
    "VAE with a Bayesian decoder", "conditional VAE, plate without a size", "M2, labels enumerated in the guide",
    "scANVI, labels enumerated in the guide", "attend, infer, repeat", "deep Markov model, ragged",
    "sequence VAE with GRUs", "linear-Gaussian state space, ragged", "hidden Markov model",
    "Gaussian mixture, AutoNormal", "LDA", "ProdLDA", "gamma exponential family", "matrix factorisation",
    "eight schools, AutoMultivariateNormal", "regression, AutoNormalizingFlow", "regression of PyroModules",
    "item response", "Gaussian process of pyro.contrib.gp", "neural process",
)  # fmt: skip
CHECKED_STEPS = 50


class Contender(NamedTuple):
    """Holds one way to train a program, with a param store of its own."""

    svi: Any
    args: tuple
    store: dict


def main(only: str = "", turns: int = 25, out: str = "runs/programs") -> None:
    """Time SVI beside CompiledSVI, and compare their losses.

    Args:
        only: the programs whose names contain this
        turns: how often the two take turns
        out: folder for results.json and report.md, new or empty
    """
    require_count("turns", turns, 2)
    folder, cpu = Path(out), torch.device("cpu")
    require_new_folder(folder)
    makers: dict[str, Callable] = {f"VAE tutorial, {case.name}": _of_case(case) for case in CASES}
    makers |= {name: _of_users(name) for name in NAMES}
    chosen = {name: make for name, make in makers.items() if only in name}
    require(len(chosen) > 0, f"only must be in a program's name, got {only!r}")
    warnings.filterwarnings("ignore", message="steps run eagerly")  # the table has the reason
    rows = []
    for name, make in chosen.items():
        rows.append({"program": name, **measure(make, turns)})
        print(
            f"{name}: {rows[-1]['speed_up']:.2f} ({rows[-1]['compile_seconds']:.0f} s) {rows[-1]['reason'] or ''}",
            flush=True,
        )
    results = {"machine": machine(cpu), "threads": torch.get_num_threads(), "turns": turns, "rows": rows}
    print("\n" + report(results, "simple"))
    with written_together(folder, "report", ("results.json", "report.md")) as beside:
        write_json(beside / "results.json", results)
        write_text(beside / "report.md", report(results, "github") + "\n")


def measure(make: Callable, turns: int) -> dict:
    """Returns the times of both, how far their losses and gradients are apart, and why ours runs eagerly if it does."""
    stock, ours = _contender(make, SVI), _contender(make, pv.CompiledSVI)
    losses, compile_seconds = [], 0.0
    for contender in (stock, ours):
        with _own_store(contender), _same_draws():
            started = time.perf_counter()
            losses.append([_step(contender) for _ in range(3)])
            compile_seconds = time.perf_counter() - started
            losses[-1] += [_step(contender) for _ in range(CHECKED_STEPS - 3)]
    fresh = [_contender(make, kind) for kind in (SVI, pv.CompiledSVI)]
    both = [_loss_and_gradient(contender) for contender in fresh]
    seconds: list[list[float]] = [[], []]
    count = max(1, min(50, int(0.1 / _seconds(stock, 3))))
    for turn in range(turns):
        for column in (0, 1) if turn % 2 else (1, 0):
            seconds[column].append(_seconds((stock, ours)[column], count))
    ratios = [one / other for one, other in zip(*seconds, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "loss": type(stock.svi.loss.__self__).__name__ if hasattr(stock.svi.loss, "__self__") else "function",
        "stock_ms": 1e3 * median(seconds[0]),
        "ours_ms": 1e3 * median(seconds[1]),
        "speed_up": median(ratios),
        "speed_up_low": low,
        "speed_up_high": high,
        "compile_seconds": compile_seconds - 2 * median(seconds[0]) if ours.svi.reason is None else 0.0,
        "loss_difference": _distance([both[0][0]], [both[1][0]]),
        "gradient_difference": _distance(both[0][1], both[1][1]),
        "losses_difference": max(_distance([a], [b]) for a, b in zip(*losses, strict=True)),
        "reason": ours.svi.reason,
    }


def report(results: dict, tablefmt: str) -> str:
    """Returns the table of the results, with a line above and one below."""
    lines = []
    for row in results["rows"]:
        spread = f"{row['speed_up_low']:.2f} to {row['speed_up_high']:.2f}"
        lines.append([
            row["program"], row["loss"], f"{row['stock_ms']:.2f}", f"{row['ours_ms']:.2f}", f"{row['speed_up']:.2f}",
            spread, f"{row['compile_seconds']:.0f}" if row["reason"] is None else "eager",
            *(f"{row[f'{name}_difference']:.0e}" for name in ("loss", "gradient", "losses")),
        ])  # fmt: skip
    header = ["program", "loss", "SVI, ms", "ours, ms", "speed-up", "quartiles", "compile, s"]
    header += ["loss", "gradient", f"{CHECKED_STEPS} losses"]
    compiled = [row for row in results["rows"] if row["reason"] is None]
    parts = [
        f"{results['machine']}, {results['threads']} threads; medians of {results['turns']} turns",
        tabulate(lines, header, tablefmt, disable_numparse=True),
        f"{len(compiled)} of {len(lines)} programs are compiled; median speed-up of all "
        f"{median(row['speed_up'] for row in results['rows']):.1f}",
    ]
    parts += [f"{row['program']}: {row['reason']}" for row in results["rows"] if row["reason"] is not None]
    return "\n\n".join(parts)


# Contenders -----------------------------------------------------------------------------------------------------------


def _of_users(name: str) -> Callable:
    def make() -> tuple[Callable, Callable, tuple, Any]:
        program = PROGRAMS[name]()
        return program.model, program.guide, program.args, program.pyro_loss

    return make


def _of_case(case) -> Callable:
    def make() -> tuple[Callable, Callable, tuple, Any]:
        _, model, guide, loss = tutorial_vae(case, torch.device("cpu"))
        return model, guide, (case.batch(torch.device("cpu")),), loss

    return make


def _contender(make: Callable, kind: type) -> Contender:
    torch.manual_seed(0)
    contender = Contender(None, (), {"_params": {}, "_constraints": {}, "_param_to_name": {}})
    with _own_store(contender):
        model, guide, args, loss = make()
        optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
        return contender._replace(svi=kind(model, guide, optimizer, loss), args=args)


@contextmanager
def _own_store(contender: Contender) -> Iterator[None]:
    """Within the block Pyro's param store has the contender's parameters, the very same objects each time."""
    store = vars(pyro.get_param_store())
    kept = {name: store[name] for name in contender.store}
    store.update(contender.store)
    try:
        yield
    finally:
        store.update(kept)


@contextmanager
def _same_draws() -> Iterator[None]:
    torch.manual_seed(1)
    yield


def _step(contender: Contender) -> float:
    return contender.svi.step(*contender.args)


def _seconds(contender: Contender, count: int) -> float:
    with _own_store(contender):
        return seconds_per_call(lambda: _step(contender), count, torch.device("cpu"))


def _loss_and_gradient(contender: Contender) -> tuple[float, list[Tensor]]:
    """Returns the loss and its gradient at the first parameters: of ours by the graph, which the second run makes."""
    svi, is_ours = contender.svi, isinstance(contender.svi, pv.CompiledSVI)
    with _own_store(contender):
        run = svi.compiled.loss_and_grads if is_ours else svi.loss_and_grads
        for _ in range(2):
            for parameter in contender.store["_params"].values():
                parameter.grad = None
            torch.manual_seed(2)
            value = run(*contender.args) if is_ours else run(svi.model, svi.guide, *contender.args)
        loss = value[0].item() if is_ours else float(value)
        gradients = {name: p.grad for name, p in contender.store["_params"].items() if p.grad is not None}
        return loss, [gradients[name] for name in sorted(gradients)]


def _distance(one: list, other: list) -> float:
    """Returns the norm of the difference, relative to that of the first."""
    pairs = [[torch.as_tensor(value).double().flatten() for value in values] for values in (one, other)]
    flat = [torch.cat(values) for values in pairs]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


if __name__ == "__main__":
    with first_compilations():
        run_script(main)
