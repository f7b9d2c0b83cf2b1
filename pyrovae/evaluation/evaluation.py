"""Estimates log p(x) by several methods on the same data, each with its errors and its time."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, TorchDistribution
from torch import Tensor

from pyrovae.common import (
    InputError,
    derived_seed,
    did_you_mean,
    evaluates,
    local_seed,
    require,
    require_flag,
    require_seed,
    require_sequence,
    require_size,
    shown,
)
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal
from pyrovae.evaluation.chunks import check_chunk, opened
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.estimate import Estimate
from pyrovae.evaluation.evaluation_table import Evaluation, Measured
from pyrovae.evaluation.importance_sampling import importance_bound, log_marginal
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import Pair, Reading, Weights, takes_pair

ELBO_DRAWS = 100
IWAE_REPEATS = 10
DATA_PER_CHECK = 1_024
COUNTED = {"iwae_": "K", "is_": "S", "ais_": "T", "ais_prior_": "T"}
METHODS = "elbo, iwae_K, is_S, ais_T or ais_prior_T (K particles, S samples, T distributions)"


@takes_pair
@evaluates
def evaluate(
    model: Callable,
    guide: Callable,
    *args: object,
    methods: Sequence[str] = ("elbo", "iwae_50", "is_5000"),
    num_chains: int = 16,
    dequantised: bool = False,
    plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Estimates log p(x) of the same data by several methods, at beta = 1 whatever beta training used.

        "elbo"            the ELBO: the mean of 100 draws per datum
        "iwae_50"         the bound L_50: the mean of 10 sets of 50 draws (see `importance_bound`)
        "is_5000"         importance sampling with 5,000 draws (see `log_marginal`)
        "ais_1000"        annealed importance sampling over 1,000 distributions, from the guide (see
                          `annealed_log_marginal`)
        "ais_prior_1000"  the same from the prior; it needs more distributions, and finds modes of the posterior that
                          the guide has missed, which no other method here can

    The numbers may be others. If the data share latents, every method gives one number for all of them, its estimate of
    or bound on the joint evidence. Each method has random numbers of its own, fixed by `seed`. Modules run in `eval()`
    mode and are in their own mode again afterwards.

    Args:
        model: The generative program p(x, z) of any pair; docs/your_own_program.md says how it is read.
        guide: Its guide.
        *args: What model and guide take, of any number and type. Arrays and frames become tensors, and what a VAE is
            given in another dtype becomes its own if that loses nothing.
        methods: The names of the methods.
        num_chains: The number of chains of annealed importance sampling for each datum.
        dequantised: True says that the data are pixels of 256 levels with noise added, on [0, 1]. Only then do
            continuous data have bits per dimension.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        seed: The seed of all methods, a whole number.
        progress: True shows a progress bar, False none, None one on a terminal.

    Returns:
        An `Evaluation`, which prints as a table.

    Raises:
        InputError: If a method is unknown, before any of them runs, and as the methods themselves do.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
        >>> x = torch.zeros(4, 3)
        >>> evaluation = pv.evaluate(vae.model, vae.exact_guide, x, methods=("elbo", "iwae_5", "is_100"))
        >>> all(abs(one.estimate.mean - vae.log_px(x).mean().item()) < 1e-4 for one in evaluation.measured)
        True
    """
    require_sequence("methods", methods, "names")
    require_seed(seed)
    require_size("num_chains", num_chains)
    require_flag("dequantised", dequantised)
    runs = [_parse(method, num_chains) for method in check_methods(methods)]
    found = opened(model, guide, args, reading=Reading(plate))
    check_subsamples("evaluate", model, guide, found, takes_terms=set(methods) == {"elbo"})
    # The ELBO refuses weights of zero, and importance sampling a guide that does not reach all of the prior.
    needs = Weights(
        zeros="elbo" not in methods,
        everywhere=any(str(method).startswith("is_") for method in methods),
        alone=any(method != "elbo" for method in methods),
        reading=found.reading,
    )
    sizes, discrete = [], []

    def inspect(pair: Pair) -> None:
        sizes.append(_observed_dimensions(pair))
        discrete.append(all(site["fn"].support.is_discrete for site in pair.observed.values()))

    # All data are checked: one grey image makes the "ELBO" under a Bernoulli a cross-entropy, which has no bits.
    for chunk in cut(model, guide, found, DATA_PER_CHECK).in_chunks(DATA_PER_CHECK):
        check_chunk(model, guide, found, chunk, needs, inspect)
    dimensions = torch.cat(sizes).double()
    if found.pair.layout.has_globals:  # every estimate is one number for all data
        size = dimensions.sum().item() + _shared_dimensions(found.pair)
    else:
        size = dimensions.mean().item()
    offset = 0.0 if all(discrete) else 8.0 if dequantised else None
    measured = []
    for method, run in zip(methods, runs, strict=True):
        started = time.perf_counter()
        with local_seed(derived_seed(seed, method)):
            estimate = run(model, guide, *args, plate=plate, progress=progress)
        measured.append(Measured(method, estimate, time.perf_counter() - started))
    return Evaluation(tuple(measured), size, offset if size else None)


