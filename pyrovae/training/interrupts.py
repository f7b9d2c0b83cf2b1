"""Ctrl-C, SIGTERM and due checkpoints, which wait until a training is between two steps."""

import signal
import threading
from collections.abc import Iterable

from pyrovae.common import Workers
from pyrovae.training.checkpoints import Checkpoints


class Interrupts:
    """Keeps the number of a first signal in `caught` within the block; a second signal takes effect at once."""

    def __init__(self) -> None:
        self.caught = 0
        self._handlers: dict[int, object] = {}

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

    def _catch(self, number: int, frame: object) -> None:
        self.caught = number
        self._restore_handlers()


class Requests:
    """Collects the requests of all processes to write a checkpoint or to stop, so that they write and stop together.

    `save` and `stop` say what has been requested and not been done yet.
    """

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints, self.workers, self.interrupts = checkpoints, Workers(), Interrupts()
        self.save = self.stop = False

    def own(self) -> tuple[float, float]:
        """Returns this process's requests (save, stop) as 0 or 1, which processes can add up."""
        stop = self.interrupts.caught > 0
        due = self.checkpoints is not None and self.workers.is_first and self.checkpoints.is_due()
        return float(stop or due), float(stop)

    def accept(self, requests: Iterable[float]) -> None:
        """Takes note of the requests (save, stop) that any process has."""
        save, stop = requests
        self.save, self.stop = self.save or save > 0, self.stop or stop > 0
