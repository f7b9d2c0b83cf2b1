"""Run folders and checkpoints that are damaged or of another run, and folders that cannot be written to."""

import os

import broken_files as files
import pytest
import torch
from helpers import IMAGE_FILES
from refusals import NO_CONFIG, Table, check_refusal

import pyrovae as pv
from pyrovae import RunConfig
from pyrovae.runs import build_vae, train_run
from pyrovae.training.checkpoints import Checkpoints

CASES = Table()
add = CASES.add

# Runs and their checkpoints -------------------------------------------------------------------------------------------

cannot_read = r"run/checkpoint.pt is not a readable checkpoint \({0}\); run/checkpoint-previous.pt is not a .+ \({0}\)"
unreadable, foreign = cannot_read.format(".+"), cannot_read.format("it is not one that pyrovae wrote")
content = "the checkpoint in run is not readable: "
own_bias = r"decoder.layers.0.bias must have shape \(9,\), got \(8,\)"
for name, said in {
    "no folder": "run folder run does not exist",
    "a file": "run folder must be a folder that training has made, and run is a file",
    "no checkpoint": "run holds no checkpoint",
    "no config": NO_CONFIG,
    "config cut off": NO_CONFIG,
    **{f"checkpoint[:{keep}]": unreadable for keep in files.CUTS},
    "a fifo": cannot_read.format("OSError: 'Not a plain file'"),
    "inflates": cannot_read.format("it is compressed, or longer than its file"),
    "code in the checkpoint": unreadable,
    "another thing": foreign,
    "no format": foreign,
    "no history": content + "it must have history, and has none",
    "state is a list": content + r"state must be a dict, got \[1\]",
    "far larger": r"the checkpoint in run would need a tensor of [\d,]{15} numbers, and holds \d+",
    "another epoch": content + "position.epoch must be 1, got 3",
    "no epoch done": "the run in run was interrupted before its first epoch ended",
    "not finite": r"decoder.layers.0.bias in the checkpoint in run must be finite, got nan at index \(0,\)",
    "other sizes": r"run/config.json says hidden \[9\], and the run was trained with \[8\]",
    "more layers": r"run/config.json says hidden \[8, 8\], and the run was trained with \[8\]",
    "bad scale": "scale must be a finite number > 0, got -1",
    "unknown field": "config has an unknown field 'hiden'; pyrovae train --help .+",
}.items():
    add(f"run: {name}", said, pv.load_run, files.RUN, given=files.RUNS[name])


def go_on(hidden=(8,), **changes) -> None:
    """Continues the training of the run, with changes."""
    same = {"epochs": 2, "batch_size": 1_000, "seed": 0, "progress": False}
    vae, kept = build_vae(RunConfig(**{**files.SMALL, "hidden": hidden}), (2,)), Checkpoints(files.RUN)
    pv.fit(vae, pv.load("ring"), checkpoints=kept, **{**same, **changes})


no_fit, other = "the checkpoint in run does not fit the model: ", r"the checkpoint in run was written with "
regrouped = {"optimizer": lambda p, lr: torch.optim.Adam([{"params": [q]} for q in p], lr=lr, fused=True)}
for name, change, said in (
    ("sizes", {"hidden": (9,)}, no_fit + own_bias),
    ("layers", {"hidden": (8, 8)}, no_fit + r"decoder.layers.2.bias must have shape \(8,\), got None"),
    ("lr", {"lr": 0.5}, other + "lr 0.001, and lr is now 0.5"),
    ("number of epochs", {"epochs": 1}, "the checkpoint in run has done 2 epochs: epochs must be >= 2, got 1"),
    (
        "objective",
        {"objective": "iwae", "num_particles": 5},
        other + r"objective 'ELBO\(.*\)', and objective is now 'IWAE\(.*",
    ),
    ("seed", {"seed": 8}, other + "seed 0, and seed is now 8"),
    ("optimizer settings", {"optimizer": torch.optim.Adam}, "the checkpoint in run is of other optimizer settings: .+"),
    ("optimizer", regrouped, r"the checkpoint in run is of another optimizer \(.+ was \[9\], and .+ a list of 9\)"),
):
    add(f"fit: checkpoint, other {name}", said, go_on, **change, given=files.damaged())
add("fit: checkpoint cut off", unreadable, go_on, given=files.cut(100))
for name in ("a fifo", "inflates"):
    add(f"fit: checkpoint, {name}", unreadable, go_on, given=files.RUNS[name])
said = r"the run in run was begun with lr 0.001, and lr is now 0.5"
other_lr = RunConfig(**files.SMALL, lr=0.5)
add("run: resumed with another lr", said, train_run, other_lr, files.RUN, resume=True, given=files.damaged())


# Folders --------------------------------------------------------------------------------------------------------------

for name, folder, said in (
    ("not empty", "full", "out must be a new or empty folder, and full holds files"),
    ("a file", "full/notes.txt", "out must be a folder, got the file full/notes.txt"),
    ("below a file", "full/notes.txt/a/b", r"out must be a folder, and \S+/full/notes.txt is a file"),
    ("locked", "locked/run", r"out must be writable, and \S+/locked is not"),
    ("below /proc", "/proc/run", "out must be .*/proc.*"),
    ("name too long", "n" * 300, "out must be .*n{300}.*"),
):
    if name != "locked" or os.geteuid() != 0:  # root writes where it likes
        more = {"progress": False, "given": files.mine}
        add(f"folder: {name}", said, train_run, RunConfig(**files.SMALL), folder, **more)
for name, settings, said in (
    ("minutes", {"minutes": 0}, "minutes must be a finite number > 0, got 0"),
    ("epochs", {"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
    ("a file", {"folder": "full/notes.txt"}, "folder must be a folder, got the file full/notes.txt"),
    ("below a file", {"folder": "full/notes.txt/a"}, r"folder must be a folder, and \S+/notes.txt is a file"),
):
    add(f"checkpoints: {name}", said, Checkpoints, **{"folder": "new", **settings}, given=files.mine)
for name, root in {"missing": "nowhere", "a file": "full/notes.txt", "name too long": "n" * 300}.items():
    said = f"{IMAGE_FILES[0]}, .* not found in {root}/MNIST/raw, and .+|data_root must be a folder, got n+ .+"
    on_images = RunConfig(dataset="mnist", data_root=root)
    add(f"data_root: {name}", said, train_run, on_images, "new", given=files.mine)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
