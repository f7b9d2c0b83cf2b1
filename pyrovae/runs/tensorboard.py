"""Shows a run in TensorBoard while it trains: the scalars of every epoch, and samples beside the data."""

import math
from typing import cast

from pyrovae.common import InputError, check_link, local_seed
from pyrovae.runs.figures import draw_samples
from pyrovae.runs.run import Run

NUM_DRAWINGS = 20  # in the whole run: a drawing takes longer than some epochs
TENSORBOARD_FOLDER = "tensorboard"


class TensorBoard:
    """Writes each record of a run's history into the run's folder `tensorboard`; an `on_epoch` of `train_run`.

    Raises:
        InputError: TensorBoard is not installed
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard must be installed: pip install 'pyrovae[tensorboard]'") from error
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __call__(self, run: Run, record: dict[str, float | None]) -> None:
        epoch = cast(int, record["epoch"])
        if self._writer is None:  # a resumed run trains the epochs after its checkpoint again, and draws them again
            folder = run.folder / TENSORBOARD_FOLDER
            check_link(folder)
            self._writer = self._make_writer(folder, purge_step=epoch)
        for name, value in record.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, epoch)
        if epoch % math.ceil(run.config.epochs / NUM_DRAWINGS) == 0 or epoch == run.config.epochs:
            with local_seed(run.config.seed):
                self._writer.add_figure("samples", draw_samples(run), epoch)
        self._writer.flush()
