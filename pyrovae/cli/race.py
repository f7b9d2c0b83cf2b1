"""Trains one VAE with several objectives from the same starts, and says which is better and by how much.

python scripts/race.py --dataset mnist --data-root ../shared/data --objectives elbo iwae dreg --num-particles 16
python scripts/race.py --objectives elbo "miwae(num_batches=4, num_particles=4)" "renyi(alpha=0.5)" --budget seconds
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pyro.infer import ELBO as PyroELBO

import pyrovae as pv
from pyrovae.cli import helpers, is_helper, run_script
from pyrovae.common import require
from pyrovae.lab import write_race
from pyrovae.objectives import OBJECTIVES, SHORTHANDS, from_text, parse
from pyrovae.runs import fit_settings, load_data, unseeded_vae


@dataclass(frozen=True)
class Config(pv.RunConfig):
    num_particles: int | None = 16
    """samples of z per datum in every objective without a number of its own"""


def main(
    config: Annotated[Config, tyro.conf.arg(name="")],
    objectives: tuple[str, ...] = ("elbo", "iwae", "dreg"),
    seeds: tuple[int, ...] = (0, 1, 2),
    budget: Literal["epochs", "seconds", "both"] = "both",
    num_samples: int = 5_000,
    num_data: int | None = None,
    processes: int = 1,
    out: str = "runs/race",
) -> None:
    """Race objectives with the same model, starts, data and evaluator; prints paired differences with their errors.

    Args:
        objectives: names, or "name(setting=value, ...)"; --num-particles is for those without a number of their own
        seeds: a run for each, of the initial parameters and training; --seed is for the data
        budget: equal epochs; equal seconds, as many as the first objective takes; or both
        num_samples: draws of the importance estimate of log p(x)
        num_data: the first so many test data (default: all)
        processes: how many processes share the runs
        out: folder of the runs; finished ones are not run again
    """
    usual = Config()
    require(config.patience is None, f"patience must be None in a race, got {config.patience}")
    for name in ("objective", *SHORTHANDS[1:]):
        value = getattr(config, name)
        require(value == getattr(usual, name), f"{name} must be given in --objectives, got --{name} {value!r}")
    by_name = {text: objective_of(text, config.num_particles) for text in objectives}
    require(len(by_name) == len(objectives), f"objectives must differ, got {', '.join(objectives)}")
    settings = {name: value for name, value in fit_settings(config).items() if name != "patience"}
    data, races = load_data(config), {}
    with helpers(processes):
        for one in ("epochs", "seconds") if budget == "both" else (budget,):
            races[one] = pv.race(
                lambda: unseeded_vae(config, data.event_shape, data),
                data,
                by_name,
                seeds,
                one,
                epochs=config.epochs,
                folder=out,
                num_data=num_data,
                num_samples=num_samples,
                **settings,
            )
    if is_helper():
        return
    for one, race in races.items():
        print(f"equal {one}\n\n{race}\n")
    write_race(Path(out), races)
    print(f"report: {Path(out) / 'race.md'}")


def objective_of(text: str, num_particles: int | None) -> PyroELBO:
    """Returns the objective that a text describes, with `num_particles` if it takes a number and the text has none."""
    name, settings = parse(text)
    takes_one = "num_particles" in inspect.signature(OBJECTIVES[name]).parameters and "num_particles" not in settings
    return from_text(text, **({"num_particles": num_particles} if takes_one else {}))


if __name__ == "__main__":
    run_script(main)
