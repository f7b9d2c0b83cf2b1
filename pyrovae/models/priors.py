"""Families of p(z), fixed and learned."""

import itertools
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to

from pyrovae.common import InputError, require, require_choice, require_count, require_number
from pyrovae.models.distributions import (
    IsotropicNormal,
    LogitRelaxedBernoulli,
    LogitRelaxedOneHot,
    mixture_of,
    normal_of,
)
from pyrovae.models.flows import FLOWS, FlowDistribution
from pyrovae.models.modules import Module
from pyrovae.models.networks import MLP

Encode = Callable[[Tensor], dist.TorchDistribution]


class Prior(Module):
    """One family. A prior of your own gives `forward`: p(z), with empty batch shape and the event shape of z.

    `encode` is the VAE's, x to q(z|x), for priors that are made of it.
    """

    is_real_vector = True
    """False where z is of several sites or discrete, and no integral over R^L."""

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        raise NotImplementedError

    def sample(self, encode: Encode) -> Tensor:
        """The model's latent sites, in its data plate, and the z that the decoder is for: by default of one, `"z"`."""
        return pyro.sample("z", self(encode))

    def decoded(self, z: Tensor) -> Tensor:
        """What the decoder is given of z: by default z itself."""
        return z


class Standard(Prior):
    """N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("log_scale", torch.zeros(()), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return IsotropicNormal(self.loc, self.log_scale).to_event(1)


class Mixture(Prior):
    """sum_c w_c N(loc_c, diag(exp(log_variance_c))), all learned; it starts at draws of N(0, I) as locations."""

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        require_count("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        components = normal_of(torch.stack((self.loc, self.log_variance), -2))
        return mixture_of(dist.Categorical(logits=self.logits), components)


class Vamp(Prior):
    """1/C sum_c q(z|u_c): a mixture of the posteriors of pseudo-inputs u_c, which are learned.

    Tomczak and Welling 2018, arXiv:1705.07120. `pseudo_inputs` `(C, *event_shape)` are where they start, training data
    for one; with `constraint` `unit_interval` they stay between 0 and 1, and start no nearer to either than 0.01. Its
    density at a point is C of q's: little work of a diagonal Gaussian, much of a flow.
    """

    def __init__(self, pseudo_inputs: Tensor, constraint: str = "real") -> None:
        super().__init__()
        require(pseudo_inputs.dim() >= 2, f"pseudo_inputs must have shape (C, *event_shape), got {pseudo_inputs.shape}")
        require_choice("constraint", constraint, CONSTRAINTS)
        self.constraint = constraint
        if constraint == "unit_interval":
            pseudo_inputs = pseudo_inputs.clamp(0.01, 0.99)
        self.unconstrained = nn.Parameter(biject_to(CONSTRAINTS[constraint]).inv(pseudo_inputs).clone())

    @property
    def pseudo_inputs(self) -> Tensor:
        return biject_to(CONSTRAINTS[self.constraint])(self.unconstrained)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        posteriors = encode(self.pseudo_inputs)
        weights = dist.Categorical(logits=self.unconstrained.new_zeros(len(self.unconstrained)))
        return mixture_of(weights, posteriors)


CONSTRAINTS = {"real": constraints.real, "unit_interval": constraints.unit_interval}


class Flow(Prior):
    """z = f(e), e ~ N(0, I), with f a flow as in `posteriors.Flow`: the identity to start with."""

    def __init__(
        self, latent_dim: int, num_transforms: int = 4, hidden: Sequence[int] = (64,), kind: str = "coupling"
    ) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        require_choice("kind", kind, FLOWS)
        self.flow = FLOWS[kind](latent_dim, 1, num_transforms, hidden)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        noise = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return FlowDistribution(noise, self.flow(self.loc.new_ones(1)))


class Bernoulli(Prior):
    """Fair bits: each z_j is 1 with probability 1/2."""

    is_real_vector = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        self.register_buffer("logits", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits).to_event(1)


class Categorical(Prior):
    """Each z_j one-hot of `num_classes`, all alike in probability."""

    is_real_vector = False

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        require_count("num_classes", num_classes, 2)
        self.register_buffer("logits", torch.zeros(latent_dim, num_classes), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return dist.OneHotCategorical(logits=self.logits).to_event(1)


class RelaxedBernoulli(Prior):
    """Fair bits between 0 and 1; z are their logits. `temperature` may be another than the posterior's."""

    def __init__(self, latent_dim: int, temperature: float) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        require_number("temperature", temperature, above=0)
        self.temperature = temperature
        self.register_buffer("logits", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return LogitRelaxedBernoulli(self.logits, self.temperature).to_event(1)

    def decoded(self, z: Tensor) -> Tensor:
        return z.sigmoid()


class RelaxedCategorical(Prior):
    """Gumbel-softmax vectors of `num_classes`, all alike in probability; z are their logits."""

    def __init__(self, latent_dim: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        require_count("latent_dim", latent_dim)
        require_count("num_classes", num_classes, 2)
        require_number("temperature", temperature, above=0)
        self.temperature = temperature
        self.register_buffer("logits", torch.zeros(latent_dim, num_classes), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return LogitRelaxedOneHot(self.logits, self.temperature).to_event(1)

    def decoded(self, z: Tensor) -> Tensor:
        return torch.cat((z, torch.zeros_like(z[..., :1])), -1).softmax(-1)


class Layered(Prior):
    """p(z_L) ... p(z2|z3) p(z1|z2): N(0, I) at the top, each below it a diagonal Gaussian given the one above.

    Of the same numbers as `posteriors.Layered`: `hidden[l]` are the units between z_l and z_l+1, from below.
    """

    is_real_vector = False

    def __init__(self, latent_dims: Sequence[int], hidden: Sequence[Sequence[int]], activation: str = "relu") -> None:
        super().__init__()
        check_layers(latent_dims, hidden)
        pairs = zip(itertools.pairwise(latent_dims), hidden, strict=True)
        self.nets = nn.ModuleList(MLP((high,), (2, low), units[::-1], activation) for (low, high), units in pairs)
        self.top = Standard(latent_dims[-1])

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        raise InputError("a prior of several layers is a program, and no one distribution")

    def sample(self, encode: Encode) -> Tensor:
        z = pyro.sample(f"z{len(self.nets) + 1}", self.top(encode))
        for layer, net in reversed(list(enumerate(self.nets, 1))):
            z = pyro.sample(f"z{layer}", normal_of(net(z)))
        return z


def check_layers(latent_dims: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    require(len(latent_dims) >= 2, f"latent_dims must hold those of two layers or more, got {tuple(latent_dims)}")
    for dim in latent_dims:
        require_count("latent_dims", dim)
    nets = len(latent_dims) - 1
    each = len(hidden) == nets and all(isinstance(units, list | tuple) for units in hidden)
    require(each, f"hidden must hold the units of each of {nets} nets, as ((100, 100),) does of one; got {hidden}")


PRIORS: dict[str, type[Prior]] = {"standard": Standard, "mixture": Mixture, "vamp": Vamp, "flow": Flow}
