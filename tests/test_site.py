"""The site builds without a warning, which a link that leads nowhere would be, and has every public name."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pyrovae as pv

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds a copy of the site, because the pages that are made from the code are written beside the others."""
    folder = tmp_path_factory.mktemp("site")
    made = shutil.ignore_patterns("_build", "api", ".ipynb_checkpoints")
    for name in ("docs", "notebooks", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=made)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", folder / "docs", folder / "html"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def _described(site: Path) -> set[str]:
    pages = (site / "html/api").glob("*.html")
    return {part.split('"')[0] for page in pages for part in page.read_text(encoding="utf-8").split('id="')[1:]}


def test_every_public_name_is_described_once(site):
    described = _described(site)
    names = {name for name in pv.__all__ if not isinstance(getattr(pv, name), ModuleType)}
    assert {f"pyrovae.{name}" for name in names} <= described
    modules = {name for name in pv.__all__ if isinstance(getattr(pv, name), ModuleType)}
    assert modules == {name.split(".")[1] for name in described if name.count(".") > 1} & modules
    for objective in pv.objectives.OBJECTIVES.values():
        assert f"pyrovae.objectives.{objective.__name__}" in described


def test_every_guide_and_every_notebook_is_in_the_menu(site):
    index = (site / "html/index.html").read_text(encoding="utf-8")
    pages = [f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md") if path.stem != "index"]
    pages += [f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [page for page in pages if f'href="{page}"' not in index] == []


def test_equations_are_shown_as_they_are_and_names_are_links(site):
    page = (site / "html/api/evaluation.html").read_text(encoding="utf-8")
    assert "w_s = p(x, z_s) / q(z_s|x)" in page
    assert 'href="#pyrovae.MarginalLikelihood"' in page
    assert "\\|" not in page


def test_mark_up_leaves_code_alone():
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs/conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    lines = ["Takes L_-k and |x|.", "", "    q(z|x)", "", "Example:", "    >>> f(**x_) | 1"]
    conf.mark_up(None, None, None, None, None, lines)
    assert lines == ["Takes L\\_-k and \\|x\\|.", "", "::", "", "    q(z|x)", "", "Example:", "    >>> f(**x_) | 1"]
