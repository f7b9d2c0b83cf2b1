"""Families of q(z|x): from what the encoder puts out to a distribution over z."""

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from pyrovae.common import require_choice, require_count, require_number
from pyrovae.models import priors
from pyrovae.models.distributions import (
    LogitRelaxedBernoulli,
    LogitRelaxedOneHot,
    StraightThroughBernoulli,
    StraightThroughOneHot,
    normal_of,
)
from pyrovae.models.flows import FLOWS, FlowDistribution
from pyrovae.models.modules import Module
from pyrovae.models.networks import MLP


class Posterior(Module):
    """One family. A posterior of your own gives `forward`: `(..., *output_shape)` of the encoder to q(z|x).

    `latent_shape` is that of z, the event of the distribution; by default `(latent_dim,)`, with an encoder that puts
    out two numbers for each: `output_shape` is `(2, latent_dim)`.
    """

    has_density = True
    """False of a point: z is then a code, there is no KL and no log p(x)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        self.latent_dim = latent_dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (2, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        raise NotImplementedError

    def usual_prior(self) -> priors.Prior:
        """p(z) where a VAE is given none: by default N(0, I)."""
        return priors.Standard(self.latent_dim)

    def sample(self, q: dist.TorchDistribution) -> None:
        """The guide's sites, in its data plate, from what `forward` gave: by default one, `"z"`."""
        pyro.sample("z", q)


class Diagonal(Posterior):
    """N(loc, diag(exp(log_variance))), from outputs `(loc, log_variance)`."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return normal_of(outputs)


class FullCovariance(Posterior):
    """N(loc, T T^T) with T lower triangular, exp(0.5 r_ii) on its diagonal and r_ij below, from outputs `(loc, r)`."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1 + self.latent_dim, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, raw = outputs[..., 0, :], outputs[..., 1:, :]
        scale = (0.5 * raw.diagonal(dim1=-2, dim2=-1)).exp()
        return dist.MultivariateNormal(loc, scale_tril=raw.tril(-1) + torch.diag_embed(scale))


class Flow(Posterior):
    """z = loc + exp(0.5 log_variance) f(e; features), e ~ N(0, I), from `(loc, log_variance, features)` in one row.

    f is a `CouplingFlow` (kind `coupling`) or an inverse `AutoregressiveFlow` (`autoregressive`), the identity to start
    with. Couplings know the density of any point; use them where z is weighed elsewhere than where it was drawn:
    DReG and STL, annealed importance sampling, a VampPrior.
    """

    def __init__(
        self,
        latent_dim: int,
        num_transforms: int = 4,
        hidden: Sequence[int] = (64,),
        num_features: int = 32,
        kind: str = "coupling",
    ) -> None:
        super().__init__(latent_dim)
        require_choice("kind", kind, FLOWS)
        require_count("num_features", num_features)
        self.num_features = num_features
        self.flow = FLOWS[kind](latent_dim, num_features, num_transforms, hidden)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (2 * self.latent_dim + self.num_features,)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, log_variance, features = outputs.split((self.latent_dim, self.latent_dim, self.num_features), -1)
        noise = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        last = AffineTransform(loc, (0.5 * log_variance).exp(), event_dim=1, cache_size=1)
        return FlowDistribution(noise, [*self.flow(features), last])


class Point(Posterior):
    """z = the encoder's output: a plain autoencoder, without KL and without log p(x)."""

    has_density = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Delta(outputs.squeeze(-2), event_dim=1)


class _Codes(Posterior):
    """Codes with one output of the encoder for each bit, and a temperature."""

    def __init__(self, latent_dim: int, temperature: float | None) -> None:
        super().__init__(latent_dim)
        if temperature is not None:
            require_number("temperature", temperature, above=0)
        self.temperature = temperature

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1, self.latent_dim)


