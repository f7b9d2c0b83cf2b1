"""Do tighter bounds help? The linear Gaussian experiment of Rainforth et al. 2018, arXiv:1802.04537.

python scripts/papers/rainforth2018.py

z ~ N(mu, I), x|z ~ N(z, I), q(z|x) = N(A x + b, 2/3 I) in 20 dimensions; the parameters mu of the model, A and b of the
guide are where the bound is highest, but for Gaussian noise of standard deviation 0.01. The signal-to-noise ratio of
the gradients is measured against K and M and set beside theory's: of IWAE's guide it falls as K^-1/2, of its model it
rises as K^1/2, and under MIWAE both rise as M^1/2. What repairs the guide is laid over, and what seems to.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import derived_seed, require_count, require_seed
from pyrovae.objectives import IWAE, MIWAE, PIWAE
from pyrovae.objectives.base import Coefficients
from pyrovae.plots.slope import Slope, fitted_slope
from pyrovae.runs import require_new_folder

DIMENSIONS, NOISE, VARIANCE = 20, 0.01, 2 / 3
SIDES = ("model", "guide")  # which share no parameter
BATCHES = 4  # MIWAE's and PIWAE's M where they share their draws with IWAE
MANY, OFTEN = 64, 8  # IWAE up to so many draws is repeated so many times as often: its guide has little signal
INNER, MOST_BATCHES = 4, 32  # of MIWAE(M, K) against M


@dataclass(frozen=True)
class NaivePath(IWAE):
    """sum_k w~_k d log w_k/dz_k dz_k/dphi: IWAE's gradient of the guide with the score's term left out.

    For the ELBO that is sticking the landing, and unbiased. Here it is not: it is the gradient of another objective.
    """

    reference = IWAE

    def coefficients(self, log_weights: torch.Tensor, beta: torch.Tensor) -> Coefficients:
        weights = log_weights.softmax(0)
        return Coefficients(weights, path=weights)


def miwae(draws: int) -> MIWAE:
    return MIWAE(draws // BATCHES, num_batches=BATCHES)


def piwae(draws: int) -> PIWAE:
    return PIWAE(draws // BATCHES, num_batches=BATCHES)


def naive_path(draws: int) -> NaivePath:
    return NaivePath(draws)


def miwae_in_m(number: int) -> MIWAE:
    return MIWAE(INNER, num_batches=number)


IN_M = miwae_in_m.__name__
BESIDE, IN_BATCHES = ("sticking_the_landing", "dreg", "ciwae", naive_path), (miwae, piwae)
# The powers of the draws with which the ratio goes, of the model and of the guide: Rainforth et al. 2018, theorem 1;
# DReG's guide: Tucker et al. 2019, arXiv:1810.04152. The ELBO's gradients, and with them half of CIWAE's, have a signal
# of their own. None: the gradient of the model is IWAE's.
THEORY = {
    "iwae": (0.5, -0.5),
    "sticking_the_landing": (0.5, 0.5),
    "ciwae": (0.5, 0.5),
    miwae.__name__: (0.5, -0.5),
    piwae.__name__: (None, -0.5),
    "dreg": (None, 0.5),
    naive_path.__name__: (None, 0.5),
    IN_M: (0.5, 0.5),
}
COLORS = {name: f"C{index}" for index, name in enumerate((*THEORY, *SIDES))}
BIAS_THEORY = {"iwae": -1.0}
RATIOS = ("snr", "dsnr")


def perturbed_optimum(num_data: int, seed: int) -> tuple[pv.LinearGaussianVAE, torch.Tensor]:
    """The model with its parameters near the best ones, and data `(num_data, 20)` of a model like it."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "data and parameters"))
    normal = partial(torch.randn, generator=generator)
    x = normal(DIMENSIONS) + normal(num_data, DIMENSIONS) + normal(num_data, DIMENSIONS)
    mean, identity = x.mean(0), torch.eye(DIMENSIONS)
    vae = pv.LinearGaussianVAE(identity, torch.zeros(DIMENSIONS), 1.0, mean + NOISE * normal(DIMENSIONS))
    with torch.no_grad():
        vae.guide_weight.copy_(identity / 2 + NOISE * normal(DIMENSIONS, DIMENSIONS))
        vae.guide_bias.copy_(mean / 2 + NOISE * normal(DIMENSIONS))
        vae.guide_log_scale.fill_(0.5 * torch.tensor(VARIANCE).log())
    for fixed in (vae.weight, vae.bias, vae.log_scale, vae.guide_log_scale):
        fixed.requires_grad_(False)
    return vae, x


