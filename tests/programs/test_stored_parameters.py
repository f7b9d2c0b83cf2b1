"""Parameters under a name that Pyro's param store already has."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from scalar_pairs import TAKEN, X, name_taken, plain
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO


def test_a_store_that_was_read_from_a_file_does_not_hide_a_new_models_parameters(tmp_path):
    """Without the refusal 100 steps would move nothing."""
    old = nn.Linear(1, 2).double()
    pyro.module("net", old)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    net = nn.Linear(1, 2).double()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(plain().model, guide, Adam({"lr": 0.01}), ELBO())
    svi.step(X)
    pyro.get_param_store().load(tmp_path / "store.pt")
    with pytest.raises(pv.InputError, match=TAKEN):
        svi.step(X)


def test_a_program_that_computes_with_what_the_store_returns_is_taken():
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        pyro.param("weight", net.weight.detach() + 1)

    def guide(x):
        weight = pyro.param("weight", net.weight)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x * weight[0], weight[1].exp()).to_event(1))

    svi = SVI(plain().model, guide, Adam({"lr": 0.01}), ELBO())
    before = pyro.param("weight").detach().clone()
    svi.step(X)
    assert not torch.equal(pyro.param("weight"), before)


@pytest.mark.parametrize("loss", [Trace_ELBO(), ELBO()], ids=["Pyro's", "ours"])
def test_compiled_steps_refuse_a_name_that_is_taken_under_pyros_own_loss_too(loss):
    svi = pv.CompiledSVI(*name_taken(), Adam({"lr": 0.01}), loss, inductor=False)
    with pytest.raises(pv.InputError, match=TAKEN):
        svi.step(X)
