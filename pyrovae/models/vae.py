"""The variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114) as a Pyro model and guide."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.common import (
    evaluates,
    local_seed,
    require,
    require_batch,
    require_choice,
    require_count,
    require_finite,
    require_number,
)
from pyrovae.models.conditions import Condition, Features
from pyrovae.models.likelihoods import Likelihood
from pyrovae.models.networks import NETWORKS
from pyrovae.models.param_store import Module, unique_name
from pyrovae.models.posteriors import POSTERIORS, Posterior
from pyrovae.models.priors import PRIORS, Prior


class VAE(Module):
    """p(z) = N(0, I), p(x|z) = likelihood(decoder(z)), q(z|x) = N(loc(x), diag(exp(log_variance(x)))).

    `model` and `guide` are Pyro programs with the sites `"z"`, `(batch, latent_dim)`, and `"x"`, `(batch,
    *event_shape)`, in one plate `"data"` at dim -1.

    - `hidden`: units of the encoder's layers, or channels with `network="conv"`; the decoder mirrors them.
    - `likelihood`, `posterior` and `prior` are copied, so that one instance given to two VAEs is not shared by them.
    - `condition`: one `Condition` or several make it p(x|z, y) p(z), q(z|x, y) (Sohn et al. 2015): every method that
      takes x takes as many y after it. Encoder and decoder each have a copy, with parameters of its own.
    - `posterior` is q(z|x), one of `posteriors` or by name: `diagonal`, `full_covariance`, `flow`, `bernoulli`,
      `relaxed_bernoulli`, or `delta`, the plain autoencoder, z = loc(x), which has no KL and no log p(x). `prior` is
      p(z), one of `priors` or by name: `standard`, `mixture`, `flow`; by default the posterior's own, N(0, I) for z of
      real numbers and uniform for codes.
    - `beta` weighs the KL term (Higgins et al. 2017) by scaling the latent site in model *and* guide; it is a 0-dim
      buffer, to be changed with `set_beta`.
    - `data_mean`, of shape `event_shape`, sets the decoder's output bias to start from: give it `data.train_mean`
      with `network="mlp"`. A convolutional decoder that has the mean image for nothing tends to leave z unused.

    Raises `InputError` on a bad size, and from every method on an `x` or `y` of the wrong shape or dtype.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int,
        hidden: Sequence[int],
        likelihood: Likelihood,
        activation: str = "relu",
        network: str = "mlp",
        condition: Condition | Sequence[Condition] = (),
        posterior: Posterior | str = "diagonal",
        prior: Prior | str | None = None,
        beta: float = 1.0,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        for size in event_shape:
            require_count("event_shape", size)
        require_count("latent_dim", latent_dim)
        require(isinstance(likelihood, Likelihood), f"likelihood must be a pyrovae likelihood, got {likelihood!r}")
        require_choice("network", network, NETWORKS)
        if not isinstance(posterior, Posterior):
            require_choice("posterior", posterior, POSTERIORS)
            posterior = POSTERIORS[posterior](latent_dim)
        rule = f"posterior must be of latent_dim, {latent_dim}, got one of {posterior.latent_dim}"
        require(posterior.latent_dim == latent_dim, rule)
        if prior is None:
            prior = posterior.usual_prior()
        elif not isinstance(prior, Prior):
            require_choice("prior", prior, PRIORS)
            require(prior != "vamp", "prior vamp needs its pseudo-inputs: priors.Vamp(data.train_x[:500])")
            prior = PRIORS[prior](latent_dim)
        conditions = list(condition) if isinstance(condition, list | tuple) else [condition]
        for one in conditions:
            require(isinstance(one, Condition), f"condition must be pyrovae conditions, got {one!r}")
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        self.posterior_family, self.prior_family = copy.deepcopy(posterior), copy.deepcopy(prior)
        self.num_conditions = len(conditions)
        self.likelihood = copy.deepcopy(likelihood)
        self.encoder_features = Features(copy.deepcopy(conditions))
        self.decoder_features = Features(copy.deepcopy(conditions))
        for module in self.decoder_features.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        encoder, decoder = NETWORKS[network]
        settings = {"activation": activation, "num_features": self.encoder_features.num_features}
        self.encoder = encoder(self.event_shape, posterior.output_shape, hidden, **settings)
        decoded = likelihood.output_shape(event_shape)
        code = prior.decoded(torch.zeros(posterior.latent_shape))
        self.decoder = decoder(tuple(code.shape), decoded, hidden[::-1], **settings)
        self.register_buffer("beta", torch.tensor(1.0))
        self.set_beta(beta)
        if data_mean is not None:
            shape = tuple(data_mean.shape)
            require(shape == self.event_shape, f"data_mean must have shape {self.event_shape}, got {shape}")
            self.decoder.set_output_bias(likelihood.output_bias(data_mean))

        with local_seed(0), poutine.block(), torch.no_grad():
            z = tuple(self.prior_family.sample(self._encode_alone).shape)
        rule = f"prior must have z of shape {posterior.latent_shape}, as the posterior has, got {z}"
        require(z == posterior.latent_shape, rule)

    def set_beta(self, beta: float) -> None:
        # In place: Pyro's scale handler refuses 0, and a compiled step reads this very tensor.
        require_number("beta", beta, above=0)
        self.beta.fill_(beta)

    def model(self, x: Tensor, *y: Tensor) -> None:
        """p(x, z | y) for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        self._check_condition(y, len(x))
        name = unique_name(self)
        for part in ("decoder", "decoder_features", "likelihood", "prior_family"):
            pyro.module(f"{name}.{part}", getattr(self, part))
        with pyro.plate("data", len(x), dim=-1):
            with self._latent_handlers():
                z = self.prior_family.sample(self._encode_alone)
            pyro.sample("x", self.decode(z, *y), obs=x)

    def guide(self, x: Tensor, *y: Tensor) -> None:
        """q(z | x, y), amortised, for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        name = unique_name(self)
        for part in ("encoder", "encoder_features", "posterior_family"):
            pyro.module(f"{name}.{part}", getattr(self, part))
        with pyro.plate("data", len(x), dim=-1), self._latent_handlers():
            self.posterior_family.sample(self.encode(x, *y))

    @contextmanager
    def _latent_handlers(self) -> Iterator[None]:
        """Around the latent site of both programs: beta, and for an autoencoder no KL at all."""
        with poutine.scale(scale=self.beta):
            if self.posterior_family.has_density:
                yield
            else:
                with poutine.mask(mask=False):
                    yield

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape `(latent_dim,)`; of several layers there is none, only a program."""
        return self.prior_family(self._encode_alone)

    def encode(self, x: Tensor, *y: Tensor) -> dist.TorchDistribution:
        """q(z | x, y), batch shape `(batch,)`, event shape `(latent_dim,)`; of several layers q(z1 | x, y)."""
        self._check_shape(x)
        self._check_condition(y, len(x))
        return self.posterior_family(self.encoder(x, self.encoder_features(y)))

    def _encode_alone(self, x: Tensor) -> dist.TorchDistribution:
        require(self.num_conditions == 0, "a prior that is made of posteriors needs a VAE without conditions")
        return self.encode(x)

    def decode(self, z: Tensor, *y: Tensor) -> dist.TorchDistribution:
        """p(x | z, y) for `z` `(..., latent_dim)`: batch shape `(...)`, event shape `event_shape`.

        z is a value of the latent site; the decoder is given what the prior's `decoded` makes of it. `y` has a value
        for each z along the last of the leading dimensions.
        """
        require(len(y) == self.num_conditions, f"y must hold {self.num_conditions} conditions, got {len(y)}")
        outputs = self.decoder(self.prior_family.decoded(z), self.decoder_features(y))
        return self.likelihood(outputs, event_dim=len(self.event_shape))

    @evaluates
    @torch.no_grad()
    def sample(self, num_samples: int, y: Tensor | Sequence[Tensor] = (), mean: bool = False) -> Tensor:
        """`num_samples` draws of x ~ p(x|y), `(num_samples, *event_shape)`; with `mean`, of E[x|z, y] for z ~ p(z).

        `y` has a value for each sample; several conditions are a sequence. Modules run in `eval()` mode: these are
        draws from the model that log p(x) is of.
        """
        require_count("num_samples", num_samples)
        y = tuple(y) if isinstance(y, list | tuple) else (y,)
        self._check_condition(y, num_samples)
        with pyro.plate("samples", num_samples, dim=-1):
            z = self.prior_family.sample(self._encode_alone)
        x_given_z = self.decode(z, *y)
        return x_given_z.mean if mean else x_given_z.sample()

    @evaluates
    @torch.no_grad()
    def reconstruct(self, x: Tensor, *y: Tensor) -> Tensor:
        """E[x|z, y] at the posterior mean z = E_q[z|x, y]: a picture of what the code keeps, not a term of the ELBO.

        Where q has no mean in closed form it is that of 64 draws.
        """
        return self.decode(mean_of(self.encode(x, *y)), *y).mean

    def check_data(self, x: Tensor, *y: Tensor) -> None:
        """Raises `InputError` unless this is a batch to train on: shape, dtype, finite, support, conditions."""
        self._check_shape(x)
        require_finite("x", x)
        self.likelihood.check(x)
        self._check_condition(y, len(x))

    def _check_shape(self, x: Tensor) -> None:
        require_batch(x, self.event_shape, next(self.parameters()).dtype)

    def _check_condition(self, y: Sequence[Tensor], num_data: int) -> None:
        require(len(y) == self.num_conditions, f"y must hold {self.num_conditions} conditions, got {len(y)}")
        if is_validation_enabled():  # a traced step cannot look at values, and was validated before
            for condition, value in zip(self.encoder_features.conditions, y, strict=True):
                condition.check(value, num_data)


def mean_of(q: dist.TorchDistribution, num_draws: int = 64) -> Tensor:
    """E_q[z], in closed form or as the mean of draws."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample((num_draws,)).mean(0)
