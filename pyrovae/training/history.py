"""The record of a training: its finished epochs, and the place in the present one."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.common import data_frame, require, right_aligned, with_lines_below

FORMATS = {"epoch": "d", "skipped": "d", "lr": ".1e"}
ROWS = 10


@dataclass
class History:
    """One entry per finished epoch, in nats per datum where an entry is a loss, a bound or a KL; prints as a table.

        elbo = reconstruction - kl

    Attributes:
        epoch: the numbers of the epochs, from 1.
        loss: minus the training objective, averaged over the epoch's data while the parameters moved. Latents that all
            N data share are in it by 1 / N.
        elbo: the ELBO of the validation data after the epoch, at beta = 1, without the KL of latents that all data
            share; None without validation data, as are the next two.
        reconstruction: E_q[log p(x|z)] of the validation data.
        kl: E_q[log q(z|x) - log p(z)] of the validation data, for the latents of single data.
        lr: the learning rate of the epoch's steps.
        skipped: the number of steps left out because loss or gradient was not finite; None where such a step stops the
            training.
        seconds: the epoch's time.

    Example:
        >>> data = pv.load("ring", num_train=50, num_validation=20, num_test=10)
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> history = pv.fit(vae, data, epochs=2, lr=0.01)
        >>> history.epoch, history.lr
        ([1, 2], [0.01, 0.01])
        >>> abs(history.elbo[-1] - (history.reconstruction[-1] - history.kl[-1])) < 1e-6
        True
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    elbo: list[float | None] = field(default_factory=list)
    reconstruction: list[float | None] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    skipped: list[int | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def append(self, record: dict[str, float | None]) -> None:
        """Adds an epoch, given by the names of all attributes."""
        for name in vars(self):
            getattr(self, name).append(record[name])

    def records(self) -> list[dict[str, float | None]]:
        """Returns one dict per epoch, by the names of the attributes."""
        columns = asdict(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the best validation ELBO; None without validation data."""
        pairs = zip(self.epoch, self.elbo, strict=True)
        known = {epoch: elbo for epoch, elbo in pairs if elbo is not None and elbo > -math.inf}  # nor NaN
        return max(known, key=lambda epoch: known[epoch]) if known else None

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with a row for each epoch and the attributes as columns.

        `loss`, `elbo`, `reconstruction` and `kl` are in nats per datum, `seconds` in seconds. Raises `InputError` if
        pandas is not installed.
        """
        return data_frame(asdict(self))

    def table(self, tablefmt: str = "simple") -> str:
        """Returns a table of at most ten epochs, evenly spaced, the last among them.

        Args:
            tablefmt: a table format of `tabulate`, for example "simple", "github" or "html".
        """
        records = self.records()
        require(len(records) > 0, "the history must have an epoch, and has none")
        chosen = records[:: -math.ceil(len(records) / ROWS)][::-1]
        columns = [name for name, value in chosen[-1].items() if value is not None]
        lines = [[format(record[name], FORMATS.get(name, ".3f")) for name in columns] for record in chosen]
        return right_aligned(lines, columns, tablefmt, left=0)

    def plot(self) -> Figure:
        """Returns a figure of the loss against the epoch, in nats per datum, and with validation data of its ELBO.

        The ELBO then stands beside the loss with its sign changed, and its two terms have axes of their own. Raises
        `InputError` if no epoch is done.

        Example:
            >>> vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
            >>> history = pv.fit(vae, torch.randn(9, 2), epochs=2)
            >>> history.plot().axes[0].get_ylabel()
            'nats per datum'
        """
        require(len(self.epoch) > 0, "the history must have an epoch, and has none")
        elbo, reconstruction, kl = (
            [value for value in column if value is not None] for column in (self.elbo, self.reconstruction, self.kl)
        )
        figure, axes = plots.figure_row(3 if elbo else 1)
        curves = {"training loss": self.loss}
        if elbo:
            curves["minus validation ELBO"] = [-value for value in elbo]
            plots.training_curve(self.epoch, {"": reconstruction}, "validation reconstruction, nats", axes[1])
            plots.training_curve(self.epoch, {"": kl}, "validation KL, nats", axes[2])
        plots.training_curve(self.epoch, curves, "nats per datum", axes[0])
        return figure

    def __repr__(self) -> str:
        if not self.epoch:
            return "no epochs yet"
        return f"{self.table()}\n{self._summary}"

    def _repr_html_(self) -> str:
        return with_lines_below(self.table("html"), self._summary) if self.epoch else repr(self)

    @property
    def _summary(self) -> str:
        """The number of epochs, their time and the best of them."""
        text = f"{len(self.epoch)} epochs in {sum(self.seconds):.1f} s"
        best = self.best_epoch
        if best is None:
            return text
        return (
            f"{text}; best validation ELBO {self.elbo[self.epoch.index(best)]:.3f} nats per datum, after epoch {best}"
        )


@dataclass
class Position:
    """The place in a training: in `epoch`, `step` batches are done, with sums over their `count` data.

    `total` is the sum of the losses, `skipped` the number of steps left out, `seconds` the time spent in the epoch, and
    `done` says that no epoch is left. Where an epoch is a number of steps, the present pass through the data has given
    `in_pass` batches.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    count: int = 0
    skipped: int = 0
    seconds: float = 0.0
    done: bool = False
    in_pass: int = 0
