"""Machine code draws the numbers of an eager step into the same elements, however the memory is laid out."""

import pytest
import torch
from torch.nn import functional as F

from pyrovae.compilation import draws
from pyrovae.compilation.graph import Graph
from pyrovae.compilation.tracing import trace

LAYOUTS = {
    "contiguous": lambda x: x,
    "two dimensions changed": lambda x: x.transpose(0, 1),
    "the last one first": lambda x: x.permute(2, 0, 1),
    "with a dimension of one": lambda x: x.unsqueeze(1).transpose(0, 3),
    "not dense": lambda x: x[..., ::2],
    "expanded": lambda x: x[:1].expand(5, -1, -1),
}
CHANGED = ("two dimensions changed", "the last one first", "with a dimension of one")
DRAWS = {
    "bernoulli": lambda new: new.bernoulli_(0.3),
    "bernoulli, by default": lambda new: new.bernoulli_(),
    "uniform": lambda new: new.uniform_(1.0, 2.0),
    "exponential": lambda new: new.exponential_(3.0),
    "normal": lambda new: new.normal_(),
}


def drawn(run, x):
    torch.manual_seed(0)
    return run(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("draw", DRAWS)
def test_rewritten_draws_are_those_of_the_program_to_the_bit(layout, draw):
    def program(x):
        new = DRAWS[draw](torch.empty_like(LAYOUTS[layout](x)))
        return (2 * new.div_(3.0),)

    x = torch.randn(5, 7, 8)
    module, outside = trace(program, [x])
    draws.rewrite_draws(module)
    assert outside == []
    is_rewritten = any(node.target is torch.ops.aten.empty.memory_format for node in module.graph.nodes)
    if layout not in CHANGED or draw == "normal":  # which draws otherwise where memory is not contiguous
        assert not is_rewritten
    elif draw.startswith("bernoulli"):
        assert is_rewritten
    assert torch.equal(drawn(module, x)[0], drawn(program, x)[0])


def test_where_a_processor_draws_by_index_the_numbers_fall_as_in_contiguous_memory(monkeypatch):
    monkeypatch.setattr(draws, "_order_of", lambda *_: "index")
    module, _ = trace(lambda x: (torch.empty_like(x.transpose(0, 1)).bernoulli_(0.5),), [torch.randn(5, 7, 8)])
    draws.rewrite_draws(module)
    found = drawn(module, torch.randn(5, 7, 8))[0]
    assert torch.equal(found, drawn(lambda x: x.bernoulli_(0.5), torch.empty(7, 5, 8)))


def test_dropout_after_an_attention_leaves_out_the_same_elements_in_machine_code():
    """It left out others, and the steps of a transformer ran eagerly, as their values were "off"."""

    def program(x):
        seen = F.scaled_dot_product_attention(x[None], x[None], x[None])[0].transpose(0, 1)
        return (F.dropout(seen, 0.5, True),)

    x = torch.randn(5, 7, 8)
    graph = Graph(program, [x])
    assert graph.inductor
    torch.testing.assert_close(drawn(graph, x)[0], drawn(program, x)[0])
