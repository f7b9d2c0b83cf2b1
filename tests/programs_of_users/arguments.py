"""Programs that take no arguments, a dict, or a list of ragged groups."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, TwoHeads, joined, mlp, normals, source

NUM = 4


def counts_in_a_closure() -> Program:
    """Counts under Gamma rates; the data are no argument, and log p(x) is a negative binomial's."""
    counts = torch.poisson(3 * torch.ones(NUM), generator=source(27))

    def model():
        with pyro.plate("counts", NUM):
            rate = pyro.sample("rate", dist.Gamma(2.0, positive("b", torch.tensor(1.0))))
            pyro.sample("n", dist.Poisson(rate), obs=counts)

    def guide():
        shape, rate = positive("shape", 2.5 + counts), positive("rate_q", torch.tensor(1.8))
        with pyro.plate("counts", NUM):
            pyro.sample("rate", dist.Gamma(shape, rate))

    def log_px():
        b = pyro.param("b").detach()
        return dist.NegativeBinomial(2.0, probs=1 / (1 + b)).log_prob(counts)

    return Program(model, guide, (), NUM, log_px=log_px)


class FromDict(nn.Module):
    """A conditional VAE whose batch is a dict with what it needs and what it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TwoHeads(3, 2), mlp(4, 8, 1)

    def model(self, batch):
        pyro.module("from_dict", self)
        with pyro.plate("rows", len(batch["y"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decoder(joined(z, batch["x"]))
            pyro.sample("y", dist.Normal(loc, batch["settings"]["noise"]).to_event(1), obs=batch["y"])

    def guide(self, batch):
        pyro.module("from_dict", self)
        with pyro.plate("rows", len(batch["y"])):
            pyro.sample("z", dist.Normal(*self.encoder(joined(batch["x"], batch["y"]))).to_event(1))


def batch_in_a_dict() -> Program:
    pair, generator = FromDict(), source(28)
    batch = {"x": normals(generator, NUM, 2), "y": normals(generator, NUM, 1), "settings": {"noise": 0.7}}
    return Program(pair.model, pair.guide, (batch,), NUM)


def groups_in_a_list() -> Program:
    """Groups of unequal sizes, one after another in a sequential plate; the number of steps is an argument, too."""
    generator = source(29)
    groups = [normals(generator, size) for size in (3, 1, 2)]

    def model(groups, num_groups):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("groups", num_groups):
            theta = pyro.sample(f"theta_{i}", dist.Normal(mu, 0.5))
            with pyro.plate(f"members_{i}", len(groups[i])):
                pyro.sample(f"y_{i}", dist.Normal(theta, 0.7), obs=groups[i])

    def guide(groups, num_groups):
        pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(0.3)), positive("mu_scale", torch.tensor(0.6))))
        for i in pyro.plate("groups", num_groups):
            loc = pyro.param(f"loc_{i}", groups[i].mean())
            pyro.sample(f"theta_{i}", dist.Normal(loc, positive(f"scale_{i}", torch.tensor(0.5))))

    return Program(model, guide, (groups, 3), log_px=lambda: _evidence(groups))


def _evidence(groups: list[Tensor]) -> Tensor:
    y = torch.cat(groups).double()
    of = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    covariance = 1.0 + 0.25 * (of.unsqueeze(0) == of.unsqueeze(1)) + 0.49 * torch.eye(len(y), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).reshape(1)
