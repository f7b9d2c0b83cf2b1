"""Posteriors, priors and layers: densities against change of variables, closed forms, and all that goes together."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import HalfPrior, assert_within_standard_errors, draw, linear_gaussian, refusal, small_vae, suite_seed
from torch import nn

import pyrovae as pv
from pyrovae.models import posteriors, priors
from pyrovae.models.flows import FLOWS
from pyrovae.models.splines import rational_quadratic


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


DIMS = {"coupling": (1, 2, 3, 5), "autoregressive": (2, 3, 5)}


def moved(module, seed=0):
    """A part whose parameters are not the ones that make it the identity."""
    generator = torch.Generator().manual_seed(suite_seed(seed))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


# Densities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spline_rises_meets_the_identity_and_its_inverse_and_slope_are_right(dtype):
    generator = torch.Generator().manual_seed(suite_seed(0))
    parameters = 4 * torch.randn(200, 1, 11, generator=generator, dtype=dtype)  # steep ones among them
    x = torch.linspace(-4, 4, 401, dtype=dtype).expand(200, -1).requires_grad_()
    y, log_slope = rational_quadratic(x, parameters, 3.0)
    assert (y.diff(dim=-1) > (-1e-6 if dtype is torch.float32 else 0)).all()
    beyond = x.abs() >= 3
    assert torch.equal(y[beyond], x[beyond])
    assert (log_slope[beyond] == 0).all()
    slope = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-3 if dtype is torch.float32 else 1e-8, atol=1e-6)
    back, back_slope = rational_quadratic(y, parameters, 3.0, inverse=True)
    assert ((back - x).abs() * slope.clamp(max=1)).max() < (1e-3 if dtype is torch.float32 else 1e-10)
    if dtype is torch.float64:
        torch.testing.assert_close(back_slope, -log_slope, rtol=1e-6, atol=1e-6)
    parameters.requires_grad_()
    (rational_quadratic(5 * x, parameters, 3.0, inverse=True)[1].sum()).backward()
    assert parameters.grad.isfinite().all()  # of points beyond the box, too


@pytest.mark.parametrize(("kind", "dim"), [(kind, dim) for kind, dims in DIMS.items() for dim in dims])
def test_a_flow_is_the_identity_at_first_and_its_jacobian_is_autograds(kind, dim, float64):
    flow = FLOWS[kind](dim, 3, 3, (8,))
    features, x = torch.randn(3), 1.5 * torch.randn(4, dim)
    z = x
    for transform in flow(features):
        z = transform(z)
    same = (z, x) if kind == "coupling" else (z.sort(-1).values, x.sort(-1).values)  # which turns the coordinates round
    torch.testing.assert_close(*same, atol=1e-12, rtol=0)

    moved(flow)

    def through(x):
        for transform in flow(features):
            x = transform(x)
        return x

    q = dist.TransformedDistribution(dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1), flow(features))
    for one in x:
        slope = torch.autograd.functional.jacobian(through, one)
        exact = dist.Normal(0.0, 1.0).log_prob(one).sum() - slope.det().abs().log()
        assert not torch.allclose(slope.abs().sum(0), torch.ones(dim), atol=0.01)
        torch.testing.assert_close(q.log_prob(through(one)), exact)  # of a point, by the inverse
    with pyro.plate("data", 4):
        draws = q.expand((4,)).rsample()
    drawn = q.expand((4,))
    z = drawn.rsample()
    known = drawn.log_prob(z)  # of a draw, by what is remembered
    torch.testing.assert_close(known, drawn.log_prob(z.clone()))
    assert draws.shape == (4, dim)


def one_dimensional():
    torch.manual_seed(suite_seed(0))
    vamp = pv.VAE((3,), latent_dim=1, hidden=(4,), likelihood=pv.Gaussian(0.5), prior=priors.Vamp(torch.randn(5, 3)))
    return {
        "standard": (priors.Standard(1), None),
        "mixture": (moved(priors.Mixture(1, 4)), None),
        "flow": (moved(priors.Flow(1)), None),
        "vamp": (vamp.prior_family, vamp.encode),
    }


@pytest.mark.parametrize("name", priors.PRIORS)
def test_a_priors_density_integrates_to_one_and_is_that_of_its_draws(name):
    prior, encode = one_dimensional()[name]
    with torch.no_grad():
        p = prior(encode)
        grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
        mass = p.log_prob(grid).double().exp()
        assert torch.trapezoid(mass, grid[:, 0].double()).item() == pytest.approx(1, abs=1e-4)
        mean = torch.trapezoid(mass * grid[:, 0], grid[:, 0].double())
        draws = p.sample((20_000,))
    assert_within_standard_errors(draws.mean(), mean, draws.std() / math.sqrt(len(draws)))


@pytest.mark.parametrize("name", ["diagonal", "full_covariance", "flow"])
def test_a_posteriors_density_integrates_to_one_over_the_plane(name, float64):
    posterior = moved(posteriors.POSTERIORS[name](2))
    with torch.no_grad():
        q = posterior(0.4 * torch.randn(posterior.output_shape))
        axis = torch.linspace(-9, 9, 401)
        grid = torch.cartesian_prod(axis, axis)
        mass = q.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_full_covariance_has_the_covariance_of_its_outputs(float64):
    posterior = posteriors.FullCovariance(3)
    outputs = torch.randn(5, *posterior.output_shape)
    q = posterior(outputs)
    factor = outputs[:, 1:].tril(-1) + torch.diag_embed((0.5 * outputs[:, 1:].diagonal(dim1=-2, dim2=-1)).exp())
    torch.testing.assert_close(q.covariance_matrix, factor @ factor.mT)
    torch.testing.assert_close(q.mean, outputs[:, 0])


def test_vamp_is_the_mean_of_the_posteriors_of_its_pseudo_inputs(float64):
    start = torch.rand(6, 3)
    vae = small_vae((3,), prior=priors.Vamp(start, "unit_interval"), latent_dim=2).double()
    torch.testing.assert_close(vae.prior_family.pseudo_inputs, start.clamp(0.01, 0.99))
    z = torch.randn(4, 2)
    each = torch.stack([vae.encode(u[None]).log_prob(z) for u in vae.prior_family.pseudo_inputs])
    torch.testing.assert_close(vae.prior.log_prob(z), each.logsumexp(0) - math.log(6))
    vae.prior.log_prob(z).sum().backward()
    assert vae.prior_family.unconstrained.grad.abs().sum() > 0
    assert vae.encoder.output.weight.grad.abs().sum() > 0


# Closed forms ---------------------------------------------------------------------------------------------------------


class LinearPair(nn.Module):
    """The model of a `LinearGaussianVAE` with one of our posteriors on a linear encoder."""

    def __init__(self, vae, posterior):
        super().__init__()
        self.vae, self.posterior = vae, posterior
        self.encoder = nn.Linear(len(vae.bias), math.prod(posterior.output_shape)).double()
        for parameter in vae.parameters():
            parameter.requires_grad_(False)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.vae.decode(pyro.sample("z", self.vae.prior)), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        pyro.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            self.posterior.sample(self.posterior(self.encoder(x).unflatten(-1, self.posterior.output_shape)))


def exact_full(vae, pair):
    """Sets the encoder to the posterior's mean and Cholesky factor."""
    slope, at_zero, precision = vae._posterior_parts()
    factor = torch.linalg.cholesky(precision.inverse())
    raw = factor.tril(-1) + torch.diag_embed(2 * factor.diagonal().log())
    with torch.no_grad():
        pair.encoder.weight.zero_()
        pair.encoder.weight[: vae.latent_dim] = slope
        pair.encoder.bias.copy_(torch.cat((at_zero, raw.flatten())))


