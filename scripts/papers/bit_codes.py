"""Trains codes of bits on MNIST in five ways, and measures each as a model of bits.

python scripts/papers/bit_codes.py       # goes on from an interrupted call

The score function with a leave-one-out baseline, VIMCO (Mnih and Rezende 2016, arXiv:1602.06725), reweighted wake-sleep
(Bornschein and Bengio 2015, arXiv:1406.2751), straight-through gradients (Bengio et al. 2013, arXiv:1308.3432) and
relaxed bits (Maddison et al. 2017, arXiv:1611.00712), all with the same number of draws and from the same starts.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from writing import with_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    check_for_parts,
    kept_parts,
    require,
    require_count,
    require_number,
    require_seeds,
    right_aligned,
)
from pyrovae.models.posteriors import Bernoulli, Posterior, RelaxedBernoulli
from pyrovae.objectives import ELBO, VIMCO, ReweightedWakeSleep, ScoreFunction
from pyrovae.training import digest

Way = tuple[Callable[[int, float], Posterior], Callable[[int], PyroELBO]]
WAYS: dict[str, Way] = {  # q(z|x) of so many bits at a temperature, and the objective of so many draws
    "VIMCO": (lambda bits, _: Bernoulli(bits), VIMCO),
    "leave-one-out": (lambda bits, _: Bernoulli(bits), lambda draws: ScoreFunction(draws, baseline="leave_one_out")),
    "wake-sleep": (lambda bits, _: Bernoulli(bits), ReweightedWakeSleep),
    "straight-through": (Bernoulli, ELBO),
    "relaxed": (RelaxedBernoulli, ELBO),
}


def main(
    data_root: str | None = None,
    num_train: int | None = None,
    num_bits: int = 100,
    hidden: tuple[int, ...] = (400,),
    temperature: float = 0.5,
    num_particles: int = 5,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    seeds: tuple[int, ...] = (0, 1, 2),
    num_samples: int = 2_000,
    num_data: int = 1_000,
    out: str = "runs/bits",
) -> None:
    """Train on binarised MNIST and measure on its test images; differences in pairs by seed.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_train: the first so many training images (default: 55,000)
        hidden: units of the encoder's hidden layers, mirrored in the decoder
        temperature: of straight-through and relaxed bits
        num_particles: draws of z per datum, in each of the five ways
        lr: of Adam, decayed to 0 over the epochs
        seeds: a run for each, of the initial parameters and training
        num_samples: draws of the importance estimate of log p(x)
        num_data: measure on the first so many test images
        out: folder of the runs; finished ones are not run again
    """
    for name, value in {"num_bits": num_bits, "epochs": epochs, "batch_size": batch_size}.items():
        require_count(name, value)
    for units in hidden:
        require_count("hidden", units)
    require_count("num_particles", num_particles, 2)
    require_count("num_samples", num_samples, 2)
    require_count("num_data", num_data, 2)
    for name, number in {"temperature": temperature, "lr": lr}.items():
        require_number(name, number, above=0)
    require_seeds(seeds)
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("mnist", data_root=data_root, num_train=num_train)
    require(num_data <= len(data.test_x), f"num_data must be <= {len(data.test_x)}, got {num_data}")
    x = data.test_x[:num_data]

    def vae_of(posterior: Posterior, seed: int) -> pv.VAE:
        torch.manual_seed(seed)
        return pv.VAE(
            data.event_shape,
            latent_dim=num_bits,
            hidden=hidden,
            likelihood=pv.Bernoulli(),
            posterior=posterior,
            data_mean=data.train_mean,
        )

    fit: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": "cosine"}
    settings = {"num_train": len(data.train_x), "num_bits": num_bits, "hidden": hidden, "temperature": temperature}
    settings |= {"num_particles": num_particles, **fit, "num_samples": num_samples, "num_data": num_data}

    def run(name: str, seed: int, checkpoints: pv.Checkpoints) -> dict[str, Any]:
        posterior, objective = WAYS[name]
        vae = vae_of(posterior(num_bits, temperature), seed)
        history = pv.fit(vae, data, objective=objective(num_particles), seed=seed, checkpoints=checkpoints, **fit)
        bits = vae_of(Bernoulli(num_bits), seed).to(vae.beta.device)
        bits.load_state_dict(vae.state_dict())
        torch.manual_seed(seed)
        found = pv.log_marginal(bits.model, bits.guide, x, num_samples=num_samples)
        share = None if math.isnan(found.share_unreliable) else found.share_unreliable  # nan for few samples
        return {
            "way": name, "seed": seed, "elbo": found.bounds[0].mean().item(), "log_px": found.mean,
            "log_px_error": found.monte_carlo_error, "log_px_data_error": found.data_error,
            "share_pareto_k_above_0.7": share, "seconds": sum(history.seconds),
        }  # fmt: skip

    runs = []
    with kept_parts(folder, {**settings, "data": digest((data.train_x, data.train_grey, data.test_x))}) as parts:
        for seed in seeds:
            for name in WAYS:
                key = f"seed {seed}, {name}"
                checkpoints = pv.Checkpoints(parts.folder_of(key), repeated=True)
                runs.append(parts.get(key, partial(run, name, seed, checkpoints)))
                print(f"{key}: log p(x) {runs[-1]['log_px']:.2f}, ELBO {runs[-1]['elbo']:.2f} nats", flush=True)
        text = table(runs)
        print(f"\n{num_data:,} test images, nats; in brackets standard errors over {len(seeds)} seeds\n\n{text}")
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        write_results(folder, {**settings, "runs": runs})
        write_report(folder, f"# Bits on MNIST\n\n{said}\n\n{table(runs, 'github')}\n")


def table(runs: list[dict], tablefmt: str = "simple") -> str:
    """Returns means over seeds with their standard errors, and differences to the first way in pairs by seed."""
    lines = []
    for name in WAYS:
        own, first = ([run for run in runs if run["way"] == way] for way in (name, next(iter(WAYS))))
        log_px, elbo = ([run[what] for run in own] for what in ("log_px", "elbo"))
        gain = [run["log_px"] - other["log_px"] for run, other in zip(own, first, strict=True)]
        cells = [with_error(values, 2, in_brackets=True) for values in (log_px, gain, elbo)]
        shares = [run["share_pareto_k_above_0.7"] for run in own]
        share = "unknown" if None in shares else f"{sum(shares) / len(own):.0%}"
        seconds = sum(run["seconds"] for run in own) / len(own)
        lines.append([name, *cells, share, f"{seconds:.0f}"])
    lines[0][2] = ""
    header = ["trained by", "log p(x)", f"less {next(iter(WAYS))}'s", "ELBO", "k > 0.7", "seconds"]
    return right_aligned(lines, header, tablefmt)


if __name__ == "__main__":
    run_script(main)
