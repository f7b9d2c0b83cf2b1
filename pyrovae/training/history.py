"""What a training has been through: its epochs, and how far it is in the present one."""

from dataclasses import asdict, dataclass, field


@dataclass
class History:
    """One entry per epoch; everything in nats per datum.

    `loss` is minus the training objective, averaged over the epoch's data as the parameters moved. `elbo`,
    `reconstruction` (E_q[log p(x|z)]) and `kl` (E_q[log q(z|x) - log p(z)]) are of the validation data after the
    epoch, at beta = 1, with elbo = reconstruction - kl; None where there are no validation data. `skipped` counts the
    steps that were left out because loss or gradient was not finite; None where such a step stops the training.
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
        for name in vars(self):
            getattr(self, name).append(record[name])

    def records(self) -> list[dict[str, float | None]]:
        columns = asdict(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass
class Position:
    """How far the training is: in `epoch`, `step` of its batches are done, with sums over their `count` data."""

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    count: int = 0
    skipped: int = 0
    seconds: float = 0.0
    done: bool = False
