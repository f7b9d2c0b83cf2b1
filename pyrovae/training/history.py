"""The record of a training: its finished epochs, and the place in the present one."""

from dataclasses import asdict, dataclass, field


@dataclass
class History:
    """One entry per finished epoch, in nats per datum where an entry is a loss, a bound or a KL.

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