class Bernoulli(_Codes):
    """z_j ~ Bernoulli(sigmoid(outputs_j)), codes of bits.

    With a `temperature` draws have a straight-through gradient, for objectives that differentiate them; those of the
    score function need none (`score_function`, `vimco`, `reweighted_wake_sleep`, `thermodynamic`), and of few bits
    `elbo_enumerated` neither.
    """

    def __init__(self, latent_dim: int, temperature: float | None = None) -> None:
        super().__init__(latent_dim, temperature)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        logits = outputs.squeeze(-2)
        if self.temperature is None:
            return dist.Bernoulli(logits=logits).to_event(1)
        return StraightThroughBernoulli(logits, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.Bernoulli(self.latent_dim)


class Categorical(Bernoulli):
    """z_j one-hot of `num_classes`, with probabilities softmax(outputs_j): z is `(batch, latent_dim, num_classes)`.

    `temperature` as in `Bernoulli`.
    """

    def __init__(self, latent_dim: int, num_classes: int, temperature: float | None = None) -> None:
        super().__init__(latent_dim, temperature)
        require_count("num_classes", num_classes, 2)
        self.num_classes = num_classes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.latent_shape

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        if self.temperature is None:
            return dist.OneHotCategorical(logits=outputs).to_event(1)
        return StraightThroughOneHot(outputs, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.Categorical(self.latent_dim, self.num_classes)


class RelaxedBernoulli(_Codes):
    """Codes of bits between 0 and 1, `LogitRelaxedBernoulli`: z are their logits.

    The relaxed model is another than that of bits, and its bounds are its own; with `Bernoulli` in both places the
    same networks are a model of bits, and `load_state_dict` brings it what this one has learned.
    """

    def __init__(self, latent_dim: int, temperature: float = 0.5) -> None:
        require_number("temperature", temperature, above=0)
        super().__init__(latent_dim, temperature)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return LogitRelaxedBernoulli(outputs.squeeze(-2), self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.RelaxedBernoulli(self.latent_dim, self.temperature)


class RelaxedCategorical(RelaxedBernoulli):
    """Codes of Gumbel-softmax vectors: z are their `LogitRelaxedOneHot`, `(batch, latent_dim, num_classes - 1)`.

    To `Categorical` as `RelaxedBernoulli` is to `Bernoulli`.
    """

    def __init__(self, latent_dim: int, num_classes: int, temperature: float = 0.5) -> None:
        super().__init__(latent_dim, temperature)
        require_count("num_classes", num_classes, 2)
        self.num_classes = num_classes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes - 1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return LogitRelaxedOneHot(outputs, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.RelaxedCategorical(self.latent_dim, self.num_classes, self.temperature)


class Layered(Posterior):
    """q(z1|x) q(z2|z1) ... of several stochastic layers, each a diagonal Gaussian; sites `"z1"`, `"z2"`, ...

    `latent_dims` are those of z1, which the decoder takes, z2, ...; `hidden[l]` are the units of the net from z_l to
    z_l+1. Burda et al.'s two layers (2016, arXiv:1509.00519) are `VAE(latent_dim=100, hidden=(200, 200), ...)` with
    `Layered((100, 50), ((100, 100),), "tanh")`.
    """

    def __init__(self, latent_dims: Sequence[int], hidden: Sequence[Sequence[int]], activation: str = "relu") -> None:
        priors.check_layers(latent_dims, hidden)
        super().__init__(latent_dims[0])
        self.latent_dims, self.hidden, self.activation = latent_dims, hidden, activation
        pairs = zip(itertools.pairwise(latent_dims), hidden, strict=True)
        self.nets = nn.ModuleList(MLP((low,), (2, high), units, activation) for (low, high), units in pairs)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """q(z1|x)."""
        return normal_of(outputs)

    def sample(self, q: dist.TorchDistribution) -> None:
        z = pyro.sample("z1", q)
        for layer, net in enumerate(self.nets, 2):
            z = pyro.sample(f"z{layer}", normal_of(net(z)))

    def usual_prior(self) -> priors.Prior:
        return priors.Layered(self.latent_dims, self.hidden, self.activation)


POSTERIORS: dict[str, type[Posterior]] = {
    "diagonal": Diagonal,
    "full_covariance": FullCovariance,
    "flow": Flow,
    "bernoulli": Bernoulli,
    "relaxed_bernoulli": RelaxedBernoulli,
    "delta": Point,
}
