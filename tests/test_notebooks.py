"""Every notebook is executed, with its figures, and runs again in its quick mode."""

import ast
import io
import os
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import FEW_FACTORS
from IPython.core.formatters import DisplayFormatter
from nbclient import NotebookClient

import pyrovae as pv
from pyrovae.evaluation import proposal_misfit
from pyrovae.lab import comparing, step_timing

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NEED_MNIST = {"02_conditional", "04_likelihoods_on_images", "13_which_estimator"}
(IN_A_KERNEL,) = (path for path in NOTEBOOKS if path.stem == "06_tighter_is_not_always_better")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_kept_as_it_was_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert "/work" not in path.read_text()
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_has_a_title_a_line_and_a_figure_for_the_gallery(path):
    notebook = nbformat.read(path, as_version=4)
    title, line, *rest = notebook.cells[0].source.split("\n\n")
    assert title.startswith("# ")
    assert not re.search(r"[$\d]", title)
    assert len(line) <= 120
    assert re.fullmatch(r"[^$`\n]+[.?]", line)
    assert "PYROVAE_QUICK=1" in " ".join(rest)
    tagged = [cell for cell in notebook.cells if "gallery" in cell.metadata.get("tags", ())]
    assert ["image/png" in str([output.get("data", {}).keys() for output in cell.outputs]) for cell in tagged] == [True]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_contents_of_a_notebook_are_its_sections(path):
    """The numbered list of the first cell, and the headings."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    listed = re.findall(r"^(\d\. .+?)$", cells[0], re.MULTILINE)
    headings = re.findall(r"^## (\d\. .+?)$", "\n".join(cells[1:]), re.MULTILINE)
    assert [number.partition(" ")[0] for number in listed] == [number.partition(" ")[0] for number in headings]
    assert len(headings) > 3


@pytest.fixture
def quick(monkeypatch, request):
    """Sets what a notebook reads from its environment, with the images of the one that is asked for if it has any."""
    monkeypatch.setenv("PYROVAE_QUICK", "1")
    monkeypatch.setattr(step_timing, "TIMED_ROUNDS", 4)
    # In the quick mode no number counts: neither a gap to log p(x) nor by which factor a proposal should be wider.
    monkeypatch.setattr(comparing, "LOG_PX_SAMPLES", 100)
    for name, few in FEW_FACTORS.items():
        monkeypatch.setattr(proposal_misfit, name, few)
    if getattr(request.node, "callspec", None) and request.node.callspec.params["path"].stem in NEED_MNIST:
        monkeypatch.setenv("PYROVAE_DATA", str(Path(request.getfixturevalue("mnist_root")).resolve()))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Returns a function that runs a cell in this process, which has everything imported, as a kernel would do."""
    shown, scope, display = [], {"__name__": "__main__"}, DisplayFormatter()

    def show():
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.set_size_inches(figure.get_size_inches() / 3)  # most of the time is that of the ticks: fewer fit
            figure.savefig(io.BytesIO(), format="png", dpi=20)
            shown.append(number)
        plt.close("all")

    def run(number, source):
        file = tmp_path / f"cell_{number}.py"  # where inspect and a traceback find the code
        file.write_text(source)
        *statements, last = ast.parse(source).body
        is_value = isinstance(last, ast.Expr)
        exec(compile(ast.Module(statements if is_value else [*statements, last], []), file, "exec"), scope)
        if is_value:
            value = eval(compile(ast.Expression(last.value), file, "eval"), scope)
            assert value is None or display.format(value)[0]
        show()
        return len(shown)

    monkeypatch.setattr(plt, "show", show)
    dtype = torch.get_default_dtype()
    with mpl.rc_context():
        yield run
    torch.set_default_dtype(dtype)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "error::DeprecationWarning:__main__")  # as Python has it
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != IN_A_KERNEL], ids=lambda path: path.stem)
def test_the_notebook_runs_in_its_quick_mode(path, quick, here, monkeypatch, capsys):
    """Without a kernel of its own, whose start takes longer than most notebooks; a warning is an error."""
    monkeypatch.chdir(path.parent)
    said, refusals = "", recorded_refusals(monkeypatch)
    for number, cell in enumerate(code_cells(nbformat.read(path, as_version=4))):
        refusals.clear()
        num_figures = here(number, cell.source)
        printed = capsys.readouterr()
        said += printed.err
        kept = without_numbers("".join(output.get("text", "") for output in cell.outputs))
        assert [one for one in refusals if one in printed.out and without_numbers(one) not in kept] == []
    assert num_figures > 0
    assert not said


def recorded_refusals(monkeypatch):
    """Returns a list of all that is refused from now on: what a notebook prints of it has to be in its outputs."""
    refusals, original = [], pv.InputError.__init__

    def recording(error, *args):
        refusals.append(str(args[0]))
        original(error, *args)

    monkeypatch.setattr(pv.InputError, "__init__", recording)
    return refusals


def without_numbers(text):
    return re.sub(r"\d[\d.]*", "#", text)


def test_a_notebook_runs_in_a_kernel_of_its_own(quick, monkeypatch):
    """As a user runs it: its progress bars, its figures and its warnings are those of Jupyter."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = IN_A_KERNEL.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(IN_A_KERNEL, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    stderr = [o.text for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]
    assert not stderr