def test_full_covariance_reaches_log_px_exactly_and_diagonal_misses_by_its_closed_form():
    vae = linear_gaussian(1, data_dim=4, latent_dim=3)
    x = draw(vae, 50)
    exact = vae.log_px(x).mean().item()
    pair = LinearPair(vae, posteriors.FullCovariance(3).double())
    exact_full(vae, pair)
    weights = pv.log_weights(pair.model, pair.guide, x, num_particles=3)
    torch.testing.assert_close(weights, vae.log_px(x).expand(3, -1), atol=1e-10, rtol=0)
    # The best diagonal Gaussian has the variances 1 / P_jj: its KL to the posterior is half of this, whatever x.
    precision = vae.posterior(x[:1]).precision_matrix[0]
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert exact - vae.elbo(x).mean().item() == pytest.approx(gap)
    assert gap > 0.1


@pytest.mark.parametrize("name", ["diagonal", "full_covariance", "flow"])
def test_trained_posteriors_reach_the_gaps_that_their_families_have(name):
    weight = torch.tensor([[1.0, 0.8], [0.3, 1.0]], dtype=torch.float64)
    vae = pv.LinearGaussianVAE(weight, torch.zeros(2, dtype=torch.float64), 0.6)
    torch.manual_seed(suite_seed(0))
    x, pair = draw(vae, 100), LinearPair(vae, posteriors.POSTERIORS[name](2).double())
    settings = {"epochs": 150, "batch_size": 50, "lr": 0.05, "schedule": "cosine", "compile": False}
    pv.fit(pair, x, objective="elbo", num_particles=8, **settings, seed=suite_seed())
    precision = vae.posterior(x[:1]).precision_matrix[0]
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert family > 0.15
    elbo = pv.importance_bound(pair.model, pair.guide, x, num_particles=1, num_repeats=200)
    gap, error = vae.log_px(x).mean().item() - elbo.mean, 5 * elbo.monte_carlo_error
    if name == "diagonal":
        assert gap == pytest.approx(family, abs=0.03 + error)
    else:
        assert abs(gap) < {"full_covariance": 0.02, "flow": 0.05}[name] + error


