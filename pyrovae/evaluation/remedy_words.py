"""What to do about an estimate of log p(x) that is not to be believed, as it is called where that is read."""

from collections.abc import Collection, Mapping

DRAWS, WIDENED, NARROWED, DEFENSIVE = "draws", "widened", "narrowed", "defensive"  # the second and third by a factor
RESCALED, UNTRIED, SUMMED_OUT = "rescaled", "untried", "summed_out"
ANNEALED, DISTRIBUTIONS = "annealed", "distributions"
PARTICLES, CHAINS, LONGER = "particles", "chains", "longer"

# How each remedy is called in one place, which advises none without a name. "{more}" is a number worth trying, and a
# brace that is meant is doubled.
IN_PYTHON = {
    WIDENED: "a wider proposal (pv.proposals.widened(guide, {factor}))",
    NARROWED: "a narrower proposal (pv.proposals.widened(guide, {factor}))",
    RESCALED: "a better guide (no factor of pv.proposals.widened is enough)",
    UNTRIED: "a wider or narrower proposal (pv.proposals.widened(guide, 2) is twice as wide)",
    SUMMED_OUT: "the discrete latents out of the guide (the model sums them out where they are marked "
    '`infer={{"enumerate": "parallel"}}`)',
    DEFENSIVE: "a proposal mixed with the prior (pv.proposals.defensive(model, guide))",
    LONGER: "more distributions",
    CHAINS: "more chains",
    ANNEALED: "annealed_log_marginal",
    DISTRIBUTIONS: "",
    DRAWS: "more draws",
}
FOR_CELLS = {name: IN_PYTHON[name] for name in IN_PYTHON if name not in (SUMMED_OUT, ANNEALED, DISTRIBUTIONS)}
FOR_ANSWERS = FOR_CELLS | {PARTICLES: "more draws of the latents of each datum (num_particles)"}
FOR_ANSWERS |= {ANNEALED: "annealed_posterior"}
IN_SHELL = {
    DRAWS: "more draws (pyrovae evaluate RUN --num-samples {more} --overwrite)",
    ANNEALED: "annealed importance sampling (pyrovae evaluate RUN --methods ais_1000)",
    DISTRIBUTIONS: " (--methods ais_{more})",
}
# More draws help little above 0.7, and a longer training of a tighter bound makes the encoder a better proposal.
BETTER_GUIDE = "a run trained for longer or with more particles (pyrovae train --objective iwae --num-particles 10)"
IN_IMPUTE = {DRAWS: f"more draws (--num-samples {{more}}) or, if they do not help, {BETTER_GUIDE}"}
IN_METHODS = IN_SHELL | {DRAWS: "more draws (--methods is_{more})"}


def by_factor(name: str, factor: float) -> str:
    """Returns the remedy of that name by a factor that has been tried."""
    return f"{name} {factor:g}"


def advice(remedies: Collection[str], num_samples: int, words: Mapping[str, str]) -> str:
    """Returns "take ..." with those of the remedies that `words` has a name for; of two factors the first."""
    named: dict[str, str] = {}
    for name, _, factor in (remedy.partition(" ") for remedy in remedies):
        if name in words:
            named.setdefault(name, words[name].format(more=10 * num_samples, factor=factor))
    known = list(named.values())
    return "take " + " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))


def misfit(remedies: Collection[str]) -> str:
    """Returns in which way the proposal is bad, if the remedies tell."""
    for name, _, factor in (remedy.partition(" ") for remedy in remedies):
        if name == WIDENED:
            return f"too narrow, or beside the posterior (widened by {factor} it reaches it)"
        if name == NARROWED:
            return f"too wide (narrowed to {factor} it is not)"
    return "too narrow, too wide, misplaced or of another shape"
