"""Trains VAEs at several beta on images whose factors are known, and measures what each latent says about each factor.

python scripts/papers/disentanglement.py                                                # sprites, 5 seeds
python scripts/papers/disentanglement.py --dataset rotated_mnist --out runs/digits

Higgins et al. 2017 raise beta to get latents of one factor each; the mutual information gap is that of Chen et al. 2018
(arXiv:1802.04942). Locatello et al. 2019 (arXiv:1811.12359) find that seeds matter more than beta: every number is
shown with its standard error and its range over seeds, and betas are compared seed by seed.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds


import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import one_hot
from writing import mean_and_error, with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    InputError,
    check_for_parts,
    derived_seed,
    kept_parts,
    local_seed,
    require,
    require_count,
    require_number,
    require_seeds,
)
from pyrovae.evaluation.diagnostics import elbo_terms, latent_use
from pyrovae.training import digest

CATEGORIES = ("shape", "digit")  # factors whose numbers have no order
STEPS, REACH = 8, 2.0  # of a traversal


def main(
    dataset: Literal["sprites", "rotated_mnist"] = "sprites",
    data_root: str | None = None,
    betas: tuple[float, ...] = (1.0, 4.0, 16.0),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    num_train: int = 5_000,
    num_data: int = 2_000,
    latent_dim: int = 6,
    hidden: tuple[int, ...] = (128,),
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 2e-3,
    out: str = "runs/disentanglement",
) -> None:
    """Train at each beta from each seed, and measure on test images.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        betas: weights of the KL in training; every measure is at beta = 1
        seeds: a run for each, of the initial parameters and training; the images are the same
        num_train: the number of training images
        num_data: measure on the first so many test images
        hidden: units of the encoder's hidden layers, mirrored in the decoder
        lr: of Adam, decayed to 0 over the epochs
        out: folder of the runs; finished ones are not run again
    """
    for name, value in {"epochs": epochs, "batch_size": batch_size, "latent_dim": latent_dim}.items():
        require_count(name, value)
    require_count("num_data", num_data, 4)
    require_number("lr", lr, above=0)
    require(len(betas) > 0, "betas must hold at least one, got none")
    for beta in betas:
        require_number("betas", beta, above=0)
    require(len(set(betas)) == len(betas), f"betas must differ, got {betas}: runs would count twice")
    require_seeds(seeds)
    folder = Path(out)
    check_for_parts(folder)
    linear_regression()
    data = pv.load(dataset, data_root=data_root, num_train=num_train, binarize="static")
    require(num_data <= len(data.test_x), f"num_data must be <= {len(data.test_x)}, got {num_data}")

    def vae_of(beta: float, seed: int) -> pv.VAE:
        with local_seed(derived_seed(seed, "initial parameters")):
            return pv.VAE(
                data.event_shape,
                latent_dim=latent_dim,
                hidden=hidden,
                likelihood=pv.Bernoulli(),
                beta=beta,
                data_mean=data.train_mean,
            )

    fit: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": "cosine"}

    def run(beta: float, seed: int, checkpoints: Path) -> dict[str, Any]:
        vae = vae_of(beta, seed)
        kept = pv.Checkpoints(checkpoints, repeated=True)
        history = pv.fit(vae, data.train_x, **fit, seed=seed, progress=False, checkpoints=kept)
        with local_seed(derived_seed(seed, "measures")):
            found = measure(vae, data, num_data)
        return {
            "found": {"beta": beta, "seed": seed, **found, "seconds": sum(history.seconds)},
            "state": vae.state_dict(),
        }

    settings = {"dataset": dataset, "num_data": num_data, "latent_dim": latent_dim, "hidden": hidden, **fit}
    settings["data"] = digest((data.train_x, data.test_x[:num_data]))
    runs: list[dict[str, Any]] = []
    shown: dict[float, pv.VAE] = {}
    with kept_parts(folder, settings) as parts:
        for seed in seeds:
            for beta in betas:
                key = f"beta {told(beta)}, seed {seed}"
                trained = parts.get(key, lambda b=beta, s=seed, k=key: run(b, s, parts.folder_of(k)))  # type: ignore[misc]
                found = trained["found"]
                runs.append(found)
                if beta not in shown:
                    shown[beta] = vae_of(beta, seed)
                    shown[beta].load_state_dict(trained["state"])
                print(f"{key}: MIG {found['MIG']:.3f}, {found['active']} active, {found['seconds']:.0f} s", flush=True)
        tables = tables_of(runs, betas, data.factors)
        text = "\n\n".join(tabulate(*table, tablefmt="simple", disable_numparse=True) for table in tables)
        print(f"\n{len(seeds)} seeds; mean ± standard error (lowest to highest)\n\n{text}")
        write_results(folder, {**settings, "factors": data.factors, "runs": runs})
        github = "\n\n".join(tabulate(*table, tablefmt="github", disable_numparse=True) for table in tables)
        title = f"# {dataset}, {num_train:,} training and {num_data:,} test images, seeds {', '.join(map(str, seeds))}"
        write_report(
            folder, f"{title}\n\n{github}\n", {"traversals": draw(shown, data), "gaps": draw_gaps(runs, betas)}
        )


def told(beta: float) -> str:
    """Returns the text of a beta, which no other beta has."""
    return f"{beta:g}" if float(f"{beta:g}") == beta else repr(beta)


def measure(vae: pv.VAE, data: pv.Dataset, num_data: int) -> dict[str, Any]:
    """Returns what a VAE has learned, from test images: nats at beta = 1, gaps and R^2 by factor."""
    x, factors = data.test_x[:num_data], [cast(Tensor, y)[:num_data] for y in data.test_y]
    terms = {name: value.mean().item() for name, value in elbo_terms(vae.model, vae.guide, x, num_particles=5).items()}
    surgery = pv.elbo_surgery(vae, x, num_draws=2, per_dimension=True, progress=False)
    assert surgery.total_correlation is not None
    assert surgery.total_correlation_by_chance is not None
    information = pv.factor_information(vae, x, factors=factors)
    use = latent_use(vae, x)
    with torch.no_grad():
        codes = vae.encode(x).mean
    return {
        **terms,
        "total_correlation": surgery.total_correlation.mean,
        "total_correlation_by_chance": surgery.total_correlation_by_chance.mean,
        "active": use.num_active,
        "MIG": information.mig,
        "gaps": dict(zip(data.factors, information.gaps.tolist(), strict=True)),
        "R2": {name: r_squared(codes, y, name) for name, y in zip(data.factors, factors, strict=True)},
        "by_chance": (information.by_chance.max(0).values / information.entropy).max().item(),
        "information": information.information.tolist(),
    }


def linear_regression() -> Any:
    """Returns scikit-learn's class of linear regressions."""
    try:
        from sklearn.linear_model import LinearRegression
    except ImportError as error:
        raise InputError("this script needs scikit-learn: pip install 'pyrovae[digits]'") from error
    return LinearRegression


