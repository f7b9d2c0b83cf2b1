"""The log importance weights of a pair."""

from collections.abc import Callable

from torch import Tensor

from pyrovae.programs import gate
from pyrovae.programs.pair import run_pair


def log_weights(model: Callable, guide: Callable, *args, num_particles: int, **kwargs) -> Tensor:
    """log w_k = log p(x, z_k) - log q(z_k|x) for z_k ~ q(z|x): `(num_particles, batch)`, in nats, with gradients.

    For any pair that keeps the contract, and always at beta = 1: scales are left out, masks of observed sites are
    kept. Raises `InputError` where the pair breaks the contract.
    """
    pair = run_pair(model, guide, *args, num_particles=num_particles, **kwargs)
    gate.check_once(model, guide, None, pair, args, kwargs)
    return pair.terms().log_weights