def test_an_inverse_spline_is_never_nan_where_rounding_puts_it_beyond_its_bin():
    generator = torch.Generator().manual_seed(suite_seed(0))
    parameters = 8 * torch.randn(2_000, 1, 23, generator=generator)
    y = 4 * (2 * torch.rand(2_000, 400, generator=generator) - 1)
    x, log_slope = rational_quadratic(y, parameters, 4.0, inverse=True)
    assert x.isfinite().all()
    assert log_slope.isfinite().all()


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_the_density_at_a_sample_has_the_gradient_of_the_density_there(kind):
    posterior = moved(posteriors.Flow(2, 2, (8,), 3, kind))
    outputs = torch.randn(5, *posterior.output_shape, requires_grad=True)
    q = posterior(outputs)
    z = q.sample()
    (known,) = torch.autograd.grad(q.log_prob(z).sum(), outputs, retain_graph=True)
    (fresh,) = torch.autograd.grad(posterior(outputs).log_prob(z.clone()).sum(), outputs)
    torch.testing.assert_close(known, fresh)


def test_parts_given_to_two_vaes_are_not_shared():
    prior, posterior = priors.Mixture(2), posteriors.Flow(2)
    one, two = (small_vae((3,), prior=prior, posterior=posterior) for _ in range(2))
    shared = {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}
    assert not shared


# Codes ----------------------------------------------------------------------------------------------------------------


CODES = {
    "bits": lambda temperature: posteriors.Bernoulli(3, temperature),
    "classes": lambda temperature: posteriors.Categorical(2, 3, temperature),
    "relaxed bits": lambda temperature: posteriors.RelaxedBernoulli(3, temperature),
    "relaxed classes": lambda temperature: posteriors.RelaxedCategorical(2, 3, temperature),
}


def coded(kind, temperature=None, seed=0, **settings):
    torch.manual_seed(suite_seed(seed))
    posterior = CODES[kind](temperature)
    settings = {"latent_dim": posterior.latent_dim, "hidden": (5,), "likelihood": pv.Gaussian(0.5), **settings}
    return moved(pv.VAE((4,), posterior=posterior, **settings))


def codes_of(kind):
    if kind == "bits":
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    return torch.stack([torch.stack(pair) for pair in itertools.product(torch.eye(3), torch.eye(3))])


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("kind", ["bits", "classes"])
def test_log_px_of_codes_is_the_sum_over_all_of_them(kind, temperature):
    vae, codes = coded(kind, temperature), codes_of(kind)
    with torch.no_grad():
        x = vae.sample(5)
        assert vae.prior.log_prob(codes).exp().sum().item() == pytest.approx(1, abs=1e-6)
        q = vae.encode(x)
        assert q.log_prob(codes[:, None]).exp().sum(0).tolist() == pytest.approx([1] * 5, abs=1e-6)
        joint = vae.prior.log_prob(codes)[:, None] + vae.decode(codes[:, None]).log_prob(x)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=20_000)
    assert_within_standard_errors(found.log_px, joint.logsumexp(0), found.standard_error)
    torch.testing.assert_close(pv.enumerated_log_marginal(vae.model, x), joint.logsumexp(0).double())
    posterior = joint.softmax(0)
    elbo = pv.importance_bound(vae.model, vae.guide, x, num_particles=1, num_repeats=2_000)
    mass = q.log_prob(codes[:, None])
    exact = (mass.exp() * (joint - mass)).sum(0)
    assert_within_standard_errors(elbo.value, exact, elbo.standard_error)
    enumerated = pv.objectives.EnumeratedELBO().differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(-enumerated, exact.sum())
    assert posterior.max() < 0.999


