"""The code on the page about a program of one's own runs, and what it says is refused is refused in these words."""

import re
from pathlib import Path

import pyro
import pytest
import torch
from helpers import suite_seed

import pyrovae as pv

PAGE = Path(__file__).parent.parent / "docs" / "your_own_program.md"
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_the_code_of_the_page_runs_and_its_refusals_are_those_shown():
    torch.manual_seed(suite_seed())
    scope = {}
    for (kind, text), (following, said) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind == "text":
            continue
        if following != "text":
            exec(text, scope)
            continue
        *works, refused = text.rstrip().splitlines()
        exec("\n".join(works), scope)
        with pytest.raises(pv.InputError) as error:
            exec(refused, scope)
        assert f"InputError: {error.value}" == said.strip()
    assert pyro.get_param_store()
