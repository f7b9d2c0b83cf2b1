"""Densities of draws through transforms without an inverse, as those of most of Pyro's flows are.

Pyro takes the density of such a draw from the transform's memory of its last call. That holds one draw, and only as the
very object that was drawn, so that it is lost when another site or particle is drawn, or a draw is sliced. Here each
site remembers its own draws, and finds them again in any order and number: what is found is put through the transform
once more, which must give the value that was asked about. The density at any other value is refused.
"""

import copy
import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import BatchNorm, BlockAutoregressive, LeakyReLUTransform
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import CatTransform, ComposeTransform, StackTransform, Transform, TransformedDistribution
from torch.distributions.transforms import IndependentTransform, _InverseTransform

from pyrovae.common import InputError, require
from pyrovae.programs.sites import WRAPPERS, base_of

ROUNDINGS = 8  # by which a value may differ from a draw, and still be that draw


class NoInverse(InputError):
    """A density was asked for at a value that a transform without an inverse has not made; `site` is where."""

    def __init__(self, site: str, transform: Transform) -> None:
        super().__init__(
            f'site "{site}" has a density at its own draws alone, as {_kind(transform)} has no inverse, and it was '
            "asked for at another value"
        )
        self.site = site


def one_way_site(sites: Mapping[str, dict]) -> str | None:
    """Describes the first site that is drawn through a transform without an inverse, or returns None."""
    for name, site in sites.items():
        for transform in _transforms_of(site["fn"]):
            if is_one_way(transform):
                return f'site "{name}" is drawn through {_kind(transform)}, which has no inverse'
    return None


def is_one_way(transform: Transform) -> bool:
    """Returns True if a transform, or a part of it, does not implement its inverse."""
    return any(_has_no_inverse(cast(Any, type(part))) for part in _parts(transform))


def draws_a_part(fn: TorchDistribution) -> str | None:
    """Says why a distribution draws but a part of the support that it declares, or returns None if it draws all."""
    for part in (part for transform in _transforms_of(fn) for part in _parts(transform)):
        if not isinstance(part, BlockAutoregressive) or isinstance(part.T, LeakyReLUTransform):
            continue
        if part.residual is None:
            return 'the values of BlockAutoregressive have bounds, unless residual is "normal" or "gated"'
    return None


class Remembering(Messenger):
    """Lets the sites that are drawn through transforms without an inverse remember their draws.

    `known` are such sites of an earlier run by name, one for each run, whose draws these sites are to find again.
    """

    def __init__(self, known: Iterable[Mapping[str, dict]] = ()) -> None:
        super().__init__()
        self.known = known

    def _pyro_sample(self, msg: Any) -> None:
        transforms = _transforms_of(msg["fn"])
        if not transforms:
            return
        if msg["value"] is None:
            _check_drawn(msg["name"], transforms)
        elif msg["is_observed"]:  # the same object in every step, of which a transform would remember old parameters
            for transform in transforms:
                _forget(transform)
        if any(map(is_one_way, transforms)):
            runs = [_transforms_of(sites[msg["name"]]["fn"]) for sites in self.known if msg["name"] in sites]
            earlier = [each for each in runs if len(each) == len(transforms)]
            msg["fn"] = _remembering(msg["fn"], msg["name"], msg["fn"].event_dim, earlier)

    def _pyro_post_sample(self, msg: Any) -> None:
        # To the very object that it drew a transform with a memory gives back what it was made from, for which no
        # gradient was kept.
        if not (msg["is_observed"] or msg["value"].requires_grad) and _learns_from_memory(msg["fn"]):
            msg["value"] = msg["value"].detach()


def _forget(transform: Transform) -> None:
    for part in (transform, *_parts(transform)):
        if isinstance(part, _InverseTransform):
            _forget(part.inv)
        elif part._cache_size:
            part._cached_x_y = None, None


def _learns_from_memory(fn: TorchDistribution) -> bool:
    """Returns True if a site without rsample would not learn the parameters of its transforms."""
    transforms = _transforms_of(fn)
    if not transforms or fn.has_rsample or any(map(is_one_way, transforms)):
        return False
    parts = [part for transform in transforms for part in _parts(transform)]
    return any(part._cache_size and vars(part).keys() - vars(Transform(part._cache_size)).keys() for part in parts)


def _check_drawn(name: str, transforms: Iterable[Transform]) -> None:
    for transform in transforms:
        for part in _parts(transform):
            require(
                not (isinstance(part, _InverseTransform) and is_one_way(part.inv)),
                f'site "{name}" cannot be drawn through the inverse of {_kind(part.inv)}, which has none',
            )
            require(
                not (isinstance(part, BatchNorm) and part.training),
                f'site "{name}" is drawn by the running statistics of its BatchNorm, and in training mode has the '
                "density of others: keep that transform in eval() mode",
            )


def _transforms_of(fn: TorchDistribution) -> list[Transform]:
    """Returns the transforms of a distribution, those nearest to its values first where it is one of another."""
    found: list[Transform] = []
    base: Any = base_of(fn)
    while isinstance(base, TransformedDistribution):
        found += base.transforms
        base = base_of(base.base_dist)  # type: ignore[arg-type]
    return found


