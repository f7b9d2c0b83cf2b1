"""Builds the site with Sphinx (`make docs`), and writes the pages of the API and of the notebooks."""

import base64
import importlib.util
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from docutils import nodes

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
# Formulas as MathML, which browsers set themselves; MathJax, Sphinx's own way, would come from the network.
html_math_renderer = "mathml" if importlib.util.find_spec("latex2mathml") else "mathjax"
smartquotes = False  # "diagonal" is an argument, to be copied

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
    "programs": "A model and a guide as a pair: log-weights, other proposals than the guide, differentiable AIS.",
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
# The classes that are described by the path of their file, by name, as a role of Sphinx takes them.
LINKS: dict[str, str] = {}
NAME = re.compile(r"(?<!`)`(\w+)`(?!`)")
# Napoleon takes what stands before a colon in the docstring of one of these for its type.
ATTRIBUTES, COLON = ("attribute", "data", "property"), "\ue000"
PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


def escaped(found: re.Match) -> str:
    """Returns mark-up with a backslash before each character."""
    return "".join(f"\\{character}" for character in found[0])


def public_names() -> dict[str, list[str]]:
    """Returns the public names, dotted, of each room: those of `pyrovae` and of the modules among them."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in pv.__all__:
        value = getattr(pv, name)
        if isinstance(value, ModuleType):
            inner = getattr(value, "__all__", None) or [n for n, v in vars(value).items() if _is_own(n, v, value)]
            found[_room(value)] += [f"{name}.{one}" for one in inner]
        else:
            found[_room(value)].append(name)
    return found


def returned(names: Iterable[str]) -> list[str]:
    """Returns the dotted names of the classes that users are handed by these names, and that are not among them."""
    known, found = [value_of(name) for name in names], []
    for value in known:  # which grows
        members = vars(value).values() if inspect.isclass(value) else [value]
        functions = [getattr(one, "fget", None) or getattr(one, "__func__", one) for one in members]
        for function in map(inspect.unwrap, filter(inspect.isfunction, functions)):
            words = re.findall(r"\w+", str(function.__annotations__.get("return")))
            for kind in filter(inspect.isclass, (function.__globals__.get(word) for word in words)):
                if kind.__module__.startswith("pyrovae.") and not any(kind is one for one in known):
                    known.append(kind)
                    found.append(f"{kind.__module__.partition('.')[2]}.{kind.__qualname__}")
    return found


def value_of(name: str) -> object:
    """Returns what a dotted name of `pyrovae` stands for."""
    value: object = sys.modules["pyrovae"]
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _room(value: object) -> str:
    return (value.__name__ if isinstance(value, ModuleType) else value.__module__).split(".")[1]


def _is_own(name: str, value: object, module: ModuleType) -> bool:
    is_made_here = inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, dict)
    return (
        is_made_here and getattr(value, "__module__", module.__name__) == module.__name__ and not name.startswith("_")
    )


def described(name: str) -> list[str]:
    """Returns the directive that describes a public name: autodoc's, or for a constant its comment and its value."""
    value = value_of(name)
    if inspect.isclass(value):
        return [f".. autoclass:: pyrovae.{name}", "   :members:"]
    if inspect.isroutine(value):
        return [f".. autofunction:: pyrovae.{name}"]
    shown = [f"``{value!r}``"]
    if isinstance(value, Mapping):
        parent, _, _ = name.rpartition(".")
        names = {key: getattr(one, "__name__", "") for key, one in value.items()}
        links = {key: f"`pyrovae.{parent}.{one}`" for key, one in names.items() if hasattr(value_of(parent), one)}
        shown = [f'- ``"{key}"``' + (f": {links[key]}" if key in links else "") for key in value]
    return ["", f".. py:data:: pyrovae.{name}", "", f"   {comment_of(name.rpartition('.')[2])}", "", *_indented(shown)]


def comment_of(constant: str) -> str:
    """Returns what the comment above a constant says of it."""
    assigned = re.compile(rf"((?:^# .*\n)+){constant}\b[^\n]*? = ", re.MULTILINE)
    modules = [module for name, module in sys.modules.items() if name.startswith("pyrovae.")]
    found = [assigned.search(inspect.getsource(module)) for module in modules if hasattr(module, constant)]
    (comment,) = {" ".join(line.removeprefix("# ") for line in one[1].splitlines()) for one in found if one}
    return comment


