"""Trains mixture guides by draws from each component, beside ordinary draws and one Gaussian, at equally many draws.

python scripts/papers/mixture_guides.py

Half of the data of the ring lack a coordinate, so that their posteriors have several modes: the case for which
Morningstar et al. 2021 (arXiv:2003.01687) report that mixtures trained with SIWAE are better than Gaussians. log p(x)
of the observed coordinates is exact, by quadrature, and differences are paired by seed. A second table is `compare` at
the mixture that SIWAE trained last.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_training import train_once
from tabulate import tabulate
from torch import Tensor
from writing import with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import check_for_parts, derived_seed, kept_parts, local_seed, require_count, require_seeds

LATENT_DIM, DRAWS_OF_BOUND, FIRST = 2, 50, "Gaussian, iwae"
VARIANTS = {  # by name: whether the guide is a mixture, and the objective
    FIRST: (False, "iwae"),
    "mixture, iwae": (True, "iwae"),
    "mixture, siwae": (True, "siwae"),
    "mixture, miselbo": (True, "miselbo"),
}


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    num_train: int = 4_000,
    num_test: int = 400,
    epochs: int = 30,
    num_particles: int = 8,
    num_components: int = 4,
    repeats: int = 200,
    out: str = "runs/mixture_guides",
) -> None:
    """Train each guide from each seed, and compare the objectives at one of them.

    Args:
        seeds: a training of each guide for each
        num_train: points of the ring to train on
        num_test: points that log p(x) is taken of
        epochs: of each training
        num_particles: draws of z per datum, for every objective
        num_components: of each mixture
        repeats: gradients of each objective in the second table
        out: folder for results.json, report.md and the trainings; finished ones are not run again
    """
    require_seeds(seeds)
    sizes = {"num_train": num_train, "num_test": num_test, "epochs": epochs, "num_components": num_components}
    for name, value in sizes.items():
        require_count(name, value)
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("ring", num_train=num_train, num_test=num_test)
    with local_seed(derived_seed(0, "lost coordinates")):
        train, test = (with_lost_coordinates(x) for x in (data.train_x, data.test_x))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with kept_parts(folder, {**sizes, "num_particles": num_particles}) as parts:
        for seed in seeds:
            for name, (is_mixture, objective) in VARIANTS.items():
                vae = vae_of(is_mixture, num_components, seed)
                how: dict[str, Any] = {"objective": objective, "num_particles": num_particles, "epochs": epochs}
                how |= {"batch_size": 256, "lr": 3e-3, "seed": seed, "progress": False}
                train_once(vae, train, parts, f"{name}, seed {seed}", **how)
                measured = partial(measure, vae, test, num_particles, seed)
                found[name].append(parts.get(f"{name}, seed {seed}, measured", measured))
                print(
                    f"seed {seed}, {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in found[name][-1].items()), flush=True
                )
                if objective == "siwae":
                    compared = vae
    rows = []
    for name, runs in found.items():
        each = {key: [run[key] for run in runs] for key in runs[0]}
        pairs = zip(each["log p(x)"], found[FIRST], strict=True)
        differences = [ours - theirs["log p(x)"] for ours, theirs in pairs]
        change = "" if name == FIRST else with_error(differences, 3, in_brackets=True)
        rows.append([name, *(with_error(values, 3, in_brackets=True) for values in each.values()), change])
    table = tabulate(rows, ["guide, objective", *found[FIRST][0], "difference to the first"], "github")
    names = ("iwae", "siwae", "miselbo")
    estimators = pv.compare(
        compared, test[:100], objectives=names, num_particles=(num_particles,), repeats=repeats, compile=False,
        progress=False,
    )  # fmt: skip
    print(f"\n{table}\n\n{estimators}")
    write_results(folder, {**sizes, "num_particles": num_particles, "runs": found, "compared": estimators.to_dict()})
    write_report(folder, f"{table}\n\n{estimators.table('github')}\n")


def with_lost_coordinates(x: Tensor) -> Tensor:
    """Returns points of which a quarter lacks the first coordinate and another quarter the second, as NaN."""
    lost = torch.randint(4, (len(x), 1)) == torch.arange(2)
    return x.masked_fill(lost, torch.nan)


def vae_of(is_mixture: bool, num_components: int, seed: int) -> pv.VAE:
    with local_seed(derived_seed(seed, "initial parameters")):
        posterior = pv.posteriors.Mixture(LATENT_DIM, num_components) if is_mixture else "diagonal"
        sizes: dict[str, Any] = {"latent_dim": LATENT_DIM, "hidden": (64, 64)}
        return pv.VAE((2,), **sizes, likelihood=pv.Gaussian(0.3), posterior=posterior, missing="mask")


def measure(vae: pv.VAE, x: Tensor, num_particles: int, seed: int) -> dict[str, float]:
    """Returns the exact log p(x), and how far below IWAE's bound of ordinary draws lies, for data whole and in part."""
    log_px, _ = pv.quadrature_log_marginal(vae.model, x, num_points=101)
    sizes: dict[str, Any] = {"num_particles": num_particles, "num_repeats": DRAWS_OF_BOUND}
    with local_seed(derived_seed(seed, "draws")):
        gap = log_px - pv.importance_bound(vae.model, vae.guide, x, **sizes).value
    lacks = x.isnan().any(-1)
    return {
        "log p(x)": log_px.mean().item(),
        "gap of whole data": gap[~lacks].mean().item(),
        "gap of data in part": gap[lacks].mean().item(),
    }


if __name__ == "__main__":
    run_script(main)
