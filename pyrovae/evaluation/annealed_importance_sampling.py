"""Annealed importance sampling: log p(x) per datum, and bounds from both sides for data that the model draws."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import Workers, evaluates, local_seed, progress_bar
from pyrovae.evaluation.annealed_chains import AnnealedChains
from pyrovae.evaluation.annealed_estimate import AnnealedEstimate
from pyrovae.evaluation.arguments import home_of
from pyrovae.evaluation.chunks import Data, opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.estimate import Estimate, estimate_lines
from pyrovae.evaluation.hmc import AnnealedHMC, unconstrained
from pyrovae.evaluation.rows import shares_more_than_factors
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import Reading, simulated, takes_pair


@dataclass(frozen=True)
class BidirectionalEstimate:
    """Holds data that the model drew and bounds on their log p(x) from both sides, as `bidirectional_gap` returns it.

    Args:
        lower: The lower bound, from chains that run towards the posterior.
        upper: The upper bound, from chains that run backwards from an exact draw of the posterior.
        args: The data that were drawn, and the conditions as they were given.
    """

    lower: AnnealedEstimate
    upper: AnnealedEstimate
    args: tuple

    @property
    def gap(self) -> Estimate:
        """upper - lower, `(batch,)`, in nats: in expectation, neither bound is further off than this."""
        # The chains of the two have no draws in common.
        error = (self.lower.standard_error.square() + self.upper.standard_error.square()).sqrt()
        return Estimate(self.upper.value - self.lower.value, error)

    def __repr__(self) -> str:
        lines = estimate_lines({"lower": self.lower, "upper": self.upper, "gap": self.gap})
        return "\n".join([*lines, f"lower: {self.lower.verdict}", f"upper: {self.upper.verdict}"])


@takes_pair
@evaluates
@torch.no_grad()
def annealed_log_marginal(
    model: Callable,
    guide: Callable,
    *args: object,
    num_distributions: int = 1_000,
    num_chains: int = 16,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> AnnealedEstimate:
    """Estimates log p(x) for each datum by annealed importance sampling (AIS), at beta = 1.

    A chain goes from z_0 ~ q_0 to the posterior through K intermediate distributions. One step of Hamiltonian Monte
    Carlo (HMC), which leaves pi_k invariant, takes z_{k-1} to z_k.

        pi_k(z) proportional to q_0(z)^(1 - t_k) p(x, z)^t_k,    0 = t_0 < ... < t_K = 1
        log w = sum_k (t_k - t_{k-1}) (log p(x, z_{k-1}) - log q_0(z_{k-1})),    E[w] = p(x)

    E[w] = p(x) holds whatever K is and however well HMC mixes, so that log 1/C sum_c w_c over C independent chains is a
    stochastic lower bound on log p(x). With it come

        standard_error = sd(w) / (mean(w) sqrt(C))    (the delta method; nan for one chain)
        ess            = (sum w)^2 / sum w^2

    Where the ESS is only a few of C chains, the estimate is low and its error too small: take more distributions. The
    `verdict` of the result says so where it is below half of the chains.

    HMC has identity mass and fresh momentum. Its step sizes, one for each datum and each k, are tuned in a pilot run of
    a few chains to an acceptance of 0.65 and then held, because E[w] = p(x) would not survive an adaptation within the
    run. Each use jitters them by a fifth either way, so that trajectories do not close upon themselves. A latent on a
    constrained support moves in the unconstrained space of `biject_to(support)`, under its density there.

    If the data share latents, the result is the joint evidence of all of them, `(1,)`: a chain then walks over the
    latents of all data together.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: The guide; its draws are used only if `start` is "guide".
        *args: What model and guide take, of any number and type.
        num_distributions: The number of distributions K.
        num_chains: The number of chains C for each datum.
        start: q_0: "prior" for the model's p(z), or "guide" for q(z|x), which is nearer but perhaps too narrow.
        schedule: "linear" for t_k = k / K, or "sigmoid" for that of Wu et al., slow at both ends.
        num_leapfrog: The number of leapfrog steps of each HMC step.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: The number of pairs of a chain and a datum that run at a time, but at least the chains of one datum.
            None is as in `log_marginal`. Where memory does not suffice, it must be made smaller by hand.
        compile: True runs densities and gradients as a compiled graph, which gives the same numbers to rounding. "auto"
            does so from 5,000 leapfrog steps or five million gradients on.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `AnnealedEstimate`, in nats; its `verdict` says how far to believe it.

    Raises:
        InputError: If the pair is refused, a latent site is discrete, or no density exists.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.zeros(4, 3)
        >>> settings = {"start": "guide", "num_distributions": 2, "num_leapfrog": 1}
        >>> result = pv.annealed_log_marginal(vae.model, vae.exact_guide, x, **settings)
        >>> torch.allclose(result.log_px, vae.log_px(x).double(), atol=1e-4)
        True

    Source:
        Neal 2001, physics/9803008; Wu, Burda, Salakhutdinov and Grosse 2017, arXiv:1611.04273.
    """
    hmc = AnnealedHMC(model, guide, start, num_leapfrog, num_distributions, compile)
    chains = AnnealedChains(hmc, num_distributions, num_chains, schedule)
    parts = []
    for data, bar in annealed_chunks("annealed_log_marginal", chains, args, plate, chunk_size, 1, progress):
        hmc.check(data.args)
        steps = chains.pilot(data.args, bar)
        parts.append(chains.forward(data.args, steps, bar))
    return joined_estimates(parts, home_of(args), chains.evidence_of)


@takes_pair
@evaluates
@torch.no_grad()
def bidirectional_gap(
    model: Callable,
    guide: Callable,
    *args: object,
    num_distributions: int = 1_000,
    num_chains: int = 16,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> BidirectionalEstimate:
    """Bounds log p(x) from both sides for data x that the model itself draws, at beta = 1: how far AIS can be off.

    This is bidirectional Monte Carlo. With (z*, x*) ~ p(z, x), z* is an exact draw from the posterior of x*. The chains
    of `annealed_log_marginal` on x* give `lower`. Chains that run backwards from z*, from pi_K to pi_1, give `upper`:

        w' = prod_k pi~_{k-1}(z_{k-1}) / pi~_k(z_{k-1}),    E[w'] = 1 / p(x*),    upper = -log 1/C sum_c w'_c

    with pi~ not normalised. The `log_weights` of `upper` are -log w'.

    All chains of a datum start at its one z*. Each is valid, but the `standard_error` of `upper` and of `gap` holds for
    given z*, and more chains do not remove the variance of z* itself. The mean over the data averages over z*, and its
    `data_error` includes that variance.

    Args:
        model: As in `annealed_log_marginal`.
        guide: As in `annealed_log_marginal`.
        *args: What model and guide take. Tensors stand in for the data, by their number and shape: every observed site
            must observe one of the arguments as it is, which is replaced by what that site draws. All others
            (conditions) stay.
        num_distributions: As in `annealed_log_marginal`, and so are the arguments below.
        num_chains: The number of chains C, for either bound.
        start: q_0, "prior" or "guide".
        schedule: "sigmoid" or "linear".
        num_leapfrog: The number of leapfrog steps of each HMC step.
        plate: The name of the data plate.
        chunk_size: The number of pairs of a chain and a datum that run at a time.
        compile: True, False or "auto".
        progress: True, False or None.

    Returns:
        A `BidirectionalEstimate` with `lower`, `upper`, their `gap`, and the data that were drawn as `args`.

    Raises:
        InputError: As `annealed_log_marginal` does, and if an observed site does not observe an argument as it is.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> settings = {"start": "guide", "num_distributions": 2, "num_leapfrog": 1}
        >>> bounds = pv.bidirectional_gap(vae.model, vae.exact_guide, torch.zeros(4, 3), **settings)
        >>> abs(bounds.gap.mean) < 1e-4  # nothing is left to bridge: the guide is the posterior
        True

    Source:
        Grosse, Ghahramani and Adams 2015, arXiv:1511.02543.
    """
    hmc = AnnealedHMC(model, guide, start, num_leapfrog, num_distributions, compile)
    chains = AnnealedChains(hmc, num_distributions, num_chains, schedule)
    lower, upper, drawn = [], [], []
    for data, bar in annealed_chunks("bidirectional_gap", chains, args, plate, chunk_size, 2, progress):
        new, _, sites = simulated(model, data.args, {})
        hmc.check(new)
        steps = chains.pilot(new, bar)
        lower.append(chains.forward(new, steps, bar))
        upper.append(chains.reverse(new, unconstrained(hmc.walked(sites), hmc.layout)[0], steps, bar))
        drawn.append([None if one is given else one.cpu() for one, given in zip(new, data.args, strict=True)])
    home = home_of(args)
    columns = zip(*Workers().in_turn(drawn), strict=True)
    args = tuple(
        given if parts[0] is None else torch.cat(parts).to(home) for parts, given in zip(columns, args, strict=True)
    )
    of = chains.evidence_of
    return BidirectionalEstimate(
        joined_estimates(lower, home, of), joined_estimates(upper, home, of, is_upper=True), args
    )


def annealed_chunks(
    name: str,
    chains: AnnealedChains,
    args: tuple,
    plate: str | None,
    chunk_size: int | None,
    num_runs: int,
    progress: bool | None,
) -> Iterator[tuple[Data, tqdm]]:
    """Yields runs of data on the model's device, with the bar, which counts the transitions of a pilot and `num_runs`
    runs.

    If the data share latents, all of them are one datum.
    """
    hmc = chains.hmc
    found = opened(hmc.model, hmc.guide, args, chunk_size, Reading(plate, vectorize_particles="only"))
    found.require_one_plate(name)
    check_subsamples(name, hmc.model, hmc.guide, found)
    step = max(1, found.pairs_at_a_time // chains.num_chains)
    has_globals = shares_more_than_factors(found.pair)
    hmc.reading = Reading(plate, has_globals, vectorize_particles="only")
    if has_globals:
        chains.evidence_of = f"joint evidence of all {found.data.size:,} data"
    elif not found.pair.layout.plates:
        chains.evidence_of = "joint evidence of all data"
    data = found.as_one if has_globals else cut(hmc.model, hmc.guide, found, step)
    chunks = list(data.in_chunks(step))
    if len(chunks) > 1:
        hmc.check_new_starts(found.pair, chunks[0].args)
    total = len(chunks) * (chains.num_pilot + num_runs * (len(chains.t) - 1))
    with progress_bar(progress, total, "log p(x) by AIS", "step") as bar:
        for index, chunk in enumerate(chunks):
            seed = int(torch.randint(2**62, ()))  # the draws are the same whichever process takes these data
            if Workers().owns(index):
                with local_seed(seed):
                    yield chunk, bar


def joined_estimates(
    parts: list[AnnealedEstimate], device: torch.device, evidence_of: str | None, **settings: Any
) -> AnnealedEstimate:
    """Returns the estimates for all data, in their order, from every process that ran some of them.

    `settings` are the fields of the result that are no tensors.
    """
    names = [name for name, value in vars(parts[0]).items() if isinstance(value, Tensor)]
    columns = Workers().in_turn([{name: getattr(part, name).cpu() for name in names} for part in parts])
    tensors: dict[str, Any] = {name: torch.cat([column[name] for column in columns], -1).to(device) for name in names}
    return AnnealedEstimate(**tensors, evidence_of=evidence_of, **settings)
