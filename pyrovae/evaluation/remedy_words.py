"""What to do about an estimate of log p(x) that is not to be believed, as it is called where that is read."""

from collections.abc import Collection, Mapping

DRAWS, WIDENED, DEFENSIVE, ANNEALED, DISTRIBUTIONS = "draws", "widened", "defensive", "annealed", "distributions"

# How each remedy is called in one place, which advises none without a name. "{more}" is a number worth trying.
IN_PYTHON = {
    DRAWS: "more draws",
    WIDENED: "a wider proposal (pv.proposals.widened)",
    DEFENSIVE: "a proposal mixed with the prior (pv.proposals.defensive)",
    ANNEALED: "annealed_log_marginal",
    DISTRIBUTIONS: "",
}
FOR_ANSWERS = {name: IN_PYTHON[name] for name in (DRAWS, WIDENED, DEFENSIVE)}  # chains give log p(x) alone
IN_SHELL = {
    DRAWS: "more draws (pyrovae evaluate --num-samples {more})",
    ANNEALED: "annealed importance sampling (pyrovae evaluate --methods ais_1000)",
    DISTRIBUTIONS: " (--methods ais_{more})",
}
IN_IMPUTE = {DRAWS: "more draws (--num-samples {more})"}
IN_METHODS = IN_SHELL | {DRAWS: "more draws (--methods is_{more})"}


def advice(remedies: Collection[str], num_samples: int, words: Mapping[str, str]) -> str:
    """Returns "take ..." with those of the remedies that `words` has a name for."""
    known = [words[name].format(more=10 * num_samples) for name in remedies if name in words]
    return "take " + " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
