"""log p(x) per datum without draws: by quadrature for one or two latents, by enumeration for discrete ones."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.common import evaluates, require, require_count, require_number, require_size
from pyrovae.evaluation.adaptive_cells import LogDensity, LogIntegral
from pyrovae.evaluation.chunks import DATA_PER_CHUNK, pairs_in_memory
from pyrovae.evaluation.cubature import VANISHED, log_integral
from pyrovae.evaluation.model_alone import ModelAlone
from pyrovae.programs import enumerated_states, has_real_support, support_of, takes_model

GRID_TOLERANCE = 1e-2  # nats: a grid that is worse is refined
WIDER = (2, 4, 8)  # times `limit`: ranges that are tried where a part of the prior that matters lies beyond it
NEXT_TO_NOTHING = 1e-8  # of the prior
MOST_POINTS = 2**20  # of the grid in a wider range


class Integrated(NamedTuple):
    """Holds log p(x) of each datum by quadrature and a bound on its error, each `(batch,)`, in nats."""

    log_px: Tensor
    error: Tensor

    @property
    def mean(self) -> float:
        """The mean of log p(x) over the data, in nats."""
        return self.log_px.mean().item()

    def __repr__(self) -> str:
        return f"log p(x) of {len(self.log_px):,} data: mean {self.mean:.3f} nats (errors up to {self.error.max():.2g})"


@takes_model
@evaluates
@torch.no_grad()
def quadrature_log_marginal(
    model: Callable, *args: object, limit: float = 7.0, num_points: int = 401, chunk_size: int = 2**20
) -> Integrated:
    """Integrates p(x, z) over z without draws: log p(x) for a model with one or two latent dimensions.

        log p(x) = log of the integral of p(x, z) dz over [-limit, limit]^dim

    The trapezoidal rule runs on a grid. If it has not converged for a datum, it is replaced by cells that are refined
    where the posterior of that datum is. If a part of the prior lies beyond the limits that may matter for a datum, the
    range is made up to eight times as wide, with as many more points.

    Args:
        model: A model with one latent site: a real number, or a real vector of one or two dimensions.
        *args: What the model takes, of any number and type.
        limit: The grid covers [-limit, limit] in each dimension, or more if the prior does.
        num_points: The number of points of the grid in each dimension: odd, and at least 3.
        chunk_size: The number of pairs of a point and a datum that are taken at a time.

    Returns:
        `log_px` and `error`, a named pair, each `(batch,)`, in nats. `error` bounds the error, but for rounding, as far
        as points can tell. A peak or dip that lies between all points leaves no trace: a component of the likelihood or
        the prior that is narrower than a third of the spacing 2 limit / (num_points - 1), 0.012 by default, on a broad
        one that is smooth. Take as many points as make the spacing twice the width of the narrowest component.

        What the prior has beyond the limits counts in `error` with the largest likelihood seen. `error` is infinite
        where it is not known, for one of these reasons: the integrand does not vanish at the limits (it is more than
        exp(-10) of its largest value there), where a larger `limit` helps; a hundredth or more of the prior is not
        found, beyond the limits or between the points; the integral has not been resolved.

    Raises:
        InputError: If the latent is something else, or no density exists.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 1), torch.zeros(3), 0.5, torch.zeros(1))
        >>> x = torch.zeros(4, 3)
        >>> log_px, error = pv.quadrature_log_marginal(vae.model, x)
        >>> torch.allclose(log_px, vae.log_px(x).double(), atol=1e-4)
        True
        >>> bool((pv.quadrature_log_marginal(vae.model, x).error < 1e-3).all())
        True
    """
    require_number("limit", limit, above=0, below=1e6)
    require_size("num_points", num_points, 3)
    require(num_points % 2 == 1, f"num_points must be odd and >= 3, got {num_points}")
    require_count("chunk_size", chunk_size)
    alone = ModelAlone(model, args, "quadrature_log_marginal")
    shapes = {name: tuple(site["fn"].event_shape) for name, site in alone.latent.items()}
    name, shape = next(iter(shapes.items()), ("", ()))
    require(
        len(shapes) == 1 and shape in ((), (1,), (2,)),
        f"quadrature needs one latent site of one or two dimensions, got {_in_words(shapes)}",
    )
    prior = alone.latent[name]["fn"]
    require(
        has_real_support(prior), f'quadrature needs a latent of real numbers, got {support_of(prior)} at site "{name}"'
    )

    with pyro.validation_enabled(False):
        ranges = _Ranges(alone, limit, num_points, chunk_size)
        joint, mass = ranges.joint(1), ranges.prior(1)
        factor, mass = ranges.worth_its_points(joint, mass)
        joint = joint if factor == 1 else ranges.joint(factor)
    known = (joint.edge <= joint.peak - VANISHED) & (mass.value >= math.log(0.99)) & mass.error.isfinite()
    # A tail falls by 10 nats or more on its way to the border: it adds at most what there would be if the density at
    # the border held in all of the square.
    at_border = (joint.edge + ranges.dim * math.log(2 * factor * limit) - joint.value).exp()
    beyond = torch.maximum(at_border, ranges.share_beyond(joint, mass).log1p())
    error = torch.where(known, joint.error + beyond, math.inf)
    return Integrated(joint.value.to(alone.home), error.to(alone.home))


class _Ranges:
    """Integrates the joint density and the prior of a model's one latent over ranges of `factor` times the limits.

    `likeliest` is the largest log-likelihood of each datum that has been seen, `(data,)`.
    """

    def __init__(self, alone: ModelAlone, limit: float, num_points: int, chunk_size: int) -> None:
        self.alone, self.data = alone, alone.data
        self.limit, self.num_points, self.chunk_size = limit, num_points, chunk_size
        ((self.name, site),) = alone.latent.items()
        self.is_number = not site["fn"].event_shape  # a site without to_event draws numbers
        self.like = site["value"][..., None] if self.is_number else site["value"]
        self.dim = self.like.shape[-1]
        self.likeliest = torch.full((self.data.size,), -math.inf, dtype=torch.float64, device=self.data.device)

    def joint(self, factor: int) -> LogIntegral:
        """Returns the integrals of p(x, z)."""
        return self._integral(self._log_joint, factor, factor * (self.num_points - 1) + 1)

    def prior(self, factor: int) -> LogIntegral:
        """Returns the integrals of p(z)."""
        return self._integral(self._log_prior, factor, (factor * (self.num_points - 1) + 2) // 2)

    def _integral(self, log_density: LogDensity, factor: int, num_points: int) -> LogIntegral:
        return log_integral(
            log_density, self.like, self.data.size, factor * self.limit, num_points, self.chunk_size, GRID_TOLERANCE
        )

    def _log_joint(self, z: Tensor, rows: Tensor | None) -> Tensor:
        num = self.data.size if rows is None else len(rows)
        joint = self.alone.log_joint({self.name: self._as_drawn(z)}, self._args_at(rows), num)
        if rows is None:
            likelihood = (joint - self._log_prior(z, None)).nan_to_num(nan=-math.inf).expand(-1, self.data.size)
            torch.maximum(self.likeliest, likelihood.amax(0), out=self.likeliest)
        return joint

    def _log_prior(self, z: Tensor, rows: Tensor | None) -> Tensor:
        self._args_at(rows)
        return self.alone.log_prior(self._as_drawn(z), self.name, rows)

    def _as_drawn(self, z: Tensor) -> Tensor:
        return z.squeeze(-1) if self.is_number else z

    def _args_at(self, rows: Tensor | None) -> tuple:
        if rows is None:
            return self.data.args
        require(self.alone.takes_rows, f"num_points must be larger for these data, got {self.num_points}")
        return self.data.at(rows)

    def share_beyond(self, joint: LogIntegral, mass: LogIntegral) -> Tensor:
        """Returns what the prior's mass beyond a range may add, if no likelihood there is above those seen."""
        return (self._missing(mass).log() + self.likeliest - joint.value).exp().nan_to_num(nan=math.inf)

    def _missing(self, mass: LogIntegral) -> Tensor:
        """Returns how much of the prior is known to be missing from an integral of it, `(data,)`."""
        rounding = 100 * torch.finfo(self.like.dtype).eps
        error = mass.error.nan_to_num(posinf=0.0)  # unknown where the prior does not vanish at the limits
        return (-torch.expm1(mass.value + error) - rounding).nan_to_num(nan=0.0).clamp(min=0)

    def worth_its_points(self, joint: LogIntegral, mass: LogIntegral) -> tuple[int, LogIntegral]:
        """Returns the factor of the range that is worth its points, and the prior's mass within it.

        It is the limits' own unless the rest of the prior may matter. Else it is the narrowest range that leaves next
        to nothing of any datum's prior, and nothing that matters. If there is none, it is the widest that leaves less
        of some datum's prior than the one before.
        """

        def matters(mass: LogIntegral) -> bool:
            return bool((self.share_beyond(joint, mass) > GRID_TOLERANCE).any())

        missing = self._missing(mass)
        if (missing > NEXT_TO_NOTHING).any():
            self._look_beyond()
        found = 1, mass
        if not matters(mass):
            return found
        for factor in WIDER:
            if (factor * (self.num_points - 1) + 1) ** self.dim > MOST_POINTS:
                break
            wider = self.prior(factor)
            left = self._missing(wider)
            if (left < 0.75 * missing).any():
                found, missing = (factor, wider), left
            if (left < NEXT_TO_NOTHING).all() and not matters(wider):
                break
        return found

    def _look_beyond(self) -> None:
        """Looks at the likelihood in all of the widest range, where the rest of the prior may be."""
        widest = WIDER[-1] * self.limit
        axis = torch.linspace(-widest, widest, self.num_points // 4 + 1, device=self.data.device)
        far = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, 1, self.dim).to(self.like)
        for part in far.split(max(1, self.chunk_size // self.data.size)):
            self._log_joint(part, None)


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    sites = [f'"{name}" of {" x ".join(map(str, shape)) or "1"}' for name, shape in shapes.items()]
    return ", ".join(sites) or "none"


@takes_model
@evaluates
@torch.no_grad()
def enumerated_log_marginal(model: Callable, *args: object) -> Tensor:
    """Sums p(x, z) over every value of all latents: log p(x) for a model with discrete latents, exact to rounding.

        log p(x) = log sum_z p(x, z)

    Args:
        model: A model whose latent sites are discrete and can be enumerated, as for `pv.objectives.EnumeratedELBO`,
            with at most 65,536 values in all.
        *args: What the model takes, of any number and type.

    Returns:
        log p(x), `(batch,)`, in nats, float64.

    Raises:
        InputError: If the latents cannot be enumerated, have too many values, or no density exists.

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", pyro.distributions.Bernoulli(torch.tensor([0.25])).to_event(1))
        ...         pyro.sample("x", pyro.distributions.Bernoulli(0.2 + 0.6 * z).to_event(1), obs=x)
        >>> pv.enumerated_log_marginal(model, torch.ones(2, 1)).exp()  # 0.75 * 0.2 + 0.25 * 0.8
        tensor([0.3500, 0.3500], dtype=torch.float64)
    """
    alone = ModelAlone(model, args, "enumerated_log_marginal")
    values = enumerated_states(alone.latent) if alone.latent else {}
    num_states = len(next(iter(values.values()), (None,)))  # of those that the model does not sum out by itself
    size = min(alone.data.size, DATA_PER_CHUNK)
    data = alone.cut(size)
    step = max(1, pairs_in_memory(alone.pair) // (data.size if data.is_whole else size))
    parts = []
    for chunk in data.in_chunks(size):
        total = torch.full((chunk.size,), -math.inf, dtype=torch.float64, device=data.device)
        for start in range(0, num_states, step):
            some = {name: value[start : start + step] for name, value in values.items()}
            with pyro.validation_enabled(False):
                joint = alone.log_joint(some, chunk.args, chunk.size)
            total = torch.logaddexp(total, joint.double().logsumexp(0))
        parts.append(total)
    return torch.cat(parts).to(alone.home)