def _remembering(fn: Any, name: str, event_dim: int, earlier: list[list[Transform]], first: int = 0) -> Any:
    """Returns a copy of a distribution, of which only the transforms are others.

    `earlier` are the transforms of the site's earlier runs, and `first` is the place among them of those of `fn`.
    """
    if not isinstance(fn, (*WRAPPERS, TransformedDistribution)):
        return fn
    new: Any = copy.copy(fn)
    if isinstance(fn, TransformedDistribution):
        new.transforms = [
            _Remembered(
                inner.inner if isinstance(inner, _Remembered) else inner,
                name,
                event_dim,
                [each[place] for each in earlier],
            )
            for place, inner in enumerate(fn.transforms, first)
        ]
        first += len(fn.transforms)
    new.base_dist = _remembering(fn.base_dist, name, event_dim, earlier, first)
    return new


class _Remembered(Transform):
    """Calls a transform, and inverts it at the values that it or its earlier ones have made."""

    def __init__(self, inner: Transform, name: str, event_dim: int, earlier: list[Transform]) -> None:
        super().__init__(cache_size=1)
        self.inner, self.name = inner, name
        self.num_dims = max(event_dim, inner.codomain.event_dim)  # of one draw
        self.pairs: list[tuple[Tensor, Tensor]] = []
        for other in earlier:
            self.pairs += [(x.detach(), y.detach()) for x, y in getattr(other, "pairs", ())]

    @property
    def domain(self) -> Any:  # type: ignore[override]
        return self.inner.domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        return self.inner.codomain

    @property
    def bijective(self) -> bool:  # type: ignore[override]
        return self.inner.bijective

    @property
    def sign(self) -> Any:
        return self.inner.sign

    def forward_shape(self, shape: Any) -> Any:
        return self.inner.forward_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self.inner.inverse_shape(shape)

    def _call(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self._log_det = self.inner.log_abs_det_jacobian(x, y)  # at once, as some know it of their last call alone
        self.pairs = [(x, y)]
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = self._made(y)
        if x is None and not is_one_way(self.inner):
            x, again = self.inner.inv(y), y
        elif x is not None:
            again, allowed = self.inner(x), torch.finfo(y.dtype).eps ** 0.5
            if not torch.allclose(again, y, rtol=allowed, atol=allowed, equal_nan=True):
                x = None
        if x is None:
            raise NoInverse(self.name, self.inner)
        self._log_det = self.inner.log_abs_det_jacobian(x, again)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_det

    def _made(self, y: Tensor) -> Tensor | None:
        """Returns what `y` was made from: draw by draw in the same places, or else each among all draws."""
        for x_old, y_old in self.pairs:
            allowed = ROUNDINGS * torch.finfo(y.dtype).eps
            if y_old.shape == y.shape and torch.allclose(y_old, y, rtol=allowed, atol=0.0, equal_nan=True):
                return x_old
        num = self.num_dims
        num_x = num - self.inner.codomain.event_dim + self.inner.domain.event_dim
        like = [(x, z) for x, z in self.pairs if _event(z, num) == _event(y, num)]
        if not like:
            return None
        xs, ys = (
            torch.cat([_rows(each, n) for each in column])
            for column, n in zip(zip(*like, strict=True), (num_x, num), strict=True)
        )
        _, number = torch.unique(torch.cat([ys, _rows(y, num)]), dim=0, return_inverse=True)
        place = number.new_full((len(number),), -1)
        place[number[: len(ys)]] = torch.arange(len(ys), device=place.device)
        found = place[number[len(ys) :]]
        if bool((found < 0).any()):
            return None
        x = xs[found].reshape(y.shape[: y.dim() - num] + _event(like[0][0], num_x))
        self.pairs.append((x, y))
        return x


def _event(value: Tensor, num_dims: int) -> torch.Size:
    return value.shape[value.dim() - num_dims :]


def _rows(value: Tensor, num_dims: int) -> Tensor:
    return value.reshape(-1, _event(value, num_dims).numel())


# Which have no inverse ------------------------------------------------------------------------------------------------


def _parts(transform: Transform) -> Iterator[Transform]:
    """Yields the transforms that one is made of, or it alone."""
    if isinstance(transform, _Remembered):
        yield from _parts(transform.inner)
    elif isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    elif isinstance(transform, IndependentTransform):
        yield from _parts(transform.base_transform)
    elif isinstance(transform, CatTransform | StackTransform):
        for part in transform.transforms:
            yield from _parts(part)
    else:
        yield transform


@functools.lru_cache(maxsize=256)
def _has_no_inverse(kind: Any) -> bool:
    """Returns True if `_inverse` does nothing but raise: to call it may change what the transform remembers."""
    return kind is not _InverseTransform and _never_returns(kind._inverse)


def _never_returns(function: Callable) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and not any(op.opname.startswith("RETURN") for op in dis.get_instructions(code))


def _kind(transform: Transform) -> str:
    part = next((part for part in _parts(transform) if is_one_way(part)), transform)
    return type(part).__name__
