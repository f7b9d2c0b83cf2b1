"""Runs small work on one thread, as threads that wait for each other cost it more than they give."""

from collections.abc import Callable
from typing import Any

import torch


def on_one_thread(run: Callable, *args: Any, **kwargs: Any) -> Any:
    """Returns `run(*args, **kwargs)`, called while torch and its libraries have one thread."""
    threads = torch.get_num_threads()
    if threads == 1:
        return run(*args, **kwargs)
    torch.set_num_threads(1)
    try:
        return run(*args, **kwargs)
    finally:
        torch.set_num_threads(threads)
