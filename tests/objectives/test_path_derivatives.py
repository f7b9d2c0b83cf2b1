"""Path derivatives of guides of every kind, and parameters that model and guide share."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_checks import EVERY
from helpers import suite_seed

from pyrovae.objectives import DReG, StickingTheLanding


def guides():
    """Returns guides with parameters a, whose path derivative needs no knowledge of their kind."""

    def normal(a, x):
        pyro.sample("z", dist.Normal(a[0] * x, a[1].exp()).to_event(1))

    def multivariate(a, x):
        tril = torch.eye(2, dtype=x.dtype) * a[1].exp() + torch.tensor([[0, 0], [1, 0]], dtype=x.dtype) * a[0]
        pyro.sample("z", dist.MultivariateNormal(a[0] * x, scale_tril=tril))

    def flow(a, x):
        affine = dist.transforms.AffineTransform(a[1] * torch.ones(2, dtype=x.dtype), 1.5, event_dim=1)
        base = dist.Normal(a[0] * x, 0.7 * torch.ones(2, dtype=x.dtype)).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [affine]))

    def independent_flows(a, x):
        onto = [dist.transforms.AffineTransform(a[1], 0.8), dist.transforms.TanhTransform()]
        onto.append(dist.transforms.AffineTransform(a[0], 3.0))
        base = dist.Normal(a[0] * x, 0.7)
        pyro.sample("z", dist.TransformedDistribution(base, onto).to_event(1))

    def independent_multivariates(a, x):
        loc = torch.stack((a[0] * x, x + a[1]), -2)  # two independent vectors per datum
        tril = torch.eye(2, dtype=x.dtype) * a[1].exp() + torch.tensor([[0, 0], [1, 0]], dtype=x.dtype) * a[0]
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril).to_event(1))

    def log_normal(a, x):
        pyro.sample("z", dist.LogNormal(a[0] * x, a[1].exp()).to_event(1))

    def two_sites(a, x):
        z1 = pyro.sample("z1", dist.Normal(a[0] * x, 0.5).to_event(1))
        pyro.sample("z", dist.Normal(a[1] * z1 + x, 0.6).to_event(1))

    return {f.__name__: f for f in (
        normal, multivariate, flow, independent_flows, independent_multivariates, log_normal, two_sites,
    )}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the guide never draws a part")  # a tanh at the end of a flow
@pytest.mark.parametrize("kind", guides())
@pytest.mark.parametrize("objective", [StickingTheLanding(3), DReG(3)], ids=str)
def test_the_path_derivative_is_that_of_the_parameters_detached_by_hand(kind, objective):
    a = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 2, dtype=torch.float64)

    def guide_at(parameter):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                guides()[kind](parameter, x)

        return guide

    def model(x):
        one = torch.ones(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            if kind == "two_sites":
                centre = pyro.sample("z1", dist.Normal(0 * one, one).to_event(1))
            else:
                centre = torch.zeros(2, dtype=x.dtype)
            prior = dist.LogNormal(0 * one, one) if kind == "log_normal" else dist.Normal(centre, one)
            if kind == "independent_multivariates":
                z = pyro.sample("z", prior.expand((2, 2)).to_event(2)).sum(-2)
            else:
                z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, one).to_event(1), obs=x)

    torch.manual_seed(suite_seed(1))
    objective.loss_and_grads(model, guide_at(a), x)
    ours = a.grad.clone()

    # By hand: the draws with their graph, and the density of the same family with its parameter detached.
    torch.manual_seed(suite_seed(1))
    with pyro.plate("num_particles", 3, dim=-2):
        drawn = pyro.poutine.trace(guide_at(a)).get_trace(x)
        frozen = pyro.poutine.trace(pyro.poutine.condition(guide_at(a.detach()), data={
            n: drawn.nodes[n]["value"] for n in ("z1", "z") if n in drawn.nodes})).get_trace(x)  # fmt: skip
        joint = pyro.poutine.trace(pyro.poutine.replay(model, trace=drawn)).get_trace(x)
    frozen.compute_log_prob()
    joint.compute_log_prob()
    log_w = sum(joint.nodes[n]["log_prob"] for n in ("z1", "z", "x") if n in joint.nodes)
    log_w = log_w - sum(frozen.nodes[n]["log_prob"] for n in ("z1", "z") if n in frozen.nodes)
    weights = log_w.detach().softmax(0).square() if isinstance(objective, DReG) else torch.full_like(log_w, 1 / 3)
    (expected,) = torch.autograd.grad(-(weights.detach() * log_w).sum(), a)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_a_parameter_that_model_and_guide_share_gets_the_sum_of_its_two_gradients(objective):
    x = torch.randn(4, 2, dtype=torch.float64)

    def gradients(of_model, of_guide):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(of_model * z, of_model.exp()).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(of_guide * x, of_guide.exp()).to_event(1))

        torch.manual_seed(suite_seed(2))
        objective.loss_and_grads(model, guide, x)

    apart = [torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    shared = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gradients(*apart)
    gradients(shared, shared)
    assert apart[0].grad != 0
    assert apart[1].grad != 0
    torch.testing.assert_close(shared.grad, apart[0].grad + apart[1].grad, atol=1e-10, rtol=1e-10)
