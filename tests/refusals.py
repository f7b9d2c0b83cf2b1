"""Tables of bad input for the tests in bad_input/: each case is refused in one line, and nothing is written.

The line names the field, the rule and the value found. It is compared whole, so that a changed word is seen.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torchvision
from helpers import parameters_of, refusal, tree

import pyrovae as pv

HINT = r": did you mean \S+\?"  # after a value that is close to a known one, as `test_checks.py` says


class Case(NamedTuple):
    name: str
    said: str
    """The whole line, as a regular expression."""
    call: Callable[[], object]
    """Makes the attempt, in an empty folder."""
    given: Callable[[], object]
    """Makes what is in the folder before."""


class Table(list[Case]):
    def add(self, name: str, said: str, call: Callable, *args, given: Callable = lambda: None, **kwargs) -> None:
        self.append(Case(name, said, partial(call, *args, **kwargs), given))

    def parameters(self) -> list:
        return [pytest.param(case, id=case.name) for case in self]


def check_refusal(case: Case, folder, capsys) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torchvision.datasets.MNIST, "mirrors", [])  # a download must not be waited for
        case.given()
        before = tree(folder)
        message = refusal(case.call)
        assert re.fullmatch(f"(?:{case.said})({HINT})?", message), message
        assert tree(folder) == before
    assert "code was run" not in capsys.readouterr().out


def fit(vae, data, **settings) -> None:
    """Calls `pv.fit`, which has to refuse before it has trained anything."""
    before = parameters_of(vae)
    try:
        pv.fit(vae, data, **{"epochs": 1, "progress": False, **settings})
    finally:
        assert torch.equal(parameters_of(vae), before)


A_CHOICE, A_COUNT, A_POSITIVE = "one of .+", "a whole number >= 1", "a finite number > 0"
IMAGES_ONLY = "is for image sets, and ring holds points"
NO_CONFIG = r"(\S+/)?config.json is not a readable config \(.+\)"
