"""`pyrovae compare`: compares estimators on a trained run, in bound, signal and noise, bias, time and memory."""

import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from pyrovae.common import check_folder, if_given, require_count, written_together
from pyrovae.runs import require_run

USUAL_NUM_DATA = 128
UNFINISHED = "unfinished_comparison"


def compare_objectives(
    folder: Annotated[Path, tyro.conf.Positional],
    objectives: tuple[str, ...] = ("elbo", "iwae", "dreg"),
    num_particles: tuple[int, ...] = (1, 8, 64),
    repeats: int = 100,
    num_data: int | None = None,
    max_seconds: float | None = None,
    compile: bool = True,
    data_root: str | None = None,
    dataset: str | None = None,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Compare estimators at a run's parameters; writes comparison.json, comparison.md, .html and figures/.

    An interrupted comparison, or one whose time ran out, goes on when it is called again with the same flags. With
    other flags, or once the run has been trained for longer, it begins anew.

    Args:
        folder: the run, as `train` kept it
        objectives: names, or "name(setting=value, ...)"
        num_particles: draws of z per datum; every objective is measured with each number
        repeats: independent gradients of each
        num_data: a gradient is the mean over the first so many test data (default: 128, or all if there are fewer)
        max_seconds: begin no more repeats after this time, and compile no more steps; a later call goes on
        compile: time compiled steps, too
        data_root: folder of the image sets, if they have moved since the training
        dataset: where data of your own are, if they have moved since the training
        device: auto, cpu, cuda, ...
        seed: fixes the draws
        overwrite: replace an earlier comparison
    """
    require_run(folder, dataset)  # before the imports of torch, and the values before the files that are there
    if_given(require_count, "num_data", num_data)
    from pyrovae.common import OtherSettings, choose_device
    from pyrovae.lab import COMPARISON_FILES, checked_objectives, compare, write_comparison
    from pyrovae.runs import first_test_data, load_run

    checked_objectives(objectives, num_particles, repeats, max_seconds, seed, compile)
    run = load_run(folder, data_root, dataset)
    check_folder(run.folder, "run folder")
    with written_together(run.folder, "comparison", COMPARISON_FILES, overwrite=overwrite) as beside:
        run.vae.to(choose_device(device))
        args = first_test_data(run.vae, run.data, num_data)
        if num_data is None:
            args = tuple(arg[:USUAL_NUM_DATA] for arg in args)
        unfinished = run.folder / UNFINISHED
        compare_them = partial(
            compare,
            run.vae.model,
            run.vae.guide,
            *args,
            objectives=objectives,
            num_particles=num_particles,
            repeats=repeats,
            max_seconds=max_seconds,
            compile=compile,
            seed=seed,
            folder=unfinished,
        )
        try:
            comparison = compare_them()
        except OtherSettings:
            if unfinished.is_symlink():
                raise  # somebody made it
            shutil.rmtree(unfinished)
            print("an unfinished comparison with other settings was removed")
            comparison = compare_them()
        print(f"{len(args[0]):,} test data of {folder}\n\n{comparison}\n")
        title = f"{run.title}: comparison, {len(args[0]):,} test data"
        write_comparison(beside, comparison, title, {**run.place, "num_data": len(args[0])})
    if comparison.complete:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"report: {folder / 'comparison.md'} and comparison.html")
