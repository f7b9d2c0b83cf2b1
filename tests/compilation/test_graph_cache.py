"""Graphs in Inductor's cache: when one is taken from there, and what a process that was killed leaves there."""

import logging
import os
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config, cpu_vec_isa
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.cpp_builder import CppBuilder
from torch._inductor.utils import clear_caches

from pyrovae.compilation.graph import Graph
from pyrovae.compilation.machine_code import _damaged_files, _key_of


@pytest.fixture(scope="module")
def compiled():
    """The libraries of these tests by their paths within a cache, which name the code and the command."""
    return {}


@pytest.fixture
def new_cache(tmp_path, monkeypatch, compiled):
    """Returns a function that makes a folder of this name Inductor's cache, without what is in memory.

    What one test has compiled is a copy in the next, as each run of the compiler takes seconds.
    """
    cpu_vec_isa.pick_vec_isa()  # in the usual cache, as it compiles
    build = CppBuilder.build

    def build_once(builder):
        target, cache = Path(builder.get_target_file_path()), Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        name = target.relative_to(cache) if target.is_relative_to(cache) else None
        if name is None:  # a header, which all caches share
            build(builder)
        elif name in compiled:
            target.write_bytes(compiled[name])
        else:
            build(builder)
            compiled[name] = target.read_bytes()

    monkeypatch.setattr(CppBuilder, "build", build_once)

    def clear():
        clear_caches()
        CppPythonBindingsCodeCache.cache_clear()

    def make(name):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
        clear()
        return tmp_path / name

    yield make
    clear()


@pytest.mark.filterwarnings("error")
def test_a_library_that_a_kill_left_damaged_is_compiled_again(new_cache):
    def function(x):
        return ((x.exp() * 3).sum(),)

    x = torch.randn(7, 3)
    whole = new_cache("whole")
    expected = Graph(function, [x])(x)[0]
    (library,) = whole.rglob("*.main.so")
    for num, size in enumerate((0, 100)):
        folder = new_cache(f"damaged_{num}")  # another folder, as Python loads a library of one path once
        damaged = folder / library.relative_to(whole)
        damaged.parent.mkdir(parents=True)
        damaged.write_bytes(library.read_bytes()[:size])
        graph = Graph(function, [x])
        assert graph.inductor
        assert torch.equal(graph(x)[0], expected)
        assert damaged.stat().st_size > 1_000


def test_an_equal_graph_is_loaded_and_one_of_other_numbers_or_instructions_is_not(new_cache, monkeypatch):
    new_cache("cache")

    def found(factor, x):
        """Returns whether the graph was in the cache."""
        before = counters["inductor"]["fxgraph_cache_hit"]
        y = Graph(lambda x: ((x.exp() * factor).sum(),), [x])(x)[0]
        torch.testing.assert_close(y, (x.exp() * factor).sum())
        return counters["inductor"]["fxgraph_cache_hit"] - before == 1

    x = torch.randn(7, 3)
    assert [found(3, x), found(3, x + 1), found(4, x)] == [False, True, False]
    if cpu_vec_isa.pick_vec_isa():  # without any (`ATEN_CPU_CAPABILITY=default`) there are no others to take here
        with config.patch({"cpp_cache_precompile_headers": False}):  # to precompile those of others takes seconds
            assert [found(3, x), found(3, x)] == [False, True]
            with monkeypatch.context() as patch:
                patch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: cpu_vec_isa.invalid_vec_isa)
                assert not found(3, x)
    assert found(3, x)


def test_the_key_names_what_the_loops_are_written_for(monkeypatch):
    def key(device="cpu", **options):
        with _key_of({name.replace("_", "."): value for name, value in options.items()}, torch.device(device)):
            return torch.compiler.config.cache_key_tag

    before = torch.compiler.config.cache_key_tag
    known = [key(), key("cuda"), key(cpp_threads=7)]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 5)
        patch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: "others")
        known += [key(), key(cpp_threads=7)]
        patch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        known += [key(), key("cuda")]
    assert len(set(known)) == len(known)
    assert key() == known[0]
    with torch.compiler.config.patch(cache_key_tag="own"):
        assert key() == f"own {known[0].strip()}"
    assert torch.compiler.config.cache_key_tag == before


@pytest.mark.filterwarnings("error")
def test_a_graph_of_which_the_cache_has_a_part_is_compiled(new_cache):
    x = torch.randn(7, 3)

    def value():
        return Graph(lambda x: ((x.exp() * 3).sum(),), [x])(x)[0]

    cache = new_cache("cache")
    value()
    entries = [file for file in (cache / "fxgraph").rglob("*") if file.is_file()]
    assert entries
    for file in entries:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said, kept = [], logging.Handler(logging.WARNING)
    kept.emit = said.append
    logging.getLogger().addHandler(kept)
    try:
        torch.testing.assert_close(value(), (x.exp() * 3).sum())
    finally:
        logging.getLogger().removeHandler(kept)
    assert not said


def test_nothing_but_a_damaged_library_of_the_cache_is_removed(new_cache, tmp_path):
    cache = new_cache("cache")
    cache.mkdir()
    own, other = cache / "a.main.so", tmp_path / "b.so"
    own.touch()
    other.touch()
    assert _damaged_files(f"ImportError: {own}: file too short") == [own]
    assert _damaged_files(f"ImportError: {own}: invalid ELF header") == [own]
    assert _damaged_files(f"ImportError: {own}: undefined symbol: f") == []
    assert _damaged_files(f"ImportError: {other}: file too short") == []
    assert _damaged_files(f"ImportError: {cache}/../b.so: file too short") == []
    assert _damaged_files(f"ImportError: {cache}/gone.so: file too short") == []
