"""What programs can see is watched, wherever it is kept, also once Python has given a dict a new version."""

import importlib
import sys
from argparse import Namespace
from collections import OrderedDict, UserDict, deque
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from torch import nn

from pyrovae.common import CapturedState, captured_state

gain = [0.5]


class Slotted:
    __slots__ = ("offset",)

    def __init__(self):
        self.offset = 1.0


def helper():
    return helper.gain


helper.gain = 1.0


def reads_the_store(name):
    return pyro.get_param_store()[name]


class Scaled:
    factor = 2.0

    def __init__(self):
        self.offset = 1.0
        self.table = {"a": object(), "b": object()}
        self.ordered = OrderedDict(a=object(), b=object())
        self.layer = nn.Linear(2, 1)
        self.namespaces = Namespace(beta=1.0), SimpleNamespace(beta=1.0)
        self.user, self.slotted = UserDict(a=1.0), Slotted()
        self.queue, self.set, self.array = deque([1.0, 2.0]), {1.0, 2.0}, np.ones(3)

    def __call__(self, x):
        helper(), reads_the_store("stored")
        return self.factor * gain[0] * self.layer(x) + self.offset


def set_item(container, name):
    def change():
        kept = container[name]
        container[name] = object()
        return lambda: container.__setitem__(name, kept)

    return change


def set_attribute(owner, name, new):
    def change():
        kept = getattr(owner, name)
        setattr(owner, name, new)
        return lambda: setattr(owner, name, kept)

    return change


def add(container):
    def change():
        container["new"] = object()
        return lambda: container.pop("new")

    return change


def replace_a_stored_parameter():
    store, kept = pyro.get_param_store(), pyro.get_param_store()._params["stored"]
    store._params["stored"] = torch.zeros(2, requires_grad=True)
    return lambda: store._params.__setitem__("stored", kept)


def set_to(container, method, *values):
    """Changes what a container holds, and not how much."""

    def change():
        kept = list(container)
        container.clear()
        getattr(container, method)(values)
        return lambda: (container.clear(), getattr(container, method)(kept))

    return change


def set_number(array):
    def change():
        array[1] = 3.0
        return lambda: array.__setitem__(1, 1.0)

    return change


CHANGES = {
    "a namespace of argparse": lambda program: set_attribute(program.namespaces[0], "beta", 3.0),
    "another namespace": lambda program: set_attribute(program.namespaces[1], "beta", 3.0),
    "a mapping": lambda program: set_item(program.user, "a"),
    "a slot": lambda program: set_attribute(program.slotted, "offset", 3.0),
    "an attribute of a function": lambda program: set_attribute(helper, "gain", 3.0),
    "a deque": lambda program: set_to(program.queue, "extend", 1.0, 3.0),
    "a set": lambda program: set_to(program.set, "update", 1.0, 3.0),
    "a number of an array": lambda program: set_number(program.array),
    "a name in a store that is read": lambda program: add(pyro.get_param_store()._params),
    "an attribute": lambda program: set_attribute(program, "offset", 3.0),
    "an attribute of the class": lambda program: set_attribute(Scaled, "factor", 3.0),
    "an item of a dict": lambda program: set_item(program.table, "a"),
    "an item of another kind of dict": lambda program: set_item(program.ordered, "a"),
    "a new item": lambda program: add(program.table),
    "a new item of another kind of dict": lambda program: add(program.ordered),
    "a global": lambda program: set_item(globals(), "gain"),
    "an item of a list": lambda program: set_item(gain, 0),
    "a mode": lambda program: set_attribute(program.layer, "training", False),
    "a parameter": lambda program: set_attribute(program.layer, "bias", nn.Parameter(torch.zeros(1))),
    "requires_grad": lambda program: set_attribute(program.layer.bias, "requires_grad", False),
    "the param store": lambda program: replace_a_stored_parameter,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("is_stirred", [False, True])
def test_a_change_is_seen_each_time_and_forgotten_once_it_is_put_back(name, is_stirred):
    """`is_stirred` is for a dict that had a change undone, or another name set, since the last look at it."""
    pyro.param("stored", torch.ones(2))
    program = Scaled()
    state, change = CapturedState([program], ["stored"]), CHANGES[name](program)
    assert state.change() is None
    for _ in range(2):
        if is_stirred:
            change()()
            globals()["unread"] = SimpleNamespace()
            assert state.change() is None
        undo = change()
        assert state.change() is not None
        assert state.change() is not None
        undo()
        assert state.change() is None
        assert state.change() is None


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "an attribute of the class"])
def test_what_was_replaced_is_put_back(name):
    pyro.param("stored", torch.ones(2))
    program = Scaled()
    state = CapturedState([program], ["stored"])
    CHANGES[name](program)()
    assert state.change() is not None
    state.restore()
    assert state.change() is None


def test_a_parameter_of_a_program_that_does_not_read_the_store_by_itself_is_watched_by_its_name():
    pyro.param("stored", torch.ones(2))
    state = CapturedState([lambda x: pyro.param("stored") * x], ["stored"])
    assert state.change() is None
    undo = replace_a_stored_parameter()
    assert state.change() == "stored"
    undo()
    assert state.change() is None


def test_an_empty_dict_that_is_filled_is_seen_without_its_version(monkeypatch):
    """From Python 3.12 on, `update` of an empty dict leaves its `dict_version` as it was."""
    options: dict[str, float] = {}

    def program():
        return options.get("gain", 1.0)

    state = CapturedState([program])
    monkeypatch.setattr(captured_state, "dict_version", lambda container: 0 if container is options else id(container))
    assert state.change() is None
    options.update({"gain": 2.0})
    assert state.change() == "the length of a dict"


def test_versions_of_dicts_are_not_relied_on_where_python_does_not_keep_them(monkeypatch):
    """Python 3.13.0 sets attributes and tells nobody (python/cpython#125608)."""
    monkeypatch.setattr(captured_state, "sys", SimpleNamespace(version_info=(3, 13, 0, "final", 0)))
    monkeypatch.setattr(captured_state, "dict_version", lambda container: 0)
    program = Scaled()
    state = CapturedState([program])
    assert state.change() is None
    program.offset = 3.0
    assert state.change() == "offset"


@pytest.mark.parametrize(
    "line",
    [
        "from .settings import gain",
        "from . import settings; gain = settings.gain",
        "import own.settings as s; gain = s.gain",
    ],
)
def test_a_module_that_a_function_imports_is_watched(line, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").touch()
    (tmp_path / "own/settings.py").write_text("gain = object()\n", encoding="utf-8")
    (tmp_path / "own/programs.py").write_text(f"def program():\n    {line}\n    return gain\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("own.programs").program
    program()
    state = CapturedState([program])
    assert state.change() is None
    monkeypatch.setattr(sys.modules["own.settings"], "gain", object())
    assert state.change() == "gain"
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]
