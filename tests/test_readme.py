"""The README shows what the package does."""

import ast
import importlib.util
import inspect
import re
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyro
import torch
from reading_pages import markdown_rows

import pyrovae as pv
from pyrovae.objectives.registry import NEED_NUM_PARTICLES
from pyrovae.runs import results_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ESTIMATORS = (ROOT / "docs/estimators.md").read_text()


def test_the_examples_run_as_they_stand_but_for_their_sizes():
    train, program, table, answers = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for shown, smaller in (
        ("epochs=200", "epochs=1"),
        ("num_samples=5000", "num_samples=30"),
        ("(1, 8, 64)", "(1, 2)"),
    ):
        assert train.count(shown) == 1
        train = train.replace(shown, smaller)
    scope = {}
    exec(train.replace("objectives=", "compile=False, repeats=4, objectives="), scope)
    assert scope["result"].log_px.shape == scope["result"].pareto_k.shape == (2_000,)
    assert len(scope["found"].rows) == 6
    vae, x = scope["vae"], scope["data"].test_x[:20]
    pyro.clear_param_store()
    exec(
        program.replace("epochs=20", "epochs=1"), scope | {"pyro": pyro, "model": vae.model, "guide": vae.guide, "x": x}
    )
    assert "pv.load(" in table
    masked = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.3), missing="mask")
    holes = x.index_fill(1, torch.tensor(0), torch.nan)
    known = {"model": vae.model, "guide": vae.guide, "x": x, "vae": masked, "x_with_nan": holes}
    exec(answers, scope | known)


def test_the_demos_table_has_the_rows_of_the_demo_and_no_digit_that_does_not_travel():
    """Seen under three sets of instructions: two decimals do, shares to a few per cent, a far-off ELBO to ten nats."""
    page = (ROOT / "docs/quickstart.md").read_text()
    lines = page[page.index("| 2,000 test data, nats per datum | ELBO-trained") :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    numbers = dict.fromkeys(("elbo", "iwae_50", "log_px", "log_px_quadrature", "data_log_density"), -2.0)
    errors = dict.fromkeys([f"{name}_standard_error" for name in numbers] + ["log_px_quadrature_error"], 0.1)
    others = {"log_px_data_error": 0.01, "share_pareto_k_above_0.7": 0.1, "active_units": 2, "measure": "ELBO"}
    sizes = {"num_data": 2_000, "num_samples": 2_000, "log_px_enumeration": None}
    printed = results_table(dict.fromkeys(head[1:], numbers | errors | others | sizes), "github").splitlines()
    assert [row[0] for row in rows] == [line.strip("|").split("|")[0].strip() for line in printed[2:]]
    for label, *cells in rows:
        for cell in cells:
            decimals = [len(part) for part in re.findall(r"\.(\d+)", cell)]
            assert max(decimals, default=0) <= (0 if "%" in cell or " to " in cell else 2), f"{label}: {cell}"


def test_every_objective_is_in_the_table_by_name_and_class():
    for name, kind in pv.objectives.OBJECTIVES.items():
        assert f"`{name}`" in ESTIMATORS
        assert f"`{kind.__name__}`" in ESTIMATORS


def test_the_table_of_objectives_has_the_number_of_draws_that_each_takes_by_itself():
    shown = {}
    for cells in markdown_rows(ESTIMATORS.partition("## All of them")[2]):
        shown |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[3]) if len(cells) == 5 else {}
    for name, kind in pv.objectives.OBJECTIVES.items():
        settings = inspect.signature(kind).parameters
        draws = str(settings["num_particles"].default) if "num_particles" in settings else "none"
        assert shown[name] == ("yours" if name in NEED_NUM_PARTICLES else draws), name


def test_every_file_and_link_that_the_documents_name_is_there():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        text = document.read_text()
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        links = re.findall(r"\]\(([^)#]+)[)#]", prose)
        made = ("api/", "notebooks/")  # by docs/conf.py, when the site is built, which refuses dead links
        local = [link for link in links if "://" not in link and not link.startswith(made)]
        named = re.findall(r"`((?:pyrovae|scripts|docs|notebooks|tests)/[\w./]+)`", text)
        for path in [document.parent / link for link in local] + [ROOT / name for name in named]:
            assert path.exists(), f"{document.name} names {path}"
        assert not re.search(r"[A-Z]+_TABLE|GAPS|SWEEP\b|POINTS\b|IMAGES\b", text)
        assert "../shared" not in text, f"{document.name} names a folder of the maintainers"


def test_calls_within_a_sentence_have_all_that_the_function_needs_and_nothing_else():
    """Code in blocks runs, here and in test_guides.py; a call with `...` is a part of one."""
    calls = 0
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for code in re.findall(r"`(pv\.[^`]+\)[^`]*)`", prose):
            for node in ast.walk(ast.parse(" ".join(code.split()), mode="eval")):
                if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).startswith("pv."):
                    settings = {keyword.arg: keyword.value for keyword in node.keywords}
                    if "..." not in map(ast.unparse, [*node.args, *settings.values()]) and None not in settings:
                        inspect.signature(attrgetter(name[3:])(pv)).bind(*node.args, **settings)
                        calls += 1
    assert calls > 10


def test_every_public_name_is_there_and_has_a_docstring():
    for name in pv.__all__:
        assert (getattr(pv, name).__doc__ or "").strip(), name


def test_the_readme_is_short():
    assert len(README.encode()) < 9_000


def test_the_long_description_of_the_package_has_no_link_that_only_works_in_the_repository(monkeypatch):
    """A package index has neither the files nor the images that the README links to."""
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    shown = hatch_build.standalone(README)
    assert re.findall(r"\]\((?!https?://)", shown) == []
    assert "[Pyro](https://pyro.ai)" in shown
    assert "how a program is read (`docs/your_own_program.md`)" in shown
    assert "and scripts/vae.py, a VAE" in shown


def test_every_place_that_says_the_version_says_the_same():
    citation, changelog = (ROOT / "CITATION.cff").read_text(), (ROOT / "CHANGELOG.md").read_text()
    released, date = re.search(r"^## (\d\S*) \((\S+)\)$", changelog, re.MULTILINE).groups()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == released == pv.__version__
    assert re.search(r"^date-released: (.+)$", citation, re.MULTILINE)[1] == date
    assert f"version = {{{released}}}" in README
