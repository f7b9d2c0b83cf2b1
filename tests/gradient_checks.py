"""Every objective at five draws, and its gradient on one seed."""

import torch
from helpers import suite_seed

from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OVIS,
    PIWAE,
    VIMCO,
    DReG,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)

EVERY = [
    ELBO(5),
    StickingTheLanding(5),
    IWAE(5),
    DReG(5),
    GDReG(5),
    Renyi(5, alpha=0.4),
    MIWAE(3, num_batches=2),
    PIWAE(3, num_batches=2),
    CIWAE(5, elbo_weight=0.3),
    ReweightedWakeSleep(5),
    VIMCO(5),
    OVIS(5),
    OVIS(5, gamma=0.4),
    ScoreFunction(5),
    ScoreFunction(5, baseline="leave_one_out"),
    ThermodynamicVO(5, num_partitions=3),
]
MODEL = ("weight", "bias", "prior_mean", "log_scale")
GUIDE = ("guide_weight", "guide_bias", "guide_log_scale")


def loss_and_gradients(objective, vae, x, seed=3, model=None, guide=None):
    torch.manual_seed(suite_seed(seed))
    vae.zero_grad()
    loss = objective.loss_and_grads(model or vae.model, guide or vae.guide, x)
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in vae.named_parameters()}
    return loss, grads


def assert_gradients(ours, theirs, atol=1e-10):
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=atol, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
