"""The package and the scripts write and read files through `pyrovae/common`, which writes them whole, in UTF-8."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOORS = ("pyrovae/common/files.py", "pyrovae/common/file_sets.py", "pyrovae/common/locks.py")
DOORS += ("pyrovae/common/tensor_files.py",)
# What writes or reads a file: whole names, and names of methods and functions of whatever module.
CALLS = {
    f"{module}.{name}" for module in ("torch", "np", "numpy", "json", "pickle") for name in ("save", "load", "dump")
}
CALLS |= {"shutil.copy", "shutil.copytree", "os.link", "os.symlink"}
METHODS = {"open", "fdopen", "write_text", "write_bytes", "read_text", "read_bytes", "savefig", "savez", "savetxt"}
METHODS |= {"savez_compressed", "loadtxt", "genfromtxt", "tofile", "fromfile", "memmap", "touch", "symlink_to"}
METHODS |= {"to_csv", "to_json", "to_parquet", "to_pickle", "read_table", "copyfile", "copy2"}
METHODS |= {"NamedTemporaryFile", "ZipFile", "TextIOWrapper"}
OURS = {"read_text", "write_text"}
OTHERS = {
    "pyrovae/cli/streams.py": {"os.open": "the null device", "io.TextIOWrapper": "in the encoding of the terminal"},
    "pyrovae/data/arrays.py": {"torch.load": "a user's file", "np.load": "a user's file"},
    "pyrovae/data/image_files.py": {"shutil.copytree": "a data set that was downloaded"},
    "pyrovae/data/image_folders.py": {"Image.open": "a user's file"},
    "pyrovae/data/table_files.py": {"path.read_bytes": "a user's file", "parquet.read_table": "a user's file"},
    "pyrovae/models/saving.py": {"torch.save": "writes into the open file of `write_atomically`, and reads it back"},
    "pyrovae/data/torchvision_sets.py": {"shutil.copytree": "a data set that was downloaded"},
    "pyrovae/training/checkpoints.py": {
        "torch.save": "writes into the open file of `write_atomically`, and reads it back",
        "os.link": "keeps the checkpoint before as the previous one",
    },
    "scripts/benchmarks/kill_test.py": {"path.read_bytes": "figures of its own"},
    "scripts/benchmarks/gpu.py": {
        "open": "the output of another process",
        "told.read_bytes": "which is in any encoding",
    },
}


def calls_in(path):
    """`(node, name)` of all calls in a file; the name is that of the source, such as `torch.save`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, ast.unparse(node.func)


def is_of_files(name):
    """Whether a call of this name reads or writes a file by another way than ours."""
    return name in CALLS or (name.split(".")[-1] in METHODS and name not in OURS)


FILES = sorted(str(path.relative_to(ROOT)) for room in ("pyrovae", "scripts") for path in (ROOT / room).rglob("*.py"))


def test_files_are_written_and_read_through_one_door():
    found = {}
    for file in set(FILES) - set(DOORS):
        for node, name in calls_in(ROOT / file):
            if is_of_files(name) and name not in OTHERS.get(file, {}):
                found[f"{file}:{node.lineno}"] = name
    assert found == {}


def test_text_of_other_processes_has_an_encoding():
    for file in FILES:
        for node, name in calls_in(ROOT / file):
            told = {keyword.arg for keyword in node.keywords}
            assert not told & {"text", "universal_newlines"} or "encoding" in told, f"{file}:{node.lineno} {name}"


@pytest.mark.parametrize(
    "name", ["open", "Path(out).open", "(run / METRICS).read_text", "torch.save", "json.dump", "figure.savefig"]
)
def test_what_the_test_must_find(name):
    assert is_of_files(name)
