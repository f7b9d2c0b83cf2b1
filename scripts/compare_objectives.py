"""MNIST under eight objectives: the same VAE, the same compute, log p(x) of the test images, differences to the ELBO.

python scripts/compare_objectives.py --data-root ../shared/data        # continues where it was broken off

Runs lie in OUT/NAME-seedN. Several processes may share a folder if each has seeds of its own.
"""

import json
import math
import os
from pathlib import Path

import torch
from tabulate import tabulate

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.errors import require, require_count
from pyrovae.rng import local_seed
from pyrovae.runs import load_data, train_run

# Sixteen draws of z per datum and step for each.
OBJECTIVES = {
    "ELBO": {"objective": "elbo", "num_particles": 16},
    "STL": {"objective": "sticking_the_landing", "num_particles": 16},
    "IWAE": {"objective": "iwae", "num_particles": 16},
    "DReG": {"objective": "dreg", "num_particles": 16},
    "CIWAE(0.5)": {"objective": "ciwae", "num_particles": 16},
    "MIWAE(4, 4)": {"objective": "miwae", "num_batches": 4, "num_particles": 4},
    "VR(0.5)": {"objective": "renyi", "alpha": 0.5, "num_particles": 16},
    "TVO": {"objective": "thermodynamic", "num_particles": 16},
}


def main(
    data_root: str | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 15,
    hidden: tuple[int, ...] = (200, 200),
    latent_dim: int = 50,
    batch_size: int = 128,
    num_samples: int = 5_000,
    num_data: int = 2_000,
    only_train: bool = False,
    out: str = "runs/objectives",
) -> None:
    """Train and measure a VAE under each objective and seed.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        seeds: a run for each, of the data's binarisation, initial parameters and training
        num_samples: draws of the importance estimate of log p(x)
        num_data: the first so many test images
        only_train: leave the measuring to another call
        out: folder of the runs; those that are finished are not run again
    """
    require_count("num_samples", num_samples)
    require_count("num_data", num_data, 2)
    require_count("seeds", len(seeds))
    require(len(set(seeds)) == len(seeds), f"seeds must differ, got {seeds}: their standard error would be too small")
    folder = Path(out)
    common = {"dataset": "mnist", "data_root": data_root, "hidden": hidden, "latent_dim": latent_dim}
    common |= {"activation": "tanh", "epochs": epochs, "batch_size": batch_size}
    configs = {
        (name, seed): pv.RunConfig(**common, **settings, seed=seed)
        for seed in seeds
        for name, settings in OBJECTIVES.items()
    }
    # Found before hours of training; the number of test images does not depend on the objective or the seed.
    num_test = len(load_data(next(iter(configs.values()))).test_x)
    require(num_data <= num_test, f"num_data must be <= {num_test}, the number of test images; got {num_data}")
    runs = {key: trained(config, folder / f"{key[0]}-seed{key[1]}") for key, config in configs.items()}
    if only_train:
        return
    estimates = {key: measured(run, num_samples, num_data) for key, run in runs.items()}
    rows = summary(estimates, seeds)
    text = table(rows, num_data, "github")
    print(table(rows, num_data, "simple"))
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "report.md").write_text(f"# Objectives on MNIST, seeds {', '.join(map(str, seeds))}\n\n{text}\n")
    print(f"\nreport: {folder / 'report.md'}")


def trained(config: pv.RunConfig, folder: Path) -> pv.Run:
    """The run in `folder`, which is begun, or gone on with, where it is not there or not whole."""
    run = train_run(config, folder, resume=True)
    print(f"{folder.name}: {sum(run.history.seconds):.0f} s, validation ELBO {run.history.elbo[-1]:.2f}", flush=True)
    return run


def measured(run: pv.Run, num_samples: int, num_data: int) -> pv.MarginalLikelihood:
    """log p(x) of the first test images; kept in the run's folder."""
    path = run.folder / f"log_px_{num_data}x{num_samples}.pt"
    if not path.exists():
        with local_seed(run.config.seed):
            x = run.data.test_x[:num_data]
            estimate = pv.log_marginal(run.vae.model, run.vae.guide, x, num_samples=num_samples)
        torch.save(dict(vars(estimate)), path.with_suffix(".part"))
        os.rename(path.with_suffix(".part"), path)
        print(f"{run.folder.name}: log p(x) {estimate.mean:.3f}", flush=True)
    try:
        return pv.MarginalLikelihood(**torch.load(path, weights_only=True))
    except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
        raise pv.InputError(f"{path} is not a readable estimate ({type(error).__name__}): remove it") from error


def summary(estimates: dict[tuple[str, int], pv.MarginalLikelihood], seeds: tuple[int, ...]) -> list[dict]:
    """Per objective the mean of log p(x) over seeds, and of its difference to the ELBO's of the same seed; standard
    errors over seeds (None with one seed), and `paired_data_error`, the one over images of the mean difference."""
    rows = []
    for name in OBJECTIVES:
        of_seeds = [estimates[name, seed] for seed in seeds]
        log_px = torch.stack([e.log_px.double() for e in of_seeds])
        difference = log_px - torch.stack([estimates["ELBO", seed].log_px.double() for seed in seeds])
        rows.append({
            "objective": name,
            "log_px": log_px.mean().item(),
            "log_px_error": over_seeds(log_px.mean(1)),
            "difference": difference.mean().item(),
            "difference_error": over_seeds(difference.mean(1)),
            "paired_data_error": (difference.mean(0).std() / math.sqrt(difference.shape[1])).item(),
            "monte_carlo_error": max(e.monte_carlo_error for e in of_seeds),
            "share_pareto_k_above_0.7": sum(e.share_unreliable for e in of_seeds) / len(of_seeds),
            "median_ess": torch.cat([e.ess for e in of_seeds]).median().item(),
        })  # fmt: skip
    return rows


def over_seeds(values: torch.Tensor) -> float | None:
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def table(rows: list[dict], num_data: int, tablefmt: str) -> str:
    def with_error(value: float, error: float | None) -> str:
        return f"{value:.2f}" if error is None else f"{value:.2f} ({error:.2f})"

    lines = []
    for row in rows:
        first = row["objective"] == "ELBO"
        difference = "" if first else with_error(row["difference"], row["difference_error"])
        lines.append([
            row["objective"], with_error(row["log_px"], row["log_px_error"]), difference,
            f"{row['share_pareto_k_above_0.7']:.0%}", f"{row['median_ess']:.0f}",
        ])  # fmt: skip
    header = [f"objective ({num_data:,} images)", "log p(x), nats", "difference to ELBO", "k > 0.7", "median ESS"]
    return tabulate(lines, header, tablefmt=tablefmt, disable_numparse=True, colalign=("left", *("right",) * 4))


if __name__ == "__main__":
    run_script(main)
