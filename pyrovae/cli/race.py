"""`pyrovae race`: trains one VAE with several objectives from the same starts, and says by how much which is better."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyrovae.cli.helper_processes import helpers, is_helper
from pyrovae.cli.train import config_of
from pyrovae.common import parse_call, require, require_count, require_seeds
from pyrovae.runs import (
    OBJECTIVE_NAMES,
    SHORTHANDS,
    DataFields,
    ModelFields,
    ObjectiveFields,
    RunConfig,
    TrainingFields,
    require_source,
)

if TYPE_CHECKING:
    from pyro.infer import ELBO as PyroELBO


BUDGETS = {"both": ("epochs", "seconds"), "all": ("epochs", "seconds", "decoder_calls")}


@dataclass(frozen=True)
class RacedFields(ObjectiveFields):
    """What the objectives have in common."""

    num_particles: int | None = 16
    """samples of z per datum in every objective without a number of its own"""


def race_objectives(
    data: DataFields,
    model: ModelFields,
    objective: RacedFields,
    training: TrainingFields,
    objectives: tuple[str, ...] = ("elbo", "iwae", "dreg"),
    seeds: tuple[int, ...] = (0, 1, 2),
    budget: Literal["epochs", "seconds", "decoder_calls", "both", "all"] = "both",
    num_samples: int = 5_000,
    num_data: int | None = None,
    processes: int = 1,
    out: str = "runs/race",
) -> None:
    """Race objectives with the same model, starts, data and evaluator; prints paired differences with their errors.

    Args:
        objectives: names, or "name(setting=value, ...)"; --num-particles is for those without a number of their own
        seeds: a run for each, of the initial parameters and training; --seed is for the data
        budget: equal epochs; equal seconds, as many as the first objective takes; both of these; equal decoder_calls
            (evaluations of log p(x|z)); or all three
        num_samples: draws of the importance estimate of log p(x)
        num_data: the first so many test data (default: all)
        processes: how many processes share the runs
        out: folder of the runs; finished ones are not run again
    """
    for text in objectives:
        parse_call("objective", text, OBJECTIVE_NAMES)
    require_seeds(seeds)
    require_count("processes", processes)
    require_source(data.dataset)
    from pyrovae.lab import race, write_race  # not above, because these import torch
    from pyrovae.runs import fit_settings, load_data, unseeded_vae, with_usual_settings

    config, usual = config_of(data, model, objective, training), RunConfig()
    require(config.patience is None, f"patience must be None in a race, got {config.patience}")
    for name in ("objective", *SHORTHANDS[1:]):
        value = getattr(config, name)
        require(value == getattr(usual, name), f"{name} must be given in --objectives, got --{name} {value!r}")
    by_name = {text: objective_of(text, config.num_particles) for text in objectives}
    require(len(by_name) == len(objectives), f"objectives must differ, got {', '.join(objectives)}")
    settings = {name: value for name, value in fit_settings(config).items() if name != "patience"}
    loaded, races = load_data(config), {}
    config = with_usual_settings(config, loaded)
    with helpers(processes):
        for one in BUDGETS.get(budget, (budget,)):
            races[one] = race(
                lambda: unseeded_vae(config, loaded.event_shape, loaded),
                loaded,
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
    for one, raced in races.items():
        print(f"equal {one.replace('_', ' ')}\n\n{raced}\n")
    write_race(Path(out), races)
    print(f"report: {Path(out) / 'race.md'} and race.html")


def objective_of(text: str, num_particles: int | None) -> "PyroELBO":
    """Returns the objective that a text describes, with `num_particles` if it takes a number and the text has none."""
    from pyrovae.objectives import OBJECTIVES, from_text, parse

    name, settings = parse(text)
    takes_one = "num_particles" in inspect.signature(OBJECTIVES[name]).parameters and "num_particles" not in settings
    return from_text(text, **({"num_particles": num_particles} if takes_one else {}))
