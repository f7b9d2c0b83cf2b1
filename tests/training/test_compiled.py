"""Compiled steps against eager ones: the same numbers under every objective, in machine code and after resuming."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly, EagerSVI, adam, alternating, data, small_vae
from helpers import linear_gaussian, suite_seed
from torch._inductor.cpu_vec_isa import pick_vec_isa

import pyrovae as pv
from pyrovae.compilation import replay
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MISELBO,
    MIWAE,
    OBJECTIVES,
    OVIS,
    PIWAE,
    SIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.training.compiled_loss import CompiledLoss
from pyrovae.training.compiled_svi import CompiledSVI

EVERY = [
    ELBO(),
    ELBO(3),
    AnalyticKLELBO(),
    AnalyticKLELBO(2, free_bits=0.1),
    StickingTheLanding(2),
    IWAE(4),
    DReG(4),
    GDReG(4),
    Renyi(4, alpha=0.4),
    MIWAE(3, num_batches=2),
    PIWAE(3, num_batches=2),
    CIWAE(4, elbo_weight=0.3),
    ReweightedWakeSleep(4),
    ReweightedWakeSleep(4, sleep_weight=0.5),
    VIMCO(4),
    OVIS(4),
    ScoreFunction(3),
    ScoreFunction(3, baseline="leave_one_out"),
    ThermodynamicVO(4, num_partitions=3),
]
# Other settings of objectives that are among the above.
VARIANTS = [ELBO(3), AnalyticKLELBO(2, free_bits=0.1), ReweightedWakeSleep(4), ScoreFunction(3)]


# Every objective ------------------------------------------------------------------------------------------------------


def linear_pair():
    """Returns a closed-form pair of few operations, whose guide is not the posterior."""
    vae = linear_gaussian(0, data_dim=3)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.3)
    return vae


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_steps_are_the_eager_ones_to_the_bit(objective, monkeypatch):
    monkeypatch.setattr(replay, "RECHECK_FROM", 2)
    x = data(10, 3)
    of_iwae = type(objective) is IWAE
    shapes = [x[:7], x[7:]] if of_iwae else [x]  # each is traced
    batches = alternating(shapes, 10 if of_iwae else 5)  # each shape is compared again at 2 and 4
    losses, pairs = [], []
    for kind in (EagerSVI, CompiledExactly):
        pair = linear_pair()
        svi = kind(pair.model, pair.guide, adam(pair.parameters()), objective)
        torch.manual_seed(5)
        losses.append([svi.step(batch) for batch in batches])
        pairs.append(pair)
    assert svi.reason is None
    assert losses[1] == losses[0]
    assert all(map(math.isfinite, losses[0]))
    untrained = linear_pair().state_dict()
    for (name, ours), theirs in zip(pairs[1].named_parameters(), pairs[0].parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not torch.equal(ours, untrained[name]), f"{name} never trained"


def test_no_objective_is_left_out():
    here = {type(objective) for objective in EVERY if objective not in VARIANTS}
    # Which are for discrete latents, below, and for mixtures: test_stratified_pairs.py.
    assert here | {EnumeratedELBO, SIWAE, MISELBO} == set(OBJECTIVES.values())


def test_the_optimiser_that_is_built_in_is_adam_over_all_parameters():
    x = data(7, 3)
    ours, theirs = small_vae(), small_vae()
    torch.manual_seed(5)
    svi = CompiledExactly(ours.model, ours.guide)
    losses = [svi.step(x) for _ in range(5)]
    eager = EagerSVI(theirs.model, theirs.guide, torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True), ELBO())
    torch.manual_seed(5)
    assert losses == [eager.step(x) for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# Machine code, in float32 ---------------------------------------------------------------------------------------------


class Float32Noise(dist.Normal):
    """A normal of any dtype with noise drawn in float32, so that one seed gives both precisions the same draws."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=torch.float32)
        return self.loc + noise.to(self.loc.dtype) * self.scale


