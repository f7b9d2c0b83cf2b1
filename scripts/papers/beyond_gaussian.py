"""Trains published priors, layers and posteriors on MNIST with one budget, and compares them in pairs by seed.

python scripts/papers/beyond_gaussian.py --processes 2      # resumes an interrupted run
python scripts/papers/beyond_gaussian.py --only layers --epochs 60 --processes 2 --out runs/layers

All under the ELBO. 784-300-300-40: standard against Vamp prior (Tomczak and Welling 2018, arXiv:1705.07120, table 1:
500 pseudo-inputs), static and dynamic; diagonal against flow posterior (Kingma et al. 2016, arXiv:1606.04934).
784-200-200-50 against 784-200-200-100-100-100-50: one and two stochastic layers (Burda et al. 2016, arXiv:1509.00519,
table 1).
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Any, Literal

from writing import write_report, write_results

import pyrovae as pv
from pyrovae.cli import helpers, is_helper, run_script
from pyrovae.runs import unseeded_vae

VAMP = {"prior": "vamp"}
# By race: the settings that all variants share, and those of each variant; the others are compared with the first.
RACES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "static": ({"binarize": "static"}, {"standard": {}, "Vamp prior": VAMP}),
    "dynamic": ({}, {"standard": {}, "Vamp prior": VAMP, "flow posterior": {"posterior": "flow"}}),
    "layers": (
        {"hidden": (200, 200)},
        {"one layer": {"latent_dim": 50}, "two layers": {"latent_dim": 100, "layers": (50,)}},
    ),
}
PUBLISHED = {  # gains in log p(x), in nats, of long trainings
    ("static", "Vamp prior"): 88.56 - 85.57,
    ("dynamic", "Vamp prior"): 84.50 - 82.38,
    ("dynamic", "flow posterior"): None,
    ("layers", "two layers"): 86.76 - 85.33,
}


def main(
    data_root: str | None = None,
    hidden: tuple[int, ...] = (300, 300),
    latent_dim: int = 40,
    num_components: int = 200,
    epochs: int = 10,
    seeds: tuple[int, ...] = (0, 1, 2),
    num_samples: int = 2_000,
    num_data: int = 1_000,
    processes: int = 1,
    only: Literal["static", "dynamic", "layers"] | None = None,
    out: str = "runs/beyond_gaussian",
) -> None:
    """Train each variant from each seed and print paired differences beside the published ones.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        hidden: units of the encoder's layers, except in the race of layers, which has Burda's networks
        latent_dim: of z, except in the race of layers
        num_components: pseudo-inputs of the Vamp prior
        seeds: a run for each, of the initial parameters and training
        num_samples: draws of the importance estimate of log p(x)
        num_data: measure on the first so many test images
        processes: how many processes share the runs
        only: one of the three races (default: all)
        out: folder of the runs; finished ones are not run again
    """
    folder, races = Path(out), {}
    wanted = {title: parts for title, parts in RACES.items() if only in (None, title)}
    with helpers(processes):
        for title, (same, variants) in wanted.items():
            common: dict[str, Any] = {"dataset": "mnist", "data_root": data_root, "hidden": hidden}
            common |= {"latent_dim": latent_dim, "activation": "tanh", **same}
            data = pv.load("mnist", binarize=common.get("binarize", "dynamic"), data_root=data_root)
            makers = {}
            for name, changed in variants.items():
                count = {"num_components": num_components} if "prior" in changed else {}
                config = pv.RunConfig(**{**common, **changed, **count})
                makers[name] = partial(unseeded_vae, config, data.event_shape, data)
            races[title] = pv.race(
                makers, data, ["elbo"], seeds, epochs=epochs, schedule="cosine", folder=folder / title,
                num_samples=num_samples, num_data=num_data,
            )  # fmt: skip
            if not is_helper():  # print it now, as the next race takes long
                print(f"MNIST, {title}\n\n{races[title].table()}\n", flush=True)
    if is_helper():
        return
    rows = [row(races[title], title, name) for title, name in PUBLISHED if title in races]
    budget = f"{epochs} epochs, seeds {', '.join(map(str, seeds))}, {num_data:,} test images"
    markdown = [f"# Beyond the diagonal Gaussian: {budget}"]
    for title, race in races.items():
        markdown.append(f"## {title}\n\n{race.to_markdown()}")
    verdicts = "\n".join(map(verdict, rows))
    print(f"{budget}\n\n{verdicts}")
    write_results(folder, rows)
    figures = {title: race.plot() for title, race in races.items()}
    write_report(folder, "\n\n".join((*markdown, verdicts)) + "\n", figures)


def row(race: pv.Race, title: str, name: str) -> dict[str, object]:
    published, against = PUBLISHED[title, name], next(iter(RACES[title][1]))
    return {"race": title, "variant": name, "against": against, "published": published, **race.difference(name)}


def verdict(row: dict) -> str:
    """Returns a line that says what became of a published effect."""
    published = "better" if row["published"] is None else f"{row['published']:+.2f}"
    if row["low"] is None:
        found = "one seed cannot tell"
    elif row["low"] > 0:
        found = "reproduced in direction"
    else:
        found = "the other way round" if row["high"] < 0 else "not resolved"
    interval = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    ours = f"ours {row['value']:+.2f}{interval}"
    return f"{row['race']}, {row['variant']} over {row['against']}: published {published}, {ours}: {found}"


if __name__ == "__main__":
    run_script(main)
