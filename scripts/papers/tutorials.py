"""Trains the VAEs of the field's tutorials at their settings, and prints the published numbers beside ours.

python scripts/papers/tutorials.py                  # points, one seed
python scripts/papers/tutorials.py --images --seeds 0 1 2

The tutorials' loss is reconstruction + beta KL per datum, where a Gaussian's reconstruction |x - mean|^2 / (2 sigma^2)
lacks its normaliser. Both this loss and the true ELBO are printed, for the training points or the test images.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tutorials_clusters import clusters_report
from tutorials_plain import plain_loss
from tutorials_published import BETAS, POINTS, VARIANCES, Row, image_rows
from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    Parts,
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    read_text,
    require,
    require_seeds,
    write_json,
)
from pyrovae.evaluation.diagnostics import elbo_terms, latent_use, sample_diversity
from pyrovae.training import digest

NUM_DRAWS = 20
SOME_EPOCHS = (10, 40, 60, 100, 250)  # and the last, of which medians over seeds are printed


def make(row: Row, seed: int) -> tuple[pv.VAE, pv.Dataset]:
    data, settings = row.data(seed), dict(row.vae)
    if row.variance is not None:
        settings["likelihood"] = pv.Gaussian(math.sqrt(row.variance))
    with local_seed(derived_seed(seed, "initial parameters")):
        mean = None if settings.get("network") == "conv" else data.train_mean
        if row.condition is not None:
            settings["condition"] = row.condition()
        return pv.VAE(data.event_shape, **settings, data_mean=mean), data


def train(row: Row, seed: int, parts: Parts, log_px: bool = False) -> dict[str, Any]:
    """Returns what a run measures, its seconds and its parameters, once it has been trained or if it was before."""
    key = f"{row.name}, seed {seed}"

    def compute() -> dict[str, Any]:
        started, training, (vae, data) = time.perf_counter(), dict(row.fit), make(row, seed)
        source: pv.Dataset | DataLoader = data
        if row.variance is not None:  # the tutorials drop the last, smaller batch and have no validation data
            points = TensorDataset(*data.arguments("train"))
            sampler = BatchSampler(RandomSampler(points), training.pop("batch_size"), drop_last=True)
            source = DataLoader(points, sampler=sampler, batch_size=None)
        checkpoints = pv.Checkpoints(parts.folder_of(key), repeated=True)
        path = parts.folder_of(key) / "diversity.json"  # beside the checkpoints, as no callback sees an epoch twice
        diversity: dict[str, float] = json.loads(read_text(path)) if path.exists() else {}

        def on_epoch(record: dict[str, float | None]) -> None:
            epoch = int(record["epoch"] or 0)
            if epoch in shown_epochs(training["epochs"]):
                diversity[str(epoch)] = diversity_of(row, vae)
                write_json(path, diversity)

        history = pv.fit(vae, source, **training, seed=seed, checkpoints=checkpoints, on_epoch=on_epoch)
        found: dict[str, Any] = measure(row, vae, data, seed)
        found["curves"] = curves(row, history, data) | {"diversity": diversity}
        if row.is_plain:
            found["plain_loss"] = plain_loss(row, data, seed)
        if log_px:
            with local_seed(derived_seed(seed, "log p(x)")):
                found["log_px"] = test_log_px(vae, data)
        return {"found": found, "seconds": time.perf_counter() - started, "state": vae.state_dict()}

    return parts.get(key, compute)


def measure(row: Row, vae: pv.VAE, data: pv.Dataset, seed: int) -> dict[str, float | str | None]:
    split = "train" if row.variance is not None else "test"
    args = data.arguments(split)[: 1 + vae.num_conditions]
    with local_seed(derived_seed(seed, "measures")):
        parts = [elbo_terms(vae.model, vae.guide, *chunk, num_particles=NUM_DRAWS)
                 for chunk in zip(*(arg.split(500) for arg in args), strict=True)]  # fmt: skip
        diversity = diversity_of(row, vae)
    terms = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
    reconstruction = -terms["reconstruction"] - normaliser_of(row, data)
    use = latent_use(vae, *args)
    return {
        "loss": reconstruction + vae.beta.item() * terms["kl"],
        "reconstruction": reconstruction,
        "kl": terms["kl"],
        "diversity": diversity,
        "elbo": terms["elbo"],
        "active_units": use.num_active,
        "collapse": use.warning,
    }


def normaliser_of(row: Row, data: pv.Dataset) -> float:
    """Returns the part of a Gaussian's -log p(x|z) that the tutorials leave out, in nats."""
    return 0.0 if row.variance is None else 0.5 * data.event_shape[0] * math.log(2 * math.pi * row.variance)


