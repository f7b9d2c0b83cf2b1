"""Reproduces Burda et al. 2016 (arXiv:1509.00519) on MNIST with one stochastic layer: VAE and IWAE, theirs beside ours.

python scripts/papers/burda2016.py --processes 2       # resumes an interrupted run

784-200-200-50 tanh, with pixels drawn anew at each epoch. Two facts are in Burda's code and not in the paper: the
decoder's output bias starts from the training mean, and Adam takes the gradient of the *sum* over the 20 data of a
batch with eps 1e-4, which equals eps 5e-6 for the gradient of their mean.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR
from writing import mean_and_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import helpers, is_helper, run_script
from pyrovae.common import require, require_count, right_aligned

# Numbers of epochs at the learning rates 1e-3 x 10^(-i / 7).
EPOCHS_OF_STAGES = {"full": tuple(3**i for i in range(8)), "short": (4,) * 8, "smoke": (1, 1)}
BATCH_SIZE, LEARNING_RATE, EPS = 20, 1e-3, 1e-4 / 20
PUBLISHED = {  # their table 1: NLL, active units
    ("VAE", 1): (86.76, 19), ("VAE", 5): (86.47, 20), ("VAE", 50): (86.35, 20),
    ("IWAE", 5): (85.54, 22), ("IWAE", 50): (84.78, 25),
}  # fmt: skip
SWAPPED = {  # their table 2: trained, then continued
    "VAE k=1, then IWAE k=50": ("VAE k=1", pv.objectives.IWAE(50), 84.88, 22),
    "IWAE k=50, then VAE k=1": ("IWAE k=50", pv.objectives.ELBO(1), 86.02, 23),
}


def main(
    data_root: str | None = None,
    schedule: Literal["full", "short", "smoke"] = "short",
    k: tuple[int, ...] = (1, 5),
    swap: bool = False,
    seeds: tuple[int, ...] = (0, 1, 2),
    num_train: int | None = None,
    num_data: int = 2_000,
    num_samples: int = 5_000,
    device: str = "auto",
    processes: int = 1,
    out: str = "runs/burda2016",
) -> None:
    """Train VAE and IWAE at each k and print NLL and active units beside the published ones.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        schedule: full is theirs, 3,280 epochs; short has 32; smoke 2
        k: numbers of samples, from 1, 5 and 50; IWAE at k = 1 is the VAE
        swap: also continue the VAE with IWAE k=50, and IWAE k=50 with the VAE
        seeds: a run for each, of the initial parameters and training
        num_train: the first so many training images (default: all 60,000)
        num_data: number of test images to measure on, evenly spaced
        num_samples: draws of the importance estimate
        processes: how many processes share the runs
        out: folder of the runs; finished ones are not run again
    """
    require(len(k) > 0 and set(k) <= {1, 5, 50}, f"k must be of 1, 5 and 50, got {k}")
    require(not swap or {1, 50} <= set(k), f"swap needs k of 1 and 50, got {k}")
    require_count("num_data", num_data, 2)
    data = pv.load("mnist", data_root=data_root, num_train=num_train, num_validation=0)
    most = len(data.test_x)
    require(num_data <= most, f"num_data must be <= {most}, got {num_data}")
    objectives = {
        f"{name} k={size}": pv.objectives.ELBO(size) if name == "VAE" else pv.objectives.IWAE(size)
        for name, size in PUBLISHED
        if size in k
    }
    folder, epochs = Path(out) / schedule, EPOCHS_OF_STAGES[schedule]
    settings: dict[str, Any] = {
        "batch_size": BATCH_SIZE, "lr": LEARNING_RATE, "optimizer": partial(torch.optim.Adam, fused=True, eps=EPS),
        "device": device, "held_out": data.test_x[torch.arange(num_data) * most // num_data],
        "num_samples": num_samples,
    }  # fmt: skip

    def make_vae() -> pv.VAE:
        return pv.VAE(
            data.event_shape, latent_dim=50, hidden=(200, 200), activation="tanh", likelihood=pv.Bernoulli(),
            data_mean=data.train_mean,
        )  # fmt: skip

    with helpers(processes):
        race = pv.race(
            make_vae, data, objectives, seeds, epochs=sum(epochs), schedule=partial(stages, epochs=epochs),
            folder=folder, **settings,
        )  # fmt: skip
        races = {}
        if swap:
            last = {**settings, "epochs": epochs[-1], "lr": LEARNING_RATE * 10 ** (-(len(epochs) - 1) / 7)}
            for name, (first, second, *_) in SWAPPED.items():
                races[name] = continued(make_vae, data, race[first], name, second, folder, last)
    if is_helper():
        return
    rows = [
        cell(name, race[name], *PUBLISHED[key])
        for key in PUBLISHED
        if (name := f"{key[0]} k={key[1]}") in race.objectives
    ]
    rows += [cell(name, runs, *SWAPPED[name][2:]) for name, runs in races.items()]
    orders = ordering(race)
    content = {"schedule": schedule, "epochs": sum(epochs), "seeds": seeds, "rows": rows, "differences": orders}
    tables = [cells_table(rows, num_data), order_table(orders)]
    heading = f"{schedule} schedule, {sum(epochs)} epochs, seeds {', '.join(map(str, seeds))}"
    print("\n\n".join((heading, *tables)))
    write_results(folder, content)
    markdown = "\n\n".join((cells_table(rows, num_data, "github"), order_table(orders, "github")))
    write_report(folder, f"# Burda et al. 2016: {heading}\n\n{markdown}\n", {"race": race.plot()})


def stages(optimizer: torch.optim.Optimizer, epochs: tuple[int, ...]) -> LambdaLR:
    """Returns the schedule that multiplies the learning rate by 10^(-i / 7) in stage i, which lasts `epochs[i]`."""
    stage = [i for i, length in enumerate(epochs) for _ in range(length)]
    return LambdaLR(optimizer, lambda epoch: 10 ** (-stage[min(epoch, len(stage) - 1)] / 7))


def continued(make_vae, data, runs: list[pv.RaceRun], name: str, objective, folder: Path, settings: dict) -> list:
    """Trains each run further with another objective, at the last learning rate and for as long as the last stage."""
    found: list[pv.RaceRun] = []
    for run in runs:

        def restored(run: pv.RaceRun = run) -> pv.VAE:
            vae = make_vae()
            run.restore(vae)
            return vae

        found += pv.race(restored, data, {name: objective}, (run.seed,), folder=folder / "swap", **settings).runs
    return found


def cell(name: str, runs: list[pv.RaceRun], published: float, published_units: int) -> dict[str, object]:
    """Returns NLL and active units, published and ours, with errors over seeds, over images and of Monte Carlo."""
    nll, seed_error = mean_and_error([-run.log_px.mean for run in runs])
    return {
        "cell": name,
        "published": published,
        "published_active": published_units,
        "nll": nll,
        "seed_error": seed_error,
        "data_error": max(run.log_px.data_error for run in runs),
        "monte_carlo_error": max(run.log_px.monte_carlo_error for run in runs),
        "active": sum(run.active_units or 0 for run in runs) / len(runs),
        "seconds": sum(run.seconds for run in runs) / len(runs),
    }


def ordering(race: pv.Race) -> list[dict[str, object]]:
    """Returns for pairs of cells the published difference in log p(x), and ours with its 95% interval."""
    names = {f"{name} k={size}": published for (name, size), (published, _) in PUBLISHED.items()}
    pairs = [("IWAE k=5", "VAE k=1"), ("IWAE k=5", "VAE k=5"), ("VAE k=5", "VAE k=1"),
             ("IWAE k=50", "IWAE k=5"), ("IWAE k=50", "VAE k=50")]  # fmt: skip
    rows = []
    for ours, theirs in pairs:
        if {ours, theirs} <= set(race.objectives):
            published = names[theirs] - names[ours]
            found = race.difference(ours, theirs)
            resolved = None
            low, high = found["low"], found["high"]
            if low is not None and high is not None:
                apart = low > 0 or high < 0
                same = (found["value"] > 0) == (published > 0)
                resolved = ("yes" if same else "reversed") if apart else "not resolved"
            rows.append({"pair": f"{ours} over {theirs}", "published": published, **found, "resolved": resolved})
    return rows


def cells_table(rows: list[dict], num_data: int, tablefmt: str = "simple") -> str:
    lines = [
        [
            row["cell"], f"{row['published']:.2f} ({row['published_active']})", f"{row['nll']:.2f}",
            "" if row["seed_error"] is None else f"{row['seed_error']:.2f}", f"{row['data_error']:.2f}",
            f"{row['active']:.3g}", f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    header = [f"NLL, nats, {num_data:,} images", "published (active)", "ours", "seed error", "image error", "active"]
    return right_aligned(lines, [*header, "seconds"], tablefmt)


def order_table(rows: list[dict], tablefmt: str = "simple") -> str:
    lines = [
        [
            row["pair"], f"{row['published']:.2f}", f"{row['value']:.2f}",
            "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}", row["resolved"] or "one seed",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["gain in log p(x)", "published", "ours", "95% interval", "resolved"]
    return right_aligned(lines, header, tablefmt)


if __name__ == "__main__":
    run_script(main)
