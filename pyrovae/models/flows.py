"""Normalising flows of R^L whose layers are conditioned on features: lists of Pyro transforms, built at each call.

A `TransformedDistribution` asks its transforms to invert the value that it has just drawn. All transforms here remember
that value, so that the density of a draw costs nothing more. The density of any other point takes one pass through a
coupling layer's network, and L passes through an autoregressive layer's.
"""

from collections.abc import Sequence
from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineAutoregressive, Permute
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyrovae.common import require, require_size, require_sizes, shown
from pyrovae.models.networks import MLP
from pyrovae.models.param_store import Module
from pyrovae.models.splines import parameter_of_slope_one, rational_quadratic

NUM_BINS = 8  # of each spline
BOUND = 4.0  # splines are the identity beyond [-BOUND, BOUND]


class Flow(Module):
    """The base class of flows: `forward` returns the transforms from noise to z, both `(..., dim)`.

    Features have the shape `(..., num_features)`.
    """

    def forward(self, features: Tensor) -> list[Transform]:
        raise NotImplementedError


class FlowDistribution(dist.TransformedDistribution):
    """A `TransformedDistribution` whose `sample` returns a tensor that its transforms do not remember.

    They would remember it without a gradient, and a density computed from what they remember would have none either.
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape).clone()


class CouplingFlow(Flow):
    """Rational-quadratic spline couplings; each transforms the half of the coordinates that the one before it kept.

        y_a = x_a,  y_b = s(x_b; net(x_a, features))

    s is an increasing spline of 8 bins within [-4, 4]^2 and the identity beyond. It starts as the identity everywhere.
    In one dimension there is no x_a.

    Source: Durkan et al. 2019, arXiv:1906.04032.
    """

    nets: Sequence[MLP]  # a ModuleList

    def __init__(self, dim: int, num_features: int, num_transforms: int = 4, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        require_size("num_transforms", num_transforms)
        self.dim, self.kept = dim, dim // 2
        sizes = [self.kept if i % 2 == 0 else dim - self.kept for i in range(num_transforms)]
        nets = nn.ModuleList(
            MLP((kept,), (dim - kept, 3 * NUM_BINS - 1), hidden, "relu", num_features) for kept in sizes if kept < dim
        )
        self.nets = cast(Sequence[MLP], nets)
        self.sizes = [kept for kept in sizes if kept < dim]
        with torch.no_grad():
            for net in self.nets:
                net.output.weight.zero_()
                net.output_bias.zero_()
                net.output_bias.view(net.out_shape)[:, 2 * NUM_BINS :] = parameter_of_slope_one()

    def forward(self, features: Tensor) -> list[Transform]:
        return [
            SplineCoupling(net, features, kept, first=i % 2 == 0)
            for i, (net, kept) in enumerate(zip(self.nets, self.sizes, strict=True))
        ]


class SplineCoupling(Transform):
    """One coupling layer, which keeps the first `kept` coordinates if `first` is True, and else the last."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: MLP, features: Tensor, kept: int, first: bool) -> None:
        super().__init__(cache_size=1)
        self.net, self.features, self.kept, self.first = net, features, kept, first
        self._log_slope: Tensor  # that of the last call

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The gradient of a split is a cat. That of slices is a sum of padded tensors, which takes minutes to compile.
        moved = x.shape[-1] - self.kept
        if self.first:
            return x.split((self.kept, moved), -1)
        return x.split((moved, self.kept), -1)[::-1]

    def _transformed(self, x: Tensor, inverse: bool) -> Tensor:
        kept, moved = self._split(x)
        outputs = self.net(kept, self.features)
        moved, log_slope = rational_quadratic(moved, outputs, BOUND, inverse)
        self._log_slope = -log_slope.sum(-1) if inverse else log_slope.sum(-1)
        return torch.cat((kept, moved) if self.first else (moved, kept), -1)

    def _call(self, x: Tensor) -> Tensor:
        return self._transformed(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._transformed(y, inverse=True)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log |det dy/dx|, `(...)`, from the remembered call if it was this one, and else from another call."""
        known_x, known_y = self._cached_x_y
        if x is not known_x or y is not known_y:
            self(x)
        return self._log_slope


class AutoregressiveFlow(Flow):
    """Inverse autoregressive layers, y_i = m_i + s_i x_i, where m_i and s_i depend on x_1 ... x_i-1 and the features.

    The order of the coordinates is reversed before each layer.

    Source: Kingma et al. 2016, arXiv:1606.04934.
    """

    nets: Sequence[ConditionalAutoRegressiveNN]  # a ModuleList
    turned: Tensor

    def __init__(self, dim: int, num_features: int, num_transforms: int = 2, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        require(dim >= 2, f"an autoregressive flow needs at least 2 dimensions, got {dim}")
        require_sizes("hidden", hidden)
        require(
            min(hidden, default=0) >= dim,
            f"hidden of an autoregressive flow must be >= its {dim} dimensions, got {shown(hidden)}",
        )
        require_size("num_transforms", num_transforms)
        order = torch.arange(dim)
        nets = nn.ModuleList(
            ConditionalAutoRegressiveNN(dim, num_features, list(hidden), permutation=order)  # type: ignore[arg-type]
            for _ in range(num_transforms)
        )
        self.nets = cast(Sequence[ConditionalAutoRegressiveNN], nets)
        self.register_buffer("turned", order.flip(0))
        with torch.no_grad():
            for net in self.nets:  # starts as the identity
                last = cast(nn.Linear, net.layers[-1])
                last.weight.zero_()
                last.bias.zero_()

    def forward(self, features: Tensor) -> list[Transform]:
        transforms: list[Transform] = []
        for net in self.nets:
            transforms += [Permute(self.turned, cache_size=1), ConditionalAffineAutoregressive(net).condition(features)]
        return transforms


FLOWS: dict[str, type[Flow]] = {"coupling": CouplingFlow, "autoregressive": AutoregressiveFlow}
