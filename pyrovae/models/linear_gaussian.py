"""The VAE that is solvable in closed form: what every estimator here is tested against."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common import require, require_finite, require_number
from pyrovae.models.param_store import Module, unique_name


class LinearGaussianVAE(Module):
    """z ~ N(prior_mean, I), x|z ~ N(W z + b, scale^2 I), and a guide q(z|x) = N(A x + c, diag(exp(2 log_scale))).

    `weight` W is `(D, L)`, `bias` b `(D,)`, `scale` a positive number, `prior_mean` a number or `(L,)`. It keeps the
    dtype of `weight`. The marginal is x ~ N(W prior_mean + b, W W^T + scale^2 I) and the posterior N(m(x), P^-1) with
    precision P = I + W^T W / scale^2 (Tipping and Bishop 1999). The guide starts at the diagonal Gaussian that is
    closest to that posterior in KL(q || p): A x + c = m(x), variances 1 / diag(P).
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: float, prior_mean: float | Tensor = 0.0) -> None:
        super().__init__()
        require(weight.dim() == 2, f"weight must have shape (D, L), got {tuple(weight.shape)}")
        shape = tuple(weight.shape)
        require(bias.shape == shape[:1], f"bias must have shape {shape[:1]}, got {tuple(bias.shape)}")
        require_number("scale", scale, above=0)
        self.event_shape, self.latent_dim = shape[:1], shape[1]
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        prior_mean = torch.as_tensor(prior_mean, dtype=weight.dtype, device=weight.device)
        self.prior_mean = _parameter(prior_mean.expand(shape[1]))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=weight.dtype, device=weight.device))
        with torch.no_grad():
            slope, mean_at_zero, precision = self._posterior_parts()
        self.guide_weight, self.guide_bias = _parameter(slope), _parameter(mean_at_zero)
        self.guide_log_scale = nn.Parameter(-0.5 * precision.diagonal().log())

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def model(self, x: Tensor) -> None:
        """p(x, z) for `x` `(batch, D)`."""
        parameters = {
            "weight": self.weight,
            "bias": self.bias,
            "prior_mean": self.prior_mean,
            "log_scale": self.log_scale,
        }
        self._register(parameters)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) for `x` `(batch, D)`."""
        parameters = {"guide_weight": self.guide_weight, "guide_bias": self.guide_bias}
        self._register({**parameters, "guide_log_scale": self.guide_log_scale})
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def exact_guide(self, x: Tensor) -> None:
        """p(z|x): under this guide every log importance weight is log p(x)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))

    @property
    def prior(self) -> dist.TorchDistribution:
        return dist.Normal(self.prior_mean, torch.ones_like(self.prior_mean)).to_event(1)

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """q(z|x), batch shape `(batch,)`, event shape `(L,)`."""
        return dist.Normal(x @ self.guide_weight.T + self.guide_bias, self.guide_log_scale.exp()).to_event(1)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x|z) for `z` `(..., L)`."""
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """p(z|x), batch shape `(batch,)`, event shape `(L,)`."""
        slope, mean_at_zero, precision = self._posterior_parts()
        return dist.MultivariateNormal(x @ slope.T + mean_at_zero, precision_matrix=precision)

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) in nats, `(batch,)`."""
        identity = torch.eye(len(self.bias)).to(self.weight)
        covariance = self.weight @ self.weight.T + self.scale**2 * identity
        mean = self.weight @ self.prior_mean + self.bias
        return dist.MultivariateNormal(mean, covariance_matrix=covariance).log_prob(x)

    def elbo(self, x: Tensor) -> Tensor:
        """The ELBO of `guide` in nats, `(batch,)`: E_q[log p(x|z)] - KL(q(z|x) || p(z)), both in closed form."""
        q = self.encode(x)
        # E |x - Wz - b|^2 under q = |x - W E[z] - b|^2 + tr(W Var[z] W^T)
        squares = (x - q.mean @ self.weight.T - self.bias).square().sum(-1) + (self.weight.square() @ q.variance.T).sum(
            0
        )
        size = len(self.bias)
        reconstruction = -0.5 * squares / self.scale**2 - size * (self.log_scale + 0.5 * math.log(2 * math.pi))
        shift = (q.mean - self.prior_mean).square()
        return reconstruction - 0.5 * (q.variance + shift - 1 - q.variance.log()).sum(-1)

    def check_data(self, x: Tensor) -> None:
        size = len(self.bias)
        require(x.dim() == 2 and x.shape[1] == size, f"x must have shape (batch, {size}), got {tuple(x.shape)}")
        require_finite("x", x)

    def _posterior_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(slope, mean at x = 0, precision) of p(z|x) = N(slope x + mean_at_zero, precision^-1)."""
        precision = torch.eye(self.latent_dim).to(self.weight) + self.weight.T @ self.weight / self.scale**2
        slope = torch.linalg.solve(precision, self.weight.T / self.scale**2)
        mean_at_zero = torch.linalg.solve(precision, self.prior_mean) - slope @ self.bias
        return slope, mean_at_zero, precision

    def _register(self, parameters: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            if parameter.requires_grad:  # as pyro.module has it: the param store would thaw one that is frozen
                pyro.param(f"{unique_name(self)}.{name}", parameter)


def _parameter(value: Tensor) -> nn.Parameter:
    # Of a tensor that is not contiguous Pyro's param store keeps a copy, and SVI would train the copy alone.
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
