"""The variational autoencoder as a Pyro model and guide."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.common import (
    as_codes,
    as_dtype,
    as_tensor,
    evaluates,
    local_seed,
    require,
    require_batch,
    require_finite,
    require_finite_data,
    require_finite_input,
    require_flag,
    require_missing,
    require_number,
    require_shape,
    require_size,
    takes_data,
)
from pyrovae.models.choosing import posterior_of, prior_of
from pyrovae.models.conditions import Condition, Features, SizeFactor, check_size_factors, conditions_of
from pyrovae.models.encoder_failures import refuse_seen
from pyrovae.models.latent_codes import codes_between, mean_of
from pyrovae.models.likelihoods import Likelihood, check_likelihood, distribution_of
from pyrovae.models.missing import check_cells, filled, with_mask, without_missing
from pyrovae.models.networks import Maker, encoder_and_decoder, run_network, set_output_bias
from pyrovae.models.param_store import register, unique_name
from pyrovae.models.posteriors import Posterior
from pyrovae.models.priors import Prior, Vamp
from pyrovae.models.saving import SavedModel


class VAE(SavedModel):
    """A variational autoencoder: a model p(x, z) and a guide q(z|x), as Pyro programs.

        p(z) = N(0, I),  p(x|z) = likelihood(decoder(z)),  q(z|x) = N(loc(x), diag(exp(log_variance(x))))

    These are the defaults; `prior` and `posterior` replace p(z) and q(z|x). `model(x)` and `guide(x)` have the sites
    `"z"`, `(batch, latent_dim)`, and `"x"`, `(batch, *event_shape)`, in one plate `"data"` at dim -1. With conditions y
    they are p(x, z|y) = p(x|z, y) p(z) and q(z|x, y), and every method that takes x takes all y after it.

    Args:
        event_shape: The shape of one datum, for example `(2,)` or `(1, 28, 28)`.
        latent_dim: The number of elements of z, L.
        hidden: The units of the encoder's hidden layers, or their channels with `network="conv"` or `"resnet"`. The
            decoder mirrors them. Needed unless encoder and decoder are given.
        likelihood: The family of p(x|z). The VAE copies it, and `posterior`, `prior` and `condition`, so that nothing
            is shared by two VAEs.
        activation: One of relu, tanh, softplus, elu, gelu, silu, leaky_relu.
        network: `"mlp"`, or `"conv"` or `"resnet"` for images.
        encoder: A network of your own, an `nn.Module` from x, `(batch, *event_shape)` or as the likelihood's
            `encoder_input` and `missing` show it, to the posterior's `output_shape`: by default (loc, log_variance),
            `(batch, 2, latent_dim)`, or flattened, `(batch, 2 * latent_dim)`. With conditions it is called with their
            features, `(batch, num_features)`, as the second argument. The VAE uses the module itself and not a copy. A
            function or a class that makes a module is called as `encoder(in_shape, out_shape)`, and with conditions
            also with `num_features=`.
        decoder: The same from z, `(batch, latent_dim)`, to the likelihood's `output_shape`: by default
            `(batch, *event_shape)`, or flattened. Particles are part of this batch.
        condition: A `Condition` or a sequence of them. Encoder and decoder each have a copy with its own parameters.
        posterior: One of `pv.posteriors`, or a name: diagonal, full_covariance, flow, mixture, bernoulli,
            relaxed_bernoulli, or delta. The last is the plain autoencoder z = loc(x), which has no KL and no log p(x).
        prior: One of `pv.priors`, or a name: standard, mixture, flow. By default it is the posterior's own: N(0, I) for
            real z, uniform for codes.
        beta: The weight of the KL term in training. It scales the latent site in model and guide, and is a buffer that
            `set_beta` changes.
        missing: None refuses NaN in x. With "mask" it is a missing cell: the encoder sees 0 there, and beside x whether
            each cell was observed, joined along the first dimension of an event. The likelihood leaves the cell out, so
            that p(x) is that of the observed cells, p(x_obs) = E_q[p(x_obs|z) p(z) / q(z|x_obs)], in training and in
            every estimate. It is the model of the data if cells are missing at random: whether one is may depend on the
            observed cells and not on its own value. `reconstruct` imputes. Mattei and Frellsen call `objectives.IWAE`
            on this MIWAE; `objectives.MIWAE` is Rainforth's.
        data_mean: A mean, `event_shape`, that the decoder's output bias starts from. Pass `data.train_mean` with
            `network="mlp"`. A convolutional decoder that starts from the mean image tends to leave z unused. A decoder
            of your own needs a method `set_output_bias(bias)`, or an attribute `output_bias`.

    Raises:
        InputError: If a size, a name or a part does not fit; and, from every method, if an `x` or `y` has the wrong
            shape or dtype.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=1, hidden=(16,), likelihood=pv.Gaussian(0.3))
        >>> x = torch.randn(100, 2)
        >>> history = pv.fit(vae, x, epochs=2)
        >>> vae.reconstruct(x).shape, vae.sample(5).shape
        (torch.Size([100, 2]), torch.Size([5, 2]))

        With networks of your own:

        >>> own = {"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(1, 2)}
        >>> pv.VAE((2,), latent_dim=1, **own, likelihood=pv.Gaussian(0.3)).encoder is own["encoder"]
        True

    Source:
        Kingma and Welling 2014, arXiv:1312.6114; conditions: Sohn et al. 2015; beta: Higgins et al. 2017; missing
        cells: Mattei and Frellsen 2019, arXiv:1812.02633.
    """

    beta: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int,
        hidden: Sequence[int] | None = None,
        likelihood: Likelihood,
        activation: str = "relu",
        network: str = "mlp",
        encoder: nn.Module | Maker | None = None,
        decoder: nn.Module | Maker | None = None,
        condition: Condition | Sequence[Condition] = (),
        posterior: Posterior | str = "diagonal",
        prior: Prior | str | None = None,
        beta: float = 1.0,
        missing: str | None = None,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_shape("event_shape", event_shape)
        require_size("latent_dim", latent_dim)
        check_likelihood(likelihood)
        posterior = posterior_of(posterior, latent_dim)
        prior = prior_of(prior, posterior)
        if isinstance(prior, Vamp):  # its pseudo-inputs are any real numbers, of which some have no logarithm
            name, zeros = type(likelihood).__name__, torch.zeros(1, *event_shape)
            as_it_is = likelihood.encoder_input(zeros, len(event_shape)) is zeros
            require(as_it_is, f"prior vamp needs a likelihood whose encoder sees x as it is, got {name}")
        conditions = conditions_of(condition)
        check_size_factors(conditions, likelihood)
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        self.posterior_family, self.prior_family = copy.deepcopy(posterior), copy.deepcopy(prior)
        self.num_conditions = len(conditions)
        self.likelihood, self.missing = copy.deepcopy(likelihood), missing
        require_missing(missing)
        if missing is not None:
            check_cells(likelihood, self.event_shape)
        self.encoder_features = Features(copy.deepcopy(conditions))
        self.decoder_features = Features(copy.deepcopy(conditions))
        for module in self.decoder_features.modules():
            getattr(module, "reset_parameters", lambda: None)()
        decoded = likelihood.output_shape(self.event_shape)
        seen_shape = tuple(self.encoder_input(torch.zeros(1, *self.event_shape)).shape[1:])
        self.code_shape = tuple(prior.decoded(torch.zeros(posterior.latent_shape)).shape)
        self.encoder, self.decoder = encoder_and_decoder(
            encoder,
            decoder,
            encoder_shapes=(seen_shape, posterior.output_shape),
            decoder_shapes=(self.code_shape, decoded),
            network=network,
            hidden=hidden,
            activation=activation,
            num_features=self.encoder_features.num_features,
        )
        self.register_buffer("beta", torch.tensor(1.0))
        self.set_beta(beta)
        if data_mean is not None:
            require_finite("data_mean", data_mean)
            shape, real = tuple(data_mean.shape), not data_mean.is_complex()
            rule = f"data_mean must be real, of shape {self.event_shape}"
            require(real and shape == self.event_shape, f"{rule}, got {shape}")
            bias = likelihood.output_bias(data_mean)
            rule = f"data_mean must be one that {type(likelihood).__name__} can have"
            require(bool(bias.isfinite().all()), f"{rule}, got {data_mean.min().item():g}")
            set_output_bias(self.decoder, bias)

        with local_seed(0), poutine.block(), torch.no_grad():
            z = tuple(self.prior_family.sample(self._encode_unconditionally).shape)
        rule = f"prior must have z of shape {posterior.latent_shape}, as the posterior has, got {z}"
        require(z == posterior.latent_shape, rule)

    def set_beta(self, beta: float) -> None:
        """Sets the weight of the KL term, a positive number."""
        # Pyro's scale handler refuses 0. The buffer changes in place because a compiled step reads this very tensor.
        require_number("beta", beta, above=0, below=2.0**63)
        require(torch.tensor(beta).item() > 0, f"beta must be > 0 as a float32, got {beta}")
        self.beta.fill_(beta)

    def model(self, x: Tensor, *y: Tensor) -> None:
        """Runs p(x, z|y), with `x` `(batch, *event_shape)` observed."""
        self._check_shape(x)
        self.encoder_features.check(y, len(x))
        name = unique_name(self)
        for part in ("decoder", "decoder_features", "likelihood", "prior_family"):
            register(f"{name}.{part}", getattr(self, part))
        with pyro.plate("data", len(x), dim=-1):
            with self._latent_handlers():
                z = self.prior_family.sample(self._encode_unconditionally)
            x_given_z = self.decode(z, *y)
            if self.missing is None:
                pyro.sample("x", x_given_z, obs=x)
            else:
                x_given_z, value = without_missing(x_given_z, x, self.likelihood.filler)
                kept: Any = {"observes": x}  # where x is drawn anew, it keeps its missing cells
                pyro.sample("x", x_given_z, obs=value, infer=kept)

    def guide(self, x: Tensor, *y: Tensor) -> None:
        """Runs the amortised q(z|x, y) for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        name = unique_name(self)
        for part in ("encoder", "encoder_features", "posterior_family"):
            register(f"{name}.{part}", getattr(self, part))
        with pyro.plate("data", len(x), dim=-1), self._latent_handlers():
            self.posterior_family.sample(self.encode(x, *y))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @contextmanager
    def _latent_handlers(self) -> Iterator[None]:
        """Scales the latent site of a program by beta; masks it in an autoencoder, which has no KL, and marks it."""
        with poutine.scale(scale=self.beta):
            if self.posterior_family.has_density:
                yield
            else:
                with poutine.mask(mask=False), poutine.infer_config(config_fn=_autoencoder_mark):
                    yield

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), with event shape `(latent_dim,)`. Raises `InputError` for a prior of several layers, only a program."""
        return self.prior_family(self._encode_unconditionally)

    @takes_data
    def encode(self, x: Tensor, *y: Tensor) -> dist.TorchDistribution:
        """Returns q(z|x, y), with batch shape `(batch,)` and event shape `(latent_dim,)`; with layers, q(z_1|x, y)."""
        self._check_shape(x)
        require_finite_input(x, self)
        self.encoder_features.check(y, len(x))
        seen = self.encoder_input(x)
        shapes = seen.shape[1:], self.posterior_family.output_shape
        try:
            return self.posterior_family(run_network(self.encoder, seen, self.encoder_features(y), *shapes))
        except ValueError as error:
            refuse_seen(self, error, seen, x, *y)
            raise

    def encoder_input(self, x: Tensor) -> Tensor:
        """Returns x as the encoder sees it, `(batch, ...)`."""
        seen = self.likelihood.encoder_input(x, len(self.event_shape))
        return seen if self.missing is None else with_mask(seen, x, len(self.event_shape))

    def _encode_unconditionally(self, x: Tensor) -> dist.TorchDistribution:
        require(self.num_conditions == 0, "a prior that is made of posteriors needs a VAE without conditions")
        return self.encode(x)

    def decode(self, z: Tensor, *y: Tensor) -> dist.TorchDistribution:
        """Returns p(x|z, y) for `z` `(..., latent_dim)`, with batch shape `(...)` and event shape `event_shape`.

        `z` is a value of the latent site, and the decoder takes `prior_family.decoded(z)`. Each y has as many values as
        there are z along the last leading dimension.
        """
        y = self.decoder_features.given(y, self._dtype)
        self.decoder_features.check_number(y)
        z = as_codes(z, self.posterior_family.latent_shape, self._dtype)
        shapes = self.code_shape, self.likelihood.output_shape(self.event_shape)
        outputs = run_network(self.decoder, self.prior_family.decoded(z), self.decoder_features(y), *shapes)
        sizes = [v for one, v in zip(self.decoder_features.conditions, y, strict=True) if isinstance(one, SizeFactor)]
        return distribution_of(self.likelihood, outputs, len(self.event_shape), *sizes)

    @evaluates
    @torch.no_grad()
    def sample(self, num_samples: int, y: Tensor | Sequence[Tensor] = (), mean: bool = False) -> Tensor:
        """Returns draws of x ~ p(x|y), or with `mean` of E[x|z, y] for z ~ p(z), `(num_samples, *event_shape)`.

        `y` has a value for each sample; several conditions are passed as a sequence. Modules run in `eval()` mode, as
        in every estimate of log p(x).
        """
        require_size("num_samples", num_samples)
        require_flag("mean", mean)
        conditions = self.encoder_features.given(y, self._dtype)
        self.encoder_features.check(conditions, num_samples)
        with pyro.plate("samples", num_samples, dim=-1):
            z = self.prior_family.sample(self._encode_unconditionally)
        x_given_z = self.decode(z, *conditions)
        return x_given_z.mean if mean else x_given_z.sample()

    @evaluates
    @torch.no_grad()
    @takes_data
    def reconstruct(self, x: Tensor, *y: Tensor) -> Tensor:
        """Returns E[x|z, y] at the posterior mean z = E_q[z|x, y], `(batch, *event_shape)`.

        It shows what z keeps of x, and is not a term of the ELBO. Missing cells of x have their E[x|z, y], too. If q
        has no mean in closed form, z is the mean of 64 draws.
        """
        return self.decode(mean_of(self.encode(x, *y)), *y).mean

    @evaluates
    @torch.no_grad()
    def interpolate(
        self, x1: Tensor, x2: Tensor, steps: int = 8, y: Tensor | Sequence[Tensor] = (), spherical: bool = False
    ) -> Tensor:
        """Returns E[x|z, y] at `steps` codes z on the way from each x1 to its x2, `(batch, steps, *event_shape)`.

        The first and the last are the reconstructions of x1 and x2, `(batch, *event_shape)`, at their posterior means.
        Between them z moves along a line, or with `spherical` its direction along the arc of a great circle and its
        length evenly (Shoemake 1985), so that it does not pass through the middle of the prior. Both ends and the way
        have the conditions `y`, as in `sample`. Raises `InputError` if `steps` is less than 2, the shapes differ, or
        two codes are opposite and `spherical` has no one way.
        """
        require_size("steps", steps, 2)
        require_flag("spherical", spherical)
        conditions = self.encoder_features.given(y, self._dtype)
        x1, x2 = (as_dtype(name, as_tensor(name, x), self._dtype) for name, x in (("x1", x1), ("x2", x2)))
        for name, x in (("x1", x1), ("x2", x2)):
            self._check_shape(x, name)
            require_finite_input(x, self, name)
        require(len(x1) == len(x2), f"x1 and x2 must have as many data, got {len(x1)} and {len(x2)}")
        z1, z2 = (mean_of(self.encode(x, *conditions)) for x in (x1, x2))
        return self.decode(codes_between(z1, z2, steps, spherical), *conditions).mean.transpose(0, 1)

    def convert_data(self, x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        """Returns a batch in the dtypes that the VAE takes: x in that of the parameters, y as its conditions have it.

        `fit`, `log_marginal` and every other function that takes a VAE with its data calls it. Raises `InputError` if a
        dtype would lose something: a large whole number, or digits of float64 that tell the data apart.
        """
        return as_dtype("x", x, self._dtype), *self.encoder_features.convert(y, self._dtype)

    def check_data(self, x: Tensor, *y: Tensor) -> None:
        """Raises `InputError` if the VAE cannot be trained on this batch.

        Checks shape, dtype, finiteness (a missing cell may be NaN), the likelihood's support, and the conditions.
        """
        self._check_shape(x)
        require_finite_data(x, self)
        self.likelihood.check(x if self.missing is None else filled(x, self.likelihood.filler))
        self.encoder_features.check(y, len(x))

    def _check_shape(self, x: Tensor, name: str = "x") -> None:
        require_batch(x, self.event_shape, self._dtype, name)


def _autoencoder_mark(site: object) -> Any:
    """Returns what says of a masked latent that the decoder reads it: `pyrovae.programs` would refuse it otherwise."""
    return {"is_autoencoder": True}
