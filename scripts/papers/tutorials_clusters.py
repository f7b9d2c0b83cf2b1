"""The four clusters as published: a mean of squares and a mean of KLs, which is a decoder's variance of 1/2.

With as many latents as coordinates both means divide the nats by the same number, here 2:

    mean of |x - mean|^2 + mean of KL = (|x - mean|^2 / (2 sigma^2) + KL) / 2    at sigma^2 = 1/2
"""

from collections.abc import Mapping, Sequence

import torch
from tabulate import tabulate
from torch import Tensor
from tutorials_published import CLUSTERS, POINTS

TERMS = ("loss", "reconstruction", "kl")
HEADER = ["variance", "seed", "data's variances", "loss", "reconstruction", "KL", "active"]
HEADER += ["best linear: loss", "KL", "active", "no latent: loss"]


def linear_optimum(eigenvalues: Tensor, variance: float) -> dict[str, float]:
    """Returns the terms of the best VAE with a linear decoder, in nats, and how many latents it uses.

        reconstruction = 1/2 sum_j min(1, lambda_j / sigma^2),    KL = 1/2 sum_j log+(lambda_j / sigma^2)

    A direction of the data whose variance lambda_j is at most that of the decoder is worth no latent. Without any
    latent the loss is 1/2 sum_j lambda_j / sigma^2, with the data's mean as the decoder's; no normaliser in either.

    Args:
        eigenvalues: Those of the data's covariance, `(num_dims,)`, in the data's units squared.
        variance: sigma^2.

    Source: Tipping and Bishop 1999, probabilistic PCA; Lucas et al. 2019, arXiv:1911.02469.
    """
    ratio = eigenvalues / variance
    reconstruction, kl = 0.5 * ratio.clamp(max=1).sum().item(), 0.5 * ratio.log().clamp(min=0).sum().item()
    found = {"loss": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
    return found | {"active": int((ratio > 1).sum()), "no_latent": 0.5 * ratio.sum().item()}


def clusters_report(results: Mapping[str, Sequence[dict]], seeds: Sequence[int], tablefmt: str) -> str:
    """Returns each seed's terms in the tutorial's unit, half a nat, beside the best linear VAE of the same points."""
    lines: list[list] = []
    for row in POINTS:
        if row.name not in CLUSTERS or row.name not in results or row.variance is None:
            continue
        if row.published:
            printed = [f"{row.published[name] / 2:.3f}" for name in TERMS]
            lines.append([f"{row.variance:g}", "published", "", *printed, "1", *[""] * 4])
        for seed, run in zip(seeds, results[row.name], strict=True):
            eigenvalues = torch.linalg.eigvalsh(row.data(seed).train_x.T.cov()).flip(0)
            best = linear_optimum(eigenvalues, row.variance)
            variances = " and ".join(f"{one:.3f}" for one in eigenvalues.tolist())
            measured = [*(f"{run[name] / 2:.3f}" for name in TERMS), run["active_units"]]
            loss, kl, no_latent = (f"{best[name] / 2:.3f}" for name in ("loss", "kl", "no_latent"))
            lines.append([f"{row.variance:g}", seed, variances, *measured, loss, kl, best["active"], no_latent])
    if not lines:
        return ""
    title = "Four clusters in the tutorial's unit, means over two coordinates and two latents: half of the nats"
    return f"\n{title}\n\n{tabulate(lines, HEADER, tablefmt=tablefmt, disable_numparse=True)}\n"
