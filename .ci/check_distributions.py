"""Checks what is in the sdist and the wheel of a folder: `python .ci/check_distributions.py dist`."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

IN_SDIST = {"pyrovae", "scripts", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md"}
IN_SDIST |= {".gitignore", "constraints.txt", "hatch_build.py", "pyproject.toml"}
KINDS = {".py", ".typed", ".css", ".js"}  # the last two are of the page of a report
LARGEST = 1_000_000  # bytes of either file


def check(condition: bool, message: str) -> None:
    """Ends with the message if the condition does not hold."""
    if not condition:
        sys.exit(f"error: {message}")


def main(folder: Path) -> None:
    """Checks names, sizes, `py.typed`, the command and the links of the long description."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
        (commands,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/entry_points.txt"))
    with tarfile.open(sdist) as archive:
        of_sdist = {name.split("/")[1] for name in archive.getnames()}
    strangers = [name for name in names if not re.match(r"pyrovae(-[^/]+\.dist-info)?/", name)]
    check(not strangers, f"the wheel must hold the package alone, got {strangers[:3]}")
    kinds = {Path(name).suffix for name in names if name.startswith("pyrovae/")}
    check(kinds == KINDS, f"the package must hold files of {sorted(KINDS)}, got {sorted(kinds)}")
    check("pyrovae = pyrovae.cli:run_command" in commands, "the wheel must have the command pyrovae")
    check(of_sdist == IN_SDIST, f"the sdist must hold what is said here, differs in {sorted(of_sdist ^ IN_SDIST)}")
    for path in (wheel, sdist):
        check(
            path.stat().st_size < LARGEST, f"{path.name} must be below {LARGEST:,} bytes, got {path.stat().st_size:,}"
        )
    links = re.findall(r"\]\((?!https?://)[^)]*\)", metadata)
    check(not links, f"the long description must have no link of the repository, got {links[:3]}")
    print(f"{len(names)} files in the wheel, {wheel.stat().st_size:,} bytes; sdist {sdist.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
