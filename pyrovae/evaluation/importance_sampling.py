"""Importance sampling from the guide: log p(x) with its errors, and the importance-weighted bounds."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from pyrovae.common import counted, evaluates, if_given, require, require_compile, require_size
from pyrovae.evaluation.chunks import Opened, opened
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood
from pyrovae.evaluation.importance_weights import bounds, grouped, influences, jackknifed, log_mean, pareto_smoothed
from pyrovae.evaluation.joint_evidence import joint_log_weights
from pyrovae.evaluation.remedies import remedies_of
from pyrovae.evaluation.sampled_weights import joined, sampled_log_weights
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import Reading, gate, takes_pair

PARTICLES_PER_DRAW = 64  # draws of each z for a draw of theta


@takes_pair
@evaluates
def log_marginal(
    model: Callable,
    guide: Callable,
    *args: object,
    num_samples: int = 5_000,
    num_particles: int | None = None,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> MarginalLikelihood:
    """Estimates log p(x) for each datum by importance sampling from the guide, at beta = 1.

        log p(x) ~ log 1/S sum_s w_s,    w_s = p(x, z_s) / q(z_s|x),    z_s ~ q(z|x)

    This is a stochastic lower bound, low by about Var[w] / (2 S p(x)^2). It comes with

        standard_error = sd(w) / (mean(w) sqrt(S))    (the delta method)
        ess            = (sum w)^2 / sum w^2

    and with `pareto_k`, the shape of the tail of the weights. Where k is above 0.7 for many data, neither the estimate
    nor its standard error means much. k judges the proposal more than the datum: a rare large weight raises k and
    improves the estimate at once. k can be high without need if few draws are in the tail of weights that are bounded
    or take few values, as those of codes do (`enumerated_log_marginal` has no such doubts). It does not see a mode of
    the posterior that no draw has visited.

    If the data share latents theta, which lie outside the data plate, no datum has a log p(x) of its own. The result is
    then the joint evidence log p(x_1 ... x_N) of the data given, of shape `(1,)`, and S counts draws of theta:

        w_s = p(theta_s) / q(theta_s)  prod_n 1/K sum_k p(x_n, z_nk | theta_s) / q(z_nk | x_n, theta_s)

    It is not biased, and each datum's part is averaged over K draws before the parts are multiplied: weights of single
    draws of everything would vary as much as those of all data together. `num_samples` is the number of draws of each
    z_n in all, so that S = num_samples / K. If theta is all that the guide draws, S = num_samples. A pair without a
    data plate, or whose guide draws the latents of all data at once, has its joint evidence from draws of everything.
    The difference between the joint evidences of two models is their log Bayes factor.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: The proposal q(z|x): the trained guide, or another one made by `pv.proposals`.
        *args: What model and guide take, of any number and type. Arrays and frames become tensors, and what a VAE is
            given in another dtype becomes its own if that loses nothing.
        num_samples: The number of draws S for each datum.
        num_particles: K, of latents of a datum beside shared ones. None takes 64, or the square root of `num_samples`
            if that is less. If the effective sample size is small, more of them help, or a better guide.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        chunk_size: The number of pairs of a particle and a datum that are decoded at a time. None takes 8,192 pairs,
            or fewer if they have more outputs than so many images of 784 pixels. The weights of at most 128 data are
            kept at a time, of fewer if `num_samples` is large. Chunks of data take the rows of all tensors whose first
            dimension is the number of data, if log-weights stay what they are; a warning tells if they do not.
        compile: True runs the chunks as a compiled graph, which gives the same numbers to rounding. "auto" does so
            from five million pairs on.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `MarginalLikelihood` with the estimates and their errors; its `verdict` says how far to believe them.

    Raises:
        InputError: If the pair is refused, if a plate leaves out terms (a subsample), or if no density exists
            because the data are not finite or lie outside the likelihood's support.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.zeros(4, 3)
        >>> result = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=100)
        >>> torch.allclose(result.log_px, vae.log_px(x).double(), atol=1e-4)
        True

        The evidence of ten tosses of a coin, 7 of them heads, is 7! 3! / 11! under a uniform prior:

        >>> Beta, Bernoulli = pyro.distributions.Beta, pyro.distributions.Bernoulli
        >>> def coin(x):
        ...     f = pyro.sample("f", Beta(1.0, 1.0))
        ...     with pyro.plate("tosses", len(x)):
        ...         pyro.sample("x", Bernoulli(f), obs=x)
        >>> def guide(x):
        ...     pyro.sample("f", Beta(8.0, 4.0))
        >>> tosses = torch.tensor([1.0] * 7 + [0.0] * 3)
        >>> result = pv.log_marginal(coin, guide, tosses, num_samples=100)
        >>> result.log_px.exp() * 1320  # the guide is the posterior
        tensor([1.0000], dtype=torch.float64)
        >>> print(result.verdict)
        joint evidence of all 10 data, by 100 draws of the latents that they share: reliable as far as ...

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646 (Pareto k and smoothing); Nowozin 2018, ICLR
        (the jackknife).
    """
    require_size("num_samples", num_samples)
    require_compile(compile)
    if_given(require_size, "num_particles", num_particles)
    found = opened(model, guide, args, chunk_size, Reading(plate))
    check_subsamples("log_marginal", model, guide, found)
    layout = found.pair.layout
    nested = layout.has_globals and layout.draws_locally
    rule = "num_particles is for pairs with latents of each datum beside shared ones"
    require(num_particles is None or nested, f"{rule}, and this is no such pair; got {num_particles}")
    if not layout.has_globals:
        result = of_own_weights(model, guide, found, args, num_samples, compile, progress)
        return _with_remedies(result, model, guide, found)
    particles = particles_of(num_samples, num_particles) if nested else 1
    draws = num_samples // particles
    log_w = joint_log_weights(model, guide, found, draws, particles, compile, progress, gate.Weights())
    of = f"joint evidence of all {found.data.size:,} data, by {counted(draws, 'draw')} of the latents that they share"
    of += f", nested: {counted(particles, 'draw')} of the others for each" if nested else ""
    result = replace(result_of(list(statistics_of(log_w)), draws, of), num_particles=particles)
    return _with_remedies(result, model, guide, found)


def of_own_weights(
    model: Callable,
    guide: Callable,
    found: Opened,
    args: tuple,
    num_samples: int,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> MarginalLikelihood:
    """Returns log p(x) of data that share no latents, without a search for what would help a bad proposal."""
    drawn = sampled_log_weights(model, guide, found, num_samples, compile, progress, gate.Weights())
    columns = joined([statistics_of(log_w) for log_w in drawn], args)
    is_joint = not found.pair.layout.plates
    of = f"joint evidence of all data, by {counted(num_samples, 'draw')}" if is_joint else None
    return result_of(columns, num_samples, of)


def _with_remedies(result: MarginalLikelihood, model: Callable, guide: Callable, found: Opened) -> MarginalLikelihood:
    """Returns the result, with what would help it if it is not to be believed."""
    if not bool(result.is_unreliable.any()):
        return result
    return replace(result, remedies=remedies_of(model, guide, found, result.is_unreliable))


def particles_of(num_samples: int, num_particles: int | None = None) -> int:
    """Returns the number of draws of each z for a draw of theta."""
    if num_particles is None:
        return min(PARTICLES_PER_DRAW, math.isqrt(num_samples))
    require(num_particles <= num_samples, f"num_particles must be <= num_samples = {num_samples}, got {num_particles}")
    return num_particles


def statistics_of(log_w: Tensor) -> tuple[Tensor, ...]:
    """Returns what a `MarginalLikelihood` holds, from log-weights `(draws, data)`."""
    value, error, ess = log_mean(log_w)
    pareto_k, smoothed = pareto_smoothed(log_w)
    return influences(log_w), value, error, ess, pareto_k, jackknifed(log_w), smoothed, *bounds(log_w)


def result_of(columns: list[Tensor], num_samples: int, of: str | None) -> MarginalLikelihood:
    found, value, error, ess, pareto_k, jackknife, smoothed, bound, bound_error = columns
    return MarginalLikelihood(
        value, error, ess, pareto_k, jackknife, smoothed, bound, bound_error, num_samples, of, influences=found
    )


@takes_pair
@evaluates
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: object,
    num_particles: int,
    num_repeats: int = 10,
    plate: str | None = None,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> Estimate:
    """Estimates the importance-weighted bound with K particles for each datum, at beta = 1.

        L_K = E[log 1/K sum_k w_k],    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x)

    If the data share latents theta ~ q(theta), it is one number for all N data given, the bound that
    `objectives.IWAE(K)` trains:

        L_K = E[log p(theta) - log q(theta) + sum_n log 1/K sum_k w_nk],    z_nk ~ q(z_n|x_n, theta)

    It bounds the joint evidence, of which `log_marginal` has tighter bounds. If the guide draws the latents of all data
    at once, and none for a datum alone, the K particles are draws of all of them.

    L_1 is the ELBO. At K = 1 grey pixels are allowed, too: the result is then minus the loss of training, a bound on
    minus a cross-entropy and not on a log-density. Terms of a datum may then also be subsampled (words of a document):
    the mean stays what it is.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: The guide, or another proposal.
        *args: What model and guide take, of any number and type.
        num_particles: The number of particles K.
        num_repeats: The number of independent sets of K draws, at least 2, over which the mean and its standard error
            are taken. The error of a single datum is rough with ten, and too small where few sets hold the large
            weights; that of the mean over many data is right.
        plate: As in `log_marginal`.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: As in `log_marginal`.

    Returns:
        An `Estimate` of L_K, `(batch,)`, in nats; `(1,)` for all data together.

    Raises:
        InputError: As `log_marginal` does.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.zeros(4, 3)
        >>> elbo = pv.importance_bound(vae.model, vae.exact_guide, x, num_particles=1)
        >>> torch.allclose(elbo.value, vae.log_px(x).double(), atol=1e-4)  # the guide is the posterior
        True

    Source:
        Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519.
    """
    require_size("num_particles", num_particles)
    require_size("num_repeats", num_repeats, 2)
    require_compile(compile)
    num_samples, several = num_particles * num_repeats, num_particles > 1
    needs = gate.Weights(densities=several, everywhere=False, zeros=several, alone=several)
    found = opened(model, guide, args, chunk_size, Reading(plate))
    check_subsamples("importance_bound", model, guide, found, takes_terms=not several)
    layout = found.pair.layout
    if layout.has_globals and layout.draws_locally:
        log_w = joint_log_weights(model, guide, found, num_repeats, num_particles, compile, progress, needs)
        mean, error, groups = _mean_of_repeats(log_w)
    elif layout.has_globals:
        log_w = joint_log_weights(model, guide, found, num_samples, 1, compile, progress, needs)
        mean, error, groups = _mean_of_repeats(_bounds_of_repeats(log_w, num_repeats))
    else:
        drawn = sampled_log_weights(model, guide, found, num_samples, compile, progress, needs)
        parts = [_mean_of_repeats(_bounds_of_repeats(log_w, num_repeats)) for log_w in drawn]
        mean, error, groups = joined(parts, args)
    return Estimate(mean, error, influences=groups)


def _bounds_of_repeats(log_w: Tensor, num_repeats: int) -> Tensor:
    """Returns log 1/K sum_k w_k of each repeat, `(num_repeats, data)`, from log-weights of all of them."""
    num_particles = len(log_w) // num_repeats
    return log_w.unflatten(0, (num_repeats, num_particles)).logsumexp(1) - math.log(num_particles)


def _mean_of_repeats(repeats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean of the repeats, its standard error, and how far groups of repeats move it."""
    mean = repeats.mean(0)
    return mean, repeats.std(0) / math.sqrt(len(repeats)), grouped(repeats - mean)
