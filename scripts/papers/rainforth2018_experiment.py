"""The experiment of Rainforth et al. 2018: model, data, estimators, and the measured gradients with theory's powers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import pyrovae as pv
from pyrovae.common import Parts, derived_seed
from pyrovae.objectives import IWAE, MIWAE, PIWAE, Coefficients
from pyrovae.plots import Slope, fitted_slope

DIMENSIONS, NOISE, VARIANCE = 20, 0.01, 2 / 3
SIDES = ("model", "guide")  # they share no parameter
NUM_BATCHES = 4  # M of MIWAE and PIWAE, when they use as many draws as IWAE
# IWAE with at most SMALL_K draws gets EXTRA_REPEATS times as many repeats: its guide has little signal.
SMALL_K, EXTRA_REPEATS = 64, 8
K_IN_M, MAX_M = 4, 32  # of MIWAE(M, K) against M


@dataclass(frozen=True)
class NaivePath(IWAE):
    """Takes IWAE's gradient of the guide without the score's term: sum_k w~_k d log w_k/dz_k dz_k/dphi.

    For the ELBO this is sticking the landing, and unbiased. Here it is biased: the gradient of another objective.
    """

    reference = IWAE

    def coefficients(self, log_weights: torch.Tensor, beta: torch.Tensor) -> Coefficients:
        weights = log_weights.softmax(0)
        return Coefficients(weights, path=weights)


def miwae(draws: int) -> MIWAE:
    return MIWAE(draws // NUM_BATCHES, num_batches=NUM_BATCHES)


def piwae(draws: int) -> PIWAE:
    return PIWAE(draws // NUM_BATCHES, num_batches=NUM_BATCHES)


def naive_path(draws: int) -> NaivePath:
    return NaivePath(draws)


def miwae_in_m(number: int) -> MIWAE:
    return MIWAE(K_IN_M, num_batches=number)


IN_M = miwae_in_m.__name__
BESIDE_IWAE, IN_BATCHES = ("sticking_the_landing", "dreg", "ciwae", naive_path), (miwae, piwae)
# The signal-to-noise ratio grows as a power of the draws; here are the powers for the model and for the guide.
# Rainforth et al. 2018, theorem 1; for DReG's guide Tucker et al. 2019, arXiv:1810.04152. The signal of the ELBO's
# gradients does not vanish, and they are half of CIWAE's. None: the gradient of the model is IWAE's.
THEORY: dict[str, tuple[float | None, float | None]] = {
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


def theory_of(name: str, side: str) -> float:
    """Returns the power of an estimator that has a gradient of its own on that side."""
    power = THEORY[name][SIDES.index(side)]
    assert power is not None
    return power


def perturbed_optimum(num_data: int, seed: int) -> tuple[pv.LinearGaussianVAE, torch.Tensor]:
    """Returns the model with parameters near the best ones, and data `(num_data, 20)` from such a model."""
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


def measure(
    vae: pv.LinearGaussianVAE, x: torch.Tensor, repeats: int, most: int, seed: int, parts: Parts
) -> dict[str, pv.Comparison]:
    """Compares IWAE at small and at large K, the estimators beside it, and MIWAE against M."""
    sizes = powers_of_two(most)
    few, many = ([size for size in sizes if (size <= SMALL_K) == small] for small in (True, False))
    plans: dict[str, tuple[tuple[str | Callable, ...], list[int], int]] = {
        "iwae": (("iwae",), few, EXTRA_REPEATS * repeats),
        "iwae, large K": (("iwae",), many, repeats),
        "beside": (BESIDE_IWAE, few, repeats),
        "in batches": (IN_BATCHES, [size for size in few if size >= NUM_BATCHES], repeats),
        "in M": ((miwae_in_m,), powers_of_two(min(most // K_IN_M, MAX_M)), repeats),
    }
    log_px = pv.Estimate(vae.log_px(x).detach(), torch.zeros(len(x)))
    compared = partial(pv.compare, vae.model, vae.guide, x, log_px=log_px, compile=False, seed=seed)
    return {
        plan: compared(objectives=names, num_particles=sizes, repeats=often, folder=parts.folder_of(plan))
        for plan, (names, sizes, often) in plans.items()
        if sizes
    }


Points = dict[str, tuple[list[int], list[float], list[float]]]


def curves(found: dict[str, pv.Comparison], side: str, quantity: str) -> Points:
    """Returns `quantity` against the draws, for each estimator with a gradient of its own on that side.

    At large K, where the repeats are few, the guide is left out.
    """
    points: Points = {}
    for plan, comparison in found.items():
        if side == "model" or plan != "iwae, large K":
            for name, more in comparison.curves(side, quantity).items():
                sizes, values, floors = points.get(name, ([], [], []))
                points[name] = (sizes + more[0], values + more[1], floors + more[2])
    return {name: points[name] for name, powers in THEORY.items() if name in points and powers[SIDES.index(side)]}


@dataclass(frozen=True)
class Line:
    """Holds a quantity of one estimator against its sizes, with the power that theory gives it."""

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
        Line(quantity, side, name, theory_of(name, side), points)
        for (quantity, side), of_side in signals.items()
        for name, points in of_side.items()
    ]


def model_bias(found: pv.Comparison, exact: torch.Tensor) -> Points:
    """Returns |mean gradient - exact gradient of log p(x)| for IWAE's model, and its Monte Carlo error."""
    values, floors = [], []
    for row in found.rows:
        assert row.model is not None  # the model has parameters
        values.append((row.model.mean - exact).norm().item())
        floors.append((row.model.variance / row.repeats) ** 0.5)
    return {"iwae": ([row.num_particles for row in found.rows], values, floors)}
