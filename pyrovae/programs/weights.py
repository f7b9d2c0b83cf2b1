"""The log importance weights of a pair, and the logarithm of their mean."""

import math
from collections.abc import Callable

from torch import Tensor

from pyrovae.common import InputError, require
from pyrovae.programs import gate
from pyrovae.programs.calling import takes_pair
from pyrovae.programs.data_counts import counted_otherwise
from pyrovae.programs.data_values import check_data_values
from pyrovae.programs.layout import Reading
from pyrovae.programs.pair import Pair
from pyrovae.programs.running import AS_IT_COMES, run_pair


@takes_pair
def log_weights(model: Callable, guide: Callable, *args, num_particles: int, **kwargs) -> Tensor:
    """Returns log importance weights of draws from the guide, with gradients.

        log w_k = log p(x, z_k) - log q(z_k|x),  z_k ~ q(z|x)

    Their mean is the ELBO, and the logarithm of the mean of w_k estimates log p(x). They are always those at beta = 1:
    scales are left out, masks are kept. If a site lies outside the data plate, so that data share it, the weights are
    those of all data together, of draws of everything, as with `joint=True` of an objective; `log_marginal` nests them.

    Args:
        model: A Pyro program that observes the data.
        guide: A Pyro program that draws every latent site of the model, but for those that the model sums out.
        *args: What both programs take, of any number and type.
        num_particles: K, how many times z is drawn for each datum.
        **kwargs: Further arguments of both programs.

    Returns:
        The log-weights, `(num_particles, batch)`, in nats; `(num_particles, 1)` for all data together. Where the
        data plate draws a subsample, the batch is that subsample, a new one in each call.

    Raises:
        InputError: The pair has no log-weights (docs/your_own_program.md says which have), or subsamples the terms of
            a datum.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> log_w = pv.log_weights(vae.model, vae.guide, torch.zeros(4, 2), num_particles=10)
        >>> log_w.shape
        torch.Size([10, 4])
    """
    pair = _checked(model, guide, args, kwargs, num_particles, AS_IT_COMES)
    if pair.layout.has_globals:
        pair = _checked(model, guide, args, kwargs, num_particles, Reading(joint=True))
    subsampled = pair.subsampled_plates
    if subsampled:
        raise InputError(f'log-weights need all terms of a datum, and the plate "{subsampled[0]}" subsamples them')
    counted = counted_otherwise(pair)
    require(counted is None, f"log_weights takes {counted}")
    return pair.terms().log_weights


def _checked(model: Callable, guide: Callable, args: tuple, kwargs: dict, num_particles: int, reading: Reading) -> Pair:
    """Runs the pair, checked."""
    needs = gate.Weights(densities=False, everywhere=False, reading=reading)

    def run() -> Pair:
        try:
            return run_pair(model, guide, *args, num_particles=num_particles, reading=reading, **kwargs)
        except ValueError as error:
            check_data_values(model, args, error)
            raise

    return gate.checked_run(run, model, guide, needs, args, kwargs)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Returns log 1/K sum_k w_k along the first dimension."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))