def diversity_of(row: Row, vae: pv.VAE) -> float:
    return sample_diversity(vae, 2_000, () if row.sample_y is None else row.sample_y(2_000))


def shown_epochs(epochs: int) -> list[int]:
    """Returns the epochs of which a tutorial would print a line: twenty of them, the first and the last among them."""
    return sorted({1, *(round(epochs * part / 20) for part in range(1, 21))} - {0})


def curves(row: Row, history: pv.History, data: pv.Dataset) -> dict[str, list[float]]:
    """Returns the tutorials' terms of the training batches of each epoch: loss, reconstruction and KL."""
    normaliser = normaliser_of(row, data)
    reconstruction = [-value - normaliser for value in history.train_reconstruction if value is not None]
    loss, kl = (
        [value - normaliser for value in history.loss],
        [value for value in history.train_kl if value is not None],
    )
    return {"loss": loss, "reconstruction": reconstruction, "kl": kl}


def epoch_lines(name: str, found: dict[str, Any]) -> str:
    """Returns what a tutorial prints while it trains: a line for each of some epochs, from the training batches."""
    of, diversity = found["curves"], found["curves"]["diversity"]
    lines = [
        [epoch, *(f"{of[term][int(epoch) - 1]:.3f}" for term in ("loss", "reconstruction", "kl")), f"{value:.3f}"]
        for epoch, value in diversity.items()
    ]
    return f"{name}\n" + tabulate(lines, ["epoch", "loss", "reconstruction", "KL", "diversity"], disable_numparse=True)


def medians_by_epoch(row: Row, runs: list[dict[str, Any]]) -> str:
    """Returns the medians over seeds of the terms of some epochs, from the training batches, above the published."""
    of, terms = [run["curves"] for run in runs], COLUMNS[:3]
    last = len(of[0]["loss"])
    epochs = (*(epoch for epoch in SOME_EPOCHS if epoch < last), last)
    lines = [
        [str(epoch), *(f"{median(curve[term][epoch - 1] for curve in of):.2f}" for term in terms)] for epoch in epochs
    ]
    if row.published:
        lines.append(["published", *(f"{row.published[term]:.3f}" if term in row.published else "" for term in terms)])
    header = ["epoch", "loss", "reconstruction", "KL"]
    return f"{row.name}, the batches of each epoch, medians over seeds\n" + tabulate(
        lines, header, disable_numparse=True
    )


COLUMNS = ("loss", "reconstruction", "kl", "diversity", "elbo")


def table(rows: list[Row], results: dict[str, list[dict]], tablefmt: str) -> str:
    """Returns for each run the median over seeds (range), with the published values below it."""
    lines = []
    for row in rows:
        runs = results[row.name]
        cells = [with_range([run[name] for run in runs]) for name in COLUMNS]
        lines.append([row.name, *cells, "/".join(str(run["active_units"]) for run in runs)])
        if row.published:
            lines.append(
                ["  published", *(f"{row.published[c]:.3f}" if c in row.published else "" for c in COLUMNS), ""]
            )
        if row.is_plain:
            plain = with_range([run["plain_loss"] for run in runs])
            lines.append(["  plain PyTorch", plain, *[""] * len(COLUMNS)])
    header = ["run", "loss", "reconstruction", "KL", "diversity", "ELBO", "active"]
    return tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True)


