"""A function runs twice while it is traced: what differs in its second run would stand still, and is refused."""

from contextlib import suppress

import pytest
import torch

from pyrovae.compilation.graph import Graph
from pyrovae.compilation.replay import Replay
from pyrovae.compilation.tracing import CannotTrace

NO_INDUCTOR = {"inductor": False}
SCHEMA = "(Tensor x) -> Tensor[]"


def moving(function):
    """Returns a function of x and of the number of calls so far."""
    calls = []

    def moved(x):
        calls.append(1)
        return (function(x, len(calls)).sum(),)

    return moved


TWO = [torch.arange(2.0), torch.arange(2.0) + 5]
TWINS = [torch.tensor([1.0, float("nan")]) for _ in range(2)]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, n: x.sin() if n == 1 else x.cos(), id="another operation"),
        pytest.param(lambda x, n: x.sin() if n == 1 else x.sin().sin(), id="one more"),
        pytest.param(lambda x, n: x.sin() if n == 2 else x.sin().sin(), id="one less"),
        pytest.param(lambda x, n: (x.sin(), x.cos())[n == 1], id="another result"),
        pytest.param(lambda x, n: x.sin() - x.cos() if n == 1 else x.cos() - x.sin(), id="another order"),
        pytest.param(lambda x, n: (x.sin(), x.cos(), x.exp())[n % 2 :][0].exp(), id="another operand"),
        pytest.param(lambda x, n: x.sum(0 if n == 1 else -1), id="another dim that is the same"),
        pytest.param(lambda x, n: x * float(n), id="another number"),
        pytest.param(lambda x, n: x * (1 if n == 1 else 1.0), id="a number of another type"),
        pytest.param(lambda x, n: x * (0.0 if n == 1 else -0.0), id="a number of another sign"),
        pytest.param(lambda x, n: x * torch.tensor(float(n)), id="another tensor of a number"),
        pytest.param(lambda x, n: x * torch.tensor([n, 1.0]), id="another constant"),
        pytest.param(lambda x, n: x * TWO[n - 1], id="another tensor outside"),
        pytest.param(lambda x, n: x + TWO[0] if n == 1 else x + TWO[0] + TWO[1], id="one more tensor outside"),
        pytest.param(lambda x, n: x.clone().mul_(n), id="another number written in place"),
        pytest.param(lambda x, n: x.expand(3, 2)[: n + 1].sum(0), id="another slice"),
        pytest.param(lambda x, n: x.clone().unsqueeze_(0).expand(n, 2), id="another shape of what changes its shape"),
        pytest.param(lambda x, n: x.split([1, 1])[n - 1], id="another part"),
        pytest.param(lambda x, n: x[torch.tensor(n - 1)], id="another place"),
    ],
)
def test_a_function_that_does_something_else_when_it_runs_again_is_refused(function):
    with pytest.raises(CannotTrace, match="it does other operations, or holds other constants, each time"):
        Graph(moving(function), [torch.randn(2)], **NO_INDUCTOR)


def in_any_case(x, n):
    with suppress(BaseException):
        x.mul(n)


@pytest.mark.parametrize("last", [lambda x, n: n == 1 and x.exp(), lambda x, n: n == 2 and x.exp(), in_any_case])
def test_one_that_does_something_else_after_its_results_is_refused(last):
    calls = []

    def function(x):
        calls.append(1)
        outcome = (x.sum(),)
        last(x, len(calls))
        return outcome

    with pytest.raises(CannotTrace, match="it does other operations"):
        Graph(function, [torch.randn(2)], **NO_INDUCTOR)


def test_one_that_gives_the_same_results_in_another_order_is_refused():
    calls = []

    def function(x):
        calls.append(1)
        return (x.sin(), x.cos())[:: 1 if len(calls) == 1 else -1]

    with pytest.raises(CannotTrace, match="it does other operations"):
        Graph(function, [torch.randn(2)], **NO_INDUCTOR)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, n: x[torch.tensor(0) + 1], id="a place that is computed"),
        pytest.param(lambda x, n: x[torch.tensor(0).add_(1)], id="a place that is computed in place"),
        pytest.param(lambda x, n: x * torch.tensor([2.0, float("nan")]) + float("nan"), id="nan"),
        pytest.param(lambda x, n: x * TWINS[n - 1], id="another tensor outside, which is equal"),
    ],
)
def test_equal_constants_are_the_same(function):
    Graph(moving(function), [torch.randn(2)], **NO_INDUCTOR)


def fails_first(x):
    try:
        return torch.cat([x, x[:1, None]])
    except RuntimeError:
        return torch.cat([x, x[:1]])


def writes_by_another_name(x):
    MEAN.mul_(0.5)
    return x * NORM.running_mean


NORM = torch.nn.BatchNorm1d(2)
MEAN = NORM.running_mean


@pytest.mark.parametrize("function", [fails_first, writes_by_another_name])
def test_what_is_the_same_in_both_runs_is_replayed(function):
    def summed(x):
        return (function(x).sum(),)

    x = torch.randn(2)
    replay = Replay(summed, [x], lambda: summed(x), [NORM], inductor=False)
    assert replay.why is None


def test_a_tensor_that_is_two_results_of_an_operation_is_one_in_both_runs():
    twice = torch.library.custom_op("pyrovae_tests::twice", lambda x: [x * 2, x * 2], mutates_args=(), schema=SCHEMA)
    twice.register_fake(lambda x: [torch.empty_like(x)] * 2)
    graph = Graph(lambda x: (sum(twice(x)),), [torch.randn(2)], **NO_INDUCTOR)
    assert torch.equal(graph(torch.ones(2))[0], torch.full((2,), 4.0))


def test_one_tensor_may_be_two_arguments():
    x = torch.randn(2)
    graph = Graph(lambda x, y: ((x * y.exp()).sum(),), [x, x], **NO_INDUCTOR)
    assert torch.equal(graph(x, x)[0], (x * x.exp()).sum())


def test_a_tensor_that_one_run_keeps_for_the_next_is_refused():
    kept = []

    def function(x):
        kept.append(x.exp())
        return ((x * kept[0]).sum(),)

    with pytest.raises(CannotTrace, match="it keeps a tensor of one run for the next"):
        Graph(function, [torch.randn(2)], **NO_INDUCTOR)
