"""Guides drawn through transforms without an inverse: their densities are right, and no other is made up."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_pairs import NO_INVERSE, W, X, log_px, model, planar, through
from helpers import assert_within_standard_errors, suite_seed
from pyro.distributions import constraints, transforms as T
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch.distributions import Transform

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG, StickingTheLanding
from pyrovae.programs import Weights, gate, pair_at, run_pair, sides_of
from pyrovae.programs.one_way_transforms import NoInverse


class Bent(Transform):
    """y = x + tanh(x) / 2, without an inverse and without a memory of its draws."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x):
        return x + 0.5 * x.tanh()

    def log_abs_det_jacobian(self, x, y):
        return (1.5 - 0.5 * x.tanh() ** 2).log()


class Leaning(Bent):
    """Scales each draw by the mean over the leading dimension."""

    domain = codomain = constraints.real_vector

    def _call(self, x):
        self.factor = 1.5 + x.mean(0, keepdim=True).detach().tanh()
        return x * self.factor

    def log_abs_det_jacobian(self, x, y):
        return self.factor.log().sum(-1).expand(x.shape[:-1])


def conditional_planar():
    return T.conditional_planar(2, 3, [4]).double()


FLOWS = {
    "planar": planar,
    "planar of the data": conditional_planar,
    "radial": lambda: T.radial(2).double(),
    "sylvester": lambda: T.sylvester(2).double(),
    "neural": lambda: T.neural_autoregressive(2).double(),
    "block": lambda: T.block_autoregressive(2, residual="normal").double(),
    "composed": lambda: T.ComposeTransformModule([T.planar(2).double(), T.radial(2).double()]),
}


@pytest.fixture(params=FLOWS.values(), ids=FLOWS.keys())
def flow(request):
    torch.manual_seed(suite_seed())
    return request.param()


def loss_and_gradient(objective, guide):
    torch.manual_seed(suite_seed(1))
    loss = objective.loss_and_grads(model, guide, X)
    parameters = [parameter.unconstrained() for _, parameter in sorted(pyro.get_param_store().named_parameters())]
    gradient = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return loss, gradient


def test_losses_and_gradients_are_pyros_on_the_same_noise(flow):
    guide = through(flow)
    vectorized = {"vectorize_particles": True, "max_plate_nesting": 1, "num_particles": 3}
    for ours, theirs in ((ELBO(3), Trace_ELBO(**vectorized)), (IWAE(3), RenyiELBO(0.0, **vectorized))):
        loss_and_gradient(theirs, guide)  # registers the parameters
        (loss, gradient), (expected, same) = (loss_and_gradient(one, guide) for one in (ours, theirs))
        assert loss == pytest.approx(expected)
        torch.testing.assert_close(gradient, same)


def test_log_px_is_that_of_the_closed_form(flow):
    found = pv.log_marginal(model, through(flow, scale=1.3), X, num_samples=4_000, compile=False, progress=False)
    assert_within_standard_errors(found.log_px, log_px(X), found.standard_error)


