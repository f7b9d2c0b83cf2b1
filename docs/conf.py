"""Builds the site with Sphinx (`make docs`), and writes the pages of the API and of the notebooks."""

import base64
import inspect
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pyrovae as pv

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"

project, author, version = "pyrovae", "pyrovae contributors", pv.__version__
copyright = f"2026, {author}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme, html_title = "furo", f"pyrovae {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are executed by `make notebooks`, and run again by the tests
suppress_warnings = ["mystnb.unknown_mime_type"]
highlight_language = "none"  # the indented equations are no code
default_role = "py:obj"  # `single backticks` in the docstrings are code, and links where they name something
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what each argument is
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
html_show_sourcelink = False

ROOMS = {
    "data": "Data",
    "models": "Models",
    "programs": "Programs",
    "objectives": "Objectives",
    "training": "Training",
    "evaluation": "Evaluation",
    "lab": "Comparisons and races",
    "plots": "Figures",
    "runs": "Runs",
    "common": "Errors and processes",
}
WORDS_OF_ROOMS = {
    "data": "Toy densities, image sets, and data of your own.",
    "models": "The VAE and the parts that it is made of.",
    "programs": "A model and a guide as a pair: log-weights, and other proposals than the guide.",
    "objectives": "Estimators of log p(x) and of its gradient, each a Pyro ELBO.",
    "training": "Stochastic variational inference, with checkpoints and schedules, at compiled speed.",
    "evaluation": "log p(x) per datum with its errors, and diagnoses of a trained pair.",
    "lab": "Estimators side by side.",
    "plots": "Arrays and axes in, axes out.",
    "runs": "A configured training and its folder.",
    "common": "What every other room stands on.",
}


# What reStructuredText takes for mark-up and the docstrings do not mean so: L_-k, |x|, **kwargs.
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Example|Attributes|Source):$")
MARK_UP = re.compile(r"(?<=\w)_(?=[^\w`]|$)|\|(?=\S)|\*\*(?=\w)")


def escaped(found: re.Match) -> str:
    """Returns mark-up with a backslash before each character."""
    return "".join(f"\\{character}" for character in found[0])


def public_names() -> dict[str, list[str]]:
    """Returns the public names, dotted, of each room: those of `pyrovae` and of the modules among them."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in pv.__all__:
        value = getattr(pv, name)
        if isinstance(value, ModuleType):
            inner = getattr(value, "__all__", None) or [n for n, v in vars(value).items() if _is_own(v, value)]
            found[_room(value)] += [f"{name}.{one}" for one in inner if callable(getattr(value, one))]
        else:
            found[_room(value)].append(name)
    return found


def _room(value: object) -> str:
    return (value.__name__ if isinstance(value, ModuleType) else value.__module__).split(".")[1]


def _is_own(value: object, module: ModuleType) -> bool:
    name = getattr(value, "__name__", "_")
    return callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")


def write_api(folder: Path) -> None:
    """Writes a page for each room, with all of its public names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for room, names in public_names().items():
        lines = [f"# {ROOMS[room]}", "", WORDS_OF_ROOMS[room], ""]
        for name in names:
            value = pv
            for part in name.split("."):
                value = getattr(value, part)
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            members = ["   :members:"] if inspect.isclass(value) else []
            lines += ["```{eval-rst}", f".. {kind}:: pyrovae.{name}", *members, "```", ""]
        (folder / f"{room}.md").write_text("\n".join(lines), encoding="utf-8")
    index = ["# API reference", "", "By room, in the order in which data flow.", "", "```{toctree}", ":maxdepth: 1", ""]
    (folder / "index.md").write_text("\n".join([*index, *ROOMS, "```", ""]), encoding="utf-8")


def write_gallery(folder: Path) -> None:
    """Copies the notebooks, and writes a page with the title, the first sentence and the first figure of each."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cards, names = [], []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (folder / path.name).write_text(text, encoding="utf-8")
        title, sentence, figure = _summary(json.loads(text))
        image = folder / f"{path.stem}.png"
        image.write_bytes(figure)
        cards += [f":::{{grid-item-card}} {title}", f":link: {path.stem}", ":link-type: doc"]
        cards += [f":img-top: {image.name}", "", sentence, ":::", ""]
        names.append(path.stem)
    head = ["# Notebooks", "", "Each is a lesson, executed, with its figures. `make lab` opens them in JupyterLab.", ""]
    grid = ["::::{grid} 1 2 2 3", ":gutter: 3", "", *cards, "::::", ""]
    tree = ["```{toctree}", ":hidden:", "", *names, "```", ""]
    (folder / "index.md").write_text("\n".join([*head, *grid, *tree]), encoding="utf-8")


def _summary(notebook: dict) -> tuple[str, str, bytes]:
    """Returns the title, the first sentence and the first figure of a notebook."""
    first = "".join(notebook["cells"][0]["source"])
    title, _, rest = first.partition("\n")
    sentence = " ".join(rest.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.:?])\s", sentence)[0].rstrip(":")
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    figure = next(output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return title.lstrip("# "), sentence, base64.b64decode(figure)


def mark_up(app, what, name, obj, options, lines: list[str]) -> None:
    """Turns a docstring's plain text into what Sphinx reads: indented equations are shown as they are."""
    marked, is_literal, in_sections = [], False, False
    for line in lines:
        in_sections = in_sections or SECTION.match(line) is not None
        starts = not marked or not marked[-1]
        if starts and line and not in_sections:
            was, is_literal = is_literal, line.startswith("    ") and not line.lstrip().startswith(("- ", ">>>"))
            if is_literal and not was:
                marked += ["::", ""]
        literal = is_literal and not in_sections
        is_code = literal or line.lstrip().startswith((">>>", "..."))
        marked.append(line if is_code else MARK_UP.sub(escaped, line))
    lines[:] = marked


def link(app, name: str, source: list[str]) -> None:
    """Points links to the notebooks at their copies, so that the pages' links work in the repository as well."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def setup(app) -> None:
    write_api(HERE / "api")
    write_gallery(HERE / "notebooks")
    app.connect("source-read", link)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon
