"""A small graph runs on one thread, its products too, and a large one on those that torch has."""

import pytest
import torch

from pyrovae.common import on_one_thread
from pyrovae.compilation import machine_code
from pyrovae.compilation.graph import Graph


@pytest.mark.parametrize("is_small", [True, False])
def test_the_threads_of_a_graph_are_those_that_suit_its_size(is_small, two_threads, monkeypatch):
    if not is_small:
        monkeypatch.setattr(machine_code, "MAX_ELEMENTS_OF_ONE_THREAD", 0)
    x = torch.randn(3, 4)
    graph = Graph(lambda x: (x @ x.T,), [x])
    assert graph.inductor
    set_to, set_threads = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: set_to.append(n) or set_threads(n))
    torch.testing.assert_close(graph(x)[0], x @ x.T)
    assert set_to == ([1, 2] if is_small else [])
    assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error(two_threads):
    def fails():
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError):
        on_one_thread(fails)
    assert torch.get_num_threads() == 2
    assert on_one_thread(max, 2, 3) == 3
