"""`pyrovae impute`: completes a table with the VAE of a run, with a standard deviation for each cell filled in."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro

from pyrovae.common import (
    check_folder,
    is_there,
    require,
    require_count,
    require_seed,
    require_size,
    require_there,
    write_text,
    written_together,
)
from pyrovae.runs import TEXT_FILES, require_run

MOST_DRAWS = 1_000  # each is a file


def impute_missing(
    folder: Annotated[Path, tyro.conf.Positional],
    data: Path,
    out: Path,
    num_samples: int = 1_000,
    draws: int = 0,
    dataset: str | None = None,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Complete a table: fills in its missing cells, in its own units and names, and says how far each may be off.

    Beside each column NAME that had holes the file has NAME_sd, the standard deviation of each number filled in, or
    NAME_p, the probability of each name filled in. What is computed from single guesses looks too certain: for that
    take --draws.

    Args:
        folder: the run, as `train` kept it, on a table and with --missing mask
        data: the table, .csv, .tsv or .parquet, with the columns of the run and perhaps others
        out: the completed table, .csv or .tsv
        num_samples: draws for each row, behind means and standard deviations
        draws: write so many whole tables drawn from p(missing | observed), too: OUT_1, OUT_2, ...
        dataset: where the data of the training are, if they have moved; only a conditional run reads them
        device: auto, cpu, cuda, ...
        seed: fixes the draws
        overwrite: replace files that are there
    """
    require_run(folder, dataset)  # before the imports of torch
    require_there(data)
    require(out.suffix.lower() in TEXT_FILES, f"out must be a file .csv or .tsv, got {out}")
    require_size("num_samples", num_samples)
    require_count("draws", draws, 0)
    require(draws <= MOST_DRAWS, f"draws must be <= {MOST_DRAWS:,}, as each is a file, got {draws:,}")
    require_seed(seed)
    files = [out.name, *(_name_of_draw(out, index, draws) for index in range(draws))]
    for path in (out.with_name(name) for name in files):
        is_data = is_there(path) and os.path.samefile(data, path)
        require(not is_data, f"out and its draws must be other files than data, got {path}")
    from pyrovae.common import Workers, choose_device, device_of_worker, local_seed
    from pyrovae.runs import check_completes_tables, impute_table, load_run

    run, workers = load_run(folder, dataset=dataset), Workers()
    check_completes_tables(run)
    with ExitStack() as block:

        def begin() -> Path:
            check_folder(out.parent, "out")
            name = f"imputation {out.name}"  # others may go into the folder meanwhile
            return block.enter_context(written_together(out.parent, name, files, overwrite=overwrite))

        beside = workers.by_first(begin)  # the other processes take their shares and write nothing
        run.vae.to(choose_device(device_of_worker(device)))
        with local_seed(seed):
            found = impute_table(run, data, num_samples, draws)
        if workers.is_first:
            print(f"{found.table()}\n\n{found.verdict}\n")
            suffix = out.suffix.lower()
            for name, text in zip(files, chain([found.text(suffix)], found.texts_of_draws(suffix)), strict=True):
                write_text(beside / name, text)
    if workers.is_first:
        print(f"{data} completed: {out}" + (f" and {draws} drawn" if draws else ""))
        if older := _other_draws(out, files, data):
            print(f"not of this imputation, but named as its draws: {', '.join(older)}")


def _other_draws(out: Path, files: Sequence[str], data: Path) -> list[str]:
    """Returns the names of files beside `out` that look like draws of it and are none: those of a call before."""
    is_draw = re.compile(rf"{re.escape(out.stem)}_[0-9]+{re.escape(out.suffix)}")
    alike = (path for path in out.parent.iterdir() if is_draw.fullmatch(path.name) and path.name not in files)
    return sorted(path.name for path in alike if not path.exists() or not os.path.samefile(path, data))


def _name_of_draw(out: Path, index: int, draws: int) -> str:
    """Returns the name of a file of one imputation of several, which sorts by its number."""
    return f"{out.stem}_{index + 1:0{len(str(draws))}}{out.suffix}"