def r_squared(codes: Tensor, factor: Tensor, name: str) -> float:
    """Returns the R^2 on the second half of the data of a linear regression of a factor on the codes of the first.

    A category is an indicator of each of its values, over which R^2 is averaged.
    """
    target = one_hot(factor) if name in CATEGORIES else factor[:, None]
    half = len(codes) // 2
    fitted = linear_regression()().fit(codes[:half].numpy(), target[:half].numpy())
    return float(fitted.score(codes[half:].numpy(), target[half:].numpy()))


def tables_of(
    runs: Sequence[dict[str, Any]], betas: Sequence[float], factors: Sequence[str]
) -> list[tuple[list[list[str]], list[str]]]:
    """Returns three tables: measures by beta, gaps and R^2 by factor, and how betas differ from seed to seed."""
    of = {beta: [run for run in runs if run["beta"] == beta] for beta in betas}
    names = ["elbo", "reconstruction", "kl", "total_correlation", "total_correlation_by_chance", "active", "MIG"]
    measures = [[told(beta), *(cell([run[name] for run in of[beta]]) for name in names)] for beta in betas]
    by_factor = [
        [told(beta), what, *(cell([run[what][factor] for run in of[beta]], False) for factor in factors)]
        for what in ("gaps", "R2")
        for beta in betas
    ]
    spread = [[told(beta), f"{max(run['by_chance'] for run in of[beta]):.3f}", deviation(of[beta])] for beta in betas]
    for row, beta in zip(spread, betas, strict=True):
        pairs = zip(of[beta], of[betas[0]], strict=True)
        row.append(cell([one["MIG"] - other["MIG"] for one, other in pairs], False) if beta != betas[0] else "")
        row.append(cell([run["total_correlation"] - run["total_correlation_by_chance"] for run in of[beta]], False))
    return [
        (measures, ["beta", "ELBO", "reconstruction", "KL", "total correlation", "by chance", "active", "MIG"]),
        (by_factor, ["beta", "measure", *factors]),
        (
            spread,
            [
                "beta",
                "I by chance / H, at most",
                "sd of MIG over seeds",
                f"MIG less that at beta {told(betas[0])}",
                "total correlation less that by chance",
            ],
        ),
    ]


