"""TensorBoard's view of a run, as it goes: scalars of every epoch, and samples beside the data."""

import math

from pyrovae.common import InputError, local_seed
from pyrovae.runs.report import draw_samples
from pyrovae.runs.run import Run

DRAWINGS = 20  # over the whole run: to draw takes longer than some epochs
FOLDER = "tensorboard"


class Board:
    """Called with the run and each record of its history; writes to the folder `tensorboard` of the run.

    Raises `InputError` where TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard must be installed: pip install 'pyrovae[tensorboard]'") from error
        self._make, self._writer = SummaryWriter, None

    def __call__(self, run: Run, record: dict[str, float | None]) -> None:
        epoch = record["epoch"]
        if self._writer is None:  # of a run that goes on, what was drawn after its checkpoint is drawn again
            self._writer = self._make(run.folder / FOLDER, purge_step=epoch)
        for name, value in record.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, epoch)
        if epoch % math.ceil(run.config.epochs / DRAWINGS) == 0 or epoch == run.config.epochs:
            with local_seed(run.config.seed):
                self._writer.add_figure("samples", draw_samples(run), epoch)
        self._writer.flush()