@pytest.mark.parametrize("kind", ["bits", "classes"])
def test_straight_through_draws_are_hard_with_the_masses_and_the_soft_gradient(kind, float64):
    vae, codes = coded(kind, 0.7).double(), codes_of(kind).double()
    q = vae.encode(torch.randn(1, 4))
    z = q.rsample((40_000,))
    assert set(z.detach().unique().tolist()) == {0.0, 1.0}
    shares = (z.detach() == codes[:, None, None]).flatten(3).all(-1).double().mean((1, 2))
    exact = q.log_prob(codes[:, None]).exp()[:, 0]
    assert_within_standard_errors(shares, exact, (exact * (1 - exact) / 40_000).sqrt())

    logits = torch.tensor([0.3, -1.0, 0.5], requires_grad=True)
    if kind == "bits":
        hard = pv.models.distributions.StraightThroughBernoulli(logits, 0.7)
        torch.manual_seed(suite_seed(5))
        (slope,) = torch.autograd.grad(hard.rsample().sum(), logits)
        torch.manual_seed(suite_seed(5))
        soft = ((logits + torch.rand(3).logit()) / 0.7).sigmoid()
        torch.testing.assert_close(slope, soft * (1 - soft) / 0.7)
    else:
        hard, weights = pv.models.distributions.StraightThroughOneHot(logits, 0.7), torch.tensor([1.0, -2.0, 3.0])
        torch.manual_seed(suite_seed(5))
        (slope,) = torch.autograd.grad((weights * hard.rsample()).sum(), logits)
        torch.manual_seed(suite_seed(5))
        noise = -(-torch.rand(3).log()).log()
        (soft,) = torch.autograd.grad((weights * ((logits.log_softmax(0) + noise) / 0.7).softmax(0)).sum(), logits)
        torch.testing.assert_close(slope, soft)


@pytest.mark.parametrize("kind", CODES)
def test_codes_with_a_temperature_go_with_every_objective_or_are_refused(kind):
    for name, objective in OBJECTIVES.items():
        vae, x = coded(kind, 0.7), torch.randn(5, 4)
        refused = {
            "elbo_analytic_kl": "objective elbo_analytic_kl needs" if kind != "classes" else None,
            "elbo_enumerated": "enumeration needs discrete latents" if "relaxed" in kind else None,
        }.get(name)
        if refused:
            assert refused in refusal(pv.objectives.check_objective, objective, vae.model, vae.guide, x)
            continue
        pv.objectives.check_objective(objective, vae.model, vae.guide, x)
        objective.differentiable_loss(vae.model, vae.guide, x).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in vae.parameters()), name


@pytest.mark.parametrize(("hard", "relaxed"), [("bits", "relaxed bits"), ("classes", "relaxed classes")])
def test_cold_relaxed_codes_are_the_codes_that_their_networks_are_given_to(hard, relaxed):
    codes, cold = coded(hard), coded(relaxed, 0.02)
    codes.load_state_dict(cold.state_dict())
    with torch.no_grad():
        x = codes.sample(6)
    torch.manual_seed(suite_seed(1))
    found = pv.log_marginal(cold.model, cold.guide, x, num_samples=20_000)
    assert_within_standard_errors(found.log_px, pv.enumerated_log_marginal(codes.model, x), found.standard_error + 0.01)
    warm = pv.log_marginal(*(getattr(coded(relaxed, 2.0), name) for name in ("model", "guide")), x, num_samples=20_000)
    assert (warm.log_px - found.log_px).abs().max() > 0.05  # another model
    with torch.no_grad():
        assert cold.reconstruct(x).shape == cold.sample(6).shape == x.shape
        z = cold.encode(x).sample()
        code = cold.prior_family.decoded(z)
        torch.testing.assert_close(cold.decode(z).mean, cold.likelihood(cold.decoder(code), event_dim=1).mean)
        assert code.shape == codes.encode(x).sample().shape
        assert ((code >= 0) & (code <= 1)).all()
    wider = pv.log_marginal(cold.model, pv.proposals.widened(cold.guide, 1.0), x, num_samples=20_000)
    assert_within_standard_errors(
        wider.log_px, found.log_px, (wider.standard_error**2 + found.standard_error**2).sqrt()
    )