def cell(values: Sequence[float], with_range: bool = True) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if with_range and len(values) > 1 else ""
    return with_error(values) + spread


def deviation(runs: Sequence[dict[str, Any]]) -> str:
    _, error = mean_and_error([run["MIG"] for run in runs])
    return "-" if error is None else f"{error * math.sqrt(len(runs)):.3f}"


@torch.no_grad()
def draw(vaes: dict[float, pv.VAE], data: pv.Dataset) -> Figure:
    """Draws for each beta what each latent changes in one test image, the latents of the largest KL above."""
    figure = Figure(figsize=(3.4 * len(vaes), 3.0), layout="constrained")
    x = data.test_x[:1_000]
    for (beta, vae), axes in zip(vaes.items(), figure.subplots(1, len(vaes), squeeze=False)[0], strict=True):
        use = latent_use(vae, x)
        order = use.kl.argsort(descending=True).tolist()
        z = vae.encode(x[:1]).mean.repeat(len(order), STEPS, 1)
        for row, j in enumerate(order):
            z[row, :, j] = torch.linspace(-REACH, REACH, STEPS)
        images = vae.decode(z.flatten(0, 1)).mean.unflatten(0, (len(order), STEPS))
        names = [f"$z_{{{j + 1}}}$  {use.kl[j].item():.1f}" for j in order]
        pv.plots.traversal(images, names, rf"$\beta$ = {told(beta)}; KL in nats", axes)
    return figure


def draw_gaps(runs: Sequence[dict[str, Any]], betas: Sequence[float]) -> Figure:
    """Draws the mutual information gap of every run, with a line for each seed, and the mean over seeds."""
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.subplots()
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    of = {(run["seed"], run["beta"]): run["MIG"] for run in runs}
    for seed in seeds:
        axes.plot(betas, [of[seed, beta] for beta in betas], color="0.6", linewidth=0.8, marker=".", label="a seed")
    means = [mean_and_error([of[seed, beta] for seed in seeds]) for beta in betas]
    errors = [error or 0.0 for _, error in means]
    axes.errorbar(
        betas, [mean for mean, _ in means], errors, color="C0", marker="o", capsize=3, label="mean, ± 1 error"
    )
    axes.set(xscale="log", xlabel=r"$\beta$", ylabel="mutual information gap", ylim=(0, None))
    axes.set_xticks(betas, [told(beta) for beta in betas])
    axes.minorticks_off()
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[-2:], labels[-2:], frameon=False)
    return figure


if __name__ == "__main__":
    run_script(main)
