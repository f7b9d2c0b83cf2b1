"""How far to believe what weighted draws say, as Pareto k tells: one rule for log p(x), answers and missing cells."""

import torch
from torch import Tensor

from pyrovae.common import counted

RELIABLE_PARETO_K = 0.7
MOST_WITHOUT_PARETO_K = 20  # draws
# At 5% of 300 data of linear Gaussian models, whose guides are equally narrow at all, the mean over all is low by less
# than 0.001 nats, and at 40% by more than 0.01.
FEW = 0.05  # of the data
HIDDEN = "rounding hides how the log-weights differ, which are very large; use float64"


def are_few(num_bad: int, num: int) -> bool:
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
    settings: str = "",
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
        settings: What gives enough draws, in brackets, where it is not simply their number.
    """
    count, num_bad, num_unknown = _counted(k)
    if num_unknown == count:
        if num_samples > MOST_WITHOUT_PARETO_K:
            return f"it cannot be judged: {why}"
        few = f"{counted(num_samples, 'draw')} {'is' if num_samples == 1 else 'are'} too few"
        return f"{few} to tell whether it is reliable: more than {MOST_WITHOUT_PARETO_K} are needed{settings}"
    rest = f" and unknown at {num_unknown:,} ({why})" if num_unknown else ""
    if not are_few(num_bad, count - num_unknown):
        conclusion, meaning = bad
        where = "" if count == 1 else f" at {num_bad:,} of {count:,} {things}{rest}"
        return f"{conclusion}: Pareto k > {RELIABLE_PARETO_K}{where}, {meaning}; {take}"
    belief = "not all can be judged" if num_unknown else "reliable as far as its own draws can tell"
    num_good = count - num_bad - num_unknown
    at = f" at {'all' if num_good == count else f'{num_good:,} of'} {count:,} {things}{rest}"
    small = f"Pareto k <= {RELIABLE_PARETO_K}"
    if not num_bad:
        return f"{belief}: {small}{'' if count == 1 else at}; {good}"
    others, them = (f"the other {num_bad:,}", "them") if num_bad > 1 else ("the other one", "it")
    large = f"{others} may be far off (Pareto k > {RELIABLE_PARETO_K}): for {them} {take}"
    return f"{belief}: {small}{at}; {large}" if num_unknown else f"{belief}{at}; {large}"


def doubt_of(k: Tensor) -> str:
    """Returns what `verdict_of` doubts about log p(x) in a few words, for a line that says more; nothing if nothing."""
    count, num_bad, num_unknown = _counted(k)
    doubts = []
    if num_bad:
        where = "" if count == 1 else f" at {num_bad:,} of {count:,} data"
        large, is_few = f"Pareto k > {RELIABLE_PARETO_K}{where}", are_few(num_bad, count - num_unknown)
        doubts.append(f"{large}, which may be far off" if is_few else f"a lower bound: {large}")
    if num_unknown:
        where = "" if count == 1 else f" at {num_unknown:,} of {count:,} data"
        doubts.append(f"Pareto k is unknown{where}")
    return "; ".join(doubts)


def _counted(k: Tensor) -> tuple[int, int, int]:
    """Returns how many things there are, how many of a k above 0.7, and of how many it is unknown."""
    return k.numel(), int((k > RELIABLE_PARETO_K).sum()), int(k.isnan().sum())