def test_a_vamp_prior_of_bits_is_enumerated_as_the_mixture_that_it_is():
    vae = pv.VAE(
        (4,), latent_dim=3, hidden=(5,), likelihood=pv.Gaussian(0.5), posterior="bernoulli",
        prior=priors.Vamp(torch.randn(4, 4)),
    )  # fmt: skip
    with torch.no_grad():
        x, codes = vae.sample(5), codes_of("bits")
        joint = vae.prior.log_prob(codes)[:, None] + vae.decode(codes[:, None]).log_prob(x)
    torch.testing.assert_close(pv.enumerated_log_marginal(vae.model, x), joint.logsumexp(0).double())


def test_codes_under_a_condition_are_enumerated_label_by_label():
    vae, codes, x = coded("bits", condition=pv.OneHot(3)), codes_of("bits"), torch.randn(6, 4)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    found = pv.enumerated_log_marginal(vae.model, x, y)
    elbo = -pv.objectives.EnumeratedELBO().differentiable_loss(vae.model, vae.guide, x, y)
    total = 0.0
    with torch.no_grad():
        for i in range(6):
            one = x[i : i + 1], y[i : i + 1]
            log_p = torch.stack([vae.decode(code[None], one[1]).log_prob(one[0])[0] for code in codes]) - 3 * math.log(
                2
            )
            log_q = vae.encode(*one).log_prob(codes)
            assert found[i].item() == pytest.approx(log_p.logsumexp(0).item(), abs=1e-5)
            total += (log_q.exp() * (log_p - log_q)).sum().item()
    assert elbo.item() == pytest.approx(total, abs=1e-4)
    assert (found - pv.enumerated_log_marginal(vae.model, x, y.roll(1))).abs().max() > 0.01  # y is heard


def test_codes_without_a_temperature_need_a_score_function_and_a_prior_of_their_kind():
    x = torch.randn(5, 4)
    assert 'site "z" has no rsample: use score_function' in refusal(pv.fit, coded("bits"), x, epochs=1)
    pv.fit(coded("bits"), x, epochs=1, objective="vimco", num_particles=3)
    pv.fit(coded("classes", 0.5), x, epochs=1, objective="iwae", num_particles=3)
    narrow = {"latent_dim": 3, "posterior": posteriors.Bernoulli(3), "prior": priors.Bernoulli(1)}
    assert refusal(small_vae, (4,), **narrow) == "prior must be of z of shape (3,), as the posterior is, got (1,)"
    vae = small_vae((4,), posterior=posteriors.Bernoulli(2), prior=priors.Standard(2))
    message = refusal(pv.fit, vae, x, epochs=1, objective="score_function")
    assert 'latent site "z" must be of one kind, got continuous in the model and discrete in the guide' in message


# Layers ---------------------------------------------------------------------------------------------------------------


def layered(seed=3, **settings):
    torch.manual_seed(suite_seed(seed))
    dims, hidden = (3, 2), ((5,),)
    settings = {"posterior": posteriors.Layered(dims, hidden, "tanh"), **settings}
    return pv.VAE((4,), latent_dim=3, hidden=(6,), likelihood=pv.Gaussian(0.5), **settings)


