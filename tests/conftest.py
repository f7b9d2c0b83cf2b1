"""What pytest does with the suite as a whole; what each test needs is in each_test.py.

Under xdist this process runs no test, and need not wait for the three seconds of imports that its workers wait for.
"""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
# What takes longest begins first, so that no worker waits for another's last test.
LONGEST = ("test_site.py", "test_workers.py", "test_notebooks.py", "test_benchmark_scripts.py", "test_paper_scripts.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--base-seed", type=int, default=0, help="moves the seeds of every claim about chance (0 to 4,000,000)"
    )
    parser.addoption("--gpu-device", default="cuda", help="where the tests marked gpu run; cpu tries them out")


def pytest_configure(config: pytest.Config) -> None:
    # What is frozen below is thawed after pytest's own two collections, and before extension modules would report all
    # that they made as leaked.
    config.add_cleanup(gc.unfreeze)
    # A checkpoint is forced to the disk, which takes tens of milliseconds there, and none in memory.
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # A shell's background job ignores Ctrl-C, which some tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    has_workers = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not has_workers or config.option.collectonly or config.option.showfixtures:
        config.pluginmanager.import_plugin("each_test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: the garbage collector need not go through 700,000 objects again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
