"""The rooms of the house: who may import whom, that no circle closes, and that a door is the only way in."""

import ast
import statistics
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyrovae"

MAY_IMPORT = {
    "common": set(),
    "plots": {"common"},
    "data": {"common"},
    "models": {"common"},
    "programs": {"common"},
    "compilation": {"common"},
    "objectives": {"common", "programs"},
    "training": {"common", "data", "programs", "compilation", "objectives", "plots"},
    "evaluation": {"common", "data", "models", "programs", "compilation", "objectives", "plots"},
    "lab": {"common", "data", "programs", "objectives", "training", "evaluation", "plots"},
    "runs": {"common", "data", "models", "objectives", "training", "evaluation", "plots"},
    "cli": {"common", "data", "objectives", "evaluation", "lab", "runs", "plots"},
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
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body), room
        doors[room] = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for path in INSIDE:
        for module, name in imports_of(path):
            if module[1] != module_of(path)[1] and name is not None:
                assert len(module) == 2, f"{path.name} goes past the door of {module[1]} for {name}"
                assert name in doors[module[1]], f"{module[1]} does not hand on {name}, which {path.name} takes"
                assert not name.startswith("_"), f"{path.name} takes the private {name}"


@pytest.mark.parametrize("folder", ["pyrovae", "scripts", "tests"])
def test_files_are_of_a_size_that_is_read_to_the_end(folder):
    sizes = {path: len(path.read_text().splitlines()) for path in (PACKAGE.parent / folder).rglob("*.py")}
    assert [f"{path.name}: {size}" for path, size in sizes.items() if size > 350] == []
    assert statistics.median(sizes.values()) <= 150