def powers_of_two(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length())]


def main(
    num_data: int = 1_024,
    repeats: int = 50,
    max_particles: int = 512,
    seed: int = 0,
    out: str = "runs/rainforth2018",
) -> None:
    """Measure signal, noise and bias of the gradients against K and M, and print them beside theory's powers.

    Args:
        num_data: data, of which a gradient is the mean
        repeats: independent gradients of each estimator; IWAE up to K = 64 gets eight times as many
        max_particles: IWAE's largest K; the others stop at 64, MIWAE at M = 32
        seed: fixes data, parameters and draws
        out: folder for results.json, report.md and figures, new or empty
    """
    folder = Path(out)
    require_new_folder(folder)
    require_count("num_data", num_data, 2)
    require_count("repeats", repeats, 4)
    require_count("max_particles", max_particles, 4)
    require_seed(seed)
    started = time.perf_counter()
    vae, x = perturbed_optimum(num_data, seed)
    found = measure(vae, x, repeats, max_particles, seed)
    exact = torch.autograd.grad(-vae.log_px(x).mean(), vae.prior_mean)[0].double()
    signals = {(quantity, side): curves(found, side, quantity) for quantity in RATIOS for side in SIDES}
    biases = {"model": model_bias(found["iwae"], exact), "guide": curves(found, "guide", "bias")}
    lines = [*slopes(signals), Line("bias", "model", "iwae", BIAS_THEORY["iwae"], biases["model"]["iwae"])]
    tables = {
        "Signal-to-noise ratio of one gradient (that of pure noise), by draws of z per datum; miwae_in_m by M":
            lambda form: ratio_table(signals, "snr", form),
        "The same along the mean gradient (DSNR)": lambda form: ratio_table(signals, "dsnr", form),
        "Powers, fitted to the draws (or M) from .. to, with their standard errors, beside theory's, of large K":
            lambda form: slope_table(lines, form),
        "Bias (that an unbiased estimator shows): of iwae's model against the gradient of log p(x), of guides against "
        "iwae's, or the ELBO's for sticking_the_landing": lambda form: bias_table(biases, found["iwae"], form),
    }  # fmt: skip
    for title, table in tables.items():
        print(f"{title}\n{table('simple')}\n")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"num_data": num_data, "repeats": repeats, "max_particles": max_particles, "seed": seed}
    write_results(folder, settings, found, lines, biases)
    text = f"# Rainforth et al. 2018, {', '.join(f'{name} {value}' for name, value in settings.items())}\n"
    text += "".join(f"\n{title}:\n\n{table('github')}\n" for title, table in tables.items())
    for name, figure in draw(signals, biases, found).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        text += f"\n![{name}]({name}.png)\n"
    (folder / "report.md").write_text(text)
    print(
        f"{time.perf_counter() - started:.0f} s with {torch.get_num_threads()} threads\nreport: {folder / 'report.md'}"
    )


# Measured -----------------------------------------------------------------------------------------------------------


