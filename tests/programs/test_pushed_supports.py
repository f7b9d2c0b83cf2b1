"""A transformed distribution has the image of its base's support; PyTorch declares the last transform's codomain."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed
from pyro.distributions import transforms
from pyro.infer import SVI
from pyro.optim import Adam
from scalar_pairs import OUTSIDE, SHORT, double, normal
from torch.distributions import biject_to, constraints

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO
from pyrovae.programs import support_of
from pyrovae.programs.supports import base_support, contains

UNIT = dist.Uniform(double(0.0, 0.0, 0.0), double(1.0, 1.0, 1.0))
ABOVE = dist.Exponential(double(1.0, 1.0, 1.0))
LINE = dist.Normal(double(0.0, 0.0, 0.0), 1.0)
AFFINE = transforms.AffineTransform
X = double(0.3, 2.0, -1.5)
INF = math.inf


def made(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


@pytest.mark.parametrize(
    ("fn", "low", "high"),
    [
        (made(UNIT, AFFINE(-1.0, 2.0)), -1.0, 1.0),
        (made(ABOVE, AFFINE(-0.5, 1.0)), -0.5, INF),
        (made(ABOVE, AFFINE(2.0, -1.0)), -INF, 2.0),
        (made(ABOVE, AFFINE(double(1.0, 2.0, 3.0), double(1.0, -1.0, 2.0))), [1.0, -INF, 3.0], [INF, 2.0, INF]),
        (made(made(ABOVE, AFFINE(1.0, 1.0)), transforms.PowerTransform(double(-1.0))), 0.0, 1.0),
        (made(LINE, transforms.ExpTransform(), AFFINE(2.0, 1.0)), 2.0, INF),
        (made(LINE, transforms.SigmoidTransform(), AFFINE(-1.0, 2.0)), -1.0, 1.0),
        (made(LINE, transforms.TanhTransform(), AFFINE(0.0, -3.0)), -3.0, 3.0),
        (made(ABOVE, transforms.ComposeTransform([AFFINE(1.0, 1.0), transforms.ExpTransform().inv])), 0.0, INF),
        (made(ABOVE, transforms.SoftplusTransform()), math.log(2.0), INF),
        (made(ABOVE.to_event(1), AFFINE(double(1.0, 1.0, 1.0), 1.0, event_dim=1)), 1.0, INF),
        (made(UNIT, transforms.SigmoidTransform().inv, AFFINE(0.0, 0.5)), -INF, INF),
        (made(ABOVE, AFFINE(1.0, 1.0)).mask(torch.tensor([True, False, True])).to_event(1), 1.0, INF),
        (dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), made(ABOVE, AFFINE(-1.0, 1.0))), -1.0, INF),
    ],
    ids=str,
)
def test_the_image_has_the_ends_of_the_base_and_a_bijection_onto_it(fn, low, high):
    support, (low, high) = support_of(fn), (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
    found = base_support(support)
    assert torch.allclose(found.lower_bound, low)
    assert torch.allclose(found.upper_bound, high)
    torch.manual_seed(suite_seed())
    draws = fn.sample((50,))
    assert support.check(draws).all()
    onto = biject_to(found)
    u = onto.inv(draws).requires_grad_()
    z = onto(u)
    assert torch.allclose(z, draws)
    slope = torch.autograd.grad(z.sum(), u)[0].abs().log()
    assert torch.allclose(onto.log_abs_det_jacobian(u, z), slope)


@pytest.mark.parametrize(
    "fn",
    [
        dist.LogNormal(0.0, 1.0),
        dist.Gumbel(0.0, 1.0),
        made(LINE, AFFINE(1.0, 2.0)),
        made(LINE.to_event(1), transforms.StickBreakingTransform()),
        made(UNIT.to_event(1), transforms.Spline(3, count_bins=4)),
        made(dist.Poisson(double(1.0)), AFFINE(1.0, 1.0)),
    ],
    ids=str,
)
def test_what_is_declared_stays_where_it_is_right_or_the_image_is_not_known(fn):
    assert str(support_of(fn)) == str(fn.support)


def test_bounds_that_differ_by_rounding_are_equal_and_no_others():
    once, more = (constraints.interval(torch.tensor(0.1), torch.tensor(high)) for high in (0.4, 0.4001))
    pushed = support_of(made(dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)), AFFINE(0.1, 0.3)))
    assert contains(once, pushed, compare_tensors=True)
    assert contains(pushed, once, compare_tensors=True)
    assert not contains(pushed, more, compare_tensors=True)
    wide = constraints.interval(torch.tensor(-1_000.0), torch.tensor(0.001))
    assert contains(wide, support_of(made(dist.Normal(0.0, 1.0), biject_to(wide))), compare_tensors=True)


# Pairs ----------------------------------------------------------------------------------------------------------------


def pair_of(prior, proposal, scale=2.0):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        loc = pyro.param("loc", double(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", proposal(loc + 0 * x))

    return model, guide


def on_a_part(loc):
    return made(dist.Exponential(0.8 + 0 * loc), AFFINE(-0.5, 1.0))


def bounded():
    return made(dist.Uniform(double(0.0), double(1.0)), AFFINE(-1.0, 2.0))


def beta(loc):
    return made(dist.Beta(loc + 1.3, 1.2), AFFINE(-1.0, 2.0))


def log_px_of_bounded():
    end = dist.Normal(double(0.0), 2.0).cdf
    return ((end(X + 1) - end(X - 1)) / 2).log()


@pytest.mark.parametrize(
    "call",
    [
        lambda *pair: pv.log_marginal(*pair, X, num_samples=10),
        lambda *pair: pv.posterior(*pair, X, num_samples=10),
        lambda *pair: pv.evaluate(*pair, X, methods=["is_10"]),
    ],
    ids=["log_marginal", "posterior", "evaluate"],
)
def test_a_guide_on_a_part_of_the_prior_is_refused(call):
    """log p(x) was 82 standard errors too low, and "reliable"."""
    said = refusal(call, *pair_of(normal, on_a_part))
    assert said.startswith(f"{SHORT}: the prior is on Real(), the guide on Between(lower_bound=-0.5, upper_bound=inf)")


def test_a_guide_on_a_part_of_the_prior_is_warned_of_in_training():
    with pytest.warns(UserWarning, match="the bound is valid but never tight"):
        IWAE(4).loss(*pair_of(normal, on_a_part), X)


@pytest.mark.parametrize(
    "proposal",
    [lambda loc: dist.Uniform(loc - 1, 1.0), beta, lambda loc: dist.Normal(loc + X / 5, 1.0), lambda loc: bounded()],
    ids=["the same, said otherwise", "inside", "draws outside", "the prior"],
)
def test_log_px_under_a_prior_on_an_interval(proposal):
    torch.manual_seed(suite_seed())
    found = pv.log_marginal(*pair_of(bounded, proposal), X, num_samples=9_000, chunk_size=3_000)
    assert_within_standard_errors(found.log_px, log_px_of_bounded(), found.standard_error)


def test_the_elbo_refuses_draws_outside_and_bounds_of_several_draws_take_them():
    pair = pair_of(bounded, lambda loc: dist.Normal(loc, 1.0))
    assert refusal(ELBO().loss, *pair, X).startswith(f"{OUTSIDE}, Between(lower_bound=-1, upper_bound=1), got a guide")
    assert math.isfinite(VIMCO(16).loss(*pair, X))


def test_quadrature_takes_the_whole_line_however_it_is_made():
    said = refusal(pv.quadrature_log_marginal, pair_of(bounded, beta)[0], X)
    assert said == 'quadrature needs a latent of real numbers, got Between(-1, 1) at site "z"'

    def logistic():
        return made(dist.Uniform(double(0.0), double(1.0)), transforms.SigmoidTransform().inv)

    model, guide = pair_of(logistic, lambda loc: dist.Normal(loc, 2.0))
    torch.manual_seed(suite_seed())
    found, exact = pv.log_marginal(model, guide, X, num_samples=2_000), pv.quadrature_log_marginal(model, X, limit=40.0)
    assert_within_standard_errors(found.log_px, exact.log_px, found.standard_error)


def test_data_whose_support_moves_with_a_latent_by_a_transform():
    """For z ~ N(0, 1) and x = z + Exponential(1), log p(x) = 1/2 - x + log Phi(x - 1). It was refused."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal())
            pyro.sample("x", made(dist.Exponential(double(1.0)), AFFINE(z, 1.0)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 1, 1.0))

    torch.manual_seed(suite_seed())
    found = pv.log_marginal(model, guide, X, num_samples=5_000)
    truth = 0.5 - X + normal().cdf(X - 1).log()
    assert_within_standard_errors(found.log_px, truth, found.standard_error)


def test_compiled_steps_are_those_of_svi_to_the_bit():
    losses = []
    for kind, settings in ((SVI, {}), (pv.CompiledSVI, {"inductor": False})):
        pyro.clear_param_store()
        torch.manual_seed(suite_seed())
        svi = kind(*pair_of(bounded, beta), Adam({"lr": 0.01}), IWAE(4), **settings)
        losses.append([svi.step(X) for _ in range(3)])
    assert losses[0] == losses[1]
