"""The texts that say which data a training is of: exact where data were read, to rounding where they were computed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ring, suite_seed
from own_files import write_table

import pyrovae as pv
from pyrovae.runs import train_run
from pyrovae.training import same_data, told_of_dataset
from pyrovae.training.data_told import as_old, told_of_split

ROOT = Path(__file__).parents[2]
RING = ring(seed=suite_seed())


def table():
    cells = torch.randn(60, 3, generator=torch.Generator().manual_seed(suite_seed())) * 50 + 7
    cells[:, 2] = (cells[:, 2] > 0).float()
    return pv.load(cells, standardise=True)


def images(**settings):
    grey = torch.arange(40 * 16).reshape(40, 4, 4).to(torch.uint8)
    return pv.load(grey, **{"binarize": "dynamic", **settings})


COMPUTED, READ = {"a toy density": RING, "a standardised table": table()}, {"images": images()}


def moved(data, split, by, column=0):
    x = getattr(data, f"{split}_x").clone()
    x[(1, *[0] * (x.dim() - 2), column)] += by
    return replace(data, **{f"{split}_x": x})


@pytest.mark.parametrize("name", [*COMPUTED, *READ])
def test_each_split_and_each_part_of_it_is_told(name):
    data = {**COMPUTED, **READ}[name]
    told = told_of_dataset(data)
    assert list(told) == ["training data", "validation data", "test data"]
    for split, text in zip(("train", "validation", "test"), told, strict=True):
        x, y = getattr(data, f"{split}_x"), getattr(data, f"{split}_y")
        others = [moved(data, split, by) for by in (1.0, torch.nan)] + [replace(data, **{f"{split}_x": x.flip(0)})]
        if isinstance(y, torch.Tensor):
            others.append(replace(data, **{f"{split}_y": y + 1}))
        if split == "train" and data.train_grey is not None:
            others.append(replace(data, train_grey=data.train_grey ^ 1))
        for other in others:
            assert [one for one in told if not same_data(told[one], told_of_dataset(other)[one])] == [text]


def test_rounding_of_another_processor_is_no_other_value_of_what_is_computed():
    for data in COMPUTED.values():
        now = replace(data, train_x=data.train_x * torch.tensor([1 + 2e-7, 1 + 2e-7, 1.0])[: data.train_x.shape[1]])
        assert not torch.equal(now.train_x, data.train_x)
        assert same_data(told_of_split(data, "train"), told_of_split(now, "train"))
        assert not same_data(told_of_split(data, "train"), told_of_split(moved(data, "train", 0.05), "train"))
    binary = moved(COMPUTED["a standardised table"], "train", 1e-6, column=2)  # which is not computed
    assert not same_data(told_of_split(COMPUTED["a standardised table"], "train"), told_of_split(binary, "train"))
    read = READ["images"]
    assert not same_data(told_of_split(read, "train"), told_of_split(moved(read, "train", 1e-6), "train"))


def test_what_is_not_known_is_not_refused_and_other_kinds_of_data_are():
    computed, read = told_of_split(RING, "train"), told_of_split(READ["images"], "train")
    for told in (computed, read):
        assert same_data(None, told)
        assert same_data(told, None)
    assert not same_data(computed, read)
    assert not same_data(read, computed)
    assert not same_data("computed", computed)
    assert not same_data("", computed)


def test_a_text_of_the_first_format_is_a_hash_of_everything():
    name, other = "training data", told_of_split(images(binarize="static"), "train")
    read = told_of_split(READ["images"], "train")
    old = as_old({name: read, "optimizer settings": "lr=1"})
    assert old == {name: f"old {read}", "optimizer settings": "lr=1"}
    assert same_data(old[name], read)
    assert not same_data(old[name], other)
    assert as_old({name: None}) == {name: None}
    computed = told_of_split(RING, "train")
    assert same_data(f"old {computed.split()[1]}", computed)


PROGRAM = """
import sys
import pyrovae as pv
from pyrovae.runs import train_run
for name in sys.argv[1:]:
    train_run(pv.RunConfig(dataset=name, hidden=(4,), epochs=1, batch_size=500), "run-" + name, progress=False)
"""


def test_a_run_of_another_processor_is_read_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", {"a": "continuous", "b": "continuous", "c": "count"}, seed=suite_seed())
    here = torch.backends.cpu.get_cpu_capability()
    other = "avx2" if here == "DEFAULT" else "default"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": other, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, "ring", "a.csv"]
    subprocess.run(command, env=environment, check=True, timeout=120)
    for name in ("ring", "a.csv"):
        run = pv.load_run(f"run-{name}")
        assert len(run.data.test_x) > 0
        with pytest.warns(UserWarning, match=f"processor .* {other.upper()} then and .* {here} now"):
            longer = train_run(replace(run.config, epochs=2), run.folder, resume=True, progress=False)
        assert longer.history.epoch == [1, 2]
