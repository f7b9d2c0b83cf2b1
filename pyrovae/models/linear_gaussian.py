"""The VAE with a closed form, which every estimator is tested against."""

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common import (
    as_codes,
    as_dtype,
    require,
    require_batch,
    require_finite,
    require_finite_input,
    require_number,
    require_plain,
    takes_data,
)
from pyrovae.models.param_store import unique_name
from pyrovae.models.saving import SavedModel


class LinearGaussianVAE(SavedModel):
    """A linear Gaussian VAE, whose log p(x), posterior and ELBO have closed forms: probabilistic PCA.

        z ~ N(prior_mean, I),  x|z ~ N(W z + b, scale^2 I),  q(z|x) = N(A x + c, diag(exp(2 log_scale)))
        p(x) = N(W prior_mean + b, W W^T + scale^2 I)
        p(z|x) = N(m(x), P^-1)  with P = I + W^T W / scale^2

    All of these are parameters and can be trained. The guide starts at the diagonal Gaussian that is closest to the
    posterior in KL(q || p): A x + c = m(x), with variances 1 / diag(P).

    Args:
        weight: W, `(D, L)`. The model keeps its dtype.
        bias: b, `(D,)`.
        scale: The standard deviation of x|z, a positive number.
        prior_mean: A number or `(L,)`.

    Raises:
        InputError: If a shape does not fit, or `scale` is not a positive number.

    Example:
        >>> weight = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        >>> vae = pv.LinearGaussianVAE(weight, torch.zeros(2, dtype=torch.float64), scale=0.5)
        >>> x = torch.randn(10, 2, dtype=torch.float64)
        >>> weights = pv.log_weights(vae.model, vae.exact_guide, x, num_particles=3)
        >>> torch.allclose(weights, vae.log_px(x).expand(3, 10))  # the exact posterior has constant weights
        True
        >>> torch.allclose(vae.elbo(x), vae.log_px(x))  # for one latent the best diagonal Gaussian is the posterior
        True

    Source:
        Tipping and Bishop 1999, Probabilistic Principal Component Analysis.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: float, prior_mean: float | Tensor = 0.0) -> None:
        super().__init__()
        require_plain("weight", weight)
        require_plain("bias", bias)
        require(weight.dim() == 2, f"weight must have shape (D, L), got {tuple(weight.shape)}")
        shape = tuple(weight.shape)
        require(bias.shape == shape[:1], f"bias must have shape {shape[:1]}, got {tuple(bias.shape)}")
        require_number("scale", scale, above=0)
        self.event_shape, self.latent_dim = shape[:1], shape[1]
        self.weight, self.bias = _contiguous_parameter(weight), _contiguous_parameter(bias)
        if isinstance(prior_mean, Tensor):
            require_plain("prior_mean", prior_mean)
            fits = tuple(prior_mean.shape) in ((), (1,), shape[1:])
            require(fits, f"prior_mean must have shape {shape[1:]}, got {tuple(prior_mean.shape)}")
        else:
            require_number("prior_mean", prior_mean)
        prior_mean = torch.as_tensor(prior_mean, dtype=weight.dtype, device=weight.device)
        self.prior_mean = _contiguous_parameter(prior_mean.expand(shape[1]))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=weight.dtype, device=weight.device))
        with torch.no_grad():
            slope, mean_at_zero, precision = self._posterior_parts()
        self.guide_weight, self.guide_bias = _contiguous_parameter(slope), _contiguous_parameter(mean_at_zero)
        self.guide_log_scale = nn.Parameter(-0.5 * precision.diagonal().log())

    @property
    def scale(self) -> Tensor:
        """The standard deviation of x|z, `()`."""
        return self.log_scale.exp()

    def model(self, x: Tensor) -> None:
        """Runs p(x, z), with `x` `(batch, D)` observed."""
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
        """Runs q(z|x) for `x` `(batch, D)`."""
        parameters = {"guide_weight": self.guide_weight, "guide_bias": self.guide_bias}
        self._register({**parameters, "guide_log_scale": self.guide_log_scale})
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def exact_guide(self, x: Tensor) -> None:
        """Runs p(z|x): under this guide every log importance weight is log p(x)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), with event shape `(L,)`."""
        return dist.Normal(self.prior_mean, torch.ones_like(self.prior_mean)).to_event(1)

    @takes_data
    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z|x), with batch shape `(batch,)` and event shape `(L,)`."""
        self._check_batch(x)
        return dist.Normal(x @ self.guide_weight.T + self.guide_bias, self.guide_log_scale.exp()).to_event(1)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Returns p(x|z) for `z` `(..., L)`."""
        z = as_codes(z, (self.latent_dim,), self.weight.dtype)
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    @takes_data
    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Returns p(z|x), with batch shape `(batch,)` and event shape `(L,)`."""
        self._check_batch(x)
        slope, mean_at_zero, precision = self._posterior_parts()
        return dist.MultivariateNormal(x @ slope.T + mean_at_zero, precision_matrix=precision)

    @takes_data
    def log_px(self, x: Tensor) -> Tensor:
        """Returns log p(x) in nats, `(batch,)`."""
        self._check_batch(x)
        identity = torch.eye(len(self.bias)).to(self.weight)
        covariance = self.weight @ self.weight.T + self.scale**2 * identity
        mean = self.weight @ self.prior_mean + self.bias
        return dist.MultivariateNormal(mean, covariance_matrix=covariance).log_prob(x)

    @takes_data
    def elbo(self, x: Tensor) -> Tensor:
        """Returns the ELBO of `guide` in nats, `(batch,)`: E_q[log p(x|z)] - KL(q(z|x) || p(z)), in closed form."""
        q = self.encode(x)
        # E |x - Wz - b|^2 under q = |x - W E[z] - b|^2 + tr(W Var[z] W^T)
        squares = (x - q.mean @ self.weight.T - self.bias).square().sum(-1)
        squares = squares + (self.weight.square() @ q.variance.T).sum(0)
        size = len(self.bias)
        reconstruction = -0.5 * squares / self.scale**2 - size * (self.log_scale + 0.5 * math.log(2 * math.pi))
        shift = (q.mean - self.prior_mean).square()
        return reconstruction - 0.5 * (q.variance + shift - 1 - q.variance.log()).sum(-1)

    def convert_data(self, x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        """Returns a batch in the dtype of the parameters, if that loses nothing; see `VAE.convert_data`."""
        return as_dtype("x", x, self.bias.dtype), *y

    def check_data(self, x: Tensor) -> None:
        """Raises `InputError` unless `x` has shape `(batch, D)` and is finite."""
        size = len(self.bias)
        require_plain("x", x)
        require(x.dim() == 2 and x.shape[1] == size, f"x must have shape (batch, {size}), got {tuple(x.shape)}")
        require_finite("x", x)

    def _check_batch(self, x: Tensor) -> None:
        require_batch(x, self.bias.shape, self.bias.dtype)
        require_finite_input(x, self)

    def _posterior_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (slope, mean_at_zero, precision) of p(z|x) = N(slope x + mean_at_zero, precision^-1)."""
        precision = torch.eye(self.latent_dim).to(self.weight) + self.weight.T @ self.weight / self.scale**2
        slope = torch.linalg.solve(precision, self.weight.T / self.scale**2)
        mean_at_zero = torch.linalg.solve(precision, self.prior_mean) - slope @ self.bias
        return slope, mean_at_zero, precision

    def _register(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            if parameter.requires_grad:  # as pyro.module does: the store would switch a frozen parameter on again
                pyro.param(f"{unique_name(self)}.{name}", parameter)


def _contiguous_parameter(value: Tensor) -> nn.Parameter:
    # Pyro's parameter store keeps a copy of a tensor that is not contiguous, and SVI would train only the copy.
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
