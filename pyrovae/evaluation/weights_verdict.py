"""How far to believe what weighted draws say, as Pareto k tells: one rule for log p(x), answers and missing cells."""

import math

import torch
from torch import Tensor

from pyrovae.common import counted

RELIABLE_PARETO_K = 0.7
MOST_WITHOUT_PARETO_K = 20  # draws
# At 5% of 300 data of linear Gaussian models, whose guides are equally narrow at all, the mean over all is low by less
# than 0.001 nats, and at 40% by more than 0.01.
FEW = 0.05  # of the data
HIDDEN = "rounding hides how the log-weights differ, which are very large; use float64"


def largest_reliable_k(num_samples: int) -> float:
    """Returns the largest Pareto k at which so many draws are enough: min(0.7, 1 - 1 / log10 S).

    Above 0.7 more draws hardly help, and the proposal is bad; below it, S >= 10^(1 / (1 - k)) are enough.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646, sections 3.2.3 and 3.2.4.
    """
    return min(RELIABLE_PARETO_K, 1 - 1 / math.log10(max(num_samples, MOST_WITHOUT_PARETO_K)))


def are_few(num_bad: float, num: float) -> bool:
    """Returns True if so few things are bad that the others are worth a conclusion: at most one in 20.

    `num` counts those of which it is known whether they are bad.
    """
    return num_bad <= FEW * num


def largest_k(*ks: Tensor) -> Tensor:
    """Returns the largest of several Pareto k of each thing; one that is unknown hides no other above 0.7."""
    known, unknown = torch.stack(ks).nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0), torch.stack(ks).isnan()
    return torch.where(unknown.any(0) & ~(known > RELIABLE_PARETO_K), torch.nan, known)


def verdict_of(
    k: Tensor,
    num_samples: int,
    take: str,
    good: str,
    bad: tuple[str, str],
    things: str = "data",
    why: str = HIDDEN,
    num_particles: int = 1,
) -> str:
    """Returns how far to believe things, each with a Pareto k.

    A few bad things are told from a proposal that is bad at many. The others are by no means the better half of an
    estimate: a datum whose k is large had a rare large draw, and is high by chance; those without are low.

    Args:
        k: Their Pareto k, of any shape; nan where it is unknown.
        num_samples: The number of draws of each.
        take: What to do about bad ones.
        good: What to add if none is bad.
        bad: The conclusion if more than a few are bad, and what that means.
        things: What they are called.
        why: Why k is unknown, if it is.
        num_particles: By what the caller's setting was divided, which gave `num_samples`.
    """
    found = _Counted(k, num_samples)
    count, num_known = found.count, found.count - found.unknown
    few = f"{counted(num_samples, 'draw')} {'is' if num_samples == 1 else 'are'} too few"
    if not num_known:
        if num_samples > MOST_WITHOUT_PARETO_K:
            return f"it cannot be judged: {why}"
        more = f"more than {MOST_WITHOUT_PARETO_K} are needed{_settings(MOST_WITHOUT_PARETO_K + 1, num_particles)}"
        return f"{few} to tell whether it is reliable: {more}"
    rest = f" and unknown at {found.unknown:,} ({why})" if found.unknown else ""
    if not are_few(found.bad, num_known):
        conclusion, meaning = bad
        where = "" if count == 1 else f" at {found.bad:,} of {count:,} {things}{rest}"
        return f"{conclusion}: Pareto k > {RELIABLE_PARETO_K}{where}, {meaning}; {take}"
    if not are_few(found.large, num_known):
        where = "" if count == 1 else f" at {found.large:,} of {count:,} {things}{rest}"
        settings = _settings(found.enough, num_particles)
        return f"{few}{where}: Pareto k > {found.limit}; k = {found.most:.2f} needs {found.enough:,}{settings}"
    belief = "not all can be judged" if found.unknown else "reliable as far as its own draws can tell"
    num_good = num_known - found.large
    at = f" at {'all' if num_good == count else f'{num_good:,} of'} {count:,} {things}{rest}"
    small = f"Pareto k <= {found.limit}"
    if not found.large:
        return f"{belief}: {small}{'' if count == 1 else at}; {good}"
    others, them = (f"the other {found.large:,}", "them") if found.large > 1 else ("the other one", "it")
    large = f"{others} may be far off (Pareto k > {found.limit}): for {them} {take}"
    return f"{belief}: {small}{at}; {large}" if found.unknown else f"{belief}{at}; {large}"


def doubt_of(k: Tensor, num_samples: int) -> str:
    """Returns what `verdict_of` doubts about log p(x) in a few words, for a line that says more; nothing if nothing."""
    found = _Counted(k, num_samples)
    num_known, of = found.count - found.unknown, "" if found.count == 1 else f" of {found.count:,} data"
    doubts = []
    if not are_few(found.bad, num_known):
        doubts.append(f"a lower bound: Pareto k > {RELIABLE_PARETO_K}" + (of and f" at {found.bad:,}{of}"))
    elif found.large:
        large = f"Pareto k > {found.limit}" + (of and f" at {found.large:,}{of}")
        is_few = are_few(found.large, num_known)
        doubts.append(f"{large}, which may be far off" if is_few else f"too few draws: {large}")
    if found.unknown:
        doubts.append("Pareto k is unknown" + (of and f" at {found.unknown:,}{of}"))
    return "; ".join(doubts)


def _settings(num_draws: int, num_particles: int) -> str:
    """Returns what gives so many draws, in brackets; nothing where it is simply their number."""
    return f" (num_samples={num_draws * num_particles}, num_particles={num_particles})" if num_particles > 1 else ""


class _Counted:
    """Counts things by their Pareto k.

    - `count`, `unknown`, `bad`: all, those of unknown k, those of a k above 0.7.
    - `large`: those of a k above `limit`, at which so many draws are too few; the bad ones are among them.
    - `most`, `enough`: the largest k that is not bad, and how many draws it needs.
    """

    def __init__(self, k: Tensor, num_samples: int) -> None:
        limit, is_bad = largest_reliable_k(num_samples), k > RELIABLE_PARETO_K
        self.count, self.unknown, self.bad = k.numel(), int(k.isnan().sum()), int(is_bad.sum())
        self.large, self.limit = int((k > limit).sum()), f"{limit:.2g}"
        self.most = torch.where(is_bad | k.isnan(), -torch.inf, k).max().item() if k.numel() else -math.inf
        self.enough = math.ceil(10 ** (1 / (1 - self.most)))