def test_two_layers_weigh_as_their_chain_rule_says(float64):
    vae = layered().double()
    x = torch.randn(5, 4)
    torch.manual_seed(suite_seed(1))
    weights = pv.log_weights(vae.model, vae.guide, x, num_particles=2)
    torch.manual_seed(suite_seed(1))
    with pyro.plate("num_particles", 2, dim=-2):
        sites = pyro.poutine.trace(vae.guide).get_trace(x).nodes
    z1, z2 = sites["z1"]["value"], sites["z2"]["value"]

    def normal(outputs, z):
        loc, log_variance = outputs.unbind(-2)
        return dist.Normal(loc, (0.5 * log_variance).exp()).log_prob(z).sum(-1)

    log_q = normal(vae.encoder(x), z1) + normal(vae.posterior_family.nets[0](z1), z2)
    log_p = normal(vae.prior_family.nets[0](z2), z1) + dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    torch.testing.assert_close(weights, log_p + vae.decode(z1).log_prob(x) - log_q)
    assert vae.sample(7).shape == vae.reconstruct(torch.randn(7, 4)).shape == (7, 4)
    assert (z1.shape, z2.shape) == ((2, 5, 3), (2, 5, 2))


def test_draws_of_two_layers_are_those_of_the_ancestors():
    vae = layered()
    z2 = torch.randn(40_000, 2)
    with torch.no_grad():
        loc, log_variance = vae.prior_family.nets[0](z2).unbind(-2)
        expected = vae.decode(loc + (0.5 * log_variance).exp() * torch.randn_like(loc)).mean
    found = vae.sample(40_000, mean=True)
    error = ((found.var(0) + expected.var(0)) / 40_000).sqrt()
    assert_within_standard_errors(found.mean(0), expected.mean(0), error)
    assert_within_standard_errors(found.square().mean(0), expected.square().mean(0), 3 * error)


# One log p(x) from every estimator --------------------------------------------------------------------------------


def combinations():
    dims, hidden = (2, 2), ((4,),)
    found = {
        f"{q}, {p}": (q, p)
        for q, p in itertools.product(("diagonal", "full_covariance", "flow", "autoregressive"), priors.PRIORS)
    }
    bits = {"relaxed bits": (posteriors.RelaxedBernoulli(2, 0.7), priors.RelaxedBernoulli(2, 0.9))}
    return {**found, **bits, "layers": (posteriors.Layered(dims, hidden), priors.Layered(dims, hidden))}


def vae_of(name, likelihood=None, event_shape=(3,), num_conditions=0, seed=0):
    torch.manual_seed(suite_seed(seed))
    q, p = combinations()[name]
    if isinstance(q, str):
        flows = {"flow": "coupling", "autoregressive": "autoregressive"}
        q = posteriors.Flow(2, 2, (8,), 3, flows[q]) if q in flows else posteriors.POSTERIORS[q](2)
        settings = {"vamp": (torch.rand(4, *event_shape),), "flow": (2, 2, (8,))}
        p = priors.PRIORS[p](*settings.get(p, (2,)))
    likelihood = pv.Gaussian(0.6) if likelihood is None else likelihood
    condition = [pv.OneHot(3)] * num_conditions
    vae = pv.VAE(
        event_shape, latent_dim=2, hidden=(4,), activation="tanh", likelihood=likelihood, posterior=q, prior=p,
        condition=condition,
    )  # fmt: skip
    moved(vae.posterior_family, 1)
    if not isinstance(p, priors.Vamp):
        moved(vae.prior_family, 2)
    return vae


GRIDS = {"relaxed bits": (40.0, 401)}  # a logistic's tails are long


@pytest.mark.parametrize("name", [name for name in combinations() if name != "layers"])
def test_importance_sampling_is_quadrature(name):
    """Draws and densities of the posterior and of the prior, against the density of the prior on a grid."""
    vae = vae_of(name)
    with torch.no_grad():
        x = vae.sample(4)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x), vae.prior))

    sampled = pv.log_marginal(vae.model, guide, x, num_samples=10_000)
    limit, num_points = GRIDS.get(name, (9.0, 151))
    exact, error = pv.quadrature_log_marginal(vae.model, x, limit=limit, num_points=num_points)
    assert error.max() < 0.1  # a spline's density has kinks
    assert_within_standard_errors(sampled.log_px, exact, sampled.standard_error + error)
    assert sampled.standard_error.max() < 0.1
    own = pv.log_weights(vae.model, vae.guide, x, num_particles=2_000).logsumexp(0) - math.log(2_000)
    assert (own < exact + 1).all()  # the guide by itself: E[w] = p(x), so that above e p(x) it is once in three at most


