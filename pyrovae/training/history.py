"""The record of a training: its finished epochs, and the place in the present one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.common import counted, data_frame, require, right_aligned, with_lines_below

FORMATS = {"epoch": "d", "skipped": "d", "lr": ".1e", "guide_lr": ".1e"}
ROWS = 10


@dataclass
class History:
    """One entry per finished epoch, in nats per datum where an entry is a loss, a bound or a KL; prints as a table.

        elbo = reconstruction - kl

    Attributes:
        epoch: the numbers of the epochs, from 1.
        loss: minus the training objective, averaged over the epoch's data while the parameters moved. Latents that all
            N data share are in it by 1 / N.
        train_reconstruction: E_q[log p(x|z)] of the training batches, from the very draws of the steps and averaged
            over the epoch as the loss is; None, as is the next, under losses that are not ours (Pyro's, or a function),
            of which only the value is known.
        train_kl: E_q[log q(z|x) - log p(z)] of the training batches, at beta = 1 and without a floor, for the latents
            of single data; in closed form under `elbo_analytic_kl`. Under the ELBO, loss = beta train_kl -
            train_reconstruction. Under other bounds (IWAE, Renyi, ...) these are the ELBO's terms at the same draws,
            and the loss is not their difference.
        elbo: the ELBO of the validation data after the epoch, at beta = 1, without the KL of latents that all data
            share; None without validation data, as are the next two.
        reconstruction: E_q[log p(x|z)] of the validation data.
        kl: E_q[log q(z|x) - log p(z)] of the validation data, for the latents of single data.
        lr: the learning rate of the epoch's steps; where model and guide have rates of their own, the model's.
        guide_lr: the guide's, where it has one of its own; else None.
        skipped: the number of steps left out because loss or gradient was not finite; None where such a step stops the
            training.
        seconds: the epoch's time.
        loss_of: the objective that the loss is of, for the table, where that is no ELBO: `loss` and `elbo` are then not
            of one bound. None under the ELBO, after a change of objective, and in a history read from a file.

    Example:
        >>> data = pv.load("ring", num_train=50, num_validation=20, num_test=10)
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> history = pv.fit(vae, data, epochs=2, lr=0.01)
        >>> history.epoch, history.lr
        ([1, 2], [0.01, 0.01])
        >>> abs(history.elbo[-1] - (history.reconstruction[-1] - history.kl[-1])) < 1e-6
        True
        >>> abs(history.loss[-1] - (history.train_kl[-1] - history.train_reconstruction[-1])) < 1e-4
        True
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_reconstruction: list[float | None] = field(default_factory=list)
    train_kl: list[float | None] = field(default_factory=list)
    elbo: list[float | None] = field(default_factory=list)
    reconstruction: list[float | None] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    guide_lr: list[float | None] = field(default_factory=list)
    skipped: list[int | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss_of: str | None = field(default=None, compare=False)

    def append(self, record: dict[str, float | None]) -> None:
        """Adds an epoch, given by the names of all attributes; without `guide_lr` there is one learning rate."""
        for name, column in self._columns().items():
            column.append({"guide_lr": None, **record}[name])

    def records(self) -> list[dict[str, float | None]]:
        """Returns one dict per epoch, by the names of the attributes."""
        columns = self._columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _columns(self) -> dict[str, list]:
        """Returns the entries of all epochs, by the names of the attributes that hold them."""
        return {name: column for name, column in vars(self).items() if isinstance(column, list)}

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
        return data_frame(self._columns())

    def table(self, tablefmt: str = "simple") -> str:
        """Returns a table of at most ten epochs, evenly spaced, the last among them.

        Args:
            tablefmt: a table format of `tabulate`, for example "simple", "github" or "html".
        """
        records = self.records()
        require(len(records) > 0, "the history must have an epoch, and has none")
        chosen = records[:: -math.ceil(len(records) / ROWS)][::-1]
        columns = [name for name in chosen[-1] if any(record[name] is not None for record in chosen)]
        lines = [[_shown(name, record[name]) for name in columns] for record in chosen]
        named = [f"{self.loss_of} loss" if name == "loss" and self.loss_of else name for name in columns]
        return right_aligned(lines, named, tablefmt, left=0)

    def plot(self) -> Figure:
        """Returns a figure of the loss, the reconstruction and the KL against the epoch, in nats per datum.

        Those of the validation data stand beside those of the training batches, the ELBO with its sign changed. Terms
        that are not known have no axes. Raises `InputError` if no epoch is done.

        Example:
            >>> vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
            >>> history = pv.fit(vae, torch.randn(9, 2), epochs=2)
            >>> [axes.get_ylabel() for axes in history.plot().axes]
            ['nats per datum', 'training reconstruction, nats', 'training KL, nats']
        """
        require(len(self.epoch) > 0, "the history must have an epoch, and has none")
        panels: dict[str, dict[str, list]] = {
            "nats per datum": {"training loss": self.loss, "minus validation ELBO": _negative(self.elbo)},
            "reconstruction, nats": {"training": self.train_reconstruction, "validation": self.reconstruction},
            "KL, nats": {"training": self.train_kl, "validation": self.kl},
        }
        known = {label: {name: c for name, c in curves.items() if _is_known(c)} for label, curves in panels.items()}
        drawn = {label: curves for label, curves in known.items() if curves}
        figure, axes = plots.figure_row(len(drawn))
        for (label, curves), each in zip(drawn.items(), axes, strict=True):
            name = label if len(curves) > 1 or label == "nats per datum" else f"{next(iter(curves))} {label}"
            values = {one: [math.nan if v is None else v for v in curve] for one, curve in curves.items()}
            plots.training_curve(self.epoch, values, name, each)
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
        text = f"{counted(len(self.epoch), 'epoch')} in {sum(self.seconds):.1f} s"
        best = self.best_epoch
        if best is None:
            return text
        return (
            f"{text}; best validation ELBO {self.elbo[self.epoch.index(best)]:.3f} nats per datum, after epoch {best}"
        )


def _shown(name: str, value: float | None) -> str:
    return "" if value is None else format(value, FORMATS.get(name, ".3f"))


def _negative(values: list[float | None]) -> list[float | None]:
    return [None if value is None else -value for value in values]


def _is_known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


@dataclass
class Position:
    """The place in a training: in `epoch`, `step` batches are done, with sums over their `count` data.

    `total` is the sum of the losses, `reconstruction` and `kl` those of their terms (nan if some step did not tell
    them), `skipped` the number of steps left out, `seconds` the time spent in the epoch, and
    `done` says that no epoch is left. Where an epoch is a number of steps, the present pass through the data has given
    `in_pass` batches. `guide_only` steps have moved the guide alone since the last one that moved the model, too.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    count: int = 0
    skipped: int = 0
    seconds: float = 0.0
    done: bool = False
    in_pass: int = 0
    reconstruction: float = 0.0
    kl: float = 0.0
    guide_only: int = 0

    def mean_of(self, total: float) -> float | None:
        """Returns a sum over the epoch's data per datum, or None if it is not known."""
        return None if math.isnan(total) else total / self.count
