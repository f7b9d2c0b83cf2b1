"""Asks whether tighter bounds help: the linear Gaussian experiment of Rainforth et al. 2018, arXiv:1802.04537.

python scripts/papers/rainforth2018.py

z ~ N(mu, I), x|z ~ N(z, I), q(z|x) = N(A x + b, 2/3 I) in 20 dimensions. The parameters mu of the model, and A and b of
the guide, are where the bound is highest, apart from Gaussian noise of standard deviation 0.01. The signal-to-noise
ratio of the gradients is measured against K and M and compared with theory: for IWAE's guide it falls as K^-1/2, for
its model it rises as K^1/2, and with MIWAE both rise as M^1/2. Estimators that repair the guide, or seem to, are shown
beside IWAE.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import math
import time
from pathlib import Path
from typing import cast

import torch
from rainforth2018_experiment import (
    BIAS_THEORY,
    RATIOS,
    SIDES,
    Line,
    curves,
    measure,
    model_bias,
    perturbed_optimum,
    slopes,
)
from rainforth2018_report import bias_table, draw, ratio_table, slope_table
from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import Parts, kept_parts, require_count, require_seed


def main(
    num_data: int = 1_024,
    repeats: int = 50,
    max_particles: int = 512,
    seed: int = 0,
    out: str = "runs/rainforth2018",
) -> None:
    """Measure signal, noise and bias of the gradients against K and M, and print them beside theory's powers.

    Args:
        num_data: a gradient is the mean over this many data
        repeats: independent gradients of each estimator; IWAE up to K = 64 gets eight times as many
        max_particles: IWAE's largest K; the others stop at 64, MIWAE at M = 32
        seed: fixes data, parameters and draws
        out: folder for results.json, report.md, figures and the gradients' moments; finished ones are not taken again
    """
    require_count("num_data", num_data, 2)
    require_count("repeats", repeats, 4)
    require_count("max_particles", max_particles, 4)
    require_seed(seed)
    settings = {"num_data": num_data, "repeats": repeats, "max_particles": max_particles, "seed": seed}
    with kept_parts(Path(out), settings) as parts:
        report(Path(out), settings, parts)


def report(folder: Path, settings: dict[str, int], parts: Parts) -> None:
    """Measures, prints and writes what is found."""
    started, seed = time.perf_counter(), settings["seed"]
    vae, x = perturbed_optimum(settings["num_data"], seed)
    found = measure(vae, x, settings["repeats"], settings["max_particles"], seed, parts)
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
    write_results(folder, results(settings, found, lines, biases))
    text = f"# Rainforth et al. 2018, {', '.join(f'{name} {value}' for name, value in settings.items())}\n"
    text += "".join(f"\n{title}:\n\n{table('github')}\n" for title, table in tables.items())
    figures = draw(signals, biases, found)
    print(f"{time.perf_counter() - started:.0f} s with {torch.get_num_threads()} threads")
    write_report(folder, text, figures)


def results(settings: dict, found: dict[str, pv.Comparison], lines: list[Line], biases: dict) -> dict[str, object]:
    """Returns what results.json holds."""
    rows = [row for comparison in found.values() for row in comparison.to_dict()]
    powers = [
        {
            "quantity": line.quantity,
            "side": line.side,
            "estimator": line.estimator,
            "theory": line.theory,
            "power": None if math.isnan(line.slope.value) else line.slope.value,  # JSON has no nan
            "standard_error": None if math.isnan(line.slope.error) else line.slope.error,
            "fitted": line.fitted,
        }
        for line in lines
    ]
    return {
        "settings": settings,
        "log_px": cast(pv.Estimate, found["iwae"].log_px).mean,
        "powers": powers,
        "biases": biases,
        "rows": rows,
    }


if __name__ == "__main__":
    run_script(main)