# From the guide its density at any point is asked for, from the prior that of the prior.
@pytest.mark.parametrize(
    ("name", "start"),
    [("autoregressive, standard", "guide"), ("diagonal, mixture", "prior"),
     ("diagonal, vamp", "prior"), ("diagonal, flow", "prior"), ("layers", "guide"), ("relaxed bits", "prior")],
)  # fmt: skip
def test_annealing_agrees_with_quadrature(name, start):
    vae = vae_of(name)
    with torch.no_grad():
        x = vae.sample(3)
    if name == "layers":  # four latents
        found = pv.log_marginal(vae.model, vae.guide, x, num_samples=10_000)
        truth, error = found.log_px, found.standard_error
    else:
        limit, num_points = GRIDS.get(name, (9.0, 151))
        truth, error = pv.quadrature_log_marginal(vae.model, x, limit=limit, num_points=num_points)
    settings = {"num_distributions": 12, "num_chains": 20, "num_leapfrog": 3, "start": start}
    annealed = pv.annealed_log_marginal(vae.model, vae.guide, x, **settings)
    spread = (error**2 + annealed.standard_error**2).sqrt()
    assert_within_standard_errors(annealed.value, truth, spread + 0.01)
    assert annealed.standard_error.median() < 0.3


OBJECTIVES = {
    name: pv.objectives.from_name(name, **({} if name == "elbo_enumerated" else {"num_particles": 2}))
    for name in sorted(pv.objectives.OBJECTIVES)
}


@pytest.mark.parametrize("name", combinations())
def test_every_part_goes_with_every_objective_and_condition_or_is_refused_by_name(name):
    for num_conditions, (objective_name, objective) in itertools.product((0, 1), OBJECTIVES.items()):
        if num_conditions and "vamp" in name:
            assert "needs a VAE without conditions" in refusal(vae_of, name, num_conditions=num_conditions)
            continue
        vae = vae_of(name, num_conditions=num_conditions)
        args = torch.randn(5, 3), *[torch.tensor([0, 1, 2, 0, 1])] * num_conditions
        refused = "objective elbo_analytic_kl needs" if name != "diagonal, standard" else None
        refused = {"elbo_analytic_kl": refused, "elbo_enumerated": "enumeration needs discrete"}.get(objective_name)
        if refused:
            assert refused in refusal(pv.objectives.check_objective, objective, vae.model, vae.guide, *args)
            continue
        pv.objectives.check_objective(objective, vae.model, vae.guide, *args)
        loss = objective.differentiable_loss(vae.model, vae.guide, *args)
        loss.backward()
        assert loss.isfinite()
        for parameter_name, parameter in vae.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


LIKELIHOODS = {
    "bernoulli": (pv.Bernoulli, lambda x: (x > 0.5).float()),
    "continuous bernoulli": (pv.ContinuousBernoulli, lambda x: x),
    "gaussian": (lambda: pv.Gaussian(0.5, learn_scale=True), lambda x: x),
    "predicted": (lambda: pv.HeteroscedasticGaussian(0.1), lambda x: x),
    "categorical": (pv.Categorical, lambda x: (255 * x).round() / 255),
    "logistic": (pv.DiscretizedLogistic, lambda x: (255 * x).round() / 255),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_part_goes_with_every_likelihood(likelihood):
    make, data_of = LIKELIHOODS[likelihood]
    x = data_of(torch.rand(4, 3))
    for name in combinations():
        vae = vae_of(name, make())
        vae.check_data(x)
        pair = pv.programs.particles.check_pair(vae.model, vae.guide, x)
        pair.check_densities()
        loss = pv.objectives.IWAE(3).differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        grads = [parameter.grad for parameter in vae.parameters()]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads), name


@pytest.mark.parametrize("name", ["standard", "mixture", "flow"])
def test_a_prior_by_name_is_the_class_of_that_name(name):
    vae = small_vae((3,), prior=name, latent_dim=2)
    assert type(vae.prior_family) is priors.PRIORS[name]
    assert vae.prior.sample().shape == (2,)


