"""Self-normalised estimates from weighted draws, per datum: expectations and quantiles with their errors."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import counted, require, require_choice, require_plain, shown
from pyrovae.evaluation.importance_weights import MIN_TAIL, fitted_tail, rounding_unit, tail_size
from pyrovae.evaluation.remedy_words import DRAWS, FOR_ANSWERS, advice
from pyrovae.evaluation.weights_verdict import HIDDEN, RELIABLE_PARETO_K, largest_k, verdict_of

VALUES_SHOWN = 6  # by print
VALUES_AT_A_TIME = 2**22  # of f, 32 MB
NEVER = "{} is 0 at every draw, and what no draw has seen may still have a share"
CONSTANT = 1e-12  # times its size, within which a standard deviation is that of a constant

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
        pareto_k: The shape of the tail of w |f|, and so of the terms of the numerator; -inf if it is flat, nan if it is
            unknown. A quantile's is that of w.
        weights_pareto_k: The shape of the tail of the weights w themselves.
        bias: By how much `value` is high, to first order, as the delta method tells; it falls with 1/S. `value - bias`
            has a bias of order 1/S^2. 0 for quantiles, of which it is not known; nan for one draw.
        num_samples: The number of draws for each datum.
        remedies: What can be done with the pair where values are not to be believed, as `verdict` says.

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

    @property
    def is_unreliable(self) -> Tensor:
        """True for each value with a Pareto k above 0.7, of w |f| or of w."""
        return (self.pareto_k > RELIABLE_PARETO_K) | (self.weights_pareto_k > RELIABLE_PARETO_K)

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the values, and what to do if they are not to be believed."""
        there = ~self.value.isnan()
        if not bool(there.any()):
            return "no value: a mask leaves the latent out of every datum"
        k = largest_k(self.pareto_k, self.weights_pareto_k)[there]
        why = why_unknown(self.weights_pareto_k[there], "f")
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


