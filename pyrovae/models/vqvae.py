"""The VQ-VAE, whose latents are codes of a codebook."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from pyrovae.common import (
    Workers,
    as_codes,
    as_dtype,
    evaluates,
    require,
    require_batch,
    require_choice,
    require_finite,
    require_finite_input,
    require_flag,
    require_number,
    require_shape,
    require_size,
    require_sizes,
    takes_data,
)
from pyrovae.models.code_distributions import NearestCode
from pyrovae.models.likelihoods import Likelihood, check_likelihood, distribution_of
from pyrovae.models.networks import NETWORKS
from pyrovae.models.param_store import register, unique_name
from pyrovae.models.saving import SavedModel


class CodebookUse(NamedTuple):
    """The use that some data make of a codebook."""

    share: float
    """The share of the codes that at least one token uses."""
    perplexity: float
    """exp(entropy of the frequencies of the codes): from 1, one code for all tokens, to `num_codes`."""


class VQVAE(SavedModel):
    """A vector-quantised VAE: z is `num_tokens` codes out of `num_codes`, as one-hot vectors.

        p(z) uniform,  p(x|z) = likelihood(decoder(e_z)),  q(z|x) all mass on the codes nearest to encoder(x)

    `model` and `guide` are Pyro programs with the sites `"z"`, `(batch, num_tokens, num_codes)`, and `"x"`,
    `(batch, *event_shape)`, in one plate `"data"` at dim -1. `fit` and all measures take it as they take a `VAE`. q has
    no entropy, and so

        log w = log p(x|z) - num_tokens log num_codes    nats, the same in every draw

    is a lower bound on log p(x) and not an estimate of it. More particles or samples are all alike and change nothing.
    The standard error of an importance estimate is 0, which does not say how far below log p(x) it is.

    In training mode the model also has the terms that the paper trains with. The decoder's gradient goes to the
    encoder's output z_e as if z_e were the code e (straight through). A factor

        -(|sg(z_e) - e|^2 + commitment |z_e - sg(e)|^2)    with sg(.) treated as a constant

    moves each towards the other; the codebook learns from this factor alone. Unlike in the paper, the tokens of z_e are
    normalised, and the factor sums over them instead of averaging. The factor is not a density. It is absent in
    evaluation mode, in which `fit` leaves the model and `log_marginal` runs it; `log_weights` runs it as it is.

    Codes that are nearest to no token get no gradient: call `restart_unused` before training and between epochs.

    Args:
        event_shape: The shape of one datum.
        num_tokens: The number of codes that represent one datum.
        num_codes: The number of codes in the codebook.
        code_dim: The length of a code vector e.
        hidden: The units of the encoder's hidden layers, or their channels with `network="conv"` or `"resnet"`. The
            decoder mirrors them.
        likelihood: The family of p(x|z). The VQ-VAE copies it.
        activation: One of relu, tanh, softplus, elu, gelu, silu, leaky_relu.
        network: `"mlp"`, or `"conv"` or `"resnet"` for images.
        commitment: The weight of the term that moves the encoder towards the codes, a positive number.

    Raises:
        InputError: If a size, a name or the likelihood does not fit; and, from every method, if an `x` has the wrong
            shape or dtype.

    Example:
        >>> sizes = {"num_tokens": 2, "num_codes": 8, "code_dim": 3, "hidden": (16,)}
        >>> vae, x = pv.VQVAE((4,), **sizes, likelihood=pv.Gaussian(0.3)), torch.randn(100, 4)
        >>> restarted = vae.restart_unused(x)
        >>> history = pv.fit(vae, x, epochs=2)
        >>> vae.encode(x).code.shape, vae.reconstruct(x).shape
        (torch.Size([100, 2, 8]), torch.Size([100, 4]))

    Source:
        Van den Oord et al. 2017, arXiv:1711.00937.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        num_tokens: int,
        num_codes: int,
        code_dim: int,
        hidden: Sequence[int],
        likelihood: Likelihood,
        activation: str = "relu",
        network: str = "mlp",
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        require_shape("event_shape", event_shape)
        require_size("num_tokens", num_tokens)
        require_size("num_codes", num_codes, 2)
        require_size("code_dim", code_dim)
        require_sizes("hidden", hidden)
        require_number("commitment", commitment, above=0)
        check_likelihood(likelihood)
        require_choice("network", network, NETWORKS)
        self.event_shape, self.commitment = tuple(event_shape), float(commitment)
        self.num_tokens, self.num_codes = num_tokens, num_codes
        self.likelihood = copy.deepcopy(likelihood)
        encoder, decoder = NETWORKS[network]
        shape, decoded = (num_tokens, code_dim), likelihood.output_shape(self.event_shape)
        seen = self.encoder_input(torch.zeros(1, *self.event_shape))
        self.encoder = encoder(tuple(seen.shape[1:]), shape, hidden, activation=activation)
        self.decoder = decoder(shape, decoded, hidden[::-1], activation=activation)
        self.codebook = nn.Parameter(rms_norm(torch.randn(num_codes, code_dim), (code_dim,)))

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), with event shape `(num_tokens, num_codes)`."""
        logits = self.codebook.new_zeros(self.num_tokens, self.num_codes)
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def model(self, x: Tensor) -> None:
        """Runs p(x, z), with `x` `(batch, *event_shape)` observed."""
        self._check_shape(x)
        register(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior)
            if not self.training:
                pyro.sample("x", self.decode(z), obs=x)
                return
            encoded, codes = self.encoded(x), z @ self.codebook
            to_encoded = (encoded.detach() - codes).square().sum((-2, -1))
            to_codes = (encoded - codes.detach()).square().sum((-2, -1))
            pyro.factor("codebook_loss", -(to_encoded + self.commitment * to_codes))
            # The value is that of the codes, to the bit. z stays in the graph for objectives that differentiate by it.
            straight_through = z @ self.codebook.detach() + (encoded - encoded.detach())
            pyro.sample("x", self._likelihood(straight_through), obs=x)

    def guide(self, x: Tensor) -> None:
        """Runs q(z|x), the nearest codes, for `x` `(batch, *event_shape)`."""
        q = self.encode(x)
        register(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    @takes_data
    def encode(self, x: Tensor) -> NearestCode:
        """Returns q(z|x), with batch shape `(batch,)` and event shape `(num_tokens, num_codes)`."""
        return NearestCode(self.encoded(x), self.codebook)

    @takes_data
    def encoded(self, x: Tensor) -> Tensor:
        """Returns z_e, `(batch, num_tokens, code_dim)`, where each token has a mean square of 1."""
        self._check_shape(x)
        require_finite_input(x, self)
        # With a free scale z_e runs away from the codes, which Adam moves by no more than its learning rate a step.
        return rms_norm(self.encoder(self.encoder_input(x)), self.codebook.shape[1:])

    def encoder_input(self, x: Tensor) -> Tensor:
        """Returns x as the encoder sees it, `(batch, ...)`."""
        return self.likelihood.encoder_input(x, len(self.event_shape))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Returns p(x|z) for one-hot `z` `(..., num_tokens, num_codes)`, with batch shape `(...)`."""
        z = as_codes(z, (self.num_tokens, self.num_codes), self.codebook.dtype)
        return self._likelihood(z @ self.codebook)

    def _likelihood(self, codes: Tensor) -> dist.TorchDistribution:
        return distribution_of(self.likelihood, self.decoder(codes), len(self.event_shape))

    @evaluates
    @torch.no_grad()
    def sample(self, num_samples: int, mean: bool = False) -> Tensor:
        """Returns draws of x ~ p(x), or with `mean` of E[x|z] for z ~ p(z), `(num_samples, *event_shape)`."""
        require_size("num_samples", num_samples)
        require_flag("mean", mean)
        x_given_z = self.decode(self.prior.sample((num_samples,)))
        return x_given_z.mean if mean else x_given_z.sample()

    @evaluates
    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Returns E[x|z] at the nearest codes z, `(batch, *event_shape)`."""
        return self.decode(self.encode(x).code).mean

    # The codebook -----------------------------------------------------------------------------------------------------

    @evaluates
    @torch.no_grad()
    def codebook_use(self, x: Tensor) -> CodebookUse:
        """Returns the share of the codes that the tokens of `x` use, and their perplexity."""
        counts = self.encode(x).code.sum((0, 1), dtype=torch.float64)
        frequency = counts / counts.sum()
        return CodebookUse((counts > 0).double().mean().item(), torch.special.entr(frequency).sum().exp().item())

    @torch.no_grad()
    def restart_unused(self, x: Tensor) -> int:
        """Replaces codes that are nearest to no token of `x` by encoded tokens of `x` drawn at random.

        Call it on a few hundred training data before training, and from `on_epoch`, but not after the last epoch: the
        decoder has yet to learn what a new code stands for.

        Returns:
            The number of codes that were replaced.

        Raises:
            InputError: If `x` has fewer tokens than there are unused codes.
        """
        unused = self.encode(x).code.sum((0, 1)) == 0
        encoded, count = self.encoded(x).flatten(0, 1), int(unused.sum())
        rule = f"x must have a token for each of {count} unused codes, got {len(encoded)} tokens"
        require(len(encoded) >= count, rule)
        drawn = Workers().agreed(torch.randperm(len(encoded)))[:count]
        self.codebook[unused] = encoded[drawn.to(encoded.device)]
        return count

    def convert_data(self, x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        """Returns a batch in the dtype of the parameters, if that loses nothing; see `VAE.convert_data`."""
        return as_dtype("x", x, self.codebook.dtype), *y

    def check_data(self, x: Tensor) -> None:
        """Raises `InputError` if the model cannot be trained on `x`: shape, dtype, finiteness, support."""
        self._check_shape(x)
        require_finite("x", x)
        self.likelihood.check(x)

    def _check_shape(self, x: Tensor) -> None:
        require_batch(x, self.event_shape, self.codebook.dtype)
