"""Gaussian processes and neural processes."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, TwoHeads, joined, normals, source

NUM, NOISE = 5, 0.5


def _covariance(x: Tensor, length: Tensor | float = 0.7) -> Tensor:
    """Returns the squared-exponential covariances of points `(..., num, dim)`."""
    distance = (x.unsqueeze(-2) - x.unsqueeze(-3)).pow(2).sum(-1)
    return (-0.5 * distance / torch.as_tensor(length) ** 2).exp() + 0.1 * torch.eye(x.shape[-2])


def _values() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, NUM).unsqueeze(-1)
    return x, (2 * x.squeeze(-1)).sin() + NOISE * normals(source(18), NUM)


def gaussian_process() -> Program:
    """The function's values are one multivariate Normal; there is no plate, and the covariance is an argument."""
    x, y = _values()
    covariance = _covariance(x)

    def model(covariance, y):
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(y)), covariance))
        pyro.sample("y", dist.Normal(f, NOISE).to_event(1), obs=y)

    start = torch.linalg.cholesky(torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(NUM) / NOISE**2))

    def guide(covariance, y):
        loc = pyro.param("loc", lambda: start @ start.T @ y / NOISE**2 + 0.3)
        scale_tril = pyro.param("scale_tril", lambda: 1.1 * start, constraint=constraints.lower_cholesky)
        pyro.sample("f", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    def log_px():
        marginal = dist.MultivariateNormal(torch.zeros(NUM), covariance + NOISE**2 * torch.eye(NUM))
        return marginal.log_prob(y).reshape(1)

    return Program(model, guide, (covariance, y), log_px=log_px)


def process_with_unknown_lengthscale() -> Program:
    """The function is integrated out, and its lengthscale is latent."""
    x, y = _values()

    def model(x, y):
        length = pyro.sample("lengthscale", dist.LogNormal(0.0, 0.5))
        covariance = _covariance(x, length) + NOISE**2 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    return Program(model, AutoNormal(model, init_scale=1.0), (x, y))


def process_of_pyro() -> Program:
    """`pyro.contrib.gp`'s regression: no latents, no plate and no arguments."""
    x, y = _values()
    regression = gp.models.GPRegression(x, y, gp.kernels.RBF(1), noise=torch.tensor(0.3))

    def log_px():
        with torch.no_grad():
            covariance = regression.kernel(x) + regression.noise * torch.eye(NUM)
            return dist.MultivariateNormal(torch.zeros(NUM), covariance).log_prob(y).reshape(1)

    return Program(regression.model, regression.guide, log_px=log_px)


def latent_variable_process() -> Program:
    """Lawrence 2004: the inputs of the process are latent, and its outputs lie in a plate."""
    y = normals(source(19), 4, NUM)

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(NUM, 2), 1.0).to_event(2))
        with pyro.plate("outputs", len(y)):
            covariance = _covariance(x) + NOISE**2 * torch.eye(NUM)
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(NUM), covariance), obs=y)

    def guide(y):
        loc, scale = pyro.param("x_loc", lambda: 0.1 * torch.randn(NUM, 2)), positive("x_scale", torch.ones(NUM, 2))
        pyro.sample("x", dist.Normal(loc, scale).to_event(2))

    return Program(model, guide, (y,))


class NeuralProcess(nn.Module):
    """Garnelo et al. 2018: a plate of tasks, and in each of them a plate of points."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TwoHeads(2, 2), TwoHeads(3, 1)

    def _summary(self, x, y):
        loc, scale = self.encoder(torch.stack([x, y], -1))
        return loc.mean(-2, keepdim=True), scale.mean(-2, keepdim=True)

    def model(self, x_context, y_context, x, y):
        pyro.module("neural_process", self)
        with pyro.plate("tasks", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(*self._summary(x_context, y_context)).to_event(1))
            with pyro.plate("points", x.shape[1], dim=-1):
                loc, scale = self.decoder(joined(z, x.unsqueeze(-1)))
                pyro.sample("y", dist.Normal(loc.squeeze(-1), 0.1 + softplus(scale.squeeze(-1))), obs=y)

    def guide(self, x_context, y_context, x, y):
        pyro.module("neural_process", self)
        with pyro.plate("tasks", len(x), dim=-2):
            both = self._summary(torch.cat([x_context, x], 1), torch.cat([y_context, y], 1))
            pyro.sample("z", dist.Normal(*both).to_event(1))


def neural_process() -> Program:
    pair, generator = NeuralProcess(), source(20)
    args = tuple(normals(generator, 3, points) for points in (2, 2, 4, 4))
    return Program(pair.model, pair.guide, args, 3)
