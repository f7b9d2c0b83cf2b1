"""VAEs of measurements: several observed sites, heavy tails, discrete codes, terms that are no density."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, TwoHeads, bits, joined, mlp, normals, source

NUM, DIM, LATENT, CLASSES = 5, 3, 2, 3


class SeveralSites(nn.Module):
    """Three views of one datum: Laplace, Student's t, and a mixture of Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TwoHeads(2 * DIM + 1, LATENT), mlp(LATENT, 8, 2 * DIM + 5)

    def model(self, x, heavy, mixed):
        pyro.module("views", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            first, second, logits, locs = self.decoder(z).split([DIM, DIM, 2, 3], -1)
            pyro.sample("x", dist.Laplace(first, 1.0).to_event(1), obs=x)
            pyro.sample("heavy", dist.StudentT(3.0, second, positive("spread", torch.ones(DIM))).to_event(1), obs=heavy)
            parts = dist.Normal(locs[..., :2], softplus(locs[..., 2:]) + 0.1)
            pyro.sample("mixed", dist.MixtureSameFamily(dist.Categorical(logits=logits), parts), obs=mixed)

    def guide(self, x, heavy, mixed):
        pyro.module("views", self)
        with pyro.plate("data", len(x)):
            everything = torch.cat([x, heavy, mixed.unsqueeze(-1)], -1)
            pyro.sample("z", dist.Normal(*self.encoder(everything)).to_event(1))


def several_likelihoods() -> Program:
    pair, generator = SeveralSites(), source(23)
    args = (normals(generator, NUM, DIM), normals(generator, NUM, DIM), normals(generator, NUM))
    return Program(pair.model, pair.guide, args, NUM)


class Measurements(nn.Module):
    """A small VAE of real numbers, for the programs below."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TwoHeads(DIM, LATENT), mlp(LATENT, 8, DIM)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


class Regularised(Measurements):
    """The squared weights of the decoder are a factor outside the plate."""

    def model(self, x):
        super().model(x)
        pyro.factor("ridge", -0.1 * sum(weight.pow(2).sum() for weight in self.decoder.parameters()))


def regularised_vae() -> Program:
    pair = Regularised()
    return Program(pair.model, pair.guide, (normals(source(24), NUM, DIM),), NUM)


class BeliefNetwork(nn.Module):
    """Two layers of bits, and no site that is reparameterised."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.top, self.up = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(DIM, 3)
        self.observed = nn.Linear(3, DIM)

    def model(self, x):
        pyro.module("belief", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.down(z2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.observed(z1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("belief", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.up(x)).to_event(1))
            pyro.sample("z2", dist.Bernoulli(logits=self.top(z1)).to_event(1))

    def log_px(self, x: Tensor) -> Tensor:
        """Returns log p(x) as a sum over the 32 values of both layers."""
        with torch.no_grad():
            z1 = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
            z2 = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)
            prior = dist.Bernoulli(logits=self.down(z2)).to_event(1).log_prob(z1.unsqueeze(1)).double()
            prior = prior.logsumexp(1) - torch.tensor(4.0).log()
            seen = dist.Bernoulli(logits=self.observed(z1)).to_event(1).log_prob(x.unsqueeze(1)).double()
            return (prior + seen).logsumexp(1)


def belief_network() -> Program:
    pair, x = BeliefNetwork(), bits(source(25), NUM, DIM)
    return Program(pair.model, pair.guide, (x,), NUM, log_px=lambda: pair.log_px(x))


class Mixed(nn.Module):
    """A class c that is drawn, and z given c; the guide draws z first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.classifier = TwoHeads(DIM, LATENT), nn.Linear(DIM + LATENT, CLASSES)
        self.prior, self.decoder = nn.Linear(CLASSES, LATENT), mlp(LATENT + CLASSES, 8, DIM)

    def model(self, x):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x)):
            c = one_hot(pyro.sample("c", dist.Categorical(torch.ones(CLASSES))), CLASSES).float()
            z = pyro.sample("z", dist.Normal(self.prior(c), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(joined(z, c)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("mixed", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))
            pyro.sample("c", dist.Categorical(logits=self.classifier(joined(x, z))))


def mixed_vae() -> Program:
    pair = Mixed()
    return Program(pair.model, pair.guide, (normals(source(26), NUM, DIM),), NUM)
