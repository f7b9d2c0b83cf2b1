"""Every evaluator runs its modules in `eval()` mode, whatever their own modes are, and leaves those as they were."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from torch import nn

import pyrovae as pv
import pyrovae.evaluation.annealed_chains
from pyrovae.common.modes import evaluation_mode
from pyrovae.evaluation import diagnostics


class Noisy(nn.Module):
    """A network behind batch normalisation and dropout."""

    def __init__(self, network: nn.Module, size: int, normalised: bool) -> None:
        super().__init__()
        self.network, self.dropout = network, nn.Dropout(0.4)
        self.norm = nn.BatchNorm1d(size) if normalised else nn.Identity()

    def forward(self, x, *features):
        return self.network(self.dropout(self.norm(x)), *features)


def noisy_vae():
    """A VAE whose running statistics are neither its initial ones nor those of `X`."""
    vae = small_vae(latent_dim=1, likelihood=pv.Gaussian(0.5))
    vae.encoder = Noisy(vae.encoder, 2, normalised=True)
    vae.decoder = Noisy(vae.decoder, 1, normalised=False)
    with torch.no_grad():
        vae.encoder(3 * torch.randn(100, 2) + 1, None)
    return vae.eval()


def noisy_codes():
    """A pair of two bits, as closures."""
    decoder, encoder = Noisy(nn.Linear(2, 2), 2, normalised=False), Noisy(nn.Linear(2, 2), 2, normalised=True)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return model, guide, nn.ModuleList([decoder, encoder]).eval()


X = torch.tensor([[0.3, -1.2], [1.0, 0.4], [-0.6, 0.1], [2.0, -0.5]])
OF_PAIRS = {
    "log_marginal": partial(pv.log_marginal, num_samples=30),
    "importance_bound": partial(pv.importance_bound, num_particles=3),
    "evaluate": partial(pv.evaluate, methods=("elbo", "iwae_3", "is_30", "ais_3"), num_chains=2),
    "annealed_log_marginal": partial(
        pv.annealed_log_marginal, num_distributions=3, num_chains=2, num_leapfrog=2, start="guide"
    ),
    "bidirectional_gap": partial(pv.bidirectional_gap, num_distributions=3, num_chains=2, num_leapfrog=2),
    "elbo_surgery": pv.elbo_surgery,
    "inference_gaps": partial(pv.inference_gaps, num_samples=30, num_steps=25, num_draws=4, num_final_draws=10),
    "elbo_terms": diagnostics.elbo_terms,
    "active_units": diagnostics.active_units,
}
OF_MODELS = {"quadrature_log_marginal": partial(pv.quadrature_log_marginal, num_points=21)}
OF_VAES = {
    "kl_per_dimension": lambda vae, x: diagnostics.kl_per_dimension(vae, x),
    "latent_use": lambda vae, x: diagnostics.latent_use(vae, x),
    "sample_diversity": lambda vae, x: diagnostics.sample_diversity(vae, 5),
    "VAE.sample": lambda vae, x: vae.sample(5),
    "VAE.reconstruct": lambda vae, x: vae.reconstruct(x),
}
EVALUATORS = {
    **{name: lambda vae, x, f=f: f(vae.model, vae.guide, x) for name, f in OF_PAIRS.items()},
    **{name: lambda vae, x, f=f: f(vae.model, x) for name, f in OF_MODELS.items()},
    **OF_VAES,
    "simulation_based_calibration": lambda vae, x: pv.simulation_based_calibration(
        vae.model, vae.guide, torch.zeros(30, 2), num_draws=9, num_bins=2
    ),
}
MODES = {
    "training": lambda modules: modules.train(),
    "evaluation": lambda modules: modules.eval(),
    "mixed": lambda modules: [module.train(i % 3 == 0) for i, module in enumerate(modules.modules())],
}


def flat(result):
    """Returns every tensor and number in a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, float | int):
        return [torch.tensor(float(result))]
    if isinstance(result, tuple | list):
        return [tensor for part in result for tensor in flat(part)]
    values = result if isinstance(result, dict) else {} if isinstance(result, str | None) else vars(result)
    return [tensor for name, part in values.items() if name != "seconds" for tensor in flat(part)]


def run(evaluator, modules, mode):
    """Returns the result from one seed, and asserts that no mode and no buffer has changed."""
    MODES[mode](modules)
    modes = [module.training for module in modules.modules()]
    buffers = [buffer.clone() for buffer in modules.buffers()]
    torch.manual_seed(1)
    result = flat(evaluator())
    assert [module.training for module in modules.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(modules.buffers(), buffers, strict=True))
    return result


