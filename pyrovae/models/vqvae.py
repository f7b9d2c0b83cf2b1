"""The VQ-VAE, whose latents are codes of a codebook (van den Oord et al. 2017, arXiv:1711.00937)."""

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
    evaluates,
    require,
    require_batch,
    require_choice,
    require_count,
    require_finite,
    require_number,
)
from pyrovae.models.code_distributions import NearestCode
from pyrovae.models.likelihoods import Likelihood
from pyrovae.models.networks import NETWORKS
from pyrovae.models.param_store import Module, unique_name


class CodebookUse(NamedTuple):
    share: float
    """Of the codes, those that some token has."""
    perplexity: float
    """exp(entropy of how often each code is used): from 1, one code for all, to `num_codes`."""


class VQVAE(Module):
    """z: `num_tokens` codes of `num_codes`; p(z) uniform, p(x|z) = likelihood(decoder(e_z)), q(z|x) the nearest codes.

    `model` and `guide` are Pyro programs with the sites `"z"`, one-hot `(batch, num_tokens, num_codes)`, and `"x"`,
    `(batch, *event_shape)`, in one plate `"data"` at dim -1: `fit` and what measures take it as they take a `VAE`. With
    no entropy in q,

        log w = log p(x|z) - num_tokens log num_codes    nats, the same at every draw

    is a lower bound on log p(x), not an estimate of it: more particles or samples, which are all alike, leave it as it
    is, and an importance estimate's standard error of 0 does not say how far below log p(x) it is.

    In training mode, and there alone, the model has what the paper trains with: the decoder's gradient goes to the
    encoder's output z_e as if it were the code e (straight through), and a factor
    -(|sg(z_e) - e|^2 + `commitment` |z_e - sg(e)|^2), sg without gradient, moves each to the other. The codebook learns
    from the factor alone. Not as in the paper, tokens of z_e are normalised, and the factor is their sum, not mean.
    To measure, `eval()` first, as `fit` leaves it: the factor is no density, and `log_marginal` refuses it.

    - `hidden`: units of the encoder's layers, or channels with `network="conv"`; the decoder mirrors them.
    - `likelihood` is copied, so that one instance given to two models is not shared between them.
    - Codes that no token is near get no gradient: `restart_unused` before training and between epochs.

    Raises `InputError` on a bad size, and from every method on an `x` of the wrong shape or dtype.
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
        for size in event_shape:
            require_count("event_shape", size)
        require_count("num_tokens", num_tokens)
        require_count("num_codes", num_codes, 2)
        require_count("code_dim", code_dim)
        require_number("commitment", commitment, above=0)
        require(isinstance(likelihood, Likelihood), f"likelihood must be a pyrovae likelihood, got {likelihood!r}")
        require_choice("network", network, NETWORKS)
        self.event_shape, self.commitment = tuple(event_shape), commitment
        self.num_tokens, self.num_codes = num_tokens, num_codes
        self.likelihood = copy.deepcopy(likelihood)
        encoder, decoder = NETWORKS[network]
        shape, decoded = (num_tokens, code_dim), likelihood.output_shape(self.event_shape)
        self.encoder = encoder(self.event_shape, shape, hidden, activation=activation)
        self.decoder = decoder(shape, decoded, hidden[::-1], activation=activation)
        self.codebook = nn.Parameter(rms_norm(torch.randn(num_codes, code_dim), (code_dim,)))

    @property
    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape `(num_tokens, num_codes)`."""
        logits = self.codebook.new_zeros(self.num_tokens, self.num_codes)
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def model(self, x: Tensor) -> None:
        """p(x, z) for `x` `(batch, *event_shape)`."""
        self._check_shape(x)
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior)
            if not self.training:
                pyro.sample("x", self.decode(z), obs=x)
                return
            encoded, codes = self.encoded(x), z @ self.codebook
            to_encoded = (encoded.detach() - codes).square().sum((-2, -1))
            to_codes = (encoded - codes.detach()).square().sum((-2, -1))
            pyro.factor("codebook_loss", -(to_encoded + self.commitment * to_codes))
            # In value the codes, to the bit; z stays in the graph for objectives that differentiate by it.
            straight_through = z @ self.codebook.detach() + (encoded - encoded.detach())
            pyro.sample("x", self._likelihood(straight_through), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x), the nearest codes, for `x` `(batch, *event_shape)`."""
        q = self.encode(x)
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    def encode(self, x: Tensor) -> NearestCode:
        """q(z|x), batch shape `(batch,)`, event shape `(num_tokens, num_codes)`."""
        return NearestCode(self.encoded(x), self.codebook)

    def encoded(self, x: Tensor) -> Tensor:
        """z_e, `(batch, num_tokens, code_dim)`, each token of mean square 1."""
        self._check_shape(x)
        # Free in scale it runs away from the codes, which Adam moves no faster than by its learning rate.
        return rms_norm(self.encoder(x), self.codebook.shape[1:])

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x|z) for one-hot `z` `(..., num_tokens, num_codes)`: batch shape `(...)`, event shape `event_shape`."""
        return self._likelihood(z @ self.codebook)

    def _likelihood(self, codes: Tensor) -> dist.TorchDistribution:
        return self.likelihood(self.decoder(codes), event_dim=len(self.event_shape))

    @evaluates
    @torch.no_grad()
    def sample(self, num_samples: int, mean: bool = False) -> Tensor:
        """`num_samples` draws of x ~ p(x), `(num_samples, *event_shape)`; with `mean`, of E[x|z] for z ~ p(z)."""
        require_count("num_samples", num_samples)
        x_given_z = self.decode(self.prior.sample((num_samples,)))
        return x_given_z.mean if mean else x_given_z.sample()

    @evaluates
    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the nearest codes z."""
        return self.decode(self.encode(x).code).mean

    # The codebook -----------------------------------------------------------------------------------------------------

    @evaluates
    @torch.no_grad()
    def codebook_use(self, x: Tensor) -> CodebookUse:
        """How many of the codes the tokens of `x` use, and how evenly."""
        counts = self.encode(x).code.sum((0, 1), dtype=torch.float64)
        frequency = counts / counts.sum()
        return CodebookUse((counts > 0).double().mean().item(), torch.special.entr(frequency).sum().exp().item())

    @torch.no_grad()
    def restart_unused(self, x: Tensor) -> int:
        """Codes that no token of `x` is nearest to become encoded tokens of `x`, drawn at random; how many they were.

        Call it on a few hundred training data before training, and from `on_epoch`, but not after the last epoch: the
        decoder has yet to learn what a new code stands for.
        """
        unused = self.encode(x).code.sum((0, 1)) == 0
        encoded, count = self.encoded(x).flatten(0, 1), int(unused.sum())
        rule = f"x must have a token for each of {count} unused codes, got {len(encoded)} tokens"
        require(len(encoded) >= count, rule)
        drawn = Workers().agreed(torch.randperm(len(encoded)))[:count]
        self.codebook[unused] = encoded[drawn.to(encoded.device)]
        return count

    def check_data(self, x: Tensor) -> None:
        """Raises `InputError` unless this is a batch to train on: shape, dtype, finite, support."""
        self._check_shape(x)
        require_finite("x", x)
        self.likelihood.check(x)

    def _check_shape(self, x: Tensor) -> None:
        require_batch(x, self.event_shape, self.codebook.dtype)
