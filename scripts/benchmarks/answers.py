"""Peak memory and time of one question about the posterior, at so many draws of so many data.

python scripts/benchmarks/answers.py --question impute --num-samples 50000 --num-data 2000

The question is asked of a linear Gaussian model of ten columns and two latents, whose guide takes a mask. The peak is
that of the whole process, of which "before" is there before the question: torch, Pyro and the data. Each call is a
process of its own, as a peak does not fall.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import resource
import sys
import time
from collections.abc import Callable

import pyro
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import require_choice, require_size

COLUMNS, LATENTS, SCALE = 10, 2, 0.7
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss in a megabyte


def pair(generator: torch.Generator) -> tuple[Callable, Callable, Callable]:
    """Returns a model, a guide of any part of x that is 1.2 times as wide as the posterior, and what draws x."""
    weight = torch.randn(COLUMNS, LATENTS, generator=generator)
    vae = pv.LinearGaussianVAE(weight, torch.zeros(COLUMNS), SCALE, torch.zeros(LATENTS))

    def guide(x: Tensor, mask: Tensor) -> None:
        own = weight * mask.unsqueeze(-1)
        precision = torch.eye(LATENTS) + own.mT @ own / SCALE**2
        mean = torch.linalg.solve(precision, torch.where(mask, x, 0.0) @ weight / SCALE**2)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean, precision_matrix=precision / 1.2**2))

    def drawn(num: int) -> Tensor:
        z = torch.randn(num, LATENTS, generator=generator)
        return z @ weight.T + SCALE * torch.randn(num, COLUMNS, generator=generator)

    return vae.model, guide, drawn


def first_of_each(x: Tensor) -> Tensor:
    """Returns which cell of each datum is missing: one of ten."""
    return torch.eye(COLUMNS, dtype=torch.bool).repeat(-(-len(x) // COLUMNS), 1)[: len(x)]


QUESTIONS: dict[str, Callable[..., object]] = {
    "posterior": lambda model, guide, x, **n: pv.posterior(
        model, lambda x: guide(x, torch.ones_like(x, dtype=torch.bool)), x, **n
    ).mean("z"),
    "impute": lambda model, guide, x, **n: pv.impute(model, guide, x, missing=first_of_each(x), **n),
    "conditional": lambda model, guide, x, **n: pv.conditional_log_marginal(
        model, guide, x, given=torch.arange(COLUMNS) < COLUMNS // 2, **n
    ),
    "check": lambda model, guide, x, **n: pv.predictive_check(
        model, guide, x, statistic=lambda x: x.amax(-1), num_replicates=300, **n
    ),
}


def main(question: str = "posterior", num_samples: int = 50_000, num_data: int = 10_000, seed: int = 0) -> None:
    """Ask one question and print the peak memory and the time that it took.

    Args:
        question: posterior, impute, conditional or check
        num_samples: draws of each datum
        num_data: data, of ten columns
        seed: of the model, the data and the draws
    """
    require_choice("question", question, QUESTIONS)
    require_size("num_samples", num_samples)
    require_size("num_data", num_data)
    model, guide, drawn = pair(torch.Generator().manual_seed(seed))
    x = drawn(num_data)
    torch.manual_seed(seed)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    QUESTIONS[question](model, guide, x, num_samples=num_samples, compile=False, progress=False)
    seconds, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{question}: {num_samples:,} draws of {num_data:,} data: peak {peak / UNIT:,.0f} MB", end=" ")
    print(f"(before {before / UNIT:,.0f} MB), {seconds:,.0f} CPU seconds")


if __name__ == "__main__":
    run_script(main)