def assert_the_same(found, expected, note=""):
    assert len(found) == len(expected) > 0, note
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def short_pilot(monkeypatch):
    monkeypatch.setattr(pyrovae.evaluation.annealed_chains, "PILOT_TRANSITIONS", 6)
    monkeypatch.setattr(pyrovae.evaluation.annealed_chains, "PILOT_WARMUP", 2)


@pytest.mark.usefixtures("short_pilot")
@pytest.mark.filterwarnings("ignore:the best Gaussian")
@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_gives_what_eval_mode_gives_and_restores_every_mode(name):
    vae = noisy_vae()
    expected = run(lambda: EVALUATORS[name](vae, X), vae, "evaluation")
    for mode in ("training", "mixed"):
        assert_the_same(run(lambda: EVALUATORS[name](vae, X), vae, mode), expected)


def test_enumeration_does_so_for_closures():
    model, _, modules = noisy_codes()
    expected = run(lambda: pv.enumerated_log_marginal(model, X), modules, "evaluation")
    for mode in MODES:
        assert_the_same(run(lambda: pv.enumerated_log_marginal(model, X), modules, mode), expected)


def test_a_codebook_is_looked_at_in_eval_mode():
    torch.manual_seed(0)
    vae = pv.VQVAE((4,), num_tokens=2, num_codes=3, code_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
    vae.encoder = Noisy(vae.encoder, 4, normalised=True)
    x = torch.randn(6, 4)
    for look in (lambda: vae.reconstruct(x), lambda: vae.codebook_use(x), lambda: vae.sample(3)):
        expected = run(look, vae, "evaluation")
        for mode in MODES:
            assert_the_same(run(look, vae, mode), expected)


class Plain:
    """A pair that is not a module but is made of two, and whose guide is a partial of a function."""

    def __init__(self, vae):
        self.parts = {"model": vae, "guide": [vae]}
        self.guide = partial(lambda own, x: own.parts["guide"][0].guide(x), self)

    def model(self, x):
        self.parts["model"].model(x)


def test_modules_are_found_whatever_the_programs_are():
    vae = noisy_vae()
    plain = Plain(vae)
    pairs = {
        "methods of an object": (plain.model, plain.guide),
        "closures": (lambda x: vae.model(x), lambda x: vae.guide(x)),
        "under handlers": (pyro.poutine.scale(vae.model, 2.0), pyro.poutine.scale(vae.guide, 2.0)),
        "handlers": (pyro.poutine.trace(vae.model), pyro.poutine.trace(vae.guide)),
    }
    for name, pair in pairs.items():
        expected = run(lambda pair=pair: diagnostics.elbo_terms(*pair, X), vae, "evaluation")
        found = run(lambda pair=pair: diagnostics.elbo_terms(*pair, X), vae, "mixed")
        assert_the_same(found, expected, name)


@pytest.mark.parametrize("name", [*OF_PAIRS, *OF_MODELS, "simulation_based_calibration"])
def test_modes_are_restored_where_an_evaluator_raises(name):
    vae = noisy_vae()
    vae.likelihood = Broken()
    MODES["mixed"](vae)
    modes = [module.training for module in vae.modules()]
    with pytest.raises(ZeroDivisionError):
        EVALUATORS[name](vae, X)
    assert [module.training for module in vae.modules()] == modes


class Broken(pv.Gaussian):
    def __init__(self):
        super().__init__(0.5)

    def forward(self, *args, **kwargs):
        raise ZeroDivisionError


def test_a_module_with_a_train_of_its_own_has_it_called():
    class Merged(nn.Module):
        """A module that keeps one part in eval mode for good, and records the modes that it is put in."""

        def __init__(self):
            super().__init__()
            self.part, self.seen = nn.Dropout(0.5), []

        def train(self, mode=True):
            super().train(mode)
            self.part.eval()
            self.seen.append(mode)
            return self

    module = Merged().train()
    with evaluation_mode(module):
        assert not module.training
    assert module.seen == [True, False, True]
    assert (module.training, module.part.training) == (True, False)


def test_the_mode_is_not_blamed_on_leading_dimensions():
    """In training mode dropout gives each particle a different density. The pair is fine, and is not refused."""
    vae = noisy_vae().train()
    assert pv.log_marginal(vae.model, vae.guide, X, num_samples=5).log_px.isfinite().all()
    decoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Softmax(1))  # across leading dimensions in every mode

    def guide(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="leading dimensions"):
        pv.log_marginal(model, guide, X, num_samples=5)
