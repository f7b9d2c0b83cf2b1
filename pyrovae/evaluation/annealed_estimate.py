"""What annealed importance sampling returns: log p(x) per datum, and how far to believe it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyrovae.common import counted, require
from pyrovae.evaluation.estimate import Estimate
from pyrovae.evaluation.importance_weights import jackknifed
from pyrovae.evaluation.remedy_words import DISTRIBUTIONS, IN_PYTHON
from pyrovae.evaluation.weights_verdict import are_few

TARGET_ACCEPTANCE = 0.65
# Where log-weights are normal with a standard deviation of 1.5 nats, half of the chains is more than the ESS of seven
# data in eight, and the mean of 16 chains is low by 0.16 nats; at 0.6 nats that of one in sixty, and by 0.01.
LOWEST_ESS = 0.5  # of the number of chains
FEWEST_CHAINS = 8  # in fewer, one or two that agree by chance look like all
ROUNDING = 1e-9  # nats
MOVING = (0.3, 0.9)  # acceptances of chains whose steps are neither too long nor too short to get about


@dataclass(frozen=True)
class AnnealedEstimate(Estimate):
    """Holds log p(x) by annealed importance sampling, as `annealed_log_marginal` returns it.

    Args:
        value: log p(x), also called `log_px`, `(batch,)`, in nats.
        standard_error: Its standard error by the delta method, `(batch,)`, in nats; nan for one chain.
        influences: See `Estimate`.
        ess: The effective sample size, `(batch,)`, between 1 and the number of chains.
        acceptance: The mean probability with which HMC accepted its proposals, over chains and distributions,
            `(batch,)`.
        step_size: The step sizes of HMC at each distribution, `(num_distributions, batch)`.
        log_weights: The log-weight of each chain, `(num_chains, batch)`, in nats.
        is_upper: True for the upper bound of `bidirectional_gap`, whose chains run backwards.
        evidence_of: What the joint evidence is of; None where each datum has its log p(x).
        likelihood_power: The power c of p(x|z) where the chains end, as `annealed_rate_distortion` has it: with another
            than 1 `value` is log of the integral of p(z) p(x|z)^c, and not log p(x).

    Example:
        >>> value, error, ess, acceptance = (torch.tensor([number]) for number in (-2.5, 0.1, 12.0, 0.65))
        >>> step_size, log_weights = torch.full((100, 1), 0.3), torch.full((16, 1), -2.5)
        >>> estimate = pv.AnnealedEstimate(value, error, ess, acceptance, step_size, log_weights)
        >>> estimate.log_px, round(estimate.monte_carlo_error, 3)
        (tensor([-2.5000]), 0.1)
        >>> print(estimate.verdict)
        reliable as far as its own chains can tell: ESS >= 8 of 16 chains; not low as far as the chains have ...
    """

    ess: Tensor
    acceptance: Tensor
    step_size: Tensor
    log_weights: Tensor
    is_upper: bool = False
    evidence_of: str | None = None
    likelihood_power: float = 1.0

    @property
    def log_px(self) -> Tensor:
        """log p(x) for each datum, `(batch,)`, in nats: another name for `value`, if that is log p(x)."""
        require(self.likelihood_power == 1, f"log_px must be of chains that end at p(x|z), got {self._quantity}")
        return self.value

    @property
    def disagrees(self) -> Tensor:
        """True for each datum whose effective sample size is below half of the chains, `(batch,)`."""
        return self.ess < LOWEST_ESS * len(self.log_weights)

    @property
    def is_stuck(self) -> Tensor:
        """True for each datum whose chains hardly move: HMC accepts less than 30% or more than 90%, `(batch,)`."""
        return (self.acceptance < MOVING[0]) | (self.acceptance > MOVING[1])

    @property
    def verdict(self) -> str:
        """A conclusion about how far to believe the number, and what to do if it is not to be believed.

        A few bad data, at most one in 20, are told from chains that are bad at many. `diagnosis` says more.
        """
        return self.verdict_in(IN_PYTHON)

    def verdict_in(self, words: Mapping[str, str]) -> str:
        """Returns the verdict; `words` has what is to be done, as it is called where the verdict is read."""
        start = "" if self.evidence_of is None else f"{self.evidence_of}: "
        num_chains, num_distributions = len(self.log_weights), len(self.step_size)
        side, word = ("an upper bound", "high") if self.is_upper else ("a lower bound", "low")
        enough = f"{LOWEST_ESS * num_chains:g} of {num_chains} chains"
        count, num_bad = len(self.value), int(self._is_bad.sum())
        is_only_bound = num_chains < FEWEST_CHAINS or not are_few(num_bad, count)
        reasons = []
        if bool(self.disagrees.any()):
            # One lucky chain makes a datum high and its chains disagree: only the mean of all has a side.
            too = f": {word} by an unknown amount" if is_only_bound else ", and may be far off"
            reasons.append(f"the chains disagree (ESS < {enough}){self._where(self.disagrees)}{too}")
        if bool(self.is_stuck.any()):
            accepted = self.acceptance[self.is_stuck].mean().item()
            reasons.append(
                f"the chains hardly move{self._where(self.is_stuck)} (HMC accepts {accepted:.0%}, and its steps were "
                f"tuned to {TARGET_ACCEPTANCE:.0%})"
            )
        if reasons:
            more = words.get(DISTRIBUTIONS, "").format(more=4 * num_distributions)
            why, take = "; ".join(reasons), f"take more distributions than {num_distributions:,}{more}"
            if is_only_bound:
                return f"{start}{side} only: {why}; {take}"
            good = f"reliable as far as its own chains can tell at {count - num_bad:,} of {count:,} data"
            return f"{start}{good}; {why}: for {'them' if num_bad > 1 else 'it'} {take}"
        if num_chains < FEWEST_CHAINS:
            few = "one chain is" if num_chains == 1 else f"{num_chains} chains are"
            return f"{start}{few} too few to tell whether it is reliable: take {FEWEST_CHAINS} or more"
        off, where = self._shortfall, "" if count == 1 else f" at all {count:,} data"
        by = f"not {word}" if off is None else f"{word} by {off:.2g} nats"
        by += " as far as the chains have seen (jackknife)"
        return f"{start}reliable as far as its own chains can tell: ESS >= {enough}{where}; {by}"

    @property
    def diagnosis(self) -> str:
        """The verdict, and what it rests on."""
        numbers = (
            f"The median effective sample size is {self.ess.median().item():.3g} of {len(self.log_weights)} chains, "
            f"and HMC accepts {self.acceptance.mean().item():.0%} of its proposals"
        )
        if bool(self._is_bad.any()):
            off = self._shortfall
            seen = "" if off is None else f" The jackknife sees {off:.2g} nats of it."
            return (
                f"{self.verdict}. {numbers}.{seen} Chains disagree where the distributions change faster than the "
                'chains can follow; the standard error then says little. From start="guide" they have less far to go '
                'than from "prior". A result that more distributions no longer move is better evidence than either.'
            )
        return (
            f"{self.verdict}. {numbers}. A mode of the posterior that no chain has found would not show: compare with "
            'more distributions, and with the other start ("prior" finds modes that the guide has missed).'
        )

    def __repr__(self) -> str:
        of = f"{self._quantity} of {len(self.value):,} data: mean"
        if self.evidence_of is not None:
            of = "joint evidence" if self.likelihood_power == 1 else self._quantity
        head = f"{of} {self.mean_in_words}"
        chains = f"{counted(len(self.step_size), 'distribution')}, {counted(len(self.log_weights), 'chain')}"
        accepted = f"HMC accepts {self.acceptance.mean().item():.0%}"
        return f"{head}\n{chains}, median ESS {self.ess.median().item():.3g}, {accepted}\n{self.verdict}"

    @property
    def _quantity(self) -> str:
        """What `value` is of one datum."""
        return "log p(x)" if self.likelihood_power == 1 else f"log int p(z) p(x|z)^{self.likelihood_power:g} dz"

    @property
    def _is_bad(self) -> Tensor:
        return self.disagrees | self.is_stuck

    @property
    def _shortfall(self) -> float | None:
        """By how much the mean is off, as the jackknife tells; None if it sees nothing, or cannot tell."""
        sign = -1 if self.is_upper else 1
        off = jackknifed(sign * self.log_weights.double()) - sign * self.value.double()
        known = off[off.isfinite()].mean().item()  # nan without any
        return known if known > ROUNDING else None

    def _where(self, which: Tensor) -> str:
        return "" if len(which) == 1 else f" at {int(which.sum()):,} of {len(which):,} data"
