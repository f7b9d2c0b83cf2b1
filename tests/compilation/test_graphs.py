"""A traced function against the function itself: what is read again, drawn and refused."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrovae.compilation.graph import Graph
from pyrovae.compilation.replay import Replay
from pyrovae.compilation.tracing import CannotTrace

NO_INDUCTOR = {"inductor": False}


def replay_of(function, *args, eager=None):
    return Replay(function, args, lambda: (eager or function)(*args), [function], inductor=False)


# Replay ---------------------------------------------------------------------------------------------------------------


def test_the_graph_is_the_function_for_other_values_of_the_same_shape():
    def function(x, y):
        return (x * y).sum(), x.softmax(-1), None

    x, y = torch.randn(2, 5, 3)
    graph = Graph(function, [x, y], **NO_INDUCTOR)
    for a, b in ((x, y), (y, x), (x + 1, -y)):
        total, softmax, nothing = graph(a, b)
        assert torch.equal(total, (a * b).sum())
        assert torch.equal(softmax, a.softmax(-1))
        assert nothing is None


@pytest.mark.parametrize(("offset", "factor", "is_taken"), [
    (1e4, 1.0, True), (0.0, 1.0, True), (0.0, 1.003, False), (1e4, 1.03, False)
])  # fmt: skip
def test_a_gradient_may_differ_as_far_as_rounding_moves_it(offset, factor, is_taken):
    """Of a weight near 1, times 1e4, the distance from 1e4 keeps three digits: program and graph differ by 0.4%."""
    start = 1 + torch.tensor([93.0, 93.0]) * 2.0**-23
    norm = nn.BatchNorm1d(2)  # a module with parameters and buffers
    norm.weight.data.copy_(start)

    def difference():
        return norm.weight * offset - offset if offset else norm.weight

    def rearranged():
        return (norm.weight - 1) * offset if offset else norm.weight

    def outcome(of, factor=1.0):
        norm.num_batches_tracked.add_(1)
        loss = of().square().sum() * factor
        return 0 * loss.detach(), *torch.autograd.grad(loss, [norm.weight])

    one = [torch.ones(1)]
    replay = Replay(lambda x: outcome(rearranged, factor), one, lambda: outcome(difference), [norm], inductor=False)
    assert (replay.why is None) == is_taken, replay.why
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.weight, start)


def test_tensors_from_outside_are_read_afresh():
    parameter, buffer = nn.Parameter(torch.ones(3)), torch.tensor(2.0)
    x = torch.randn(3)
    graph = Graph(lambda x: ((x * parameter * buffer).sum(),), [x], **NO_INDUCTOR)
    with torch.no_grad():
        parameter.mul_(3)
        buffer.fill_(-1.0)
    assert torch.equal(graph(x)[0], (x * 3 * -1).sum())
    assert {id(t) for t in graph.outside} == {id(parameter), id(buffer)}
    assert not graph(x)[0].requires_grad


def test_an_argument_that_the_function_also_reads_from_outside_stays_apart():
    x, y = torch.randn(2, 4)
    graph = Graph(lambda a: ((a * x.exp()).sum(),), [x], **NO_INDUCTOR)
    assert torch.equal(graph(y)[0], (y * x.exp()).sum())


def test_constants_of_the_function_are_kept():
    def function(x):
        return ((x * torch.tensor(0.5) + torch.tensor([1.0, 2.0, 3.0])).minimum(torch.tensor(float("inf"))),)

    x = torch.randn(2, 3)
    graph = Graph(function, [x], **NO_INDUCTOR)
    assert torch.equal(graph(x + 1)[0], function(x + 1)[0])
    assert torch.equal(graph(x + 1)[0], function(x + 1)[0])


def test_gradients_are_traced_through():
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def function(x):
        loss = (x @ weight).tanh().square().sum()
        return loss.detach(), *torch.autograd.grad(loss, [weight])

    x = torch.randn(5, 3, dtype=torch.float64)
    graph = Graph(function, [x], **NO_INDUCTOR)
    with torch.no_grad():
        weight.add_(1)
    for ours, theirs in zip(graph(x), function(x), strict=True):
        assert torch.equal(ours, theirs)


def in_place(x):
    y = x * 2
    view = y[0].unsqueeze_(0)
    y.t_()
    torch._foreach_mul_([y], 3.0)
    out = torch.empty(3, 2)
    torch.add(y, 1.0, out=out)
    return out.sum(), y, view


def asserting(x):
    assert (
        x.square().sum() > 0
    ), "a check that the eager run has passed"  # fmt: skip
    return (x.square().sum(),)


HELD = torch.ones(2)
STRAIGHT_LINES = {
    "written in place, into views too": in_place,
    "an operation with several results": lambda x: (x.sort(dim=1).values, *x.t().split(2)),
    "an argument and a constant as they are": lambda x: (x, HELD, x.detach().sin()),
    "elements that a mask leaves, counted": lambda x: (x[x > 0].mean() / x[x > 0].shape[0],),
    "rows that a mask leaves, laid out anew": lambda x: (x[x[:, 0] > 0].reshape(-1).cumsum(0), x[x > 0].numel() + x),
    "a size computed from what a mask leaves": lambda x: (x.new_ones(2 * x[x > 0].shape[0] + 1),),
    "random numbers as many as a mask leaves": lambda x: (torch.randn(x[x > 0].shape).sum(),),
    "a check that the eager run has passed": asserting,
    "without gradients at all": torch.inference_mode()(lambda x: (F.linear(x, x),)),
    "a network with a state of its own": lambda x: (F.batch_norm(x, x[0].clone(), x[1].exp(), training=True),),
}


@pytest.mark.parametrize("name", STRAIGHT_LINES)
def test_every_straight_line_is_replayed_to_the_bit(name):
    function = STRAIGHT_LINES[name]
    x, y = torch.randn(2, 2, 3).abs() + 0.1
    y[0] *= -1
    graph = Graph(function, [x], **NO_INDUCTOR)
    for arg in (x, y):
        torch.manual_seed(3)
        expected = function(arg.clone())
        torch.manual_seed(3)
        for ours, theirs in zip(graph(arg.clone()), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_gradients_of_an_argument_are_traced_through():
    x = torch.randn(3, requires_grad=True)
    graph = Graph(lambda x: (x.detach().sum(), *torch.autograd.grad(x.exp().sum(), [x])), [x], **NO_INDUCTOR)
    assert torch.equal(graph(x + 1)[1], (x + 1).exp())


def test_random_numbers_are_fresh_and_those_of_the_function_in_its_order():
    def function(x):
        return ((x + torch.randn(4) * torch.rand(4) + F.dropout(x, 0.5)).sum(),)

    x = torch.randn(4)
    before = torch.get_rng_state()
    graph = Graph(function, [x], **NO_INDUCTOR)
    assert torch.equal(torch.get_rng_state(), before), "to trace draws nothing"
    torch.manual_seed(1)
    theirs = [function(x)[0] for _ in range(3)]
    end = torch.get_rng_state()
    torch.manual_seed(1)
    ours = [graph(x)[0] for _ in range(3)]
    assert ours == theirs
    assert len(set(ours)) == 3
    assert torch.equal(torch.get_rng_state(), end)


def test_fits_notices_another_dtype_and_another_shape():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    graph = Graph(lambda x: (layer(x).sum(),), [x], **NO_INDUCTOR)
    assert graph.fits()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert graph.fits()
    layer.double()
    assert not graph.fits()
    layer.float()
    assert graph.fits()
    layer.weight.data = torch.randn(5, 3)
    assert not graph.fits()


# What is refused ------------------------------------------------------------------------------------------------------


def branch(x):
    if x.sum() > 0:
        return (x.sum(),)
    return (-x.sum(),)


def python_random(x):
    return ((x * random.random()).sum(),)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branch, r"\(test_graphs.py, line \d+\)"),
        (python_random, "it does other operations, or holds other constants, each time"),
    ],
)
def test_what_is_no_straight_line_is_refused_and_not_frozen(function, message):
    x = torch.randn(2)
    with pytest.raises(CannotTrace, match=message):
        Graph(function, [x], **NO_INDUCTOR)
    replay = replay_of(function, x, eager=lambda x: (torch.tensor(7.0),))
    assert replay.graph is None
    assert replay.why
    assert replay.outcome == (torch.tensor(7.0),)


@pytest.mark.parametrize("of", ["an argument", "a tensor outside"])
@pytest.mark.parametrize("take", [torch.Tensor.item, float, torch.Tensor.tolist, torch.Tensor.numpy])
def test_a_number_taken_out_of_a_tensor_is_refused_and_not_frozen(of, take):
    outside = torch.tensor(2.0)
    with pytest.raises(CannotTrace, match=r"it looks at the value of a tensor \(test_graphs.py, line \d+\)"):
        Graph(lambda x: (x * take(x.max() if of == "an argument" else outside),), [torch.randn(3)], **NO_INDUCTOR)


def test_the_line_is_the_users():
    with pytest.raises(CannotTrace) as caught:
        Graph(branch, [torch.randn(2)], **NO_INDUCTOR)
    assert str(caught.value).endswith(f"(test_graphs.py, line {branch.__code__.co_firstlineno + 1})")


# The check against the eager run --------------------------------------------------------------------------------------


class Moving(nn.Module):
    """A module whose value depends on a buffer that it moves, and on random draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        self.count += 1
        self.average.mul_(0.9).add_(0.1 * x)
        return ((x + torch.randn(3)).sum() + self.average.sum() * self.count,)


