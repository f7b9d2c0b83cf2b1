"""Multilayer perceptrons: their layers by hand, leading dimensions, the output bias, refusals."""

import itertools
import math
from functools import partial

import helpers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyrovae as pv
from pyrovae.models.networks import ACTIVATIONS

BY_HAND = {
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + (-x).exp()),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
}


refusal = partial(helpers.refusal, pv.MLP)


def fill(net: pv.MLP) -> list[tuple[Tensor, Tensor]]:
    """Gives every layer known weights, in float64, and returns them as (weight, bias) from input to output."""
    net.double()
    parameters = list(net.parameters())
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return list(zip(parameters[::2], parameters[1::2], strict=True))


@pytest.mark.parametrize("activation", BY_HAND)
def test_an_mlp_is_its_layers_in_turn(activation):
    net = pv.MLP((2, 3), (4,), hidden=(5, 7), activation=activation)
    (w1, b1), (w2, b2), (w3, b3) = fill(net)
    assert [tuple(w.shape) for w in (w1, w2, w3)] == [(5, 6), (7, 5), (4, 7)]
    x = torch.randn(8, 2, 3, dtype=torch.float64)
    act = BY_HAND[activation]
    expected = F.linear(act(F.linear(act(F.linear(x.reshape(8, 6), w1, b1)), w2, b2)), w3, b3)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", BY_HAND)
def test_each_name_gives_the_activation_it_says(activation):
    x = torch.linspace(-4, 4, 201, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[activation]()(x), BY_HAND[activation](x), rtol=1e-10, atol=1e-10)


def test_every_activation_that_is_offered_is_tested_here():
    assert set(ACTIVATIONS) == set(BY_HAND)


def test_relu_is_the_usual_activation():
    usual, relu = pv.MLP((2,), (3,), (50,)), pv.MLP((2,), (3,), (50,), "relu")
    relu.load_state_dict(usual.state_dict())
    x = torch.randn(20, 2)
    assert torch.equal(usual(x), relu(x))


def test_without_hidden_layers_an_mlp_is_linear():
    net = pv.MLP((2, 3), (4, 5), hidden=())
    ((w, b),) = fill(net)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(net(x), F.linear(x.reshape(6, 6), w, b).reshape(6, 4, 5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_shape", [(), (1,), (7,), (3, 7), (1, 7), (2, 3, 4)])
@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((6,), (4,)), ((1, 2, 3), (2, 4)), ((2, 3), (1, 2, 2)), ((1,), (1,))]
)
def test_any_leading_batch_dimensions_give_what_one_datum_at_a_time_gives(batch_shape, in_shape, out_shape):
    net = pv.MLP(in_shape, out_shape, hidden=(5,)).double()
    x = torch.randn(*batch_shape, *in_shape, dtype=torch.float64)
    outputs = net(x)
    assert outputs.shape == batch_shape + out_shape
    for index in itertools.product(*map(range, batch_shape)):
        torch.testing.assert_close(outputs[index], net(x[index]), rtol=1e-12, atol=1e-12)


def test_data_in_a_batch_do_not_touch_each_other():
    net = pv.MLP((3,), (4,), hidden=(6,), activation="tanh").double()
    x = torch.randn(5, 3, dtype=torch.float64)
    jacobian = torch.func.jacrev(net)(x)  # (5, 4, 5, 3)
    for i, j in itertools.product(range(5), range(5)):
        assert (jacobian[i, :, j] != 0).any() == (i == j)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 6)])
def test_the_output_bias_is_the_output_where_the_last_weights_are_zero(hidden):
    net = pv.MLP((3,), (2, 3), hidden)
    bias = torch.arange(6.0).reshape(2, 3) - 2.5
    before = {name: p.clone() for name, p in net.named_parameters()}
    net.set_output_bias(bias)
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["output.bias"]
    with torch.no_grad():
        net.output.weight.zero_()
    assert torch.equal(net(torch.randn(4, 3)), bias.expand(4, 2, 3))


def test_an_output_bias_that_was_set_still_trains():
    net = pv.MLP((3,), (2,), (4,))
    net.set_output_bias(torch.tensor([1.0, 2.0], requires_grad=True))
    assert net.output.bias.is_leaf
    net(torch.randn(5, 3)).sum().backward()
    assert torch.equal(net.output.bias.grad, torch.tensor([5.0, 5.0]))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2,), (1, 2, 3), ()])
def test_an_output_bias_of_another_shape_is_refused(shape):
    net = pv.MLP((3,), (2, 3), ())
    with pytest.raises(pv.InputError) as caught:
        net.set_output_bias(torch.zeros(shape))
    message = str(caught.value)
    assert message == f"bias must have shape (2, 3), got {shape}"


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "hidden", "count"),
    [
        ((1, 28, 28), (2, 20), (400,), 784 * 400 + 400 + 400 * 40 + 40),
        ((20,), (1, 28, 28), (400,), 20 * 400 + 400 + 400 * 784 + 784),
        ((2,), (2, 2), (128, 128), 2 * 128 + 128 + 128 * 128 + 128 + 128 * 4 + 4),
        ((3,), (5,), (), 3 * 5 + 5),
    ],
)
def test_an_mlp_has_as_many_parameters_as_its_layers_need(in_shape, out_shape, hidden, count):
    net = pv.MLP(in_shape, out_shape, hidden)
    assert sum(p.numel() for p in net.parameters()) == count
    assert all(p.requires_grad for p in net.parameters())


def test_every_parameter_gets_a_gradient():
    net = pv.MLP((2, 3), (4,), (5, 7), "tanh")
    net(torch.randn(3, 6, 2, 3)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("activation", ["sigmoid", "ReLU", "", None, 3, torch.nn.ReLU, ["relu"]])
def test_an_unknown_activation_is_refused_with_the_known_ones(activation):
    message = refusal((2,), (3,), (4,), activation)
    assert message.startswith("activation ")
    assert repr(activation) in message
    assert all(name in message for name in BY_HAND)


@pytest.mark.parametrize("units", [0, -1, 1.5, 2.0, True, None, "4", math.nan, (4,)])
def test_bad_hidden_units_are_refused(units):
    message = refusal((2,), (3,), (4, units))
    assert message.startswith("hidden ")
    assert repr(units) in message
