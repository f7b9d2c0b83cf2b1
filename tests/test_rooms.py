"""The rooms of the house: who may import whom, that no circle closes, and that a door is the only way in."""

import ast
import inspect
import statistics
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyrovae"

MAY_IMPORT = {
    "common": set(),
    "plots": {"common"},
    "reports": {"common"},
    "data": {"common"},
    "models": {"common"},
    "programs": {"common"},
    "compilation": {"common"},
    "objectives": {"common", "programs"},
    "training": {"common", "data", "programs", "compilation", "objectives", "plots"},
    "evaluation": {"common", "data", "models", "programs", "compilation", "objectives", "plots"},
    "lab": {"common", "data", "programs", "objectives", "training", "evaluation", "plots", "reports"},
    "runs": {"common", "data", "models", "objectives", "training", "evaluation", "plots", "reports"},
    "cli": {"common", "data", "objectives", "evaluation", "lab", "runs", "plots", "reports"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path):
    """`(module, name)` of all that a file takes from the package, the name None for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pyrovae":
            yield from ((tuple(node.module.split(".")), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
            yield from ((name, None) for name in names if name[0] == "pyrovae")


INSIDE = [path for path in FILES if len(module_of(path)) > 1 and path.name != "__main__.py"]


def test_every_file_is_in_a_room():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {module_of(path)[1] for path in INSIDE} == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_that_it_may(room):
    found = defaultdict(list)
    for path in (PACKAGE / room).rglob("*.py"):
        for module, _ in imports_of(path):
            assert len(module) > 1, f"{path.name} imports the package itself"
            found[module[1]].append(path.name)
    assert found.keys() - {room} <= MAY_IMPORT[room], dict(found)


def test_rooms_have_an_order():
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert len(order) == len(MAY_IMPORT)


def test_no_circle_of_files_closes_within_a_room():
    """Imports under `if TYPE_CHECKING` count, too."""
    modules = {module_of(path): path for path in INSIDE}
    graph = {}
    for module, path in modules.items():
        targets = set()
        for source, name in imports_of(path):
            targets |= {target for target in ((*source, name), source) if target in modules} - {module}
        graph[module] = {target for target in targets if len(target) > 2}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(".".join(module) for module in error.args[1]))


def test_a_room_is_entered_by_its_door():
    """From another room comes what its `__init__` hands on, by `from pyrovae.room import name`, and nothing private."""
    doors = {}
    for room in MAY_IMPORT:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
        assert ast.get_docstring(tree), f"{room} does not say what it is for"
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign | ast.If) for node in tree.body), room
        doors[room] = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
    for path in INSIDE:
        for module, name in imports_of(path):
            if module[1] != module_of(path)[1] and name is not None:
                assert len(module) == 2, f"{path.name} goes past the door of {module[1]} for {name}"
                assert name in doors[module[1]], f"{module[1]} does not hand on {name}, which {path.name} takes"
                assert not name.startswith("_"), f"{path.name} takes the private {name}"


@pytest.mark.parametrize("package", ["pyrovae", "pyrovae.common", "pyrovae.runs"])
def test_names_that_wait_for_their_first_use_are_those_that_type_checkers_see(package):
    """Two lists, one for `lazy_names` and one below `if TYPE_CHECKING`, say the same of where each name comes from."""
    (block,) = (node for node in ast.parse(inspect.getsource(import_module(package))).body if isinstance(node, ast.If))
    seen, table = set(), ast.literal_eval(block.orelse[0].value.args[1])
    for node in block.body:
        inside = node.module.removeprefix(package).strip(".")
        for alias in node.names:
            name = alias.name if alias.asname in (None, alias.name) else f"{alias.name} as {alias.asname}"
            seen.add((inside, name) if inside else (name, None))
    waiting = {(module, name) for module, names in table.items() for name in names or (None,)}
    assert waiting == {(module, name) for module, name in seen if name or not table[module]}
    assert set(import_module(package).__all__) == {(name or module).split(" as ")[-1] for module, name in waiting}


@pytest.mark.parametrize("folder", ["pyrovae", "scripts", "tests"])
def test_files_are_of_a_size_that_is_read_to_the_end(folder):
    sizes = {path: len(path.read_text().splitlines()) for path in (PACKAGE.parent / folder).rglob("*.py")}
    assert [f"{path.name}: {size}" for path, size in sizes.items() if size > 350] == []
    assert statistics.median(sizes.values()) <= 150
