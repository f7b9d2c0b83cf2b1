"""Checked files give back what was written, or are refused; the checksum sees every bit, type and place."""

import itertools
import math

import pytest
import torch
from helpers import refusal

from pyrovae.common import checksum, read_checked, write_checked

CONTENT = {
    "tensor": torch.tensor([[1.0, -0.0], [math.inf, math.nan]]), "nothing": torch.zeros(0, 3), "no": None,
    "list": [1, 2.5, True, [False]], "tuple": (1, {"a": -math.inf}), "number": 0.1 + 0.2, "text": "a\n",
}  # fmt: skip


def test_content_comes_back_to_the_bit(tmp_path):
    assert read_checked(tmp_path / "parts" / "one.pt") is None
    write_checked(tmp_path / "parts" / "one.pt", CONTENT)
    found = read_checked(tmp_path / "parts" / "one.pt")
    assert checksum(found) == checksum(CONTENT)
    assert repr(found) == repr(CONTENT)
    plain = {"list": [1, 2.5, True], "text": "\u00e9", "number": 0.1 + 0.2}
    write_checked(tmp_path / "one.json", plain)
    assert read_checked(tmp_path / "one.json") == plain


def test_the_checksum_tells_types_shapes_orders_and_places_apart():
    others = [
        1, 1.0, True, "1", None, "None", [], {}, [[]], [1, [2]], [[1], 2], [1, 2], {"a": 1, "b": 2}, {"b": 2, "a": 1},
        ["a", "b"], ["ab"], ["a b"], torch.zeros(2), torch.zeros(2, 1), torch.zeros(1, 2), -torch.zeros(2),
        torch.zeros(2).int(), torch.zeros(1).double(), torch.zeros(4, dtype=torch.uint8), torch.zeros(0), 0.1,
        0.1 + 2**-56, math.nan, "nan", math.inf, torch.tensor(1.0), [torch.tensor(1.0)], "tensor torch.float32 ()",
    ]  # fmt: skip
    for one, other in itertools.combinations(others, 2):
        assert checksum(one) != checksum(other), (one, other)
    turned = torch.arange(6.0).view(2, 3).T
    assert checksum(turned) == checksum(turned.contiguous())
    conjugate = torch.ones(2, dtype=torch.cfloat).mul(1 + 1j).conj()
    assert checksum(conjugate) == checksum(conjugate.resolve_conj())
    with pytest.raises(TypeError, match="content must be of tensors and plain values, and holds a set"):
        checksum({"a": {1}})


def test_another_kind_of_file_is_refused_by_one_line(tmp_path):
    for name, text in (("a.json", "{}"), ("b.json", "[1]"), ("c.json", "{"), ("d.pt", "text"), ("e.json", "[" * 10**5)):
        (tmp_path / name).write_text(text)
        assert refusal(read_checked, tmp_path / name).endswith(": remove it")
    torch.save({"value": torch.zeros(3)}, tmp_path / "old.pt")
    said = refusal(read_checked, tmp_path / "old.pt")
    assert said == f"{tmp_path / 'old.pt'} was not written by this version of pyrovae, or was changed: remove it"
    write_checked(tmp_path / "new.json", {"a": 1})
    text = (tmp_path / "new.json").read_text()
    (tmp_path / "new.json").write_text(text.replace('"format": 1', '"format": 7'))
    assert refusal(read_checked, tmp_path / "new.json") == f"{tmp_path / 'new.json'} is of format 7, not 1: remove it"