def _indented(lines: list[str]) -> list[str]:
    return [f"   {line}" for line in lines]


def write_api(folder: Path) -> None:
    """Writes a page for each room, with all of its public names and what they return."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    public = public_names()
    handed = returned([name for names in public.values() for name in names])
    LINKS.update({name.rpartition(".")[2]: f"~pyrovae.{name}" for name in handed})
    for room, names in public.items():
        lines = [f"# {ROOMS[room]}", "", WORDS_OF_ROOMS[room], ""]
        for name in names + [name for name in handed if name.startswith(f"{room}.")]:
            lines += ["```{eval-rst}", *described(name), "```", ""]
        (folder / f"{room}.md").write_text("\n".join(lines), encoding="utf-8")
    index = ["# API reference", "", "By room, in the order in which data flow.", "", "```{toctree}", ":maxdepth: 1", ""]
    (folder / "index.md").write_text("\n".join([*index, *ROOMS, "```", ""]), encoding="utf-8")


def write_gallery(folder: Path) -> None:
    """Copies the notebooks, and writes a page with the title, the first line and a figure of each."""
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
    head = ["# Notebooks", "", "Each is a lesson, executed, with its figures. `make lab` opens them in JupyterLab."]
    head += [
        "With `PYROVAE_QUICK=1` in the environment a notebook takes seconds: trainings are cut to a few epochs, and"
    ]
    head += [
        "the numbers mean nothing; the tests run all of them so. The browser fetches MathJax to set the formulas, and"
    ]
    head += ["shows their TeX where there is no network.", ""]
    grid = ["::::{grid} 1 2 2 3", ":gutter: 3", "", *cards, "::::", ""]
    tree = ["```{toctree}", ":hidden:", "", *names, "```", ""]
    (folder / "index.md").write_text("\n".join([*head, *grid, *tree]), encoding="utf-8")


def _summary(notebook: dict) -> tuple[str, str, bytes]:
    """Returns the title, the line below it, and the figure of the cell with the tag "gallery"."""
    title, line, *_ = "".join(notebook["cells"][0]["source"]).split("\n\n")
    (cell,) = (cell for cell in notebook["cells"] if "gallery" in cell["metadata"].get("tags", ()))
    figure = next(output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {}))
    return title.removeprefix("# "), " ".join(line.split()), base64.b64decode(figure)


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
        text = NAME.sub(lambda found: f"`{LINKS.get(found[1], found[1])}`", MARK_UP.sub(escaped, line))
        marked.append(line if is_code else PAGE.sub(r":doc:`/\1`", text))
    lines[:] = [line.replace(":", COLON) if what in ATTRIBUTES else line for line in marked]


def unmark(app, what, name, obj, options, lines: list[str]) -> None:
    """Puts the colons back, after napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def signature(app, what, name, obj, options, arguments, returned) -> tuple[str, None] | None:
    """Returns what a class is called with, where autodoc shows the `*args, **kwargs` of its metaclass."""
    if what != "class" or arguments != "(*args, **kwargs)":
        return None
    of = inspect.signature(obj)
    if all(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in of.parameters.values()):
        return "()", None  # a class without an `__init__` has that of torch's Module, which takes nothing either
    plain = [one.replace(annotation=one.empty) for one in of.parameters.values()]
    return str(of.replace(parameters=plain, return_annotation=of.empty)), None


def link(app, name: str, source: list[str]) -> None:
    """Points links to the notebooks at their copies, so that the pages' links work in the repository as well."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def show_formula(page, node) -> None:
    """Writes a formula of a line's text or of its own line as MathML."""
    from latex2mathml.converter import convert

    is_inline = isinstance(node, nodes.math)
    formula = convert(node.astext(), display="inline" if is_inline else "block")
    page.body.append(formula if is_inline else f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
    write_api(HERE / "api")
    write_gallery(HERE / "notebooks")
    app.connect("source-read", link)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", mark_up, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", unmark, priority=600)
