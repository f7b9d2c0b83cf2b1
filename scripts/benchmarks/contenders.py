"""The columns of the table: one training step of stock Pyro, of plain PyTorch and of ours, eager and compiled."""

import math
from collections.abc import Callable
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from cases import GAUSSIAN_SCALE, LEARNING_RATE, Case, Gradient, Step
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from pyrovae.models.param_store import unique_name
from pyrovae.objectives import DifferentiableELBO


def tutorial_vae(case: Case, device: torch.device) -> tuple[pv.VAE, Callable, Callable, pyro.infer.ELBO]:
    """Puts a VAE's networks into a model and guide as in Pyro's VAE tutorial; returns them with the loss used there."""
    vae = case.vae(device)
    name, latent, event_dim = unique_name(vae), case.latent_dim, len(case.event_shape)

    def model(x: Tensor) -> None:
        pyro.module(f"{name}.stock_decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), latent)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            output = vae.decoder(z)
            if case.binary:
                likelihood = dist.Bernoulli(logits=output, validate_args=False)
            else:
                likelihood = dist.Normal(output, GAUSSIAN_SCALE)
            pyro.sample("x", likelihood.to_event(event_dim), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(f"{name}.stock_encoder", vae.encoder)
        with pyro.plate("data", len(x)):
            loc, log_variance = vae.encoder(x).unbind(-2)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    loss: pyro.infer.Trace_ELBO | pyro.infer.RenyiELBO
    if case.num_particles == 1:
        loss = pyro.infer.Trace_ELBO(max_plate_nesting=1)
    else:
        loss = pyro.infer.RenyiELBO(
            alpha=0, num_particles=case.num_particles, vectorize_particles=True, max_plate_nesting=1
        )
    return vae, model, guide, loss


def stock_pyro(case: Case, device: torch.device) -> tuple[Step, Gradient]:
    """Trains the VAE of Pyro's tutorial by Pyro's SVI and Adam."""
    vae, model, guide, loss = tutorial_vae(case, device)
    x = case.batch(device)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(model, guide, optimizer, loss)

    def gradient() -> tuple[float, list[Tensor]]:
        value = loss.loss_and_grads(model, guide, x)  # type: ignore[attr-defined]
        return value, take_gradients(vae)

    return lambda: svi.step(x), gradient


def plain_pytorch(case: Case, device: torch.device) -> tuple[Step, Gradient]:
    """Writes the step by hand, with autograd and fused Adam."""
    vae, x = case.vae(device), case.batch(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)

    def loss() -> Tensor:
        loc, log_variance = vae.encoder(x).unbind(-2)
        noise = torch.randn(case.num_particles, *loc.shape, device=device)
        z = loc + (0.5 * log_variance).exp() * noise
        output = vae.decoder(z)
        if case.binary:
            log_likelihood = -binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none")
        else:
            normaliser = math.log(GAUSSIAN_SCALE) + 0.5 * math.log(2 * math.pi)
            log_likelihood = -0.5 * ((x - output) / GAUSSIAN_SCALE).square() - normaliser
        log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(-1)  # log p(z) - log q(z|x)
        log_weights = log_likelihood.flatten(2).sum(-1) + log_ratio
        return -(log_weights.logsumexp(0) - math.log(case.num_particles)).sum()

    def gradient() -> tuple[float, list[Tensor]]:
        value = loss()
        value.backward()
        return value.item(), take_gradients(vae)

    def step() -> None:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        value.item()  # as in all other columns

    return step, gradient


def objective_of(case: Case) -> DifferentiableELBO:
    return pv.objectives.from_name("elbo" if case.num_particles == 1 else "iwae", num_particles=case.num_particles)


def ours_eager(case: Case, device: torch.device) -> tuple[Step, Gradient]:
    vae, x, objective = case.vae(device), case.batch(device), objective_of(case)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)

    def gradient() -> tuple[float, list[Tensor]]:
        return objective.loss_and_grads(vae.model, vae.guide, x), take_gradients(vae)

    def step() -> None:
        optimizer.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()

    return step, gradient


def ours_compiled(case: Case, device: torch.device) -> tuple[Step, Gradient]:
    vae, x = case.vae(device), case.batch(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, objective_of(case))

    def gradient() -> tuple[float, list[Tensor]]:
        for _ in range(2):  # Pyro runs the first
            torch.manual_seed(2)
            loss, _ = svi.compiled.loss_and_grads(x)
        return loss.item(), take_gradients(vae)

    return lambda: svi.step(x), gradient


def take_gradients(vae: pv.VAE) -> list[Tensor]:
    gradients = [cast(Tensor, parameter.grad).clone() for parameter in vae.parameters()]
    for parameter in vae.parameters():
        parameter.grad = None
    return gradients
