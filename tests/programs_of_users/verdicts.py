"""What is expected of each program at each door: that it works, or a refusal for a reason in mathematics."""

from dataclasses import dataclass
from textwrap import wrap

from programs_of_users import PROGRAMS

DOORS = ("elbo", "iwae", "dreg", "vimco", "rws", "joint", "fit", "log_marginal", "compare")
SEVERAL = ("iwae", "dreg", "vimco", "rws")  # bounds of several particles for each datum


@dataclass(frozen=True)
class Reason:
    """Holds why a door is closed: `says` is what the message must match, `why` and `instead` are for the docs."""

    says: str
    why: str
    instead: str


JOINT = Reason(
    "joint=True",
    "The guide draws nothing for a single datum: all latents are global, or one draw outside the plates gives those of "
    "all data (`AutoMultivariateNormal`). K particles of a datum would be K times the same, and the "
    "importance-weighted bound would silently be the ELBO.",
    "`joint=True` puts one logsumexp around the whole data set; the ELBO is as tight as a bound per datum gets.",
)
POINT = Reason(
    "Delta",
    "A guide at a point has no density, and so no importance weight.",
    "The ELBO, whose optimum is then the maximum a posteriori; or a guide with a density, such as `AutoNormal`.",
)
SUBSAMPLED = Reason(
    r"subsampl|holds \d of the \d",
    "The evidence is that of all data. N/B times the sum of a minibatch's logarithms is unbiased for their whole sum, "
    "and its exponential is not unbiased for the product: an estimate inside a logsumexp is no bound.",
    "Run the programs without a `subsample_size`; in training the bounds per datum stand outside the sum, and hold.",
)
INNER = Reason(
    "subsampl",
    "Words are drawn inside each document: their N/B would stand inside the logsumexp, where it gives no bound.",
    "The ELBO, which stays unbiased; or all words of a document.",
)
FACTOR = Reason(
    "factor",
    "With a factor the joint density is not normalised: there is no log p(x).",
    "Train with it under any bound, and ask `posterior`, whose answers need no constant; measure the model without it.",
)
CROSSING = Reason(
    'plate must say .*"users".*"items"',
    "Ratings lie in two plates that cross, and either can be the data: the bound differs.",
    'Say which: `IWAE(8, plate="users")`, `log_marginal(..., plate="users")`.',
)
IN_GUIDE = Reason(
    "guide must observe nothing",
    "The guide observes, or adds a loss: such a term is the density of no latent. Importance weights would not be "
    "those of the guide's draws, and the ELBO would be a bound on nothing.",
    "Train the term in a loss of its own, as Kingma et al. (2014) do, and leave it out of the guide.",
)
ENUMERATED = Reason(
    "marked for enumeration",
    "A site enumerated in the guide is averaged over exactly. The mean of a logarithm of K weights would run over all "
    "S^K values of K draws.",
    "The ELBO; or leave the mark out, and the site is drawn; or let the model alone sum it out, as every bound can.",
)
ONE_WAY = Reason(
    "no inverse",
    "Planar, radial, Sylvester and neural autoregressive flows have no inverse: what a held draw is made from is not "
    "known once the parameters move, and neither is the gradient of its density there.",
    "`elbo`, `iwae`, `renyi`, `miwae` and `ciwae`, which go through the draws; or a flow with an inverse.",
)
REASONS = {
    "a": JOINT,
    "b": POINT,
    "c": SUBSAMPLED,
    "d": INNER,
    "e": FACTOR,
    "f": CROSSING,
    "g": IN_GUIDE,
    "h": ENUMERATED,
    "i": ONE_WAY,
}


def _at(doors: tuple[str, ...] | str, reason: Reason) -> dict[str, Reason]:
    return dict.fromkeys((doors,) if isinstance(doors, str) else doors, reason)


_GLOBAL = _at(SEVERAL, JOINT)
_POINT = _at((*SEVERAL, "joint", "log_marginal"), POINT)
_SUBSAMPLED = _at(("joint", "log_marginal"), SUBSAMPLED)

# The doors that are closed to a program. All others are open.
REFUSED: dict[str, dict[str, Reason]] = {
    "VAE with a planar flow in the guide": _at(("dreg", "vimco", "rws"), ONE_WAY),
    "VAE that draws its own minibatch": _SUBSAMPLED,
    "VAE with a factor outside its plate": _at("log_marginal", FACTOR),
    "scANVI, labels given, a loss in the guide": _at(DOORS, IN_GUIDE),
    "causal-effect VAE": _at(DOORS, IN_GUIDE),
    "M2, labels enumerated in the guide": _at((*SEVERAL, "joint"), ENUMERATED),
    "scANVI, labels enumerated in the guide": _at((*SEVERAL, "joint"), ENUMERATED),
    "attend, infer, repeat in minibatches": _SUBSAMPLED,
    "hidden Markov model, AutoDelta": _POINT,
    "capture and recapture": _GLOBAL,
    "Gaussian mixture, AutoDelta": _POINT,
    "Gaussian mixture, AutoNormal": _GLOBAL,
    "LDA, documents at points": _POINT,
    "LDA, some words of each document": _at((*SEVERAL, "joint", "log_marginal"), INNER),
    "matrix factorisation": _at(("elbo", *SEVERAL, "fit", "log_marginal"), CROSSING),
    "eight schools, AutoMultivariateNormal": _GLOBAL,
    "intercepts looked up by index": _GLOBAL,
    "item response": _GLOBAL,
    "coin": _GLOBAL,
    "coin, AutoNormal": _GLOBAL,
    "coin, AutoDelta": _POINT,
    "regression, AutoNormal": _GLOBAL,
    "regression, AutoDiagonalNormal": _GLOBAL,
    "regression, AutoMultivariateNormal": _GLOBAL,
    "regression, AutoLowRankMultivariateNormal": _GLOBAL,
    "regression, AutoNormalizingFlow": _GLOBAL,
    "regression, AutoGuideList": _GLOBAL,
    "regression of PyroModules": _GLOBAL,
    "regression of PyroModules in minibatches": _GLOBAL | _SUBSAMPLED,
    "Gaussian process, inputs latent": _GLOBAL,
}


def reason_at(name: str, door: str) -> Reason | None:
    """Returns why a door is closed to a program, or None if it is open."""
    return REFUSED.get(name, {}).get(door)


def compared(name: str) -> list[str]:
    """Returns the bounds that are compared: with the ELBO another of each datum, or the joint one if it is closed."""
    doors = [door for door in ("elbo", "iwae") if reason_at(name, door) is None]
    return doors + ["joint"] * (reason_at(name, "iwae") is not None and reason_at(name, "joint") is None)


def markdown() -> str:
    """Returns the table of programs and doors, and the reasons that its letters stand for."""
    letters = {id(reason): letter for letter, reason in REASONS.items()}
    lines = ["| program | " + " | ".join(f"`{door}`" for door in DOORS) + " |", "|---" + "|:-:" * len(DOORS) + "|"]
    for name in PROGRAMS:
        reasons = [reason_at(name, door) for door in DOORS]
        cells = ["yes" if reason is None else f"({letters[id(reason)]})" for reason in reasons]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for letter, reason in REASONS.items():
        lines += wrap(f"- **({letter})** {reason.why} *Instead:* {reason.instead}", 120, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
