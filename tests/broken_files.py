"""Files and folders that are damaged, each in one way, below the working folder, for the tests in bad_input/."""

import functools
import gzip
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from helpers import LABEL_FILES, NUM_TRAIN, idx, write_images

from pyrovae import RunConfig
from pyrovae.runs import train_run
from pyrovae.training.history import Position

CORRUPT = {
    "empty": lambda content: b"",
    "wrong magic": lambda content: b"\x00\x00\x08\x07" + content[4:],
    "unknown type": lambda content: b"\x00\x00\x0a" + content[3:],
    "another type": lambda content: b"\x00\x00\x09" + content[3:],
    "one number short": lambda content: content[:-1],
    "one number over": lambda content: content + b"\x00",
    "header cut off": lambda content: content[:6],
    "magic cut off": lambda content: content[:2],
    "header alone": lambda content: content[: 4 + 4 * content[3]],
    "counts past the end": lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:],
    "still compressed": gzip.compress,
    "compressed and cut off": lambda content: gzip.compress(content)[:40],
    "a web page": lambda content: b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n" * 20,
    "of the other kind": lambda content: idx(np.zeros((NUM_TRAIN, 2, 2))) if content[3] == 1 else idx(np.zeros(40)),
}
IMAGES, RAW = Path("images"), Path("images/MNIST/raw")


def images(then: Callable[[], object] = lambda: None) -> None:
    write_images(IMAGES)
    then()


def rewritten(file: str, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    return partial(images, lambda: (RAW / file).write_bytes(damage((RAW / file).read_bytes())))


def with_labels(num: int) -> Callable[[], None]:
    return rewritten(LABEL_FILES[0], lambda content: idx(np.zeros(num)))


def without(file: str) -> Callable[[], None]:
    return partial(images, (RAW / file).unlink)


def archived(file: str) -> Callable[[], None]:
    """Leaves the archive that torchvision downloads in place of the file."""
    return partial(images, partial((RAW / file).rename, RAW / f"{file}.gz"))


SMALL = {"dataset": "ring", "hidden": (8,), "epochs": 2, "batch_size": 1_000}


@functools.cache
def run_files() -> dict[str, bytes]:
    """Returns the content of each file in the folder of a run."""
    with tempfile.TemporaryDirectory() as folder:
        train_run(RunConfig(**SMALL), Path(folder) / "run", progress=False)
        return {path.name: path.read_bytes() for path in (Path(folder) / "run").iterdir()}


RUN = Path("run")


def damaged(change: Callable[[], object] = lambda: None) -> Callable[[], None]:
    def make() -> None:
        RUN.mkdir()
        for name, content in run_files().items():
            (RUN / name).write_bytes(content)
        change()

    return make


def each_checkpoint(change: Callable[[Path], object]) -> Callable[[], None]:
    """Changes both checkpoints, as the previous one replaces a damaged last one."""
    return damaged(lambda: [change(path) for path in RUN.glob("checkpoint*.pt")])


def cut(keep: int) -> Callable[[], None]:
    return each_checkpoint(lambda path: path.write_bytes(path.read_bytes()[:keep]))


def content(change: Callable[[dict], object]) -> Callable[[], None]:
    """Replaces the content of both checkpoints by what `change` returns for it."""
    return each_checkpoint(lambda path: torch.save(change(torch.load(path)), path))


def other_config(**changes) -> Callable[[], None]:
    path = RUN / "config.json"
    return damaged(lambda: path.write_text(json.dumps({**json.loads(path.read_text()), **changes})))


def not_a_number(state: dict) -> dict:
    state["state"]["decoder.layers.0.bias"][0] = math.nan
    return state


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def with_state(**changes) -> Callable[[], None]:
    return content(lambda state: {**state, **changes})


def compressed(path: Path) -> None:
    """Writes an archive that holds the same, and is larger once it is read."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inner in content.items():
            archive.writestr(name, inner)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CUTS = (0, 1, 100, 2_000, -1_000, -10)
RUNS = {
    "no folder": lambda: None,
    "a file": partial(RUN.write_text, "mine"),
    "no checkpoint": each_checkpoint(Path.unlink),
    "no config": damaged((RUN / "config.json").unlink),
    "config cut off": damaged(partial((RUN / "config.json").write_text, '{"data')),
    **{f"checkpoint[:{keep}]": cut(keep) for keep in CUTS},
    "a fifo": each_checkpoint(fifo),
    "inflates": each_checkpoint(compressed),
    "code in the checkpoint": with_state(state=Evil()),
    "another thing": content(lambda state: [1]),
    "no format": with_state(format=None),
    "no history": content(lambda state: {name: value for name, value in state.items() if name != "history"}),
    "state is a list": with_state(state=[1]),
    "far larger": with_state(event_shape=(2**39,)),
    "no epoch done": with_state(history=[], position=asdict(Position())),
    "another epoch": with_state(history=[]),
    "not finite": content(not_a_number),
    "other sizes": other_config(hidden=[9]),
    "more layers": other_config(hidden=[8, 8]),
    "bad scale": other_config(scale=-1),
    "unknown field": other_config(hiden=[9]),
}


def mine() -> None:
    """Makes a folder that is not empty, and one that cannot be written to."""
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("locked").mkdir(mode=0o500)


def corrupt_and_mine() -> None:
    mine()
    (write_images(Path("corrupt")) / LABEL_FILES[1]).write_bytes(bytes([0, 0, 8]))
