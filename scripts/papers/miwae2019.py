"""Fills in the iris data with half of their cells missing, as the notebook of MIWAE's authors does.

python scripts/papers/miwae2019.py      # needs scikit-learn: pip install 'pyrovae[digits]'

Mattei and Frellsen 2019, arXiv:1812.02633; the notebook is MIWAE_Pytorch_exercises_demo.ipynb of
github.com/pamattei/miwae. Cells, holes, networks, likelihood, bound and optimiser are the notebook's. Unlike there, the
encoder also sees which cells are missing. The error is that of the missing cells alone, mean square, in units of each
column's variance, on the rows that were trained on.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import softplus
from writing import mean_and_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import InputError, check_for_parts, kept_parts, local_seed, require_count, require_seeds
from pyrovae.training import digest

HOLES_SEED, BATCH, PARTICLES = 1234, 75, 20
# What the notebook prints every 100 epochs, from 1,001 to 2,001.
NOTEBOOK = [0.516, 0.479, 0.468, 0.523, 0.433, 0.426, 0.403, 0.431, 0.465, 0.476, 0.444]
BOUNDS = [-1.450, -1.426, -1.403, -1.510, -1.511, -1.435, -1.511, -1.431, -1.431, -1.413, -1.428]
TEN, MEANS, BOUND = "MSE, 10 draws of x", "MSE, E[x|z] over many draws", "IWAE-20 bound, nats per row"
WORST = "share of cells with Pareto k > 0.7"


class FreeStudentT(pv.Likelihood):
    """A Student t with location, scale and degrees of freedom (above 3) of its own in each cell."""

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (3, *event_shape)

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        loc, scale, df = outputs.unbind(-event_dim - 1)
        return dist.StudentT(3 + softplus(df), loc, 1e-3 + softplus(scale)).to_event(event_dim)


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 2_000,
    num_samples: int = 10_000,
    out: str = "runs/miwae2019",
) -> None:
    """Train on the iris data with holes, and fill them in.

    Args:
        seeds: each trains a VAE; the holes are the notebook's for all of them
        epochs: passes through the 150 rows
        num_samples: draws of z for each row, for the means of its missing cells
        out: folder for results.json, report.md and the parts; finished ones are not run again
    """
    require_seeds(seeds)
    require_count("epochs", epochs)
    require_count("num_samples", num_samples)
    check_for_parts(Path(out))
    x, seen = iris()
    settings = {"epochs": epochs, "num_samples": num_samples}
    others = {"the column's mean": 0.0 * x, "scikit-learn's IterativeImputer": iterated(seen)}
    errors = {name: error_of(guess, x, seen) for name, guess in others.items()}

    def run(seed: int) -> dict[str, float]:
        with local_seed(seed):
            return measure(x, seen, epochs, num_samples)

    found: list[dict[str, float]] = []
    with kept_parts(Path(out), {**settings, "data": digest((x, seen))}) as parts:
        for seed in seeds:
            found.append(parts.get(f"seed {seed}", partial(run, seed)))
            print(f"seed {seed}: " + ", ".join(f"{name} {one:.3f}" for name, one in found[-1].items()), flush=True)
        summarise(Path(out), found, errors)
        write_results(Path(out), {**settings, "seeds": seeds, "found": found, "others": errors})


def iris() -> tuple[Tensor, Tensor]:
    """Returns the 150 rows with columns of mean 0 and variance 1, and them with NaN in the notebook's 300 holes."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError("this script needs scikit-learn: pip install 'pyrovae[digits]'") from error
    x = torch.as_tensor(datasets.load_iris().data, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    holes = np.random.RandomState(HOLES_SEED).choice(x.numel(), x.numel() // 2, replace=False)
    seen = x.flatten().index_fill(0, torch.as_tensor(holes), torch.nan).view_as(x)
    return x.float(), seen.float()


def iterated(seen: Tensor) -> Tensor:
    """Returns the rows as scikit-learn's IterativeImputer fills them in, with its usual Bayesian ridge regression."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    imputer = IterativeImputer(max_iter=100, random_state=0)
    return torch.as_tensor(imputer.fit_transform(seen.double().numpy())).float()


def error_of(guess: Tensor, x: Tensor, seen: Tensor) -> float:
    return (guess - x)[seen.isnan()].square().mean().item()


def measure(x: Tensor, seen: Tensor, epochs: int, num_samples: int) -> dict[str, float]:
    """Returns the errors of a VAE trained on the rows with their holes, and its bound."""
    vae = pv.VAE((x.shape[1],), latent_dim=1, hidden=(128, 128), likelihood=FreeStudentT(), missing="mask")
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.orthogonal_(layer.weight)
    iwae = pv.objectives.IWAE(PARTICLES)
    pv.fit(vae, seen, epochs=epochs, objective=iwae, batch_size=BATCH, lr=1e-3, progress=False)
    few = pv.posterior(vae, seen, num_samples=10, progress=False).expectation(
        lambda site: vae.decode(site["z"]).sample()
    )
    filled = pv.impute(vae, seen, num_samples=num_samples, num_draws=1, progress=False)
    return {
        TEN: error_of(few.value, x, seen),
        MEANS: error_of(filled.value, x, seen),
        BOUND: pv.log_marginal(vae, seen, num_samples=PARTICLES, progress=False).mean,
        WORST: (filled.pareto_k[filled.missing] > 0.7).float().mean().item(),
    }


def summarise(folder: Path, found: list[dict[str, float]], errors: dict[str, float]) -> None:
    """Prints means over seeds with their standard errors beside what the notebook prints, and writes the report."""
    published, lines = {TEN: NOTEBOOK, BOUND: BOUNDS}, []
    for name in found[0]:
        mean, error = mean_and_error([one[name] for one in found])
        theirs = published.get(name)
        of = f"{min(theirs):.2f} to {max(theirs):.2f}" if theirs else "-"
        lines.append([name, f"{mean:.3f}", "-" if error is None else f"{error:.3f}", of])
    lines += [[f"MSE, {name}", f"{error:.3f}", "-", "-"] for name, error in errors.items()]
    header = [f"iris, half of the cells missing, {len(found)} seeds", "ours", "standard error", "the notebook's"]
    print("\n" + tabulate(lines, header, "simple", disable_numparse=True))
    write_report(folder, tabulate(lines, header, "github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    run_script(main)