def test_a_prior_or_posterior_of_your_own_is_one_method():
    class Student(pv.posteriors.Posterior):
        def forward(self, outputs):
            loc, log_scale = outputs.unbind(-2)
            return dist.StudentT(5.0, loc, log_scale.exp()).to_event(1)

    class Laplace(pv.priors.Prior):
        def forward(self, encode):
            return dist.Laplace(torch.zeros(2), torch.ones(2)).to_event(1)

    vae = small_vae((3,), posterior=Student(2), prior=Laplace())
    x = torch.randn(6, 3)
    pv.fit(vae, x, epochs=2, objective="dreg", num_particles=3)
    sampled = pv.log_marginal(vae.model, vae.guide, x, num_samples=20_000)
    exact, _ = pv.quadrature_log_marginal(vae.model, x, limit=12.0, num_points=401)
    assert_within_standard_errors(sampled.log_px, exact, sampled.standard_error + 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"posterior": "gaussian"},
            f"posterior must be one of {', '.join(posteriors.POSTERIORS)}; got 'gaussian'",
        ),
        ({"posterior": posteriors.Diagonal(3)}, "posterior must be of latent_dim, 2, got one of 3"),
        ({"prior": "normal"}, "prior must be one of standard, mixture, vamp, flow; got 'normal'"),
        ({"prior": 3}, "prior must be one of standard, mixture, vamp, flow; got 3"),
        ({"prior": priors.Mixture(3)}, "prior must be of z of shape (2,), as the posterior is, got (3,)"),
        ({"prior": priors.Vamp(torch.zeros(4, 5))}, "x must have shape (batch, 2), got (4, 5)"),
        (
            {"prior": priors.Vamp(torch.zeros(4, 2)), "condition": pv.OneHot(3)},
            "a prior that is made of posteriors needs a VAE without conditions",
        ),
        ({"prior": "vamp"}, "prior vamp needs its pseudo-inputs: priors.Vamp(data.train_x[:500])"),
    ],
)
def test_parts_that_do_not_fit_a_vae_are_refused(settings, message):
    assert refusal(small_vae, **settings) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: posteriors.Flow(1, kind="autoregressive"),
            "an autoregressive flow needs at least 2 dimensions, got 1",
        ),
        (lambda: posteriors.Flow(9, hidden=(8,), kind="autoregressive"), "hidden of an autoregressive flow must be >="),
        (lambda: posteriors.Flow(2, kind="planar"), "kind must be one of coupling, autoregressive; got 'planar'"),
        (lambda: posteriors.Flow(2, num_features=0), "num_features must be a whole number >= 1, got 0"),
        (lambda: posteriors.Flow(2, 0), "num_transforms must be a whole number >= 1, got 0"),
        (lambda: posteriors.Layered((3,), ()), "latent_dims must hold those of two layers or more, got (3,)"),
        (lambda: posteriors.Layered((3, 0), ((4,),)), "latent_dims must be a whole number >= 1, got 0"),
        (
            lambda: priors.Layered((3, 2), ()),
            "hidden must hold the units of each of 1 nets, as",
        ),
        (lambda: posteriors.Layered((3, 2), (32,)), "hidden must hold the units of each of 1 nets"),
        (lambda: posteriors.Bernoulli(2, 0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: posteriors.RelaxedBernoulli(2, 0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: posteriors.RelaxedCategorical(2, 1, 0.5), "num_classes must be a whole number >= 2, got 1"),
        (lambda: posteriors.RelaxedCategorical(2, 3, -1.0), "temperature must be a finite number > 0, got -1.0"),
        (lambda: priors.RelaxedBernoulli(0, 0.5), "latent_dim must be a whole number >= 1, got 0"),
        (lambda: priors.RelaxedCategorical(2, 1, 0.5), "num_classes must be a whole number >= 2, got 1"),
        (lambda: posteriors.Categorical(2, 1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: priors.Categorical(2, 1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: priors.Mixture(2, 0), "num_components must be a whole number >= 1, got 0"),
        (lambda: priors.Vamp(torch.zeros(3)), "pseudo_inputs must have shape (C, *event_shape)"),
        (lambda: priors.Vamp(torch.zeros(3, 2), "simplex"), "constraint must be one of real, unit_interval"),
    ],
)
def test_parts_of_bad_sizes_are_refused(make, message):
    assert message in refusal(make)


def test_the_sites_of_layers_without_their_prior_are_named():
    vae = small_vae((3,), posterior=posteriors.Layered((2, 2), ((4,),)), prior=priors.Standard(2))
    assert "the same latent sites" in refusal(pv.fit, vae, torch.randn(4, 3), epochs=1)