def with_range(values: list[float]) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{median(values):.3f}{spread}"


def main(
    seeds: tuple[int, ...] = (0,),
    images: bool = False,
    data_root: str | None = None,
    epochs: int | None = None,
    only: str = "",
    out: str = "runs/tutorials",
) -> None:
    """Train each run at its published settings and print published beside ours.

    Args:
        seeds: a run for each
        images: the MNIST runs in place of those on points
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        epochs: replaces the published number, to try the script out
        only: the runs whose names contain this
        out: folder for results.json, report.md, figures and the runs; finished ones are not run again
    """
    folder = Path(out)
    check_for_parts(folder)
    require_seeds(seeds)
    rows = [row for row in (image_rows(data_root) if images else POINTS) if only in row.name]
    require(len(rows) > 0, f"only must be a part of some run's name, got {only!r}")
    if epochs is not None:
        rows = [replace(row, fit=row.fit | {"epochs": epochs}) for row in rows]
    results: dict[str, list[dict]] = {row.name: [] for row in rows}
    first: dict[str, tuple[pv.VAE, pv.Dataset]] = {}
    settings = {"epochs": epochs, "data": "points"}
    if images:
        mnist = pv.load("mnist", binarize="none", data_root=data_root)
        settings["data"] = digest((mnist.train_x, mnist.test_x))
    with kept_parts(folder, settings) as parts:
        for row in rows:
            for seed in seeds:
                trained = train(row, seed, parts)
                run = trained["found"]
                results[row.name].append(run)
                took = f"{row.name}, seed {seed}: loss {run['loss']:.3f}, {trained['seconds']:.0f} s"
                print(took + (f"; {run['collapse']}" if run["collapse"] else ""), flush=True)
                if seed == seeds[0]:
                    print(epoch_lines(f"\n{row.name}, the batches of each epoch", run) + "\n", flush=True)
                if seed == seeds[-1] and len(seeds) > 1:
                    print(f"\n{medians_by_epoch(row, results[row.name])}\n", flush=True)
                if row.name not in first:
                    first[row.name] = make(row, seed)
                    first[row.name][0].load_state_dict(trained["state"])
        sweep = {} if images or only else sweep_variance(rows[0], seeds[0], parts)
        print("\n" + table(rows, results, "simple"))
        print(clusters_report(results, seeds, "simple"))
        write_results(folder, {"runs": results, "sweep": sweep})
        text = f"# Tutorials' runs, seeds {', '.join(map(str, seeds))}\n\n{table(rows, results, 'github')}\n"
        text += clusters_report(results, seeds, "github")
        with local_seed(derived_seed(seeds[0], "figures")):
            figures = draw_images(rows, first, results) if images else draw_points(rows, first, sweep)
            figures["curves"] = draw_curves(rows, results)
        write_report(folder, text, figures)


def sweep_variance(row: Row, seed: int, parts: Parts) -> dict[str, list[float]]:
    """Trains the ring with other variances of the decoder, to see where the latents collapse."""
    swept = [replace(row, name=f"variance {variance:g}", variance=variance, is_plain=False) for variance in VARIANCES]
    measures: list[dict[str, Any]] = [train(one, seed, parts, log_px=True)["found"] for one in swept]
    lines = [
        [f"{v:g}", *(f"{m[c]:.3f}" for c in (*COLUMNS, "log_px")), m["active_units"]]
        for v, m in zip(VARIANCES, measures, strict=True)
    ]
    header = ["variance", *COLUMNS, "log p(x), test", "active"]
    print("\nthe ring under other variances of the decoder\n" + tabulate(lines, header, disable_numparse=True))
    return {"variance": list(VARIANCES), **{name: [m[name] for m in measures] for name in (*COLUMNS, "log_px")}}


def test_log_px(vae: pv.VAE, data: pv.Dataset) -> float:
    return pv.log_marginal(vae.model, vae.guide, data.test_x, num_samples=500, progress=False).mean


