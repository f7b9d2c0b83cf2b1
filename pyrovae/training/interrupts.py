"""Ctrl-C and SIGTERM that wait for a moment at which a run can be written down."""

import signal
import threading


class Interrupts:
    """Within the block a first signal is kept in `caught`, by its number; a second one does not wait."""

    def __init__(self) -> None:
        self.caught = 0
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ignore Ctrl-C
                    self._handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _catch(self, number: int, frame: object) -> None:
        self.caught = number
        self._give_back()
