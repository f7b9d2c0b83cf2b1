"""The tutorials' VAEs of points in plain PyTorch, as a reader would write them; only the data are pyrovae's."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tutorials_published import Row

import pyrovae as pv
from pyrovae.common import derived_seed, local_seed

NUM_DRAWS = 20


class PlainVAE(nn.Module):
    """Holds the networks of a VAE of points, and of its condition if there is one: a class of some, or a number."""

    def __init__(self, row: Row, num_coordinates: int, num_classes: int | None, has_number: bool) -> None:
        super().__init__()
        latent, hidden = row.vae["latent_dim"], row.vae["hidden"]
        self.num_classes = num_classes
        features = 16 if has_number else num_classes or 0
        self.embeddings = nn.ModuleList([mlp(1, (16,), 16), mlp(1, (16,), 16)] if has_number else [])
        self.encoder = mlp(num_coordinates + features, hidden, 2 * latent)
        self.decoder = mlp(latent + features, hidden, num_coordinates)

    def features(self, y: Tensor, side: int) -> Tensor:
        if self.num_classes is not None:
            return one_hot(y, self.num_classes).float()
        return self.embeddings[side](y) if len(self.embeddings) else y.new_zeros(len(y), 0)

    def loss(self, x: Tensor, y: Tensor, variance: float, beta: float) -> Tensor:
        """Returns |x - mean|^2 / (2 sigma^2) + beta KL with one draw of z, averaged over the data."""
        mean, log_scale = self.encoder(torch.cat((x, self.features(y, 0)), -1)).chunk(2, -1)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        decoded = self.decoder(torch.cat((z, self.features(y, 1)), -1))
        kl = 0.5 * (mean**2 + (2 * log_scale).exp() - 1) - log_scale
        return ((x - decoded) ** 2).sum(-1).mean() / (2 * variance) + beta * kl.sum(-1).mean()


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))


def plain_loss(row: Row, data: pv.Dataset, seed: int) -> float:
    """Returns the loss of the training points after a run's epochs, in nats per datum, the mean of twenty draws."""
    x, y = data.arguments("train")
    has_number = y.is_floating_point()
    num_classes = int(y.max()) + 1 if row.condition is not None and not has_number else None
    variance, beta, training = row.variance or 1.0, row.vae.get("beta", 1.0), row.fit
    with local_seed(derived_seed(seed, "plain PyTorch")):
        vae = PlainVAE(row, x.shape[1], num_classes, has_number)
        optimizer = torch.optim.Adam(vae.parameters(), lr=training["lr"], fused=True)
        for _ in range(training["epochs"]):
            for index in torch.randperm(len(x)).split(training["batch_size"]):
                if len(index) == training["batch_size"]:  # the tutorials drop the last, smaller batch
                    optimizer.zero_grad()
                    vae.loss(x[index], y[index], variance, beta).backward()
                    optimizer.step()
        with torch.no_grad():
            return sum(vae.loss(x, y, variance, beta).item() for _ in range(NUM_DRAWS)) / NUM_DRAWS