def draw_points(rows: list[Row], first: dict, sweep: dict) -> dict[str, Figure]:
    figure = Figure(figsize=(7.5, 2.6 * len(rows)), layout="constrained")  # as wide as a page, for the size of its type
    for (left, middle, right), row in zip(figure.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        vae, data = first[row.name]
        args = data.arguments("train")[: 1 + vae.num_conditions]
        colour = args[1].flatten() if vae.num_conditions else data.train_y
        pv.plots.points(args[0], colour, row.name.replace(", ", ",\n"), left)
        pv.plots.latent_space(vae.encode(*args).mean, colour, axes=middle)  # beside the prior, for scale
        if (legend := middle.get_legend()) is not None:
            legend.remove()
        # Under the data's own conditions, in their colours: other radii are of no data.
        samples = vae.sample(len(args[0]), args[1:])
        pv.plots.points(samples, colour if vae.num_conditions else None, "samples", right)
        right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
    if not sweep:
        return {"points": figure}
    sweeps = Figure(figsize=(5, 4), layout="constrained")
    terms = {"reconstruction + KL": sweep["loss"], "KL": sweep["kl"], "minus ELBO": [-e for e in sweep["elbo"]]}
    pv.plots.elbo_terms(sweep["variance"], terms, "variance of the decoder", axes=sweeps.subplots())
    return {"points": figure, "variance": sweeps}


def draw_curves(rows: list[Row], results: dict[str, list[dict]]) -> Figure:
    """Draws loss, reconstruction, KL and diversity of each run while it trains, a row of axes for each run."""
    figure = Figure(figsize=(9, 2.1 * len(rows)), layout="constrained")
    for row, axes in zip(rows, figure.subplots(len(rows), 4, squeeze=False), strict=True):
        for run in results[row.name]:
            of = run["curves"]
            for name, each in zip(("loss", "reconstruction", "kl"), axes, strict=False):
                each.plot(range(1, len(of[name]) + 1), of[name], color="C0", linewidth=0.8, alpha=0.7)
            axes[3].plot(
                list(map(int, of["diversity"])), list(of["diversity"].values()), color="C0", marker=".", linewidth=0.8
            )
        for name, each in zip((*COLUMNS[:3], "diversity"), axes, strict=True):
            each.set(xlabel="epoch", ylabel="KL" if name == "kl" else name)
            if name in row.published:
                each.axhline(row.published[name], color="C3", linestyle=":")
            if name != "diversity":  # the first epochs would hide all others
                tail = [v for run in results[row.name] for v in run["curves"][name][len(run["curves"][name]) // 20 :]]
                low, high = min(*tail, *([row.published[name]] if name in row.published else tail)), max(tail)
                each.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
        axes[0].set_title(row.name, loc="left")
        if row.published:
            axes[1].set_title("dotted: published", loc="left", color="C3")
    return figure


def draw_images(rows: list[Row], first: dict, results: dict) -> dict[str, Figure]:
    figures, shown = {}, [row for row in rows if "dynamic" not in row.name]
    if shown:
        figures["images"] = Figure(figsize=(4 * len(shown), 6), layout="constrained")
        for column, row in zip(figures["images"].subplots(2, len(shown), squeeze=False).T, shown, strict=True):
            vae, data = first[row.name]
            x = data.test_x[:10]
            pv.plots.reconstructions(x, vae.reconstruct(x), row.name, column[0])
            pv.plots.image_grid(vae.sample(64, mean=True), 8, "decoded means of prior draws", column[1])
    swept = [results[f"MNIST dynamic, beta {beta:g}"] for beta in BETAS if f"MNIST dynamic, beta {beta:g}" in results]
    if len(swept) == len(BETAS):
        rate, distortion = ([median(run[name] for run in runs) for runs in swept] for name in ("kl", "reconstruction"))
        figures["rate_distortion"] = Figure(figsize=(4.5, 4), layout="constrained")
        pv.plots.rate_distortion(rate, distortion, BETAS, figures["rate_distortion"].subplots())
    return figures


if __name__ == "__main__":
    run_script(main)
