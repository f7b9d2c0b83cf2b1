"""The site builds without a warning, which a link that leads nowhere would be, and has every public name."""

import gc
import html
import importlib.util
import inspect
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

import furo
import pytest
import sphinx.cmd.build
from forked import called
from sphinx.builders.html import StandaloneHTMLBuilder

import pyrovae as pv

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds a copy of the site, because the pages that are made from the code are written beside the others."""
    folder = tmp_path_factory.mktemp("site")
    made = shutil.ignore_patterns("_build", "api", ".ipynb_checkpoints")
    for name in ("docs", "notebooks", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=made)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):  # of which pages are made
        shutil.copy(ROOT / name, folder)
    command = ["sphinx-build", "-W", "--keep-going", "-q", folder / "docs", folder / "html"]
    status, _, said = called(_sphinx, command, folder)
    assert status == 0, said
    assert said == ""
    return folder


def _sphinx() -> None:
    """Builds as `python -m sphinx` does, in a process that has the package imported and soon ends."""
    gc.disable()
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):  # as Python does
            warnings.simplefilter("ignore", kind)
        _leave_out_what_no_test_reads()
        sys.exit(sphinx.cmd.build.main(sys.argv[1:]))


def _leave_out_what_no_test_reads() -> None:
    """Builds no index for the search, and the menu for the first page only: every page has the same."""
    StandaloneHTMLBuilder.search = False
    menu = furo._compute_navigation_tree

    def of_the_first(context: dict) -> str:
        return menu(context if context["pagename"] == "index" else {})

    furo._compute_navigation_tree = of_the_first


def _described(site: Path) -> set[str]:
    pages = (site / "html/api").glob("*.html")
    return {part.split('"')[0] for page in pages for part in page.read_text(encoding="utf-8").split('id="')[1:]}


def _public() -> dict[str, object]:
    """Returns what is public, by its dotted name: the names of `pyrovae`, and those of the modules among them."""
    named = {name: getattr(pv, name) for name in pv.__all__}
    modules = {name: value for name, value in named.items() if isinstance(value, ModuleType)}
    inner = {f"{name}.{one}": getattr(module, one) for name, module in modules.items() for one in _names_in(module)}
    return {name: value for name, value in named.items() if name not in modules} | inner


def _names_in(module: ModuleType) -> list[str]:
    made_here = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", None) or [name for name in made_here if not name.startswith("_")]


def test_every_public_name_is_described(site):
    described = _described(site)
    assert [name for name in _public() if f"pyrovae.{name}" not in described and name != "workers.Value"] == []


def test_what_users_are_handed_is_described(site):
    """The classes that public functions and methods return have a page, whether their names are public or not."""
    described = {name.rpartition(".")[2] for name in _described(site)}
    handed = set()
    for value in _public().values():
        for one in vars(value).values() if inspect.isclass(value) else [value]:
            function = inspect.unwrap(getattr(one, "fget", None) or getattr(one, "__func__", one))
            words = re.findall(r"\w+", str(getattr(function, "__annotations__", {}).get("return")))
            kinds = [getattr(function, "__globals__", {}).get(word) for word in words]
            handed |= {kind for kind in kinds if getattr(kind, "__module__", "").startswith("pyrovae.")}
    assert [kind.__name__ for kind in handed if inspect.isclass(kind) and kind.__name__ not in described] == []
    assert {"Pair", "InferenceGaps", "Calibration", "BidirectionalEstimate"} <= described


def test_no_docstring_is_that_of_another_package():
    """`forward` without a docstring of ours would be described in the words of torch's Module."""
    of_others = []
    for name, value in _public().items():
        for member, one in vars(value).items() if inspect.isclass(value) else ():
            if member.startswith("_") or not (inspect.isfunction(one) or isinstance(one, property | classmethod)):
                continue
            owners = (base for base in value.__mro__ if getattr(vars(base).get(member), "__doc__", None))
            if not getattr(next(owners, None), "__module__", "").startswith("pyrovae"):
                of_others.append(f"{name}.{member}")
    assert of_others == []


def test_a_page_says_what_a_class_is_called_with_and_what_a_property_is(site):
    pages = [page.read_text(encoding="utf-8") for page in (site / "html/api").glob("*.html")]
    text = html.unescape(re.sub(r"<[^>]+>", "", " ".join(pages)))
    assert re.findall(r"class pyrovae\.[\w.]+\(\*args, \*\*kwargs\)", text) == []
    assert "class pyrovae.Gaussian(scale, learn_scale=False)" in text
    assert "Type:" not in text  # napoleon's, for the words before a colon
    assert "The shape of terms: (num_particles, batch)." in text
    assert not re.search(r":math:|:doc:|docs/\w+\.md", text)


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


def test_no_page_needs_the_network(site):
    """Formulas, too: their TeX is MathML by then."""
    pytest.importorskip("latex2mathml")
    for page in (site / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"https?:[^>]*>", text) == [], page.name
    assert "<math" in (site / "html/notebooks/01_first_vae.html").read_text(encoding="utf-8")


def test_no_page_shows_mark_up(site):
    """What neither Markdown nor reStructuredText understood is left in the text, without a warning."""
    code = re.compile(r"<(pre|code|script|style)\b.*?</\1>|<(?:span|div) class=\"math.*?</(?:span|div)>", re.DOTALL)
    for page in (site / "html").rglob("*.html"):
        article = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        text = html.unescape(re.sub(r"<[^>]+>", "", code.sub("", article)))
        assert re.findall(r".{0,40}(?:`|\]\(|:\w+:`).{0,40}", text) == [], page.name


def test_mark_up_leaves_code_alone():
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs/conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    lines = ["Takes L_-k and |x|.", "", "    q(z|x)", "", "Example:", "    >>> f(**x_) | 1"]
    conf.mark_up(None, None, None, None, None, lines)
    assert lines == ["Takes L\\_-k and \\|x\\|.", "", "::", "", "    q(z|x)", "", "Example:", "    >>> f(**x_) | 1"]
