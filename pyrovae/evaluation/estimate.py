"""Estimates in nats with one value per datum, and the errors of their means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import counted, data_frame, if_given, require, require_plain, shown
from pyrovae.evaluation.importance_weights import bound_sizes
from pyrovae.evaluation.remedy_words import DRAWS, IN_PYTHON, advice, misfit
from pyrovae.evaluation.weights_verdict import MOST_WITHOUT_PARETO_K, RELIABLE_PARETO_K, verdict_of

DATA_NAMED = 10


@dataclass(frozen=True)
class Estimate:
    """Holds an estimate of a quantity for each datum, in nats, with its Monte Carlo errors.

    Args:
        value: The estimates, `(batch,)`, in nats.
        standard_error: Their Monte Carlo standard errors, `(batch,)`, in nats.
        influences: By how much each independent group of draws moves `value`, to first order, `(groups, batch)`. None
            where this is not known. It lets `minus` take account of draws that two estimates share.
        error_of_mean: The standard error of `mean` where the data have draws in common, so that their errors do not
            average out; None where those of each datum are its own.

    Raises:
        InputError: If `value` and `standard_error` are not tensors of one shape, or `error_of_mean` is no number.

    Example:
        >>> estimate = pv.Estimate(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.3, 0.0, 0.4]))
        >>> estimate.mean
        3.0
        >>> round(estimate.monte_carlo_error, 3), round(estimate.data_error, 3)
        (0.167, 1.528)
    """

    value: Tensor
    standard_error: Tensor
    influences: Tensor | None = field(default=None, kw_only=True, repr=False)
    error_of_mean: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_plain("value", self.value)
        require_plain("standard_error", self.standard_error)
        shape = tuple(self.value.shape)
        require(len(shape) == 1, f"value must have shape (batch,), got {shape}")
        found = tuple(self.standard_error.shape)
        require(found == shape, f"standard_error must have shape {shape}, as value has, got {found}")
        if_given(require_plain, "influences", self.influences)
        is_number = isinstance(self.error_of_mean, int | float) and not isinstance(self.error_of_mean, bool)
        rule = "error_of_mean must be a number or None"
        require(self.error_of_mean is None or is_number, f"{rule}, got {shown(self.error_of_mean)}")

    @property
    def mean(self) -> float:
        """The mean over the data, in nats."""
        return self.value.mean().item()

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of `mean` for these very data: how far the draws of another run would move it."""
        if self.error_of_mean is not None:
            return self.error_of_mean
        return self.standard_error.square().sum().sqrt().item() / len(self.value)

    @property
    def data_error(self) -> float:
        """Standard error of `mean` as an estimate for the population that the data come from; nan for one value."""
        return math.nan if len(self.value) == 1 else self.value.std().item() / math.sqrt(len(self.value))

    def __repr__(self) -> str:
        return f"estimate of {len(self.value):,} data: mean {self.mean_in_words}"

    @property
    def mean_in_words(self) -> str:
        """The mean with those of its two errors that are known."""
        errors = {"Monte Carlo": self.monte_carlo_error, "over data": self.data_error}
        known = ", ".join(f"{error:.2g} {kind}" for kind, error in errors.items() if math.isfinite(error))
        return f"{self.mean:.3f} nats (standard error {known or 'unknown'})"

    def minus(self, other: "Estimate") -> "Estimate":
        """Returns this estimate minus another of the same data, with the standard error of the difference.

        If both have the same number of `influences`, they are subtracted group by group. The error then holds whether
        or not the two estimates share their draws, as they do when they start from one seed. Otherwise the two must be
        independent.

        Args:
            other: The estimate to subtract, of the same data in the same order.

        Example:
            >>> one = pv.Estimate(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.3]))
            >>> two = pv.Estimate(torch.tensor([0.5, 1.0]), torch.tensor([0.4, 0.4]))
            >>> one.minus(two).value
            tensor([0.5000, 1.0000])
            >>> one.minus(two).standard_error
            tensor([0.5000, 0.5000])
        """
        is_same = isinstance(other, Estimate) and other.value.shape == self.value.shape
        require(is_same, f"other must be an Estimate of {len(self.value)} data, got {shown(other)}")
        value, ours, theirs = self.value - other.value, self.influences, other.influences
        has_common = self.error_of_mean is not None or other.error_of_mean is not None
        of_mean = math.hypot(self.monte_carlo_error, other.monte_carlo_error)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            error = (self.standard_error.square() + other.standard_error.square()).sqrt()
            return Estimate(value, error, error_of_mean=of_mean if has_common else None)
        paired, num = ours - theirs, len(ours)
        by_group = torch.cat((paired, paired.mean(1, keepdim=True)), 1)
        error = (by_group.square().sum(0) * (num / (num - 1) if num > 1 else math.nan)).sqrt()
        of_mean = error[-1].item()
        return Estimate(value, error[:-1], influences=paired, error_of_mean=of_mean if has_common else None)