def test_a_replay_leaves_generators_and_buffers_as_the_eager_run_does():
    ours, theirs, x = Moving(), Moving(), torch.randn(3)
    torch.manual_seed(2)
    replay = replay_of(ours, x)
    outcomes, state = [replay.outcome], torch.get_rng_state()
    outcomes += [replay(y) for y in (x + 1, x - 1)]
    torch.manual_seed(2)
    assert torch.equal(outcomes[0][0], theirs(x)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert [outcome[0] for outcome in outcomes[1:]] == [theirs(y)[0] for y in (x + 1, x - 1)]
    assert ours.count == theirs.count == 3
    assert torch.equal(ours.average, theirs.average)
    assert replay.why is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (1.1 * x.sum(), x), "its value is off by"),
        (lambda x: (x.sum(), 1.1 * x), "its gradient is off by"),
        (lambda x: (x.sum(), None), "gradients to other parameters"),
        (lambda x: (x.sum() + 0 * torch.randn(40)[0], x), "other random numbers"),
    ],
)
def test_a_replay_that_differs_is_refused_with_the_reason(function, message):
    def eager(x):
        return x.sum(), x

    before = torch.get_rng_state()
    replay = replay_of(function, torch.ones(4), eager=eager)
    assert torch.equal(torch.get_rng_state(), before), "the eager run draws nothing"
    assert replay.graph is None
    assert message in replay.why
    assert replay.outcome[0] == 4.0
    assert replay_of(eager, torch.ones(4)).why is None


def test_a_function_that_reads_a_list_which_it_moves_is_refused():
    steps = []

    def function(x):
        steps.append(len(steps))
        return (x.sum() * len(steps),)

    replay = replay_of(function, torch.ones(3))
    assert replay.outcome[0] == 3.0
    assert replay.graph is None
    assert replay.why


# Machine code ---------------------------------------------------------------------------------------------------------


def test_without_a_compiler_one_line_says_so_and_the_numbers_are_right():
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    def function(x):
        return ((x.sin() * torch.randn(5)).sum(),)

    x = torch.randn(5)
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), fresh_cache(), pytest.warns(match="C\\+\\+") as caught:
        graph = Graph(function, [x])
    assert [str(w.message) for w in caught] == [
        "steps are replayed but not compiled to machine code: no C++ compiler was found"
    ]
    assert not graph.inductor
    torch.manual_seed(4)
    ours = graph(x)[0]
    torch.manual_seed(4)
    assert torch.equal(ours, function(x)[0])