def measure(vae: pv.LinearGaussianVAE, x: torch.Tensor, repeats: int, most: int, seed: int) -> dict[str, pv.Comparison]:
    """Of IWAE at small and at large K, of what is laid over, and of MIWAE against M."""
    sizes = powers_of_two(most)
    few, many = ([size for size in sizes if (size <= MANY) == small] for small in (True, False))
    plans: dict[str, tuple[tuple[str | Callable, ...], list[int], int]] = {
        "iwae": (("iwae",), few, OFTEN * repeats),
        "iwae, large K": (("iwae",), many, repeats),
        "beside": (BESIDE, few, repeats),
        "in batches": (IN_BATCHES, [size for size in few if size >= BATCHES], repeats),
        "in M": ((miwae_in_m,), powers_of_two(min(most // INNER, MOST_BATCHES)), repeats),
    }
    log_px = pv.Estimate(vae.log_px(x).detach(), torch.zeros(len(x)))
    settings = {"log_px": log_px, "compile": False, "seed": seed}
    return {
        plan: pv.compare(vae.model, vae.guide, x, objectives=names, num_particles=sizes, repeats=often, **settings)
        for plan, (names, sizes, often) in plans.items()
        if sizes
    }


Points = dict[str, tuple[list[int], list[float], list[float]]]


def curves(found: dict[str, pv.Comparison], side: str, quantity: str) -> Points:
    """Of what has a gradient of its own on that side, and at large K, where the repeats are few, of the model alone."""
    points: Points = {}
    for plan, comparison in found.items():
        if side == "model" or plan != "iwae, large K":
            for name, more in comparison.curves(side, quantity).items():
                before = points.get(name, ([], [], []))
                points[name] = tuple(a + b for a, b in zip(before, more, strict=True))
    return {name: points[name] for name, powers in THEORY.items() if name in points and powers[SIDES.index(side)]}


@dataclass(frozen=True)
class Line:
    """A quantity of one estimator against its sizes, with the power that theory gives it."""

    quantity: str
    side: str
    estimator: str
    theory: float
    points: tuple[list[int], list[float], list[float]]

    @property
    def slope(self) -> Slope:
        return fitted_slope(*self.points)

    @property
    def fitted(self) -> list[int]:
        return [size for size, use in zip(self.points[0], self.slope.fitted, strict=True) if use]


def slopes(signals: dict[tuple[str, str], Points]) -> list[Line]:
    return [
        Line(quantity, side, name, THEORY[name][SIDES.index(side)], points)
        for (quantity, side), of_side in signals.items()
        for name, points in of_side.items()
    ]


def model_bias(found: pv.Comparison, exact: torch.Tensor) -> Points:
    """|mean gradient - the exact one of log p(x)| of IWAE's model, and its Monte Carlo error."""
    values = [(row.model.mean - exact).norm().item() for row in found.rows]
    floors = [(row.model.variance / row.repeats) ** 0.5 for row in found.rows]
    return {"iwae": ([row.num_particles for row in found.rows], values, floors)}


# Shown --------------------------------------------------------------------------------------------------------------


def ratio_table(signals: dict[tuple[str, str], Points], quantity: str, tablefmt: str) -> str:
    sides = {side: points for (which, side), points in signals.items() if which == quantity}
    sizes = sorted({size for points in sides.values() for numbers, *_ in points.values() for size in numbers})
    lines = [
        [side, name, *cells(of, sizes)] for side, points in sides.items() for name, of in points.items()
    ]  # fmt: skip
    return tabulate(lines, ["", "estimator", *map(str, sizes)], tablefmt, disable_numparse=True)


def cells(points: tuple[list[int], list[float], list[float]], sizes: list[int]) -> list[str]:
    at = {size: f"{value:.2g} ({floor:.1g})" for size, value, floor in zip(*points, strict=True)}
    return [at.get(size, "") for size in sizes]


def slope_table(lines: list[Line], tablefmt: str) -> str:
    rows = []
    for line in lines:
        error = "" if math.isnan(line.slope.error) else f" ({line.slope.error:.2f})"
        shown = "in the noise" if math.isnan(line.slope.value) else f"{line.slope.value:+.2f}{error}"
        over = f"{line.fitted[0]} .. {line.fitted[-1]}" if line.fitted else ""
        rows.append([line.quantity, line.side, line.estimator, over, shown, f"{line.theory:+g}"])
    return tabulate(rows, ["", "", "estimator", "from .. to", "power", "theory"], tablefmt, disable_numparse=True)


def bias_table(biases: dict[str, Points], iwae: pv.Comparison, tablefmt: str) -> str:
    """With the size of IWAE's own mean gradient of the guide, which a bias is to be compared with."""
    sizes = [row.num_particles for row in iwae.rows]
    lines = [["guide", "(size of iwae's)", *(f"{row.guide.norm:.2g}" for row in iwae.rows)]]
    for side, points in biases.items():
        for name, of in points.items():
            lines.append([side, name, *cells(of, sizes)])
    return tabulate(lines, ["", "estimator", *map(str, sizes)], tablefmt, disable_numparse=True)


def write_results(
    folder: Path, settings: dict, found: dict[str, pv.Comparison], lines: list[Line], biases: dict
) -> None:
    rows = [row for comparison in found.values() for row in comparison.to_dict()]
    powers = [
        {
            "quantity": line.quantity,
            "side": line.side,
            "estimator": line.estimator,
            "theory": line.theory,
            "power": None if math.isnan(line.slope.value) else line.slope.value,  # JSON has no word for nan
            "standard_error": None if math.isnan(line.slope.error) else line.slope.error,
            "fitted": line.fitted,
        }
        for line in lines
    ]
    content = {
        "settings": settings,
        "log_px": found["iwae"].log_px.mean,
        "powers": powers,
        "biases": biases,
        "rows": rows,
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def draw(signals: dict, biases: dict, found: dict[str, pv.Comparison]) -> dict[str, Figure]:
    figures = {}
    for quantity in RATIOS:
        figures[quantity] = Figure(figsize=(14, 6), layout="constrained")
        axes = figures[quantity].subplots(1, 3)
        for index, side in enumerate(SIDES):
            points = {name: one for name, one in signals[quantity, side].items() if name != IN_M}
            theory = {name: THEORY[name][index] for name in points}
            pv.plots.against_size(points, theory, "draws of z per datum", quantity.upper(), COLORS, axes[index])
            axes[index].set_title(f"gradient of the {side}")
        in_m = {side: signals[quantity, side][IN_M] for side in SIDES}
        theory = dict(zip(SIDES, THEORY[IN_M], strict=True))
        pv.plots.against_size(in_m, theory, "M", quantity.upper(), COLORS, axes[2])
        axes[2].set_title(f"MIWAE(M, {INNER})")
    figures["bias"] = Figure(figsize=(11, 5), layout="constrained")
    axes = figures["bias"].subplots(1, 2)
    pv.plots.against_size(biases["model"], BIAS_THEORY, "draws of z per datum", "bias", COLORS, axes[0])
    axes[0].set_title("gradient of the model, against that of log p(x)")
    pv.plots.against_size(biases["guide"], {}, "draws of z per datum", "bias", COLORS, axes[1])
    axes[1].set_title("gradient of the guide, against IWAE's or the ELBO's")
    rows: dict[str, list] = {}
    for row in (row for comparison in found.values() for row in comparison.rows if row.objective != IN_M):
        rows.setdefault(row.objective, []).append(row)
    bounds = {
        name: ([r.num_particles for r in of], [r.bound for r in of], [r.bound_error for r in of])
        for name, of in rows.items()
        if THEORY[name][0] is not None  # the others' bound is IWAE's
    }
    variances = {name: ([r.seconds for r in of], [r.guide.variance for r in of], None) for name, of in rows.items()}
    figures["cost"] = Figure(figsize=(11, 5), layout="constrained")
    axes = figures["cost"].subplots(1, 2)
    pv.plots.compared_bounds(bounds, (found["iwae"].log_px.mean, 0.0), COLORS, axes[0])
    pv.plots.against_seconds(variances, "variance of the guide's gradient", COLORS, axes[1])
    return figures


if __name__ == "__main__":
    run_script(main)