def why_unknown(weights_k: Tensor, f: str) -> str:
    """Returns why k of some w |f| is unknown, from k of w itself."""
    return HIDDEN if bool(weights_k.isnan().any()) else NEVER.format(f)


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
    """Returns value, standard error, ESS, k of w |f| and bias, each `(data, *event)`, from draws `(S, data, ...)`.

    f is called for some draws of some data at a time, with the rows of `data` that go with them, and no more of its
    values are kept than sums and tails. `used` are the log-weights in place of log_w, such as smoothed ones, in all but
    k: a tail that has been smoothed looks like the one that was fitted, capped at the largest weight.
    """
    count, num_data = log_w.shape
    as_it_is, log_share = (one - one.logsumexp(0) for one in (log_w, log_w if used is None else used))
    unit, tail = rounding_unit(log_w), tail_size(count)
    event = _values(f, draws, data, slice(0, 1), slice(0, 1), None).shape[2:]
    size = max(1, event.numel())
    rows = min(num_data, max(1, VALUES_AT_A_TIME // ((tail + 1) * size)))
    parts = []
    for start in range(0, num_data, rows):
        at = slice(start, min(start + rows, num_data))
        block = max(1, VALUES_AT_A_TIME // ((at.stop - start) * size))
        sums = _Sums(as_it_is[:, at], log_share[:, at], unit[at], tail)
        for first in range(0, count, block):
            span = slice(first, min(first + block, count))
            sums.add(span, _values(f, draws, data, span, at, event))
        parts.append(sums.result())
    return tuple(
        torch.cat(part).unflatten(1, event) if event else torch.cat(part)[:, 0] for part in zip(*parts, strict=True)
    )


class _Sums:
    """Adds up the values of f at draws of some data, `(draws, data, values)`, in float64."""

    def __init__(self, as_it_is: Tensor, log_share: Tensor, unit: Tensor, tail: int) -> None:
        self.as_it_is, self.log_share, self.unit, self.tail = as_it_is, log_share, unit, tail
        self.shift: Tensor | None = None

    def add(self, span: slice, values: Tensor) -> None:
        values = values.flatten(2).double() if values.dim() > 2 else values.unsqueeze(2).double()
        missing = values.isnan()
        require(not bool(values.isinf().any()), "f must be finite at every draw, got inf")
        values, log_share = values.nan_to_num(), self.log_share[span].unsqueeze(2)
        if self.shift is None:  # near the value, so that squares lose nothing
            zeros = torch.zeros_like(values[0])
            self.shift, self.missing = values.mean(0), missing[0]
            self.sums, self.largest, self.top = [zeros] * 5, zeros, zeros[None][:0]
            self.least = torch.full_like(zeros, math.inf)
        require(bool((missing == self.missing).all()), "f must be a number at every draw, got nan at some of them")
        share, off = log_share.exp(), values - self.shift
        terms = (share * off, share * off**2, share**2, share**2 * off, share**2 * off**2)
        self.sums = [total + term.sum(0) for total, term in zip(self.sums, terms, strict=True)]
        self.largest = torch.maximum(self.largest, values.abs().amax(0))
        log_terms = self.as_it_is[span].unsqueeze(2) + values.abs().log()
        self.least = torch.minimum(self.least, log_terms.amin(0))
        most = torch.cat([self.top, log_terms])
        self.top = most.topk(min(self.tail + 1, len(most)), dim=0).values

    def result(self) -> tuple[Tensor, ...]:
        assert self.shift is not None
        count = len(self.log_share)
        mean, second, squares, first, both = self.sums
        spread = (second - mean**2).clamp(min=0)  # sum w (f - value)^2 of weights that sum to 1
        variance = (both - 2 * mean * first + mean**2 * squares).clamp(min=0)  # sum w^2 (f - value)^2
        is_constant = spread <= (CONSTANT * self.largest) ** 2
        ess = torch.where(is_constant | (variance == 0), 1 / squares, spread / variance)
        error = (variance * (count / (count - 1) if count > 1 else math.nan)).sqrt()
        bias = mean * squares - first if count > 1 else torch.full_like(mean, math.nan)  # - sum w^2 (f - value)
        results = self.shift + mean, error, ess, self._k(), bias
        return tuple(torch.where(self.missing, math.nan, result) for result in results)

    def _k(self) -> Tensor:
        """Returns k of w |f|, which is nan where f is 0 at every draw: such draws do not tell what they have missed."""
        if self.tail < MIN_TAIL:
            return torch.full_like(self.least, math.nan)
        top, unit = self.top.flatten(1).cpu(), self.unit[:, None].expand_as(self.least).flatten().cpu()
        never = top[0] == -math.inf
        k, _ = fitted_tail(torch.where(never, 0.0, top), self.least.flatten().cpu(), unit)
        return torch.where(never, math.nan, k).view_as(self.least).to(self.least.device)


class _Latents(dict[str, Tensor]):
    """Holds draws of latents by name, and says which there are if f asks for another."""

    def __missing__(self, name: str) -> Tensor:
        require_choice("the name of a latent", name, self)
        raise KeyError(name)


def _values(
    f: Callable[..., Tensor], draws: Site, data: Sequence[Tensor], span: slice, rows: slice, event: torch.Size | None
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


# Quantiles ------------------------------------------------------------------------------------------------------------


def quantiles_of(levels: Tensor, log_w: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Returns quantiles, their standard errors and ESS, each `(levels, data, *event)`, of draws `(S, data, *event)`."""
    count, num_data = log_w.shape
    share, values = log_w.softmax(0), values.double()
    event = values.shape[2:]
    size = max(1, VALUES_AT_A_TIME // (count * max(1, event.numel())))
    parts = []
    for rows in torch.arange(num_data).split(size):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        parts.append(_quantiles(levels, share[:, at], values[:, at].flatten(2) if event else values[:, at, None]))
    return tuple(
        torch.cat(p, 1).unflatten(2, event) if event else torch.cat(p, 1)[..., 0] for p in zip(*parts, strict=True)
    )


def _quantiles(levels: Tensor, share: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    missing = values.isnan()
    require(bool((missing.any(0) == missing.all(0)).all()), "the latent is masked at some draws of a datum, not at all")
    order = values.argsort(0)
    values = values.gather(0, order)
    share = share.unsqueeze(2).expand_as(values).gather(0, order)
    count, below, squares = len(values), share.cumsum(0), share.square().cumsum(0)
    columns = below.movedim(0, -1).contiguous()

    def at(level: Tensor) -> Tensor:
        """Returns the index of the first draw with at least this much weight up to it, `(levels, data, values)`."""
        found = torch.searchsorted(columns, level.movedim(0, -1).contiguous())
        return found.movedim(-1, 0).clamp(max=count - 1)

    level = levels[:, None, None].expand(-1, *values.shape[1:])
    here = at(level)
    up_to, all_squares = squares.gather(0, here), squares[-1]
    variance = up_to * (1 - level) ** 2 + (all_squares - up_to) * level**2  # sum w^2 (1{z <= quantile} - level)^2
    variance = variance * (count / (count - 1) if count > 1 else math.nan)
    low, high = level - variance.sqrt(), level + variance.sqrt()
    error = (values.gather(0, at(high)) - values.gather(0, at(low))) / 2
    error = torch.where((low > 0) & (high < 1), error, math.nan)
    ess = level * (1 - level) / variance
    value = values.gather(0, here)
    return value, error, torch.where(value.isnan(), math.nan, ess)
