"""Threads that wait for each other sleep soon, unless the user has said how long they are to spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIBRARY = Path(torch.__file__).parent / "lib/libgomp.so.1"
PROGRAM = f"import sys, ctypes, pyrovae; ctypes.CDLL({str(LIBRARY)!r}); print('torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_the_library_of_threads_sees_how_long_they_spin(given, spins):
    if not LIBRARY.is_file():
        pytest.skip("this torch has another library of threads")
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=usual | {"OMP_DISPLAY_ENV": "VERBOSE"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"  # it was set in time
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
