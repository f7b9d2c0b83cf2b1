"""Ctrl-C and SIGTERM that wait until a training is between two steps."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Interrupts:
    """Keeps the number of a first signal in `caught` within the block; a second signal takes effect at once."""

    def __init__(self) -> None:
        self.caught = 0
        self._handlers: dict[int, Handler] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                    self._handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._restore_handlers()