def _observed_dimensions(pair: Pair) -> Tensor:
    """Returns the number of observed dimensions of each datum, without those that are masked, `(batch,)`."""
    total = torch.zeros(pair.batch_shape)
    for site in pair.observed.values():
        if pair.is_local(site):
            total = total + pair.by_datum(_of_elements(pair, site), site)
    return total[0]


def _shared_dimensions(pair: Pair) -> float:
    """Returns the number of observed dimensions that belong to no datum."""
    return sum(_of_elements(pair, site).sum().item() for site in pair.observed.values() if not pair.is_local(site))


def _of_elements(pair: Pair, site: dict) -> Tensor:
    """Returns the number of dimensions of each element of a site, without those that are masked."""
    mask = True if site["mask"] is None else site["mask"]
    dimensions, value = _dimensions(site["fn"]) * torch.as_tensor(mask).cpu(), site["value"]
    while dimensions.dim() >= -pair.layout.state_dim:  # the same in every state
        dimensions = dimensions[0]
    batch = value.shape[: value.dim() - site["fn"].event_dim]
    return dimensions.expand(torch.broadcast_shapes(dimensions.shape, batch)).float()


def _dimensions(fn: TorchDistribution) -> Tensor:
    """Returns the number of dimensions of each element of a batch, without those that are masked, in batch shape."""
    match fn:
        case Independent():
            inner, num = _dimensions(fn.base_dist), fn.reinterpreted_batch_ndims
            return inner.flatten(-num).sum(-1) if num else inner
        case MaskedDistribution():
            return _dimensions(fn.base_dist) * torch.as_tensor(fn._mask).cpu()
        case ExpandedDistribution():
            return _dimensions(fn.base_dist).expand(fn.batch_shape)
    return torch.full(fn.batch_shape, fn.event_shape.numel())


def check_methods(methods: Sequence[str]) -> Sequence[str]:
    """Returns the methods, once each is known to be one that `evaluate` takes."""
    require(len(methods) > 0, "methods must name at least one method, got none")
    for method in methods:
        _parse(method, 1)
    return methods


def _parse(method: str, num_chains: int) -> Callable[..., Estimate]:
    """Returns the function that estimates log p(x) by the method of this name."""
    match = re.fullmatch(r"(elbo)|(iwae|is|ais|ais_prior)_(\d+)", str(method))
    if match is None:
        digits = re.search(r"\d*$", str(method))
        known = [kind + (digits[0] if digits and digits[0] else letter) for kind, letter in COUNTED.items()]
        hint = did_you_mean(method, ("elbo", *known))
        raise InputError(f"methods must be {METHODS}, got {shown(method)}{hint}")
    kind, count = match[1] or match[2], int(match[3] or 1)
    require_size(shown(method)[1:-1], count)

    def run(model: Callable, guide: Callable, *args: object, **settings: Any) -> Estimate:
        match kind:
            case "elbo":
                return importance_bound(model, guide, *args, num_particles=1, num_repeats=ELBO_DRAWS, **settings)
            case "iwae":
                return importance_bound(model, guide, *args, num_particles=count, num_repeats=IWAE_REPEATS, **settings)
            case "is":
                return log_marginal(model, guide, *args, num_samples=count, **settings)
        start = "prior" if kind == "ais_prior" else "guide"
        return annealed_log_marginal(
            model, guide, *args, num_distributions=count, num_chains=num_chains, start=start, **settings
        )

    return run
