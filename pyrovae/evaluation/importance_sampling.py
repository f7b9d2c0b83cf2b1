"""Importance sampling from the guide: log p(x) per datum with its errors, and the importance-weighted bounds."""

import math
from collections.abc import Callable

from torch import Tensor

from pyrovae.common import evaluates, require_count
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood
from pyrovae.evaluation.importance_weights import bounds, grouped, influences, jackknifed, log_mean, pareto_smoothed
from pyrovae.evaluation.sampled_weights import joined, sampled_log_weights
from pyrovae.programs import gate, takes_pair


@takes_pair
@evaluates
def log_marginal(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_samples: int = 5_000,
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

    Args:
        model: The model of any pair that keeps the contract.
        guide: The proposal q(z|x): the trained guide, or another one made by `pv.proposals`.
        *args: The tensors that model and guide take, of one length, the data first.
        num_samples: The number of draws S for each datum.
        chunk_size: The number of pairs of a particle and a datum that are decoded at a time. None takes 8,192 pairs,
            or fewer if they have more outputs than so many images of 784 pixels. The weights of at most 128 data are
            kept at a time, of fewer if `num_samples` is large.
        compile: True runs the chunks as a compiled graph, which gives the same numbers to rounding. "auto" does so
            from five million pairs on.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        A `MarginalLikelihood` with the estimates, their errors and diagnoses; its `verdict` sums them up.

    Raises:
        InputError: If the pair breaks the contract, or if no density exists because the data are not finite or lie
            outside the likelihood's support.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.zeros(4, 3)
        >>> result = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=100)
        >>> torch.allclose(result.log_px, vae.log_px(x).double(), atol=1e-4)
        True

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646 (Pareto k and smoothing); Nowozin 2018, ICLR
        (the jackknife).
    """
    parts = []
    needs = gate.Weights()
    for log_w in sampled_log_weights(model, guide, args, num_samples, chunk_size, compile, progress, needs):
        value, error, ess = log_mean(log_w)
        pareto_k, smoothed = pareto_smoothed(log_w)
        parts.append((influences(log_w), value, error, ess, pareto_k, jackknifed(log_w), smoothed, *bounds(log_w)))
    found, value, error, *others = joined(parts, args)
    ess, pareto_k, jackknife, smoothed, bound, bound_error = others
    return MarginalLikelihood(
        value, error, ess, pareto_k, jackknife, smoothed, bound, bound_error, num_samples, influences=found
    )


@takes_pair
@evaluates
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_particles: int,
    num_repeats: int = 10,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> Estimate:
    """Estimates the importance-weighted bound with K particles for each datum, at beta = 1.

        L_K = E[log 1/K sum_k w_k],    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x)

    L_1 is the ELBO. At K = 1 grey pixels are allowed, too: the result is then minus the loss of training, a bound on
    minus a cross-entropy and not on a log-density.

    Args:
        model: The model of any pair that keeps the contract.
        guide: The guide, or another proposal.
        *args: The tensors that model and guide take, of one length, the data first.
        num_particles: The number of particles K.
        num_repeats: The number of independent sets of K draws, at least 2, over which the mean and its standard error
            are taken.
        chunk_size: As in `log_marginal`.
        compile: As in `log_marginal`.
        progress: As in `log_marginal`.

    Returns:
        An `Estimate` of L_K, `(batch,)`, in nats.

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
    require_count("num_particles", num_particles)
    require_count("num_repeats", num_repeats, 2)
    parts = []
    num_samples, several = num_particles * num_repeats, num_particles > 1
    needs = gate.Weights(densities=several, everywhere=False, zeros=several)
    for log_w in sampled_log_weights(model, guide, args, num_samples, chunk_size, compile, progress, needs):
        repeats = log_w.unflatten(0, (num_repeats, num_particles)).logsumexp(1) - math.log(num_particles)
        mean = repeats.mean(0)
        parts.append((mean, repeats.std(0) / math.sqrt(num_repeats), grouped(repeats - mean)))
    mean, error, found = joined(parts, args)
    return Estimate(mean, error, influences=found)
