"""A variational autoencoder from model and guide to log p(x), written out in one file to be read and edited.

python scripts/vae.py                              # trains with the ELBO, a minute or two
python scripts/vae.py --num-particles 16           # with the importance-weighted bound
python scripts/vae.py --conditional --beta 4       # given the label, with a weighted KL

`pv.VAE` has all of this and more. Here nothing is hidden: copy the file and change what you like.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import require, require_count, require_number, require_seed, write_figure

NUM_LABELS = 10


class VAE(nn.Module):
    """A model p(z) p(x|z) and a guide q(z|x), each of which may also be given a label y.

    Args:
        num_pixels: The size of x, whose pixels are 0 or 1.
        latent_dim: The size of z.
        hidden: The units of the one hidden layer in each network.
        conditional: Whether model and guide are given a label.
        beta: The weight of the KL in training (Higgins et al. 2017); 1 is the ELBO.
    """

    def __init__(self, num_pixels: int, latent_dim: int, hidden: int, conditional: bool, beta: float) -> None:
        super().__init__()
        self.latent_dim, self.beta = latent_dim, beta
        extra = NUM_LABELS if conditional else 0
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels + extra, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(nn.Linear(latent_dim + extra, hidden), nn.ReLU(), nn.Linear(hidden, num_pixels))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Is the generative model: z ~ Normal(0, 1), x ~ Bernoulli(decoder(z, y))."""
        # Pyro's optimisers train what is registered in its parameter store, and each module needs a name of its own.
        pyro.module("decoder", self.decoder)
        # The plate says that the images are independent given the parameters. The estimators need to know, because
        # an importance-weighted bound is taken for each image and not for the whole batch.
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1)  # to_event: z is one vector per image
            # Scaling the site z here and in the guide by beta weighs log p(z) - log q(z|x), whose mean is minus the KL.
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", prior)
            logits = self.decoder(joined(z, y))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Is the amortised posterior: z ~ Normal(loc(x, y), scale(x, y))."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.beta):
            loc, log_variance = self.encoder(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))  # the same name as in the model

    @torch.no_grad()
    def sample(self, y: Tensor | None, num: int) -> Tensor:
        """Returns the mean images of draws from the prior, `(num, num_pixels)`."""
        return self.decoder(joined(torch.randn(num, self.latent_dim), y)).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Returns the mean images at the posterior means of x, `(len(x), num_pixels)`."""
        loc, _ = self.encoder(joined(x, y)).chunk(2, -1)
        return self.decoder(joined(loc, y)).sigmoid()


def network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Returns a network with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def joined(values: Tensor, y: Tensor | None) -> Tensor:
    """Returns values and one-hot labels side by side. With several draws of z, `values` has one more dimension."""
    if y is None:
        return values
    labels = one_hot(y, NUM_LABELS).to(values.dtype)
    return torch.cat((values, labels.expand(*values.shape[:-1], NUM_LABELS)), -1)


def main(
    dataset: str = "mnist",
    data_root: str | None = None,
    conditional: bool = False,
    beta: float = 1.0,
    num_particles: int = 1,
    latent_dim: int = 20,
    hidden: int = 400,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    num_train: int | None = None,
    num_data: int = 1_000,
    num_samples: int = 1_000,
    seed: int = 0,
    out: str = "vae.png",
) -> None:
    """Train a VAE on images, measure it, and draw samples and reconstructions.

    Args:
        dataset: mnist, fashion_mnist or kmnist, with pixels drawn as 0 or 1
        data_root: folder of the image sets
        conditional: give model and guide the label
        beta: weight of the KL in training
        num_particles: 1 trains with the ELBO, more with the importance-weighted bound on so many draws of z
        latent_dim: size of z
        hidden: units of the hidden layers
        epochs: passes through the data
        batch_size: images in a step
        lr: Adam's learning rate
        num_train: the first so many training images (default: all)
        num_data: the first so many test images to measure on
        num_samples: draws of z per image for log p(x)
        seed: fixes everything that is drawn
        out: file of the figure
    """
    counts = {"num_particles": num_particles, "latent_dim": latent_dim, "hidden": hidden, "epochs": epochs}
    for count, value in {**counts, "batch_size": batch_size, "num_data": num_data, "num_samples": num_samples}.items():
        require_count(count, value)
    for number, rate in {"lr": lr, "beta": beta}.items():
        require_number(number, rate, above=0)
    require_seed(seed)
    require(
        out.endswith(".png") and Path(out).parent.is_dir(), f"out must be a .png in a folder that exists, got {out}"
    )
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    data = pv.load(dataset, data_root=data_root, num_train=num_train, seed=seed)
    require(data.kind == "binary", f"dataset must have grey images, whose pixels can be drawn as 0 or 1; got {dataset}")
    vae = VAE(data.test_x[0].numel(), latent_dim, hidden, conditional, beta)

    # Pyro's Trace_ELBO, or log of the mean of p(x, z) / q(z|x) over several draws (Burda et al. 2016). `CompiledSVI` is
    # Pyro's `SVI` at compiled speed: change the one word, and the numbers stay the same.
    loss = pyro.infer.Trace_ELBO() if num_particles == 1 else pv.objectives.IWAE(num_particles)
    svi = pv.CompiledSVI(vae.model, vae.guide, pyro.optim.Adam({"lr": lr}), loss)  # type: ignore[attr-defined]
    for epoch in range(1, epochs + 1):
        losses = []
        for x, y in data.batches(batch_size):  # shuffled; grey pixels become 0 or 1 at random, anew for every batch
            losses.append(svi.step(x.flatten(1), *((y,) if conditional else ())))
        total = torch.tensor(losses, dtype=torch.float64).sum()  # Pyro's losses are sums over a batch
        print(f"epoch {epoch:2}: loss {total / len(data.train_x):.2f} nats per image", flush=True)

    # log p(x) by importance sampling, with the guide as proposal. It is of the model alone, whatever beta and bound
    # trained it. The verdict says whether to believe it.
    images, labels = (part[:num_data] for part in data.arguments("test"))
    x, given = images.flatten(1), (labels,) if conditional else ()
    found = pv.log_marginal(vae.model, vae.guide, x, *given, num_samples=num_samples)
    name = "log p(x|y)" if conditional else "log p(x)"
    print(f"\n{name} of {len(x):,} test images: {found.mean:.2f} nats per image")
    print(f"Monte Carlo error {found.monte_carlo_error:.2g}, standard error over images {found.data_error:.2g}")
    print(found.verdict)

    figure, axes = pv.plots.figure_row(2)
    drawn = vae.sample(torch.arange(60) % NUM_LABELS if conditional else None, 60).view(60, *data.event_shape)
    pv.plots.image_grid(drawn, NUM_LABELS, "mean images of draws from the prior", axes[0])
    again = vae.reconstruct(x[:12], labels[:12] if conditional else None).view(-1, *data.event_shape)
    pv.plots.reconstructions(images[:12], again, axes=axes[1])
    write_figure(Path(out), figure)
    print(f"figure: {out}")


if __name__ == "__main__":
    run_script(main)
