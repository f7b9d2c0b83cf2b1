"""Writes a training's checkpoints between two steps, and resumes from them: all processes together."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pyrovae.common import Workers, setting, warn
from pyrovae.training.checkpoint_content import check_content
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.interrupts import Interrupts
from pyrovae.training.state import TrainingState


class Saver:
    """Saves the state when a checkpoint is due or a signal asks to stop; without checkpoints it writes nothing.

    Each process has requests: to save, and to stop after that. Processes add up their requests and then act alike, so
    that none writes or stops alone. `save_requested` and `stop_requested` hold until they are met.
    """

    def __init__(self, state: TrainingState, checkpoints: Checkpoints | None) -> None:
        self.state, self.checkpoints = state, checkpoints
        self.workers, self.interrupts = Workers(), Interrupts()
        self.save_requested = self.stop_requested = False
        self._is_checked = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """Within the block signals wait for the end of a step, and no other training writes to the folder."""
        with ExitStack() as stack:
            if self.checkpoints is not None:
                stack.enter_context(self.interrupts)
                held = self.checkpoints.held
                self.workers.by_first(lambda: stack.enter_context(held()))
            yield
        if self.interrupts.caught:  # in the last epoch: the training is over, and only what follows it can be stopped
            raise KeyboardInterrupt(self.interrupts.caught)

    def requests(self) -> tuple[float, float]:
        """Returns this process's requests (save, stop) as 0 or 1, which processes can add up."""
        stop = self.interrupts.caught > 0
        due = self.checkpoints is not None and self.workers.is_first and self.checkpoints.is_due()
        return float(stop or due), float(stop)

    def accept(self, requests: Iterable[float]) -> None:
        """Takes note of the requests (save, stop) that any process has."""
        save, stop = requests
        self.save_requested, self.stop_requested = self.save_requested or save > 0, self.stop_requested or stop > 0

    def start(self) -> bool:
        """Resumes from the last checkpoint, or gives every process the first one's parameters and writes a checkpoint.

        Returns True if the training had ended already, and does not go on for longer.
        """
        saved, state = None, self.state
        if self.checkpoints is not None:  # the first process reads it: others may see another folder, or a later one
            saved = self.workers.by_first(self.checkpoints.begin)
        if saved is None:
            for tensor in (*state.parameters.values(), *state.buffers.values()):
                self.workers.agreed(tensor.detach())
            self.write()
            return False
        assert self.checkpoints is not None  # it has just been read
        state.restore(saved, f"the checkpoint in {self.checkpoints.folder}", self.checkpoints.repeated)
        had_ended = state.position.done and saved["position"]["done"]
        if had_ended and self.workers.is_first and not self.checkpoints.repeated:
            text = f"the training in {self.checkpoints.folder} is finished, so nothing was trained"
            stopping, epochs = state.early_stopping, len(state.history.epoch)
            early = f"patience {stopping.patience} ended it after epoch {epochs}, and a larger one trains it for longer"
            more = f"more epochs ({setting('epochs')}) train it for longer"
            warn(f"{text}; {early if stopping.has_run_out else more}")
        return had_ended

    def is_due_after_epoch(self) -> bool:
        """Returns True if a checkpoint must be written before the next epoch."""
        if self.checkpoints is None:
            return False
        own = next(iter(self.state.parameters.values())).new_tensor(self.requests())
        self.accept(self.workers.total(own).tolist())
        every = self.checkpoints.epochs
        return self.save_requested or (every is not None and len(self.state.history.epoch) % every == 0)

    def write(self) -> None:
        """Writes a checkpoint. All processes call this together, and the first one writes."""
        if self.checkpoints is None:
            return
        random_states, save = self.state.random_states(), self.checkpoints.save
        check = None if self._is_checked else self._check_resumable
        self.workers.by_first(lambda: save(self.state.to_dict(random_states), check))
        self._is_checked = True

    def _check_resumable(self, written: dict) -> None:
        """Refuses the first checkpoint, before much is trained, if no training could resume from such content."""
        check_content("its content", written, generators=self.state.generators)

    def write_and_stop_if_requested(self) -> None:
        """Writes a checkpoint; raises `KeyboardInterrupt`, with the signal's number, if any process asked to stop."""
        self.save_requested = False
        self.write()
        if self.stop_requested:
            raise KeyboardInterrupt(self.interrupts.caught or signal.SIGTERM)
