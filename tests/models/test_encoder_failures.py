"""What is said where an encoder gives no q(z|x): data far from scaled, or of which the likelihood makes NaN."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, small_vae
from pyro.infer import Trace_ELBO
from pyro.optim import Adam

import pyrovae as pv

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LARGE = 1e5 * X / X.abs().max()  # with a hole, which must hide no cell
LARGE[4, 1] = torch.nan
SCALE = "x reaches 1e+05: standardise it; "


def compiled_step(vae, x, loss=None):
    return pv.CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss, inductor=False).step(x)


DOORS = {
    "fit": lambda vae, x: pv.fit(vae, x, epochs=1, progress=False),
    "CompiledSVI": compiled_step,
    "log_marginal": lambda vae, x: pv.log_marginal(vae, x, num_samples=3),
    "log_weights": lambda vae, x: pv.log_weights(vae, x, num_particles=3),
    "posterior": lambda vae, x: pv.posterior(vae, x, num_samples=3),
    "compare": lambda vae, x: pv.compare(vae, x, objectives=["elbo"], num_particles=[1], repeats=4),
    "impute": lambda vae, x: pv.impute(vae, x, missing=torch.tensor([True, False, False]).expand(len(x), 3)),
    "encode": lambda vae, x: vae.encode(x),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
}


class Counts(pv.Likelihood):
    """A family of counts that does not check its data."""

    def encoder_input(self, x, event_dim):
        return x.log1p()

    def forward(self, outputs, event_dim):
        return dist.Poisson(outputs.exp()).to_event(event_dim)


@pytest.mark.parametrize("door", DOORS)
def test_data_far_from_scaled_are_named_at_every_door_also_beside_a_missing_cell(door):
    with pytest.raises((pv.InputError, FloatingPointError)) as caught:
        DOORS[door](small_vae((3,), missing="mask"), LARGE)
    assert str(caught.value).startswith(SCALE)


def test_data_far_from_scaled_are_named_under_a_loss_of_pyros():
    with pytest.raises(FloatingPointError) as caught:
        compiled_step(small_vae((3,), missing="mask"), LARGE, Trace_ELBO())
    assert str(caught.value).startswith(SCALE)


def test_a_scale_below_zero_is_not_due_to_the_size_of_the_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, -1.5e-5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert refusal(pv.log_marginal, model, guide, 300 + X[:, 0]).startswith("the pair does not run: ")


@pytest.mark.parametrize("door", ["fit", "CompiledSVI", "log_marginal"])
def test_counts_that_are_no_whole_numbers_are_not_to_be_standardised(door):
    x = torch.full((40, 3), 1_000.0)
    x[0, 2] = 999.5
    said = refusal(DOORS[door], small_vae((3,), likelihood=Counts()), x)
    assert "999.5 at index" in said
    assert "standardise" not in said


def test_a_training_on_counts_that_diverges_is_not_to_standardise_them():
    """The encoder sees their logarithms."""
    x = torch.full((40, 3), 1_000.0)
    with pytest.raises(FloatingPointError, match=r"^training diverged"):
        pv.fit(small_vae((3,), likelihood=pv.Poisson()), x, epochs=20, lr=1e10, compile=False)


@pytest.mark.parametrize("door", sorted(set(DOORS) - {"impute"}))
def test_an_encoder_input_that_makes_nan_of_the_data_is_named_with_the_value(door):
    x = torch.full((40, 3), 60.0)
    x[0, 1] = -3.0
    said = refusal(DOORS[door], small_vae((3,), likelihood=Counts()), x)
    rule = "encoder_input of likelihood Counts must return finite numbers"
    assert re.fullmatch(rf"{rule}, got nan at index \(\d+, 1\), where x is -3", said)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            {"likelihood": type("Mine", (pv.Likelihood,), {})()},
            "likelihood Mine must define forward(outputs, event_dim)",
        ),
        ({"prior": type("Mine", (pv.priors.Prior,), {})()}, "prior Mine must define forward(encode)"),
        ({"posterior": type("Mine", (pv.posteriors.Posterior,), {})(2)}, "posterior Mine must define forward(outputs)"),
    ],
)
def test_a_part_of_ones_own_without_a_forward_is_told_so(part, said):
    assert refusal(lambda: pv.log_marginal(small_vae((3,), **part), X, num_samples=2)) == said


def test_a_condition_of_ones_own_must_define_its_features_and_its_check():
    own = type("Mine", (pv.Condition,), {"num_features": 1, "check": lambda *_: None})
    vae = small_vae((3,), condition=own())
    assert refusal(vae.encode, X, X[:, 0]) == "condition Mine must define forward(y)"
    own = type("Mine", (pv.Condition,), {"num_features": 1, "forward": lambda _, y: y[:, None]})
    vae = small_vae((3,), condition=own())
    assert refusal(vae.encode, X, X[:, 0]) == "condition Mine must define check(y, num_data)"
