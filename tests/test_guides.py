"""The code on the pages of the guide runs, and what it says is refused is refused in these words."""

import re
from pathlib import Path

import pyro
import pytest
import torch
from helpers import suite_seed

import pyrovae as pv

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize("page", ["your_own_program", "your_own_data"])
def test_the_code_of_the_page_runs_and_its_refusals_are_those_shown(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```(python|text)\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(suite_seed())
    scope = {"__name__": page}
    for (kind, text), (following, said) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
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


def test_the_page_on_data_shows_the_columns_as_they_print(tmp_path, monkeypatch):
    page = (DOCS / "your_own_data.md").read_text()
    first, table = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    shown = re.search(r"prints what was found.*?\n\n(    .*?)\n\n", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(first + table, scope)
    assert [line.split() for line in repr(scope["people"].columns).splitlines()] == [
        line.split() for line in shown.splitlines()
    ]
