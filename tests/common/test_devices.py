"""Devices are found by name, by the worker process and by a model's parameters."""

import re

import pytest
import torch
from torch import nn

from pyrovae.common import InputError, choose_device, device_of, device_of_worker


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    for available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device("auto") == torch.device(expected)


@pytest.mark.parametrize(("rank", "expected"), [("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")])
def test_each_worker_gets_a_gpu_of_its_own_machine(monkeypatch, rank, expected):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of_worker("auto") == expected
    assert device_of_worker("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_worker("auto") == "auto"


def test_the_device_of_a_model_is_that_of_its_parameters_and_else_that_of_the_data():
    data = (torch.zeros(3),)
    module = nn.Linear(2, 2, device="meta")
    assert device_of(module, data).type == device_of(module.forward, data).type == "meta"
    assert device_of(nn.Identity(), data).type == "cpu"
    assert device_of(lambda x: x, data).type == "cpu"


def _kinds():
    with pytest.raises(RuntimeError) as raised:
        torch.device("abacus")
    return re.search("one of (.*) device type", str(raised.value))[1].split(", ")


@pytest.mark.parametrize("kind", ["", "abacus", "cpu:-1", "cuda:99", *_kinds()])
def test_a_device_is_there_or_is_refused_in_a_line(kind):
    try:
        assert choose_device(kind).type == kind
    except InputError as error:
        assert str(error) == f"device must be auto or one that torch can use here, got {kind!r}"  # noqa: PT017
        assert kind != "cpu"
