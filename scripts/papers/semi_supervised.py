"""Trains a classifier of digits from 100 labels: model M2 of Kingma et al. 2014 (arXiv:1406.5298), in Pyro alone.

python scripts/papers/semi_supervised.py
python scripts/papers/semi_supervised.py --num-labelled 1000 --num-train 50000 --seeds 0 1 2

The model is p(y) p(z) p(x|y, z), the guide q(y|x) q(z|x, y). TraceEnum_ELBO sums over the ten values of a missing
label, weighted by the classifier q(y|x). A known label also trains the classifier, by alpha log q(y|x).
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.functional import one_hot
from writing import mean_and_error, write_report, write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import (
    check_for_parts,
    first_line,
    kept_parts,
    require,
    require_count,
    require_number,
    require_seeds,
    right_aligned,
)
from pyrovae.training import digest

NUM_CLASSES = 10


class M2(nn.Module):
    """Holds the pair. `model` and `guide` take x `(batch, *event_shape)` and, if labels are known, y `(batch, 10)`."""

    def __init__(self, event_shape: tuple[int, ...], latent_dim: int, hidden: int, alpha: float) -> None:
        super().__init__()
        self.latent_dim, self.alpha, self.warming_up = latent_dim, alpha, False
        self.classifier = pv.MLP(event_shape, (NUM_CLASSES,), (hidden,))
        self.encoder = pv.MLP(event_shape, (2, latent_dim), (hidden,), num_features=NUM_CLASSES)
        self.decoder = pv.MLP((latent_dim,), event_shape, (hidden,), num_features=NUM_CLASSES)

    def q_y(self, x: Tensor) -> dist.TorchDistribution:
        return dist.OneHotCategorical(logits=self.classifier(x))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x), dim=-1):
            if y is not None:
                with poutine.scale(scale=self.alpha):
                    pyro.sample("label", self.q_y(x), obs=y)
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(NUM_CLASSES)), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            x_given_y_z = dist.Bernoulli(logits=self.decoder(z, y))
            pyro.sample("x", x_given_y_z.to_event(x.dim() - 1), obs=x)

    @config_enumerate
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            if y is None:
                # A decoder that has not learned what y means would teach the classifier something other than digits.
                logits = self.classifier(x).detach() if self.warming_up else self.classifier(x)
                y = pyro.sample("y", dist.OneHotCategorical(logits=logits))  # all ten, left of the data dimension
            loc, log_variance = self.encoder(x, y).unbind(-2)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    def supervised(self, x: Tensor, y: Tensor) -> None:
        """Trains the classifier alone."""
        pyro.module("classifier", self.classifier)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("label", self.q_y(x), obs=y)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        return (self.classifier(x).argmax(-1) == labels).float().mean().item()


@dataclass(frozen=True)
class Settings:
    num_labelled: int
    epochs: int
    warm_up: int
    latent_dim: int
    hidden: int
    alpha: float
    batch_size: int
    lr: float


def main(
    data_root: str | None = None,
    num_labelled: int = 100,
    num_train: int = 10_000,
    epochs: int = 10,
    warm_up: int = 3,
    seeds: tuple[int, ...] = (0, 1, 2),
    latent_dim: int = 5,
    hidden: int = 128,
    alpha: float = 50.0,
    batch_size: int = 50,
    lr: float = 3e-3,
    out: str = "runs/semi_supervised",
) -> None:
    """Train M2 on few labels, and the same classifier on those labels alone; print both test accuracies.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_labelled: number of images that keep their label, the same for each digit
        num_train: number of training images, with and without labels
        epochs: over the training images; every step also takes up to batch_size labelled images
        warm_up: number of first epochs in which the classifier learns from the labels alone
        seeds: a run for each, of the labelled images, the initial parameters and training
        latent_dim: of z
        hidden: units of each network's one hidden layer
        alpha: weight of log q(y|x) where the label is known
        lr: of Adam
        out: folder of the runs; finished ones are not run again
    """
    for name, value in {"epochs": epochs, "latent_dim": latent_dim, "hidden": hidden, "batch_size": batch_size}.items():
        require_count(name, value)
    require_count("warm_up", warm_up, 0)
    for name, number in {"alpha": alpha, "lr": lr}.items():
        require_number(name, number, above=0)
    require_seeds(seeds)
    require_count("num_labelled", num_labelled, NUM_CLASSES)
    require(num_labelled % NUM_CLASSES == 0, f"num_labelled must be a multiple of {NUM_CLASSES}, got {num_labelled}")
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("mnist", data_root=data_root, num_train=num_train, num_validation=0)
    rarest = data.arguments("train")[1].bincount(minlength=NUM_CLASSES).min().item()
    most = NUM_CLASSES * rarest
    require(
        num_labelled <= most, f"num_labelled must be <= {most}, for {rarest} of the rarest digit, got {num_labelled}"
    )

    settings, rows = Settings(num_labelled, epochs, warm_up, latent_dim, hidden, alpha, batch_size, lr), []
    told = {"num_train": num_train, **vars(settings)}
    of = {**told, "data": digest((*data.arguments("train"), *data.arguments("test")))}
    with kept_parts(folder, of) as parts:
        for seed in seeds:
            row: dict[str, float] = {"seed": seed}
            for name in ("supervised", "m2"):
                try:
                    row |= parts.get(f"seed {seed}, {name}", partial(run, data, seed, settings, name))
                except ValueError as error:  # Pyro's validation, in many lines: a parameter is not in its domain
                    if isinstance(error, pv.InputError):
                        raise
                    raise FloatingPointError(f"training diverged with seed {seed} ({first_line(error)})") from error
            rows.append(row)
            print(line(row), flush=True)
        summary = summarise(rows)
        text = "\n\n".join((table(rows), summary))
        print(f"\n{text}")
        said = ", ".join(f"{name} {value:g}" for name, value in told.items())
        write_results(folder, {**told, "num_test": len(data.test_x), "runs": rows})
        write_report(folder, f"# M2 on MNIST\n\n{said}\n\n{table(rows, 'github')}\n\n{summary}\n")


def run(data: pv.Dataset, seed: int, settings: Settings, name: str) -> dict[str, float]:
    """Trains one of both classifiers. They have the same start, as many steps and the same labelled images."""
    torch.manual_seed(seed)
    _, labels = data.arguments("train")
    rows = labelled_rows(labels, settings.num_labelled)
    y = one_hot(labels, NUM_CLASSES).to(data.train_x.dtype)
    start = M2(data.event_shape, settings.latent_dim, settings.hidden, settings.alpha).state_dict()
    pyro.clear_param_store()
    torch.manual_seed(seed)
    m2 = M2(data.event_shape, settings.latent_dim, settings.hidden, settings.alpha)
    m2.load_state_dict(start)
    optimizer = Adam({"lr": settings.lr})
    model, guide = (m2.model, m2.guide) if name == "m2" else (m2.supervised, lambda x, y: None)
    with_labels = SVI(model, guide, optimizer, Trace_ELBO())
    without = SVI(m2.model, m2.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    for epoch in range(settings.epochs):
        m2.warming_up = epoch < settings.warm_up
        for x, _ in data.batches(settings.batch_size):
            some = rows[torch.randperm(len(rows))[: settings.batch_size]]
            with_labels.step(data.batch(some)[0], y[some])
            if name == "m2":
                without.step(x)
    found = {f"{name}_accuracy": m2.accuracy(*data.arguments("test"))}
    if name == "m2":  # its bound on log p(x) per test image, without labels
        losses = [without.evaluate_loss(x) for x in data.test_x.split(1_000)]
        found["elbo"] = -sum(losses) / len(data.test_x)
    return found


def labelled_rows(labels: Tensor, num_labelled: int) -> Tensor:
    """Returns the same number of rows of each label, chosen at random."""
    order = torch.randperm(len(labels))
    each = num_labelled // NUM_CLASSES
    return torch.cat([order[labels[order] == label][:each] for label in range(NUM_CLASSES)])


def line(row: dict[str, float]) -> str:
    return (
        f"seed {row['seed']}: accuracy {row['m2_accuracy']:.4f}, of the labels alone {row['supervised_accuracy']:.4f}, "
        f"ELBO {row['elbo']:.2f} nats"
    )


def table(rows: list[dict[str, float]], tablefmt: str = "simple") -> str:
    lines = [
        [row["seed"], f"{row['supervised_accuracy']:.4f}", f"{row['m2_accuracy']:.4f}", f"{row['elbo']:.2f}"]
        for row in rows
    ]
    header = ["seed", "labels alone, test accuracy", "M2, test accuracy", "M2, test ELBO, nats"]
    return right_aligned(lines, header, tablefmt, left=0)


def summarise(rows: list[dict[str, float]]) -> str:
    """Returns a line with the mean gain in accuracy, in pairs by seed, and its standard error over seeds."""
    gain, error = mean_and_error([row["m2_accuracy"] - row["supervised_accuracy"] for row in rows])
    shown = "unknown for one seed" if error is None else f"{error:.4f} over {len(rows)} seeds"
    return f"gain of M2 in accuracy: {gain:.4f}, standard error {shown}"


if __name__ == "__main__":
    run_script(main)
