"""What `backward` reaches besides the parameters is as under `SVI`: steps then run eagerly, and say so."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly, data, plain_guide, plain_model
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrovae.objectives import ELBO, IWAE

NUM_STEPS = 6


class Case:
    """A pair that uses a network of the user's, which is trained beside it; `features` computes its argument."""

    reason = "a tensor of shape"

    def __init__(self):
        torch.manual_seed(2)
        self.net = nn.Linear(2, 2).double()
        self.optim = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.seen = []

    def features(self, x):
        return x

    model, guide = staticmethod(plain_model), staticmethod(plain_guide)

    def after(self, step):
        self.optim.step()
        self.optim.zero_grad()


class NotRegistered(Case):
    def model(self, x):
        plain_model(self.net(x))


class Outside(Case):
    reason = "an argument requires a gradient"

    def features(self, x):
        return self.net(x)


class Closure(Case):
    def __init__(self):
        super().__init__()
        self.shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.optim = torch.optim.SGD([self.shift], lr=0.01)

    def guide(self, x):
        plain_guide(x + self.shift)


class Argument(Case):
    """The gradient of the data is wanted, say as a saliency."""

    reason = "an argument requires a gradient"

    def __init__(self):
        super().__init__()
        self.x = data(6, 2).requires_grad_()

    def features(self, x):
        return self.x

    def after(self, step):
        self.seen.append(self.x.grad.clone())
        self.x.grad = None


class Hook(Case):
    """Pyro's recipe to watch the norms of gradients, from the start or once the steps are under way."""

    reason = "a parameter has a hook"
    first = 0

    def after(self, step):
        if step == self.first:
            for value in pyro.get_param_store()._params.values():
                value.register_hook(lambda gradient: self.seen.append(gradient.norm()))


class LateHook(Hook):
    first = 3


class HookAfter(Case):
    reason = "a parameter has a hook"

    def after(self, step):
        if step == 2:
            for value in pyro.get_param_store()._params.values():
                value.register_post_accumulate_grad_hook(lambda parameter: self.seen.append(parameter.grad.clone()))


def trained(kind, make, loss):
    pyro.clear_param_store()
    case, x = make(), data(6, 2)
    svi = kind(lambda x: case.model(x), lambda x: case.guide(x), pyro.optim.SGD({"lr": 1e-3}), loss())
    torch.manual_seed(4)
    losses = []
    for step in range(NUM_STEPS):
        losses.append(svi.step(case.features(x)))
        case.after(step)
    values = [*pyro.get_param_store()._params.values(), *case.net.parameters()]
    return losses, [value.detach().clone() for value in values], case.seen, svi


@pytest.mark.filterwarnings("ignore:steps run eagerly")
@pytest.mark.parametrize("loss", [Trace_ELBO, ELBO, lambda: IWAE(3)])
@pytest.mark.parametrize("make", [NotRegistered, Outside, Closure, Argument, Hook, LateHook, HookAfter])
def test_what_is_trained_or_watched_beside_the_pair_is_as_under_svi(make, loss):
    """A network with an optimiser of its own stood still, and hooks were not called, from the second step on."""
    losses, values, seen, _ = trained(SVI, make, loss)
    ours, our_values, our_seen, svi = trained(CompiledExactly, make, loss)
    assert svi.reason.startswith(make.reason)
    assert ours == losses
    for found, expected in ((our_values, values), (our_seen, seen)):
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))
    assert seen or make in (NotRegistered, Outside, Closure)


@pytest.mark.filterwarnings("ignore:steps run eagerly")
@pytest.mark.parametrize("loss", [Trace_ELBO, ELBO])
def test_an_optimiser_of_torch_trains_all_that_it_holds_as_in_a_loop_of_torch(loss):
    """What it held besides the pair's parameters went on by the gradient of the first step."""
    found = []
    for is_ours in (False, True):
        pyro.clear_param_store()
        case, x = NotRegistered(), data(6, 2)
        case.model(x), case.guide(x)
        held = [*case.net.parameters(), *pyro.get_param_store()._params.values()]
        optim, elbo = torch.optim.Adam(held, lr=0.01), loss()
        svi = CompiledExactly(case.model, case.guide, optim, elbo)
        torch.manual_seed(4)
        for _ in range(NUM_STEPS):
            if is_ours:
                svi.step(x)
            else:
                optim.zero_grad()
                elbo.differentiable_loss(case.model, case.guide, x).backward()
                optim.step()
        found.append([value.detach().clone() for value in held])
    assert all(map(torch.equal, *found))


def test_what_a_loss_makes_for_itself_is_nothing_that_backward_reaches():
    pyro.clear_param_store()
    svi = CompiledExactly(plain_model, plain_guide, None, IWAE(3))
    svi.step(data(6, 2))
    assert svi.reason is None


@pytest.mark.parametrize("name", ["model", "guide", "loss"])
def test_another_pair_or_loss_is_for_another_svi(name):
    """An assignment was taken without a word, and changed nothing."""
    svi = CompiledExactly(plain_model, plain_guide, None, ELBO())
    assert getattr(svi, name) is not None
    with pytest.raises(AttributeError, match=name):
        setattr(svi, name, dist.Normal)