class SameNoiseVAE(pv.VAE):
    def encode(self, x, *y):
        q = super().encode(x, *y).base_dist
        return Float32Noise(q.loc, q.scale).to_event(1)


def float32_vae():
    """Returns the VAE of both tests below, whose graph is then compiled once: that takes ten seconds."""
    return SameNoiseVAE((20,), latent_dim=3, hidden=(50,), likelihood=pv.Gaussian(0.3, learn_scale=True))


def test_machine_code_is_as_near_to_float64_as_eager_float32_is():
    """Loss and gradient of 30 batches: root mean square errors against the float64 program on the same draws.

    Without vector instructions the machine code adds the 3,200 terms of the scale's gradient one after another, where
    torch adds in pairs: n roundings of eps / 2 each, which a running sum gathers as sqrt(n).
    """
    torch.manual_seed(suite_seed(3))
    vae, objective = float32_vae(), IWAE(5)
    exact = copy.deepcopy(vae).double()
    x = torch.randn(30, 32, 20)

    def gradients(module):
        return torch.cat([parameter.grad.double().flatten() for parameter in module.parameters()])

    def eager(module, batch, seed):
        torch.manual_seed(seed)
        module.zero_grad()
        loss = objective.loss_and_grads(module.model, module.guide, batch)
        return loss, gradients(module)

    compiled = CompiledLoss(vae.model, vae.guide, objective)
    compiled.loss_and_grads(x[0])
    assert compiled.reason is None
    (traced,) = compiled._traced.values()
    assert traced.replay.graph.inductor, "else eager is compared with eager"
    errors = []
    for seed, batch in enumerate(x):
        truth, true_gradient = eager(exact, batch.double(), seed)
        loss, gradient = eager(vae, batch, seed)
        torch.manual_seed(seed)
        ours = compiled.loss_and_grads(batch)[0].item()
        our_gradient = gradients(vae)
        losses = [abs(loss - truth) / truth, abs(ours - truth) / truth]
        norms = [((g - true_gradient).norm() / true_gradient.norm()).item() for g in (gradient, our_gradient)]
        errors.append(losses + norms)
    eager_loss, our_loss, eager_norm, our_norm = torch.tensor(errors).square().mean(0).sqrt().tolist()
    assert max(eager_loss, eager_norm) < 1e-4, "the noise is not the same in both precisions"
    one_by_one = 0.0 if pick_vec_isa() else torch.finfo(torch.float32).eps / 2 * math.sqrt(5 * 32 * 20)
    assert our_loss <= 2 * eager_loss + one_by_one, f"loss is off by {our_loss:.3g}, eager by {eager_loss:.3g}"
    assert our_norm <= 2 * eager_norm + one_by_one, f"gradient is off by {our_norm:.3g}, eager by {eager_norm:.3g}"


# Resuming -------------------------------------------------------------------------------------------------------------


def test_in_machine_code_too_it_does_not_matter_to_the_bit_when_the_program_is_looked_at():
    """A run that resumes traces again, and compares with the eager program at other steps."""
    x = torch.randn(32, 20, generator=torch.Generator().manual_seed(0))

    def begun(seed):
        torch.manual_seed(seed)
        vae = float32_vae()
        optimiser = adam(vae.parameters())
        return vae, optimiser, CompiledSVI(vae.model, vae.guide, optimiser, IWAE(5))

    whole, optimiser, svi = begun(3)
    [svi.step(x) for _ in range(11)]
    vae, other_optimiser, resumed = begun(4)
    vae.load_state_dict(whole.state_dict())
    other_optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    torch.manual_seed(5)
    losses = [svi.step(x) for _ in range(23)]
    torch.manual_seed(5)
    assert [resumed.step(x) for _ in range(23)] == losses
    assert svi.reason is resumed.reason is None
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), whole.parameters(), strict=True))
