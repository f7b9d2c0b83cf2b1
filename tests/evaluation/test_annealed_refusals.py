"""Settings and pairs that annealed importance sampling refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import FEW, number, one_site
from helpers import linear_gaussian, refusal

import pyrovae as pv
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal, bidirectional_gap
from pyrovae.evaluation.hmc import STARTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_distributions": 0}, "num_distributions must be a whole number >= 1, got 0"),
        ({"num_chains": 0}, "num_chains must be a whole number >= 1, got 0"),
        ({"num_leapfrog": 1.5}, "num_leapfrog must be a whole number >= 1, got 1.5"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"start": "posterior"}, "start must be one of prior, guide; got 'posterior'"),
        ({"schedule": "cosine"}, "schedule must be one of sigmoid, linear; got 'cosine'"),
        ({"compile": "yes"}, "compile must be true, false or auto, got 'yes'"),
        ({"x": torch.full((3, 5), math.nan)}, "x must be finite, got nan at index \\(0, 0\\)"),
        ({"x": torch.zeros(0, 5)}, "x must hold at least one datum, got 0"),
        ({"x": "images"}, "x must be a floating-point tensor, got str"),
    ],
)
@pytest.mark.parametrize("function", [annealed_log_marginal, bidirectional_gap])
def test_bad_input_is_refused_in_one_line(function, change, message):
    vae = linear_gaussian(0)
    settings = {**FEW, **change}
    x = settings.pop("x", torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(pv.InputError, match=message) as caught:
        function(vae.model, vae.guide, x, **settings)
    assert "\n" not in str(caught.value)


def test_arguments_that_a_program_cannot_run_with_are_told_with_its_own_reason():
    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ torch.eye(5), 1.0).to_event(1))

    told = refusal(annealed_log_marginal, program, program, "images", **FEW)
    assert told.startswith("the pair does not run with these arguments: ")
    assert "'str'" in told


def half():
    return number(0.5)


def auxiliary_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("a", dist.Normal(half(), 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(half(), 1.0))


def nothing(x):
    pass


def observed_alone(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(half(), 1.0), obs=x)


def outside(x):
    z = pyro.sample("z", dist.Normal(half(), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


NORMAL = one_site(dist.Normal(half(), 1.0), dist.Normal(half(), 1.0), lambda z: z, 1.0)
REFUSED = {
    "discrete": (
        *one_site(dist.Bernoulli(half()), dist.Bernoulli(half()), lambda z: z, 1.0),
        'HMC needs latents with a density on real numbers, and the latent site "z" is discrete',
    ),
    "sphere": (
        *one_site(*[dist.ProjectedNormal(number([1.0, 0.0]))] * 2, lambda z: z[..., 0], 1.0),
        'HMC needs latents with a density on real numbers, and the latent site "z" lies in Sphere',
    ),
    "delta": (NORMAL[0], one_site(None, dist.Delta(half()), None, 1.0)[1], 'site "z" is a point \\(Delta\\)'),
    "auxiliary": (
        NORMAL[0],
        auxiliary_guide,
        'all latents must be Deltas and together a bijection of the guide\'s auxiliary site "a"',
    ),
    "none": (observed_alone, nothing, "the model must have a latent site, and has none"),
    "outside": (outside, NORMAL[1], 'the latent site "z" must lie in the data plate in both programs or in neither'),
    "masked": (
        *one_site(*[dist.Normal(half(), 1.0).mask(False)] * 2, lambda z: z, 1.0),
        'site "x" of the model must not read the latent "z" where only "z" is masked',
    ),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", REFUSED)
def test_pairs_without_weights_are_refused_in_one_line(name, start):
    model, guide, message = REFUSED[name]
    for function in (annealed_log_marginal, bidirectional_gap):
        with pytest.raises(pv.InputError, match=message) as caught:
            function(model, guide, number([0.1, 0.2]), start=start, **FEW)
        assert "\n" not in str(caught.value)


def test_a_guide_on_another_support_is_refused_as_a_start_and_not_used_otherwise():
    prior, x = dist.Uniform(number(0.0), 2.0), number([0.1, 0.2])
    model, guide = one_site(prior, dist.Uniform(number(0.5), 1.0), lambda z: z, 1.0)
    with pytest.raises(pv.InputError, match='the latent site "z" must have one support in model and guide'):
        annealed_log_marginal(model, guide, x, start="guide", **FEW)
    assert annealed_log_marginal(model, guide, x, **FEW).log_px.isfinite().all()


def test_grey_pixels_have_no_log_px_but_may_stand_in_for_data():
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(allow_grey=True))
    grey = torch.rand(3, 4)
    with pytest.raises(pv.InputError, match="cross-entropy"):
        annealed_log_marginal(vae.model, vae.guide, grey, **FEW)
    assert bidirectional_gap(vae.model, vae.guide, grey, **FEW).gap.value.isfinite().all()
