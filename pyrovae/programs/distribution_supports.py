"""Finds the supports of distributions, pushed through transforms, and log-densities of values that may lie outside."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TorchDistribution,
    TransformedDistribution,
)
from pyro.distributions.transforms import (
    LeakyReLUTransform,
    PositivePowerTransform,
    SoftplusTransform as PyroSoftplus,
)
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent as TorchIndependent,
    MixtureSameFamily,
    Transform,
    biject_to,
    constraints,
)
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
    _InverseTransform,
)

from pyrovae.common import InputError
from pyrovae.programs.between import Between
from pyrovae.programs.supports import base_support, contains, ends_of, interior, kind_of

_MONOTONE = (
    AffineTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    LeakyReLUTransform,
    PositivePowerTransform,
    PowerTransform,
    PyroSoftplus,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
)


def support_of(fn: Distribution) -> constraints.Constraint:
    """Returns the support of a distribution; that of a `TransformedDistribution` is the image of its base's.

    PyTorch declares the codomain of the last transform, which for an `AffineTransform` is the whole line, whatever is
    transformed. The image is found for transforms of single numbers that are monotone; else it is what is declared.
    Raises `NotImplementedError` if a distribution does not declare its support.
    """
    if isinstance(fn, Independent | TorchIndependent):
        inner = support_of(fn.base_dist)
        return constraints.independent(inner, fn.reinterpreted_batch_ndims) if fn.reinterpreted_batch_ndims else inner
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return support_of(fn.base_dist)
    if isinstance(fn, MixtureSameFamily):
        return _of_mixture(fn)
    declared: constraints.Constraint = fn.support  # type: ignore[assignment]
    if not isinstance(fn, TransformedDistribution) or type(fn).support is not TransformedDistribution.support:
        return declared
    with torch.no_grad():
        image = base_support(support_of(fn.base_dist))
        for transform in _parts(fn.transforms):
            image = base_support(_image(transform, image))
    if not isinstance(image, Between):
        return declared
    return constraints.independent(image, len(fn.event_shape)) if fn.event_shape else image


def _of_mixture(fn: MixtureSameFamily) -> constraints.Constraint:
    """Returns where all components of a mixture have a density, as the mixture's own density asks for."""
    support = support_of(fn.component_distribution)
    base, event_dim = base_support(support), len(fn.event_shape)
    if not isinstance(base, Between):
        return fn.support
    low, high = base.lower_bound, base.upper_bound
    low, high = (
        low.amax(-1 - event_dim) if low.dim() > event_dim else low,
        high.amin(-1 - event_dim) if high.dim() > event_dim else high,
    )
    return constraints.independent(Between(low, high), event_dim) if event_dim else Between(low, high)


def _parts(transforms: list[Transform]) -> Iterator[Transform]:
    """Yields the transforms one after another, those of single numbers without what makes vectors of them."""
    for transform in transforms:
        match transform:
            case ComposeTransform():
                yield from _parts(transform.parts)
            case IndependentTransform():
                yield from _parts([transform.base_transform])
            case _:
                yield transform


def _image(transform: Transform, support: constraints.Constraint) -> constraints.Constraint:
    """Returns what a transform makes of a support, or its codomain if that is not known or all of it."""
    domain, codomain = base_support(transform.domain), base_support(transform.codomain)
    call = _call_of(transform)
    if call is None or kind_of(support) != "interval" or contains(support, domain):
        return codomain
    rises = torch.as_tensor(transform.sign) > 0
    images = []
    for end, of_domain, is_low in zip(ends_of(support), ends_of(domain), (True, False), strict=True):
        end = end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
        image, (low, high) = call(end), ends_of(codomain)
        last = torch.where(rises == is_low, low, high).to(image)  # formulas clip near the ends of a domain
        is_last = end <= of_domain if is_low else end >= of_domain
        images.append(torch.where(is_last.to(image.device), last, image))
    return Between(torch.minimum(*images), torch.maximum(*images))


def _call_of(transform: Transform) -> Callable[[Any], Tensor] | None:
    """Returns a monotone transform of single numbers as a function that no cache remembers, or None."""
    if isinstance(transform, _MONOTONE):
        return transform._call
    if isinstance(transform, _InverseTransform) and isinstance(transform.inv, _MONOTONE):
        return transform.inv._inverse
    return None


def has_real_support(fn: TorchDistribution) -> bool:
    """Returns True if the values of a distribution are tensors of unconstrained real numbers."""
    base = base_support(support_of(fn))
    return base.is_everything if isinstance(base, Between) else isinstance(base, type(constraints.real))


def bijection_of(site: dict, said: str) -> Transform:
    """Returns the bijection from real vectors to the support of a latent site.

    Raises `InputError`, which begins with `said`, if there is none.
    """
    support = support_of(site["fn"])
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    why = "is discrete" if support.is_discrete else None
    try:
        if why is None:
            return biject_to(support)
    except NotImplementedError:
        why = f"lies in {support}"
    raise InputError(f'{said}, and the latent site "{site["name"]}" {why}')


def log_density(fn: TorchDistribution, value: Tensor) -> Tensor:
    """Returns log fn(value): -inf without a gradient outside the support, and 0 where a mask of fn excludes it.

    PyTorch's own formulas may be finite outside (the Exponential's below 0), or nan.
    """
    if isinstance(fn, MaskedDistribution):
        log_prob = log_density(fn.base_dist, value)
        return scale_and_mask(log_prob, mask=fn._mask)
    if isinstance(fn, Independent):
        return sum_rightmost(log_density(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        log_prob = log_density(fn.base_dist, value)
        return log_prob.expand(torch.broadcast_shapes(fn.batch_shape, log_prob.shape))
    support = support_of(fn)
    inside, point = support.check(value), interior(support, value)
    if point is None:
        return fn.log_prob(value)
    elements = inside.reshape(inside.shape + (1,) * support.event_dim)
    value, base = torch.where(elements, value, point), base_support(support)
    log_prob = fn.log_prob(base.within(value) if isinstance(base, Between) else value)
    extra = fn.event_dim - support.event_dim  # above 0 if the constraint is on elements of an event
    return torch.where(inside.flatten(-extra).all(-1) if extra > 0 else inside, log_prob, -math.inf)