def estimate_lines(estimates: dict[str, Estimate]) -> list[str]:
    """Returns a line for each estimate: its name, its mean over the data and the Monte Carlo error of that."""
    return [f"{name:30s} {term.mean:12.4f} ± {term.monte_carlo_error:.2g}" for name, term in estimates.items()]


@dataclass(frozen=True)
class MarginalLikelihood(Estimate):
    """Holds log p(x) by importance sampling, as `log_marginal` returns it.

    For data that share latents it is their joint evidence, one value. Every tensor is `(batch,)` unless another shape
    is given, and in nats unless it has no unit.

    Args:
        value: log p(x), also called `log_px`.
        standard_error: Its standard error by the delta method.
        influences: See `Estimate`.
        ess: The effective sample size, between 1 and `num_samples`.
        pareto_k: The shape of the tail of the weights; nan if the samples are too few to tell, or rounding hides it.
        jackknife: log p(x) with less bias; not a lower bound in expectation.
        smoothed: log p(x) from Pareto-smoothed weights: less variance, and lower where tails are heavy.
        bounds: The bounds L_K at each K of `bound_sizes`, from the same draws, `(sizes, batch)`.
        bounds_error: Their standard errors, `(sizes, batch)`.
        num_samples: The number of draws for each datum, or of the shared latents.
        evidence_of: What the joint evidence is of, and how it was drawn; None where each datum has its log p(x).
        remedies: What can be done with the pair where the estimate is not to be believed, as `verdict` says.
        num_particles: The number of draws of the latents of a datum for each draw of those that are shared.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> result = pv.log_marginal(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=100)
        >>> result.bound_sizes, result.bounds.shape
        ([1, 5, 10, 50, 100], torch.Size([5, 4]))
        >>> result.share_unreliable
        0.0
    """

    ess: Tensor
    pareto_k: Tensor
    jackknife: Tensor
    smoothed: Tensor
    bounds: Tensor
    bounds_error: Tensor
    num_samples: int
    evidence_of: str | None = None
    remedies: tuple[str, ...] = (DRAWS,)
    num_particles: int = 1

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with a row for each datum.

        `log_px`, its `standard_error`, `jackknife`, `smoothed` and the bounds, `iwae_K` with K samples, are in nats;
        `ess` is a number of samples, `pareto_k` has no unit. Raises `InputError` if pandas is not installed.

        Example:
            >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
            >>> result = pv.log_marginal(vae.model, vae.exact_guide, torch.zeros(4, 3), num_samples=5)
            >>> list(result.to_pandas().columns)
            ['log_px', 'standard_error', 'ess', 'pareto_k', 'jackknife', 'smoothed', 'iwae_1', 'iwae_5']
        """
        names = ("log_px", "standard_error", "ess", "pareto_k", "jackknife", "smoothed")
        columns = {name: getattr(self, name) for name in names}
        columns |= {f"iwae_{size}": bound for size, bound in zip(self.bound_sizes, self.bounds, strict=True)}
        return data_frame({name: column.detach().cpu().numpy() for name, column in columns.items()})

    def __repr__(self) -> str:
        of = "joint evidence" if self.evidence_of is not None else f"log p(x) of {len(self.value):,} data: mean"
        known = self.pareto_k[~self.pareto_k.isnan()]
        ess, k = self.ess.median().item(), known.max().item() if len(known) else math.nan
        nested = f" (num_samples divided by num_particles={self.num_particles})" if self.num_particles > 1 else ""
        draws = f"{counted(self.num_samples, 'sample')}{nested}, median ESS {ess:.3g}, largest Pareto k {k:.2f}"
        return f"{of} {self.mean_in_words}\n{draws}\n{self.verdict}"

    @property
    def bound_sizes(self) -> list[int]:
        """The numbers of particles K at which `bounds` are given."""
        return bound_sizes(self.num_samples)

    @property
    def mean_bounds(self) -> list[tuple[int, float, float]]:
        """K, the mean of L_K over the data and its Monte Carlo error, in nats, at each K of `bound_sizes`."""
        errors = self.bounds_error.square().sum(1).sqrt() / len(self.value)
        return list(zip(self.bound_sizes, self.bounds.mean(1).tolist(), errors.tolist(), strict=True))

    @property
    def log_px(self) -> Tensor:
        """log p(x) for each datum, `(batch,)`, in nats: another name for `value`."""
        return self.value

    @property
    def share_unreliable(self) -> float:
        """The share of data with Pareto k > 0.7, or nan if that of some is unknown.

        Neither the estimate nor the standard error of such a datum can be trusted.
        """
        return torch.where(self.pareto_k.isnan(), torch.nan, self.is_unreliable.double()).mean().item()

    @property
    def is_unreliable(self) -> Tensor:
        """True for each datum whose Pareto k is above 0.7, `(batch,)`."""
        return self.pareto_k > RELIABLE_PARETO_K

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the number, and what to do if it is not to be believed.

        A few data with Pareto k above 0.7, at most one in 20, are told from a guide that is bad at many. `diagnosis`
        says more.
        """
        return self.verdict_in(IN_PYTHON)

    def verdict_in(self, words: Mapping[str, str]) -> str:
        """Returns the verdict; `words` has what is to be done, as it is called where the verdict is read."""
        start = "" if self.evidence_of is None else f"{self.evidence_of}: "
        take = advice(self.remedies, self.num_samples, words)
        bad = ("a lower bound only", "low by an unknown amount")
        good = self._shortfall_in_words
        return start + verdict_of(self.pareto_k, self.num_samples, take, good, bad, num_particles=self.num_particles)

    @property
    def diagnosis(self) -> str:
        """The verdict, and what it rests on."""
        bad = self.is_unreliable.nonzero().flatten().tolist()
        if bool(self.pareto_k.isnan().all()):
            if self.num_samples > MOST_WITHOUT_PARETO_K:
                return self.verdict
            return f"{self.verdict}. Pareto k describes the tail of the weights, which so few do not have."
        if not bad:
            return (
                f"{self.verdict}. A part of the posterior that the proposal does not reach would not show in its "
                "draws: compare with annealed_log_marginal, or with another proposal."
            )
        shown = ", ".join(map(str, bad[:DATA_NAMED])) + (", ..." if len(bad) > DATA_NAMED else "")
        where = "" if len(self.value) == 1 else f" at the data {shown}"
        low, alone = self._shortfall
        seen = f" The jackknife sees {low:.2g} nats of what is missing." if low is not None and low > 0 else ""
        lone = f" Of {alone:,} data one draw alone has a weight, and the jackknife leaves them out." if alone else ""
        apart = " Do not leave these data out: a rare large weight raises k and log p(x) at once, so the rest is low."
        return (
            f"{self.verdict}. The proposal is {misfit(self.remedies)}{where}, or its draws are too few: the median "
            f"effective sample size is {self.ess.median().item():.3g} of {self.num_samples:,}. Where k is large the "
            f"standard errors say little, and where it is small they may, too, because k is an estimate.{seen}{lone}"
            f"{apart if len(bad) < len(self.value) else ''}"
        )

    @property
    def _shortfall(self) -> tuple[float | None, int]:
        """By how much the mean is low, as the jackknife tells, and of how many data it cannot tell.

        It is of all data: those whose k is small are low by more than it sees, because they lack the rare large draws.
        """
        low = self.jackknife - self.value
        known = low[low.isfinite()]  # it is infinite where all weights but one are 0
        return known.mean().item() if len(known) else None, len(low) - len(known)

    @property
    def _shortfall_in_words(self) -> str:
        low, _ = self._shortfall
        if low is None:
            return "its draws do not tell how low it is"
        return f"{f'low by {low:.2g} nats' if low > 0 else 'not low'} as far as the draws have seen (jackknife)"
