"""The variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114) as a Pyro model and guide."""

import copy
import itertools
import weakref
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.errors import InputError, require, require_count, require_finite, require_number
from pyrovae.likelihoods import IsotropicNormal, Likelihood
from pyrovae.networks import MLP

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def unique_name(module: nn.Module) -> str:
    """A name for `module` in Pyro's param store that no other module of this process has had.

    Under a name that the store already holds, `pyro.module` hands back the older parameters, and the new module never
    trains. The name is kept by identity and not as an attribute, so that a deep copy gets one of its own.
    """
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_numbers)}"
    return _names[module]


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) = likelihood(decoder(z)), q(z|x) = N(loc(x), diag(exp(log_variance(x)))).

    `model` and `guide` are Pyro programs with the sites `"z"`, `(batch, latent_dim)`, and `"x"`, `(batch,
    *event_shape)`, in one plate `"data"` at dim -1. The encoder puts out `(loc, log_variance)`.

    `hidden` are the units of the encoder's layers; the decoder mirrors them. `beta` weighs the KL term (Higgins et al.
    2017) by scaling the latent site in model *and* guide; it is a 0-dim buffer, to be changed with `set_beta`.
    `likelihood` is copied, so that one instance given to two VAEs is not shared between them. `data_mean`, of shape
    `event_shape`, sets the decoder's output bias to start from: give it `data.train_mean`.

    Raises `InputError` on a bad size, and from every method on an `x` of the wrong shape or dtype.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int,
        hidden: Sequence[int],
        likelihood: Likelihood,
        activation: str = "relu",
        beta: float = 1.0,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        for size in event_shape:
            require_count("event_shape", size)
        require_count("latent_dim", latent_dim)
        require(isinstance(likelihood, Likelihood), f"likelihood must be a pyrovae likelihood, got {likelihood!r}")
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        self.likelihood = copy.deepcopy(likelihood)
        self.encoder = MLP(self.event_shape, (2, latent_dim), hidden, activation)
        self.decoder = MLP((latent_dim,), likelihood.output_shape(event_shape), hidden[::-1], activation)
        self.register_buffer("beta", torch.tensor(1.0))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_log_scale", torch.zeros(()), persistent=False)
        self.set_beta(beta)
        if data_mean is not None:
            shape = tuple(data_mean.shape)
            require(shape == self.event_shape, f"data_mean must have shape {self.event_shape}, got {shape}")
            self.decoder.set_output_bias(likelihood.output_bias(data_mean))

    def set_beta(self, beta: float) -> None:
        # In place: Pyro's scale handler refuses 0, and a compiled step reads this very tensor.
        require_number("beta", beta, above=0)
        self.beta.fill_(beta)

    def model(self, x: Tensor) -> None:
        """p(x, z) for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        pyro.module(f"{unique_name(self)}.decoder", self.decoder)
        pyro.module(f"{unique_name(self)}.likelihood", self.likelihood)
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", self.prior)
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x), amortised, for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        pyro.module(f"{unique_name(self)}.encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.beta):
            pyro.sample("z", self.encode(x))

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape `(latent_dim,)`."""
        return IsotropicNormal(self.prior_loc, self.prior_log_scale).to_event(1)

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """q(z|x), batch shape `(batch,)`, event shape `(latent_dim,)`."""
        self._check_shape(x)
        loc, log_variance = self.encoder(x).unbind(-2)
        return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x|z) for `z` `(..., latent_dim)`: batch shape `(...)`, event shape `event_shape`."""
        return self.likelihood(self.decoder(z), event_dim=len(self.event_shape))

    @torch.no_grad()
    def sample(self, num_samples: int, mean: bool = False) -> Tensor:
        """`num_samples` draws of x ~ p(x), `(num_samples, *event_shape)`; with `mean`, of E[x|z] for z ~ p(z)."""
        require_count("num_samples", num_samples)
        x_given_z = self.decode(self.prior.sample((num_samples,)))
        return x_given_z.mean if mean else x_given_z.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the posterior mean z = E_q[z|x]: a picture of what the code keeps, not a term of the ELBO."""
        return self.decode(self.encode(x).mean).mean

    def check_data(self, x: Tensor) -> None:
        """Raises `InputError` unless `x` is a batch that this VAE can be trained on: shape, dtype, finite, support."""
        self._check_shape(x)
        require_finite("x", x)
        self.likelihood.check(x)

    def _check_shape(self, x: Tensor) -> None:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise InputError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        expected = ", ".join(map(str, ("batch", *self.event_shape)))
        require(
            x.dim() == len(self.event_shape) + 1 and x.shape[1:] == self.event_shape,
            f"x must have shape ({expected}), got {tuple(x.shape)}",
        )
        require(len(x) > 0, "x must hold at least one datum, got 0")
