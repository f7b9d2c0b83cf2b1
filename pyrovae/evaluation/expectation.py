"""Self-normalised estimates of expectations from weighted draws, per datum, with their errors."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyrovae.common import counted, local_seed, require, require_choice, require_plain, shown
from pyrovae.evaluation.importance_weights import MIN_TAIL, fitted_tail, rounding_unit, tail_size
from pyrovae.evaluation.remedy_words import DRAWS, FOR_ANSWERS, advice
from pyrovae.evaluation.weights_verdict import HIDDEN, RELIABLE_PARETO_K, largest_k, verdict_of

VALUES_SHOWN = 6  # by print
VALUES_AT_A_TIME = 2**22  # of f, 32 MB
SAME = "{} is the same at every draw, and what no draw has seen may still have a share"
TOO_WIDE = "f spreads over more than float64 can hold"
CONSTANT = 1e-12  # times its size, within which the values of f are those of a constant

Site = dict[str, Tensor]


@dataclass(frozen=True)
class Expectation:
    """Holds a posterior expectation or quantile for each datum with its errors, as `WeightedDraws` returns it.

    Every tensor is `(batch, *event)`, where `*event` is the shape of f for one draw of one datum, and float64.
    Quantiles have another dimension in front if several levels were asked for. NaN stands for what a datum does not
    have: f of a latent that a mask leaves out.

    Args:
        value: The estimate, in units of f.
        standard_error: Its standard error by the delta method; nan if it is unknown.
        ess: The number of draws from the posterior itself whose mean would have this standard error. It is at most
            about the number of draws, unless the guide suits f better than the posterior does. Where a k is above 0.7
            or unknown the error is not known either, and `ess` is at most that of the weights.
        pareto_k: The shape of the tails of w (f - value), on which the standard error rests: of its positive values and
            of its negative ones, whichever is larger. So it is the same for f, for -f and for f + 1, and for an event
            and its complement. It is -inf if both are flat and nan if it is unknown, as where f is the same at every
            draw: an event that all draws show, or none, cannot be told from a constant, and its error of 0 proves
            nothing. A quantile's is that of w, and unknown where fewer than 5 effective draws lie above or below it.
        weights_pareto_k: The shape of the tail of the weights w themselves.
        bias: By how much `value` is high, to first order, as the delta method tells; it falls with 1/S. `value - bias`
            has a bias of order 1/S^2. 0 for quantiles, of which it is not known; nan for one draw.
        num_samples: The number of draws for each datum.
        remedies: What can be done with the pair where values are not to be believed, as `verdict` says.
        unknown: Why `pareto_k` is unknown, where that of the weights is known.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=100)
        >>> mean = post.mean("z")
        >>> mean.value.shape, mean.standard_error.shape
        (torch.Size([4, 2]), torch.Size([4, 2]))
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    weights_pareto_k: Tensor
    bias: Tensor
    num_samples: int
    remedies: tuple[str, ...] = (DRAWS,)
    unknown: str = SAME.format("f")

    @property
    def is_unreliable(self) -> Tensor:
        """True for each value with a Pareto k above 0.7, of w (f - value) or of w."""
        return (self.pareto_k > RELIABLE_PARETO_K) | (self.weights_pareto_k > RELIABLE_PARETO_K)

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the values, and what to do if they are not to be believed."""
        there = ~self.value.isnan()
        if not bool(there.any()):
            return "no value: a mask leaves the latent out of every datum"
        k, error = largest_k(self.pareto_k, self.weights_pareto_k)[there], self.standard_error[there]
        k = torch.where(error.isfinite() | (k > RELIABLE_PARETO_K), k, torch.nan)
        why = why_unknown(self.weights_pareto_k[there], TOO_WIDE if bool(error.isinf().any()) else self.unknown)
        return verdict_on_answers(k, self.ess[there], self.num_samples, self.remedies, "values", why)

    def __repr__(self) -> str:
        shape, known = tuple(self.value.shape), self.standard_error[~self.standard_error.isnan()]
        error = f"standard errors up to {known.max().item():.2g}" if len(known) else "standard errors unknown"
        values, errors = (part.flatten()[:VALUES_SHOWN].tolist() for part in (self.value, self.standard_error))
        some = [_in_words(value, error) for value, error in zip(values, errors, strict=True)]
        more = ", ..." if self.value.numel() > VALUES_SHOWN else ""
        return f"posterior expectations of shape {shape}, {error}\n{', '.join(some)}{more}\n{self.verdict}"


def _in_words(value: float, error: float) -> str:
    """Returns one value with its standard error, where they are known."""
    if math.isnan(value):
        return "masked"
    return f"{value:.4g}" if math.isnan(error) else f"{value:.4g} ± {error:.2g}"


def why_unknown(weights_k: Tensor, otherwise: str) -> str:
    """Returns why k of some answers is unknown: because that of their weights is, or `otherwise`."""
    return HIDDEN if bool(weights_k.isnan().any()) else otherwise


def verdict_on_answers(
    k: Tensor,
    ess: Tensor,
    num_samples: int,
    remedies: Collection[str],
    things: str,
    why: str = HIDDEN,
    words: Mapping[str, str] = FOR_ANSWERS,
) -> str:
    """Returns how far to believe answers from weighted draws, each with a Pareto k and an effective sample size.

    `words` has what is to be done about bad ones, as it is called where the verdict is read.
    """
    bad = ("not to be relied on", "where neither value nor standard error means much")
    take, good = advice(remedies, num_samples, words), smallest_ess_in_words(ess, num_samples)
    return verdict_of(k, num_samples, take, good, bad, things, why)


def smallest_ess_in_words(ess: Tensor, num_samples: int) -> str:
    """Returns the smallest of some effective sample sizes, of which some may be unknown, beside the number of draws."""
    known = ess[~ess.isnan()]
    least = known.min().item() if len(known) else math.nan
    of = f"{least:,.0f}" if least >= 10 else f"{least:.1f}"
    return f"smallest effective sample size {of} of {counted(num_samples, 'draw')}"


# Expectations ---------------------------------------------------------------------------------------------------------


def expectation_of(
    f: Callable[..., Tensor], log_w: Tensor, draws: Site, data: Sequence[Tensor] = (), used: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns value, standard error, ESS, k and bias, each `(data, *event)`, from draws `(S, data, ...)`.

    k is that of the heavier tail of w (f - value). (That of w |f - value| would be worse: where one side ends in a
    pile, as that of z^2 at 0, the pile passes for the start of a very heavy tail.) f is called for all draws of some
    data at a time, with the rows of `data` that go with them. If those of one datum are too many, it is called for some
    of them at a time, and twice: the second time with the value known, and with the same random numbers. `used` are the
    log-weights in place of log_w, such as smoothed ones, in all but k: a tail that has been smoothed looks like the one
    that was fitted, capped at the largest weight.
    """
    count, num_data = log_w.shape
    as_it_is, log_share = (one - one.logsumexp(0) for one in (log_w, log_w if used is None else used))
    unit = rounding_unit(log_w)
    event = _values(f, draws, data, slice(0, 1), None, slice(0, 1)).shape[2:]
    size = max(1, event.numel())
    rows = min(num_data, max(1, VALUES_AT_A_TIME // (count * size)))
    step = max(1, VALUES_AT_A_TIME // size)
    blocks = [slice(first, min(first + step, count)) for first in range(0, count, step)]
    parts = []
    for start in range(0, num_data, rows):
        at = slice(start, min(start + rows, num_data))
        passes = _Passes(partial(_values, f, draws, data, at, event), blocks)
        parts.append(_estimates(passes, as_it_is[:, at], log_share[:, at], unit[at]))
    return tuple(
        torch.cat(part).unflatten(1, event) if event else torch.cat(part)[:, 0] for part in zip(*parts, strict=True)
    )


class _Passes:
    """Yields blocks of draws with the values of f there, `(draws, data, values)` in float64, alike at each pass."""

    def __init__(self, values: Callable[[slice], Tensor], blocks: list[slice]) -> None:
        self.values, self.blocks, self.seed = values, blocks, 0
        self.kept = self._of(blocks[0]) if len(blocks) == 1 else None
        if self.kept is None:
            self.seed = int(torch.randint(2**62, ()))

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self.kept is not None:
            yield self.blocks[0], self.kept
            return
        with local_seed(self.seed):
            for span in self.blocks:
                yield span, self._of(span)

    def _of(self, span: slice) -> Tensor:
        values = self.values(span)
        values = values.flatten(2).double() if values.dim() > 2 else values.unsqueeze(2).double()
        require(not bool(values.isinf().any()), "f must be finite at every draw, got inf")
        return values


def _estimates(passes: _Passes, as_it_is: Tensor, log_share: Tensor, unit: Tensor) -> tuple[Tensor, ...]:
    """Returns what `expectation_of` does, each `(data, values)`."""
    count, num_tail = len(log_share), tail_size(len(log_share))
    for span, values in passes:
        absent, values = values.isnan(), values.nan_to_num()
        if span.start == 0:
            missing, least, most = absent[0], values[0], values[0]
            value = centre = torch.zeros_like(least)
        require(bool((absent == missing).all()), "f must be a number at every draw, got nan at some of them")
        least, most = torch.minimum(least, values.amin(0)), torch.maximum(most, values.amax(0))
        value = value + (log_share[span, :, None].exp() * values).sum(0)
        centre = centre + (as_it_is[span, :, None].exp() * values).sum(0)
    # Squares of what is very large or small would leave the range of float64.
    scale = torch.maximum(most - value, value - least)
    is_constant = scale <= CONSTANT * torch.maximum(most.abs(), least.abs())
    divisor = torch.where(is_constant, 1.0, scale)
    sums, sides = [torch.zeros_like(value)] * 4, (_Tail(num_tail), _Tail(num_tail))
    for span, values in passes:
        values = values.nan_to_num()
        share, off = log_share[span, :, None].exp(), (values - value) / divisor
        weighed = share * off
        terms = (weighed, weighed * off, share * weighed, weighed**2)
        sums = [total + term.sum(0) for total, term in zip(sums, terms, strict=True)]
        for side, sign in zip(sides, (1, -1), strict=True):
            side.add(as_it_is[span, :, None] + (sign * (values - centre)).clamp(min=0).log())
    rest, spread, first, variance = sums  # of W off, W off^2, W^2 off and W^2 off^2
    squares = (2 * log_share).exp().sum(0)[:, None]
    ess = torch.where(is_constant | (variance == 0), 1 / squares, spread / variance)
    ratio = count / (count - 1) if count > 1 else math.nan
    error = scale * (variance * ratio).sqrt()
    error = torch.where(is_constant, 0.0 * ratio, torch.where(scale.isinf(), math.inf, error))
    bias = -scale * first if count > 1 else torch.full_like(value, math.nan)
    value = torch.where(is_constant, least, torch.where(scale.isinf(), value, value + scale * rest))  # lost by rounding
    k = torch.where(is_constant | scale.isinf(), math.nan, largest_k(*(side.k(unit) for side in sides)))
    return tuple(torch.where(missing, math.nan, result) for result in (value, error, ess, k, bias))


class _Tail:
    """Collects the largest terms of some kind, from their logarithms `(draws, data, values)`, and fits their k."""

    def __init__(self, size: int) -> None:
        self.size, self.top, self.least = size, torch.empty(0), torch.empty(0)

    def add(self, log_terms: Tensor) -> None:
        least = torch.where(log_terms == -math.inf, math.inf, log_terms).amin(0)
        if len(self.top):
            log_terms, least = torch.cat([self.top, log_terms]), torch.minimum(self.least, least)
        self.top, self.least = log_terms.topk(min(self.size + 1, len(log_terms)), dim=0).values, least

    def k(self, unit: Tensor) -> Tensor:
        """Returns k, `(data, values)`; nan where all terms are 0."""
        if self.size < MIN_TAIL:
            return torch.full_like(self.least, math.nan)
        top, unit = self.top.flatten(1).cpu(), unit[:, None].expand_as(self.least).flatten().cpu()
        none = top[0] == -math.inf
        k, _ = fitted_tail(torch.where(none, 0.0, top), self.least.flatten().cpu(), unit)
        return torch.where(none, math.nan, k).view_as(self.least).to(self.least.device)


class _Latents(dict[str, Tensor]):
    """Holds draws of latents by name, and says which there are if f asks for another."""

    def __missing__(self, name: str) -> Tensor:
        require_choice("the name of a latent", name, self)
        raise KeyError(name)


def _values(
    f: Callable[..., Tensor], draws: Site, data: Sequence[Tensor], rows: slice, event: torch.Size | None, span: slice
) -> Tensor:
    """Returns f of some draws of some data, after a check of its shape; the first call finds the shape of its event."""
    parts = _Latents(
        {name: site[span, rows].clone() for name, site in draws.items()}
    )  # f may write into what it is given
    value = f(parts, *(tensor[rows] for tensor in data))
    is_real = isinstance(value, Tensor) and not value.is_complex()
    require(is_real, f"f must return a tensor of real numbers, got {shown(value)}")
    require_plain("what f returns", value)
    num_draws, num_data, found = span.stop - span.start, rows.stop - rows.start, tuple(value.shape)
    fits = found[:2] == (num_draws, num_data) and event in (None, value.shape[2:])
    wanted = f"({num_draws}, {num_data}, {'...' if event is None else ', '.join(map(str, event))})"
    require(fits, f"f must return (draws, data, ...), here {wanted}, of each draw of each datum alone, got {found}")
    require(value.numel() > 0, f"f must return a number or more for each draw of each datum, got the shape {found}")
    return value
