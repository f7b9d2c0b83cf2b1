"""What a GPU may break: a part of `scripts/benchmarks/gpu.py`. The suite skips these where there is no GPU.

`python -m pytest -m gpu --gpu-device cpu` tries them out without one.
"""

import pyro
import pytest
import torch
from helpers import OF_MIXTURES, assert_within_standard_errors, draw, every_objective, linear_gaussian, ring, small_vae

import pyrovae as pv

pytestmark = pytest.mark.gpu
STEPS = 20
NEEDS_BITS = ("elbo_enumerated",)  # a guide of bits


@pytest.fixture
def device(request) -> torch.device:
    name = request.config.getoption("--gpu-device")
    if name != "cpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device(name)


def trained(objective, device, kind, **settings) -> list[float]:
    """Returns the losses of some steps from the same parameters and the same state of the generators."""
    pyro.clear_param_store()
    settings_of_vae = {"posterior": "bernoulli", "latent_dim": 3} if objective in NEEDS_BITS else {}
    if objective in OF_MIXTURES:
        settings_of_vae = {"posterior": pv.posteriors.Mixture(2, 2)}
    vae = small_vae((3,), **settings_of_vae).to(device)
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).to(device)
    elbo = every_objective()[objective]
    svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo, **settings)
    torch.manual_seed(5)
    return [svi.step(x) for _ in range(STEPS)]


@pytest.mark.parametrize("objective", every_objective())
def test_eager_and_compiled_steps_and_a_cuda_graph_give_one_training(objective, device):
    eager = trained(objective, device, pyro.infer.SVI)
    assert trained(objective, device, pv.CompiledSVI, inductor=False) == pytest.approx(eager, rel=1e-5)
    assert trained(objective, device, pv.CompiledSVI) == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO, pyro.infer.TraceGraph_ELBO])
def test_losses_of_pyro_compile_too(loss, device):
    def steps(kind):
        pyro.clear_param_store()
        vae = small_vae((3,)).to(device)
        svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss())
        torch.manual_seed(5)
        return [svi.step(torch.ones(8, 3, device=device)) for _ in range(STEPS)], svi

    compiled, svi = steps(pv.CompiledSVI)
    assert svi.reason is None
    assert compiled == pytest.approx(steps(pyro.infer.SVI)[0], rel=1e-3)


@pytest.mark.parametrize("objective", [pv.objectives.ELBO(), pyro.infer.Trace_ELBO()])
def test_a_pair_without_latents_of_the_data_trains_there_too(objective, device):
    """The zeros of what a pair does not have must lie where its sites do."""
    x = 3 + torch.randn(8, device=device)

    def model():
        mean = pyro.sample("mean", pyro.distributions.Normal(torch.zeros((), device=device), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(mean, 1.0), obs=x)

    def guide():
        pyro.sample("mean", pyro.distributions.Normal(pyro.param("loc", torch.zeros((), device=device)), 1.0))

    svi = pv.CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("compile", [False, True])
def test_a_training_is_resumed_to_the_bit(compile, device, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(record):
        if record["epoch"] == 2:
            raise Interrupted

    def train(folder, on_epoch=None):
        kept = pv.Checkpoints(tmp_path / folder, epochs=1)
        vae = small_vae().to(device)
        settings = {"epochs": 4, "seed": 0, "compile": compile, "checkpoints": kept, "on_epoch": on_epoch}
        return pv.fit(vae, ring(), **settings).loss, [p.detach().clone() for p in vae.parameters()]

    whole, parameters = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop)
    again, others = train("parts")
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1_000])
def test_log_px_in_chunks_is_the_exact_one(compile, chunk_size, device):
    vae = linear_gaussian(0)
    x = draw(vae, 20)
    exact = vae.log_px(x)
    vae, x = vae.to(device), x.to(device)
    settings = {"num_samples": 2_000, "chunk_size": chunk_size, "compile": compile}
    found = pv.log_marginal(vae.model, vae.guide, x, **settings)
    assert_within_standard_errors(found.value.cpu(), exact, found.standard_error.cpu())


def test_too_little_memory_is_met_by_smaller_chunks(device):
    if device.type == "cpu":
        pytest.skip("the limit is one of a GPU's memory")
    vae, x = small_vae((3,), hidden=(64,)).to(device), torch.randn(2_000, 3, device=device)
    expected = pv.log_marginal(vae.model, vae.guide, x, num_samples=200)
    free, whole = torch.cuda.mem_get_info()
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 64e6) / whole))
        found = pv.log_marginal(vae.model, vae.guide, x, num_samples=200, chunk_size=2**24)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert free > 64e6
    errors = (expected.standard_error.square() + found.standard_error.square()).sqrt()
    assert_within_standard_errors(found.value.cpu(), expected.value.cpu(), errors.cpu())
