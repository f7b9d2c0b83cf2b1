"""Posterior expectations of the latents of each datum, by importance sampling from the guide."""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from pyrovae.common import Workers, counted, evaluates, if_given, require, require_compile, require_flag, require_size
from pyrovae.evaluation.chunks import Opened, opened
from pyrovae.evaluation.draw_runs import DrawRuns, Run
from pyrovae.evaluation.importance_sampling import result_of
from pyrovae.evaluation.joint_evidence import as_one_datum
from pyrovae.evaluation.latent_draws import LatentDraws
from pyrovae.evaluation.nested_draws import can_nest, nested_run
from pyrovae.evaluation.remedies import remedies_of
from pyrovae.evaluation.remedy_words import PARTICLES
from pyrovae.evaluation.rows import factor_of, shares_more_than_factors
from pyrovae.evaluation.sampled_weights import Sampler, joined
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.evaluation.weighted_draws import WeightedDraws
from pyrovae.programs import Reading, gate, takes_pair

PARTICLES_PER_DRAW = 16  # draws of each z for a draw of theta


@takes_pair
@evaluates
def posterior(
    model: Callable,
    guide: Callable,
    *args: object,
    num_samples: int = 5_000,
    num_particles: int | None = None,
    smoothed: bool = False,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> WeightedDraws:
    """Draws the latents from the guide and weighs them, so that questions about p(z|x) are answered, at beta = 1.

        E[f(z) | x] ~ sum_s w_s f(z_s) / sum_s w_s,    w_s = p(x, z_s) / q(z_s|x),    z_s ~ q(z|x)

    What is trained is q(z|x), and an average over its draws is an expectation under the guide. The weights make it one
    under the posterior of the model. With W_s = w_s / sum_r w_r and mu for the estimate,

        standard_error = sqrt(S / (S - 1) sum_s W_s^2 (f(z_s) - mu)^2)    (the delta method)
        bias           = - sum_s W_s^2 (f(z_s) - mu)

    An estimate with weights that are normalised by their own sum is biased, by order 1/S, which is little beside a
    standard error of order 1/sqrt(S); `bias` is that order. Both rest on the variance of w f, which `pareto_k` judges.
    Where k is bad, `annealed_posterior` starts from the guide or the prior and goes on to the posterior.

    Draws are kept as long as they and their weights are fewer than 2^25 numbers (256 MB). Of more, none is: every
    question then takes the time of another pass over the data and draws the same once more, from the same seeds, so
    that 50,000 draws for each of 10,000 data fit into the same memory, and the answers are the same. A pair that has
    been trained on in the meantime is refused.

    If the data share latents theta, all data are one datum, and the first dimension of every result is 1: a draw is
    one of theta and of the latents of all data. A weight of each datum would not do, and the product of all their
    weights varies as much as all data together. With K draws of each z_n for each theta it is nested,

        w_s = p(theta_s) / q(theta_s)  prod_n 1/K sum_k w_nk,    w_nk = p(x_n, z_nk | theta_s) / q(z_nk | x_n, theta_s)

    as in `log_marginal`, and z_n is one of its K draws, chosen in proportion to w_nk: exact for any K, and the less
    variable the larger K is. These draws are held at once, S times the latents of all data.

    Factors (`pyro.factor`) are allowed, as a constant of the joint cancels; only `log_marginal` is then refused.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: The proposal q(z|x): the trained guide, or another one made by `pv.proposals`.
        *args: What model and guide take, of any number and type, as in `log_marginal`.
        num_samples: The number of draws S for each datum.
        num_particles: K, of latents of a datum beside shared ones. None takes 16, of which a draw takes milliseconds; 1
            runs all S at once and does for few data. The more data, and the worse their guide, the larger K should be.
        smoothed: True replaces the largest weights by quantiles of a fitted Pareto distribution, as `smoothed` of
            `log_marginal` does: answers vary less, and lie nearer to the guide's where k is above 0.5. k and
            `log_marginal` are those of the weights as they are.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `WeightedDraws`: ask it for `mean`, `expectation`, `quantile` and `sample`.

    Raises:
        InputError: As `log_marginal` does, but for factors; if the guide draws no latent; if the data lie in several
            plates or along a sequential one.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.randn(4, 3)
        >>> post = pv.posterior(vae, x, num_samples=2_000)
        >>> mean = post.mean("z")
        >>> bool(((mean.value - vae.posterior(x).mean).abs() < 5 * mean.standard_error).all())
        True
        >>> post.expectation(lambda site: site["z"].norm(dim=-1) < 1).value.shape  # a probability for each datum
        torch.Size([4])

    Source:
        Owen 2013, Monte Carlo theory, methods and examples, chapter 9; Vehtari, Simpson, Gelman, Yao and Gabry 2024,
        arXiv:1507.02646 (Pareto k of w and of w |f|); Chopin, Jacob and Papaspiliopoulos 2013, Journal of the Royal
        Statistical Society B 75 (weights of theta that are themselves estimates).
    """
    require_size("num_samples", num_samples)
    if_given(require_size, "num_particles", num_particles)
    require_compile(compile)
    require_flag("smoothed", smoothed)
    needs, found = gate.Weights(normalised=False), opened(model, guide, args, chunk_size, Reading(plate))
    check_subsamples("posterior", model, guide, found)
    pair, nests = found.pair, can_nest(found.pair)
    rule = "num_particles is for pairs with latents of each datum beside shared ones"
    require(num_particles is None or nests, f"{rule}, and this is no such pair; got {num_particles}")
    particles = (PARTICLES_PER_DRAW if num_particles is None else num_particles) if nests else 1
    joint = None if pair.layout.plates else f"{counted(num_samples, 'draw')} of all latents"
    if shares_more_than_factors(pair):
        joint = f"{counted(num_samples, 'draw')} of all latents of {found.data.size:,} data that share some"
        joint += f", nested: {counted(particles, 'draw')} of those of each datum" if particles > 1 else ""
    if particles > 1:
        run = nested_run(model, guide, found, num_samples, particles, compile, progress, needs)
        shapes = {name: values.shape[2:] for name, values in run.latents.items()}
        runs = DrawRuns(lambda _: iter([run] if Workers().owns(0) else []))
    else:
        one = as_one_datum(model, guide, found, needs) if shares_more_than_factors(pair) else found
        latents = LatentDraws.of(one.pair, "posterior")
        sampler = Sampler(model, guide, one, num_samples, compile, needs, latents.take, latents.numbers)
        shapes = latents.shapes
        runs = DrawRuns(partial(_drawn, sampler, latents, progress), num_samples * one.data.size * latents.numbers)
    log_px = result_of(joined(runs.statistics, args), num_samples, joint and f"joint evidence, by {joint}")
    described = (
        joint or f"{counted(num_samples, 'weighted draw')} of {', '.join(shapes)} for each of {found.data.size:,} data"
    )
    remedies = partial(_remedies, model, guide, found, nests)
    return WeightedDraws((model, guide), args, runs, shapes, log_px, described, remedies, smoothed, factor_of(pair))


def _drawn(sampler: Sampler, latents: LatentDraws, progress: bool | None, again: bool) -> Iterator[Run]:
    taken = sampler.drawn(progress, "posterior", again)
    for (chunk, seed), (log_w, *draws) in zip(sampler.own, taken, strict=True):
        yield Run(chunk, seed, log_w, latents.by_name(tuple(draws)))


def _remedies(model: Callable, guide: Callable, found: Opened, nests: bool, is_bad: Tensor) -> tuple[str, ...]:
    return (*((PARTICLES,) if nests else ()), *remedies_of(model, guide, found, is_bad))
