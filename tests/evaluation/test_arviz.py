"""Draws handed to ArviZ, and what is said without it."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import draw, linear_gaussian, refusal

import pyrovae as pv


@pytest.fixture(scope="module")
def post():
    torch.manual_seed(0)
    vae = linear_gaussian(0, pinned=True)
    return pv.posterior(vae, draw(vae, 4), num_samples=300)


def drawn(post):
    torch.manual_seed(1)
    return post.sample(50)["z"].numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_arviz_has_the_draws_of_each_datum_and_summarises_them(post):
    arviz = pytest.importorskip("arviz")
    torch.manual_seed(1)
    found = post.to_arviz(50)["posterior"]
    assert found["z"].dims == ("chain", "draw", "datum", "z_dim_0")
    assert np.array_equal(found["z"].values[0], drawn(post))
    summary = arviz.summary(post.to_arviz(2_000))
    assert len(summary) == 8  # data times elements
    exact = post.mean("z").value.flatten().numpy()
    assert np.allclose(summary["mean"].astype(float), exact, atol=0.1)


@pytest.mark.parametrize("version", ["0.23.4", "1.3.0"])
def test_each_api_of_arviz_is_called_as_it_is(post, version, monkeypatch):
    """Before 1.0 the groups are arguments, and from then on a dict of dicts."""
    arviz, calls = ModuleType("arviz"), []
    arviz.__version__, arviz.from_dict = version, lambda *args, **kwargs: calls.append((args, kwargs))
    monkeypatch.setitem(sys.modules, "arviz", arviz)
    torch.manual_seed(1)
    post.to_arviz(50)
    ((args, kwargs),) = calls
    groups = args[0] if args else {"posterior": kwargs["posterior"]}
    assert bool(args) == (version == "1.3.0")
    assert list(groups) == ["posterior"]
    assert np.array_equal(groups["posterior"]["z"][0], drawn(post))
    assert kwargs["dims"] == {"z": ["datum", "z_dim_0"]}


def test_without_arviz_one_line_says_what_to_install(post, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    assert refusal(post.to_arviz, 5) == "to_arviz needs ArviZ: pip install 'pyrovae[arviz]'"
