"""Trains a VAE on a table of scikit-learn's with half of its cells missing, and fills them in.

python scripts/papers/missing_cells.py                     # needs scikit-learn: pip install 'pyrovae[digits]'
python scripts/papers/missing_cells.py --table wine --share 0.2

Cells are missing completely at random. The VAE is trained on what is left with IWAE, as MIWAE is (Mattei and Frellsen
2019, arXiv:1812.02633), and judged on test rows with as many holes: log p of the observed cells, beside that of
independent Gaussians; and the error of E[x|z] at the posterior mean in the missing cells, beside the column's mean.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import math
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tabulate import tabulate
from torch import Tensor
from writing import mean_and_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    InputError,
    check_for_parts,
    kept_parts,
    local_seed,
    require_count,
    require_number,
    require_seeds,
)
from pyrovae.training import digest

Table = Literal["breast_cancer", "wine", "iris", "diabetes"]


def main(
    table: Table = "breast_cancer",
    share: float = 0.5,
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 200,
    num_particles: int = 10,
    latent_dim: int = 4,
    num_samples: int = 5_000,
    out: str = "runs/missing_cells",
) -> None:
    """Train on a table with holes, and measure what was learned of the missing cells.

    Args:
        table: a table of scikit-learn
        share: probability that a cell is missing
        seeds: each draws the split and the holes anew and trains a VAE
        epochs: passes through the rows
        num_particles: of IWAE
        latent_dim: dimensions of z
        num_samples: draws per row for log p(x)
        out: folder for results.json, report.md and the parts; finished ones are not run again
    """
    require_number("share", share, above=0, below=1)
    require_seeds(seeds)
    for name, count in (("epochs", epochs), ("num_particles", num_particles), ("latent_dim", latent_dim)):
        require_count(name, count)
    require_count("num_samples", num_samples)
    check_for_parts(Path(out))
    x, settings = read(table), {"table": table, "share": share, "epochs": epochs}
    settings |= {"num_particles": num_particles, "latent_dim": latent_dim, "num_samples": num_samples}

    def run(seed: int) -> dict[str, float | None]:
        with local_seed(seed):
            return measure(x, share, epochs, num_particles, latent_dim, num_samples)

    found: list[dict[str, float | None]] = []
    with kept_parts(Path(out), {**settings, "data": digest((x,))}) as parts:
        for seed in seeds:
            found.append(parts.get(f"seed {seed}", partial(run, seed)))
            print(f"seed {seed}: " + ", ".join(f"{name} {shown(one)}" for name, one in found[-1].items()), flush=True)
        summarise(Path(out), f"{table}, {len(x)} rows, {share:.0%} of the cells missing", found)
        write_results(Path(out), {**settings, "seeds": seeds, "found": found})


def summarise(folder: Path, title: str, found: list[dict[str, float | None]]) -> None:
    """Prints means over seeds with their standard errors, and writes them as the report."""
    lines = []
    for name in found[0]:
        values = [one[name] for one in found]
        known = [value for value in values if value is not None]
        mean, error = mean_and_error(known) if len(known) == len(values) else (None, None)
        lines.append([name, shown(mean), "-" if error is None else shown(error)])
    header = [title, "mean over seeds", "standard error"]
    print("\n" + tabulate(lines, header, "simple", disable_numparse=True))
    write_report(folder, tabulate(lines, header, "github", disable_numparse=True) + "\n")


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"  # of too few draws


def read(table: Table) -> Tensor:
    """Returns the rows of a table in float64, without the column to predict."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError("this script needs scikit-learn: pip install 'pyrovae[digits]'") from error
    return torch.as_tensor(getattr(datasets, f"load_{table}")().data, dtype=torch.float64)


def measure(
    x: Tensor, share: float, epochs: int, num_particles: int, latent_dim: int, num_samples: int
) -> dict[str, float | None]:
    """Returns what a VAE trained on 70% of the rows knows of the others; columns have mean 0 and variance 1."""
    x = ((x - x.mean(0)) / x.std(0)).float()[torch.randperm(len(x))]
    missing = torch.rand(x.shape) < share
    seen, num_train = x.masked_fill(missing, torch.nan), round(0.7 * len(x))
    train, test, truth, holes = seen[:num_train], seen[num_train:], x[num_train:], missing[num_train:]
    mean = train.nanmean(0)
    scale = (train - mean).square().nanmean(0).sqrt()
    vae = pv.VAE(
        tuple(x.shape[1:]),
        latent_dim=latent_dim,
        hidden=(64,),
        activation="tanh",
        likelihood=pv.HeteroscedasticGaussian(0.2),
        missing="mask",
        data_mean=mean,
    )
    iwae = pv.objectives.IWAE(num_particles)
    pv.fit(vae, train, epochs=epochs, objective=iwae, batch_size=50, lr=2e-3, schedule="cosine", progress=False)
    result = pv.log_marginal(vae, test, num_samples=num_samples)
    independent = torch.distributions.Normal(mean, scale).log_prob(test.nan_to_num(0)).masked_fill(test.isnan(), 0)

    def error_of(guess: Tensor) -> float:
        return (guess - truth)[holes].square().mean().sqrt().item()

    return {
        "log p(x observed), nats": result.mean,
        "of independent Gaussians": independent.sum(1).mean().item(),
        "share of rows with Pareto k > 0.7": None if math.isnan(result.share_unreliable) else result.share_unreliable,
        "imputation error (RMSE)": error_of(vae.reconstruct(test)),
        "of the column's mean": error_of(mean.expand_as(truth)),
    }


if __name__ == "__main__":
    run_script(main)
