"""Measures a trained VAE on its test data: bounds and estimates of log p(x) with their errors."""

import math
import time
from typing import Any, cast

import torch

from pyrovae.common import local_seed, on_device_of, require_count
from pyrovae.data import Dataset
from pyrovae.evaluation import (
    ELBO_DRAWS,
    IN_SHELL,
    Estimate,
    MarginalLikelihood,
    active_units,
    enumerated_log_marginal,
    evaluate,
    has_kl_per_dimension,
    importance_bound,
    latent_use,
    quadrature_log_marginal,
)
from pyrovae.models import VAE, priors
from pyrovae.objectives import MAX_STATES
from pyrovae.runs.held_out import first_test_data
from pyrovae.runs.own_data import nats_of_units

IWAE_PARTICLES = 50
MAX_ENUMERATED_PAIRS = 5_000_000  # of a code and a datum


def measure(
    vae: VAE,
    data: Dataset,
    *,
    num_samples: int,
    num_data: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measures `vae` on test data, in nats per datum and at beta = 1.

    Args:
        vae: the trained VAE
        data: its data set
        num_samples: draws per datum of the importance estimate of log p(x)
        num_data: the first so many test data (default: all)
        seed: fixes the draws
        progress: show a progress bar (default: on a terminal)

    Returns:
        By name: `elbo`, `iwae_50`, `log_px` (importance sampling), `log_px_quadrature` (one or two latent dimensions),
        `log_px_enumeration` (codes of few bits) and `data_log_density` (if the data's own density is known).
        `log_px_in_file_units` is `log_px` in the units of the file, if columns of a table were standardised.
        `*_standard_error` is the Monte Carlo error of the mean, `*_data_error` the standard error of the mean over
        data, which is another in the units of the file if cells are missing. `measure` says what `elbo` is: the ELBO, a
        cross-entropy bound for grey pixels under a Bernoulli, or the reconstruction of an autoencoder; the latter two
        have no log p(x). `verdict` says how far to believe `log_px`, and `bounds` holds `[K, L_K, standard error]` for
        each K of its draws. `active_units` and `collapse` tell what the latents say about the data. A measure that does
        not apply or is unknown is None.

    Raises:
        InputError: `num_samples` or `num_data` is out of range, or the data do not suit `vae`
    """
    require_count("num_samples", num_samples)
    args = first_test_data(vae, data, num_data)
    x = args[0]
    filler = torch.as_tensor(vae.likelihood.filler, dtype=x.dtype, device=x.device)  # in place of missing cells
    has_density = vae.likelihood.has_density(torch.where(x.isnan(), filler, x))
    measure = "ELBO" if has_density else "cross-entropy bound"
    measure = measure if vae.posterior_family.has_density else "reconstruction"
    started = time.perf_counter()
    result: dict[str, Any] = {"dataset": data.name, "kind": data.kind, "measure": measure}
    result |= {"num_data": len(x), "num_samples": num_samples, "seed": seed}
    iwae: Estimate | None = None
    marginal: MarginalLikelihood | None = None
    if measure == "ELBO":
        methods = ("elbo", f"iwae_{IWAE_PARTICLES}", f"is_{num_samples}")
        found = evaluate(vae.model, vae.guide, *args, methods=methods, seed=seed, progress=progress)
        elbo, iwae, sampled = (found[method].estimate for method in methods)
        marginal = cast(MarginalLikelihood, sampled)
    else:
        with local_seed(seed):
            elbo = importance_bound(
                vae.model, vae.guide, *args, num_particles=1, num_repeats=ELBO_DRAWS, progress=progress
            )
    result |= _entries("elbo", elbo)
    result |= _entries(f"iwae_{IWAE_PARTICLES}", iwae) | _entries("log_px", marginal)
    lower = nats_of_units(data, x)
    result |= {"log_px_in_file_units": None, "log_px_in_file_units_data_error": None}
    if marginal is not None and lower is not None:
        result["log_px_in_file_units"] = marginal.mean - lower
        # Where cells are missing, the rows differ in what the units take off.
        of_cells = data.log_px_in_file_units(marginal.value.double().cpu(), x.cpu())
        result["log_px_in_file_units_data_error"] = Estimate(of_cells, torch.zeros_like(of_cells)).data_error
    result["verdict"] = None if marginal is None else marginal.verdict_in(IN_SHELL)
    result["bounds"] = None if marginal is None else [[*point] for point in marginal.mean_bounds]
    result["share_pareto_k_above_0.7"] = None if marginal is None else marginal.share_unreliable
    result["median_ess"] = None if marginal is None else marginal.ess.median().item()
    result |= {"log_px_quadrature": None, "log_px_quadrature_error": None, "log_px_enumeration": None}
    result |= {"data_log_density": None}
    exact: tuple[str, float] | None = None
    if measure == "ELBO" and vae.latent_dim <= 2 and vae.prior_family.is_real_vector and data.kind == "real":
        log_px, error = quadrature_log_marginal(vae.model, *args)
        if bool(error.isfinite().all()):  # otherwise the grid misses some of the mass
            result |= {"log_px_quadrature": log_px.mean().item(), "log_px_quadrature_error": error.mean().item()}
            exact = f"quadrature (error at most {error.mean().item():.2g})", log_px.mean().item()
    bits = measure == "ELBO" and isinstance(vae.prior_family, priors.Bernoulli)
    if bits and 2**vae.latent_dim <= min(MAX_STATES, MAX_ENUMERATED_PAIRS / len(x)):
        result["log_px_enumeration"] = enumerated_log_marginal(vae.model, *args).mean().item()
        exact = "enumeration", result["log_px_enumeration"]
    if exact is not None and marginal is not None:
        result["verdict"] = _beside_exact(*exact, marginal)
    if data.log_density is not None and vae.num_conditions == 0:
        result["data_log_density"] = data.log_density(x).double().mean().item()
    result |= {"active_units": None, "collapse": None}
    if measure != "reconstruction" and len(x) > 1:
        here = on_device_of(vae.model, args)
        with local_seed(seed):
            result["active_units"] = active_units(vae.model, vae.guide, *here)
        result["collapse"] = latent_use(vae, *here).warning if has_kl_per_dimension(vae) else None
    result["seconds"] = time.perf_counter() - started
    # An error from one draw, or k from ten, is nan: it is unknown, and JSON has no nan.
    return {name: _known(value) for name, value in result.items()}


def _beside_exact(method: str, log_px: float, sampled: Estimate) -> str:
    """Returns a verdict where log p(x) is known: importance sampling then needs none of its own."""
    off, side = abs(log_px - sampled.mean), "below" if sampled.mean <= log_px else "above"
    error = "" if math.isnan(sampled.monte_carlo_error) else f" (Monte Carlo error {sampled.monte_carlo_error:.2g})"
    return f"log p(x) is {log_px:.3f} nats by {method}; importance sampling is {off:.2g} nats {side} it{error}"


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entries(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    values = (None,) * 3 if estimate is None else (estimate.mean, estimate.monte_carlo_error, estimate.data_error)
    return dict(zip((name, f"{name}_standard_error", f"{name}_data_error"), values, strict=True))
