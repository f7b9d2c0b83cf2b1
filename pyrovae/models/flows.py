"""Normalising flows of R^L whose layers are conditioned on features: lists of Pyro transforms, built at each call.

A TransformedDistribution asks its transforms for the inverse of what it has just drawn; all here remember it, so that
a draw's density costs nothing more. That of any other point costs one pass of a coupling, and L of an autoregressive
layer.
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineAutoregressive, Permute
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyrovae.common import require, require_count
from pyrovae.models.networks import MLP
from pyrovae.models.param_store import Module
from pyrovae.models.splines import rational_quadratic, slope_one

NUM_BINS = 8
BOUND = 4.0


class Flow(Module):
    """`flow(features)` are the transforms for features `(..., num_features)`, from noise to z, `(..., dim)` each."""

    def forward(self, features: Tensor) -> list[Transform]:
        raise NotImplementedError


class FlowDistribution(dist.TransformedDistribution):
    """Its `sample` is a tensor that the transforms do not remember: what they remember of it has no gradient."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return super().sample(sample_shape).clone()


class CouplingFlow(Flow):
    """Rational-quadratic spline couplings (Durkan et al. 2019, arXiv:1906.04032), each on the half that the last kept.

    y_a = x_a, y_b = s(x_b; net(x_a, features)) with s an increasing spline of 8 bins within [-4, 4]^2 and the identity
    beyond, the identity everywhere to start with. In one dimension there is no x_a.
    """

    def __init__(self, dim: int, num_features: int, num_transforms: int = 4, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        require_count("num_transforms", num_transforms)
        self.dim, self.kept = dim, dim // 2
        sizes = [self.kept if i % 2 == 0 else dim - self.kept for i in range(num_transforms)]
        self.nets = nn.ModuleList(
            MLP((kept,), (dim - kept, 3 * NUM_BINS - 1), hidden, "relu", num_features) for kept in sizes if kept < dim
        )
        self.sizes = [kept for kept in sizes if kept < dim]
        with torch.no_grad():
            for net in self.nets:
                net.output.weight.zero_()
                net.output_bias.zero_()
                net.output_bias.view(net.out_shape)[:, 2 * NUM_BINS :] = slope_one()

    def forward(self, features: Tensor) -> list[Transform]:
        return [
            SplineCoupling(net, features, kept, first=i % 2 == 0)
            for i, (net, kept) in enumerate(zip(self.nets, self.sizes, strict=True))
        ]


class SplineCoupling(Transform):
    """One coupling; `first` says that it is the first coordinates that stay as they are."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: MLP, features: Tensor, kept: int, first: bool) -> None:
        super().__init__(cache_size=1)
        self.net, self.features, self.kept, self.first = net, features, kept, first
        self._log_slope: Tensor | None = None

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # By split, whose gradient is a cat: that of slices is a sum of padded ones, and compiling it takes minutes.
        moved = x.shape[-1] - self.kept
        if self.first:
            return x.split((self.kept, moved), -1)
        return x.split((moved, self.kept), -1)[::-1]

    def _through(self, x: Tensor, inverse: bool) -> Tensor:
        kept, moved = self._split(x)
        outputs = self.net(kept, self.features)
        moved, log_slope = rational_quadratic(moved, outputs, BOUND, inverse)
        self._log_slope = -log_slope.sum(-1) if inverse else log_slope.sum(-1)
        return torch.cat((kept, moved) if self.first else (moved, kept), -1)

    def _call(self, x: Tensor) -> Tensor:
        return self._through(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._through(y, inverse=True)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`(...)`, of the call that the transform remembers, or of one more."""
        known_x, known_y = self._cached_x_y
        if x is not known_x or y is not known_y:
            self(x)
        return self._log_slope


class AutoregressiveFlow(Flow):
    """Inverse autoregressive layers: y_i = m_i + s_i x_i with m_i and s_i of x_1 ... x_i-1 and the features.

    Kingma et al. 2016, arXiv:1606.04934. The order of the coordinates is turned round from one layer to the next. The
    density of a point that was not just drawn takes one pass of the network for each dimension.
    """

    def __init__(self, dim: int, num_features: int, num_transforms: int = 2, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        require(dim >= 2, f"an autoregressive flow needs at least 2 dimensions, got {dim}")
        require(min(hidden) >= dim, f"hidden of an autoregressive flow must be >= its {dim} dimensions, got {hidden}")
        require_count("num_transforms", num_transforms)
        order = torch.arange(dim)
        self.nets = nn.ModuleList(
            ConditionalAutoRegressiveNN(dim, num_features, list(hidden), permutation=order)
            for _ in range(num_transforms)
        )
        self.register_buffer("turned", order.flip(0))
        with torch.no_grad():
            for net in self.nets:  # the identity to start with
                net.layers[-1].weight.zero_()
                net.layers[-1].bias.zero_()

    def forward(self, features: Tensor) -> list[Transform]:
        transforms: list[Transform] = []
        for net in self.nets:
            transforms += [Permute(self.turned, cache_size=1), ConditionalAffineAutoregressive(net).condition(features)]
        return transforms


FLOWS: dict[str, type[Flow]] = {"coupling": CouplingFlow, "autoregressive": AutoregressiveFlow}