def log_q_by_bisection(z, loc, scale, forward, slope):
    """Returns log q of z = forward(x), x ~ Normal(loc, scale), of a rising `forward` of numbers."""
    low, high = torch.full_like(z, -50.0), torch.full_like(z, 50.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = torch.where(forward(middle) < z, middle, low), torch.where(forward(middle) < z, high, middle)
    return dist.Normal(loc, scale).log_prob(low) - slope(low).log()


@pytest.mark.parametrize("at_once", [True, False])
def test_log_q_is_that_of_an_inverse_found_by_bisection(at_once):
    bent, guide = Bent(), through(Bent(), T.AffineTransform(0.1, 1.3), Bent())
    reading = IWAE(3, vectorize_particles=at_once).reading
    pair = run_pair(model, guide, X, num_particles=3, reading=reading)

    def slope(x):
        return bent.log_abs_det_jacobian(x, None).exp()

    def affine(x):
        return 0.1 + 1.3 * bent(x)

    expected = log_q_by_bisection(
        torch.stack([run.guide_sites["z"]["value"] for run in pair.runs]).squeeze(0),
        0.4 * X @ W,
        0.8,
        lambda x: bent(affine(x)),
        lambda x: 1.3 * slope(x) * slope(affine(x)),
    )
    torch.testing.assert_close(pair.terms().log_posterior, expected.sum(-1))


def test_a_flow_may_be_that_of_two_sites():
    flow = planar()

    def both(x):
        with pyro.plate("data", len(x)):
            a, b = (pyro.sample(name, dist.Normal(W.new_zeros(2), 1.0).to_event(1)) for name in "ab")
            pyro.sample("x", dist.Normal((a + b) @ W.T / math.sqrt(2), 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            for name in "ab":
                base = dist.Normal(0.3 * x @ W, 0.9).to_event(1)
                pyro.sample(name, dist.TransformedDistribution(base, [flow]))

    found = pv.log_marginal(both, guide, X, num_samples=4_000, compile=False, progress=False)
    assert_within_standard_errors(found.log_px, log_px(X), found.standard_error)


def test_draws_are_found_again_in_any_order_and_nothing_else_is():
    guide = through(planar(), T.radial(2).double())
    pair = run_pair(model, guide, X, num_particles=3)
    z, log_q = pair.guide_sites["z"]["value"], pair.terms().log_posterior
    other = torch.tensor([2, 0, 0])
    again = pair_at(model, guide, {"z": z[other]}, X, like=pair)
    torch.testing.assert_close(again.terms().log_posterior, log_q[other])
    with pytest.raises(NoInverse, match=r'site "z".*Radial has no inverse'):
        pair_at(model, guide, {"z": z + 0.1}, X, like=pair).terms()


def test_steps_are_compiled_and_questions_are_answered():
    guide = through(planar())
    steps = pv.CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), IWAE(3), inductor=False)
    assert all(math.isfinite(steps.step(X)) for _ in range(3))
    assert steps.reason is None
    answer = pv.posterior(model, guide, X, num_samples=200, compile=False, progress=False).mean("z")
    assert answer.value.isfinite().all()


@pytest.mark.parametrize(
    "door",
    [
        lambda guide: DReG(2).loss(model, guide, X),
        lambda guide: StickingTheLanding().loss(model, guide, X),
        lambda guide: pv.annealed_log_marginal(model, guide, X, start="guide", num_distributions=2, progress=False),
        lambda guide: pv.bidirectional_gap(model, guide, X, start="guide", num_distributions=2, progress=False),
        lambda guide: pv.elbo_surgery(model, guide, X, progress=False),
        lambda guide: pv.log_marginal(model, pv.proposals.defensive(model, guide), X, num_samples=10, progress=False),
    ],
    ids=["dreg", "sticking the landing", "ais", "bidirectional", "surgery", "defensive"],
)
def test_what_needs_the_density_at_other_values_is_refused(door):
    with pytest.raises(pv.InputError, match=NO_INVERSE):
        door(through(planar()))


def test_a_transform_that_is_taken_up_after_the_check_is_refused():
    flows = [T.AffineTransform(torch.zeros(2).double(), 1.0, event_dim=1)]

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x @ W, 0.8).to_event(1), flows[-1:]))

    assert math.isfinite(DReG(2).loss_and_grads(model, guide, X))
    flows.append(planar())
    with pytest.raises(pv.InputError, match=NO_INVERSE):
        DReG(2).loss_and_grads(model, guide, X)


def test_what_couples_particles_or_data_is_found():
    guide = through(Leaning())
    with pytest.warns(UserWarning, match=r"particles run one after another.*the guide differs"):
        pair = gate.check(model, guide, ELBO(2), X)
    assert not pair.layout.is_vectorized
    for needs in (IWAE(2), Weights()):  # and without a dimension of particles it couples the data
        with pytest.raises(pv.InputError, match='site "z" of the guide depends on the latents of other data'):
            gate.check(model, guide, needs, X)


def test_a_guide_that_draws_more_than_its_latents_is_taken():
    guide = through(conditional_planar())

    def noisy(x):
        guide(x + torch.randn_like(x))

    assert math.isfinite(IWAE(2).loss(model, noisy, X))
    assert len(sides_of(model, noisy, (X,)).guide) > 0  # which runs the pair again at held draws


def test_autoguides_with_such_flows_are_taken():
    def regression(x):
        slope = pyro.sample("slope", dist.Normal(W.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x[:, :2] * slope).sum(-1), 1.0), obs=x[:, 2])

    guide = AutoNormalizingFlow(regression, partial(T.iterated, 2, lambda dim: T.planar(dim).double()))
    losses = [objective.loss(regression, guide, X) for objective in (ELBO(), IWAE(3, joint=True))]
    assert all(map(math.isfinite, losses))
    with pytest.raises(pv.InputError, match="Planar, which has no inverse"):
        DReG(3, joint=True).loss(regression, guide, X)
