"""Posterior expectations from the ends of annealed chains, where the guide alone is a poor proposal."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import Workers, counted, evaluates, require_flag, require_size
from pyrovae.evaluation.annealed_chains import AnnealedChains
from pyrovae.evaluation.annealed_importance_sampling import annealed_chunks
from pyrovae.evaluation.draw_runs import DrawRuns, Run
from pyrovae.evaluation.hmc import AnnealedHMC, ChainState
from pyrovae.evaluation.importance_sampling import result_of
from pyrovae.evaluation.latent_draws import LatentDraws
from pyrovae.evaluation.remedy_words import CHAINS, LONGER
from pyrovae.evaluation.rows import factor_of
from pyrovae.evaluation.sampled_weights import joined
from pyrovae.evaluation.weighted_draws import WeightedDraws
from pyrovae.programs import takes_pair

CHAINS_AT_A_TIME = 1_000


@takes_pair
@evaluates
@torch.no_grad()
def annealed_posterior(
    model: Callable,
    guide: Callable,
    *args: object,
    num_distributions: int = 1_000,
    num_chains: int = 100,
    start: str = "prior",
    schedule: str = "sigmoid",
    num_leapfrog: int = 10,
    smoothed: bool = False,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> WeightedDraws:
    """Draws the latents by annealed importance sampling (AIS), so that questions about p(z|x) are answered.

        E[f(z) | x] ~ sum_c w_c f(z_c) / sum_c w_c

    z_c is where the chain c of `annealed_log_marginal` ends, and w_c is its weight: E[w f(z)] = p(x) E[f(z) | x],
    because the last step leaves the posterior invariant. A chain goes from the prior or the guide to the posterior
    through K distributions, so that it gets where no draw of the guide lies. Its weight varies less than that of
    `posterior` by as much as K distributions are nearer to each other than the guide is to the posterior.

    The chains are independent draws, and all questions, errors and Pareto k are those of `posterior`. Each costs K
    times `num_leapfrog` gradients, and all are kept. Where k is bad, more distributions help most; where it is fine and
    errors are large, more chains do.

    Args:
        model: The generative program p(x, z) of any pair whose latents are continuous.
        guide: The guide; its draws are used only if `start` is "guide".
        *args: What model and guide take, of any number and type.
        num_distributions: The number of distributions K.
        num_chains: The number of chains C for each datum, and of weighted draws.
        start: q_0: "prior" for the model's p(z), or "guide" for q(z|x), which is nearer but perhaps too narrow.
        schedule: As in `annealed_log_marginal`.
        num_leapfrog: The number of leapfrog steps of each HMC step.
        smoothed: As in `posterior`.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: The number of pairs of a chain and a datum that run at a time. None is as in `log_marginal`, and
            at most 1,000 chains of a datum.
        compile: As in `annealed_log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `WeightedDraws`: ask it for `mean`, `expectation`, `quantile` and `sample`.

    Raises:
        InputError: As `annealed_log_marginal` does, but for factors; if the data lie in several plates.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.randn(4, 3)
        >>> post = pv.annealed_posterior(vae, x, num_distributions=20, num_leapfrog=2)
        >>> mean = post.mean("z")
        >>> bool(((mean.value - vae.posterior(x).mean).abs() < 5 * mean.standard_error).all())
        True

    Source:
        Neal 2001, physics/9803008.
    """
    require_size("num_chains", num_chains)
    require_flag("smoothed", smoothed)
    hmc = AnnealedHMC(model, guide, start, num_leapfrog, num_distributions, compile)
    hmc.normalised = False
    most = min(CHAINS_AT_A_TIME, chunk_size or CHAINS_AT_A_TIME)
    blocks = [len(block) for block in torch.arange(num_chains).tensor_split(math.ceil(num_chains / most))]
    chains = AnnealedChains(hmc, num_distributions, blocks[0], schedule)
    runs, found = [], []  # type: list[Run], list[tuple[LatentDraws, str | None]]
    for data, bar in annealed_chunks("annealed_posterior", chains, args, plate, chunk_size, len(blocks), progress):
        pair = hmc.check(data.args)
        latents, parts = LatentDraws.of(pair, "annealed_posterior"), []
        steps = chains.pilot(data.args, bar)
        for size in blocks:
            chains.num_chains = size
            state, log_w = _ends(chains, data.args, steps, bar)
            parts.append((log_w, *latents.draws(hmc.pair_at(state.u, data.args))))
        log_w, *draws = (torch.cat(part) for part in zip(*parts, strict=True))
        runs.append(Run(data, int(torch.randint(2**62, ())), log_w, latents.by_name(tuple(draws))))
        found.append((latents, factor_of(pair)))
    latents, factor = Workers().in_turn(found)[0]
    kept = DrawRuns(lambda _: iter(runs))
    log_px = result_of(joined(kept.statistics, args), num_chains, chains.evidence_of)
    of = f" for each of {len(log_px.value):,} data" if chains.evidence_of is None else ", of all data together"
    described = f"{counted(num_chains, 'weighted draw')} of {', '.join(latents.shapes)}{of}, "
    described += f"ends of chains through {counted(num_distributions, 'distribution')}"

    def remedies(_: Tensor) -> tuple[str, ...]:
        return LONGER, CHAINS

    return WeightedDraws((model, guide), args, kept, latents.shapes, log_px, described, remedies, smoothed, factor)


def _ends(chains: AnnealedChains, data: Sequence, steps: Tensor, bar: tqdm) -> tuple[ChainState, Tensor]:
    """Returns chains at the posterior, and their log-weights."""
    last: list[ChainState] = []

    def visit(state: ChainState, log_w: Tensor) -> None:
        last[:] = [state]

    log_w = chains.forward(data, steps, bar, visit).log_weights
    return last[0], log_w
