"""Races of programs that are no VAE: shared latents, arguments of any kind, none at all."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) + 1.0
SETTINGS = {"epochs": 1, "lr": 0.05, "num_samples": 30, "progress": False}


class Hierarchy(nn.Module):
    """theta ~ N(0, 1), z_n ~ N(theta, 1), x_n ~ N(z_n, scale); its arguments come as `unpack` says."""

    def __init__(self, unpack=lambda x: x) -> None:
        super().__init__()
        self.unpack = unpack
        self.mean, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(0.1 * torch.randn(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def model(self, *args):
        pyro.module("hierarchy", self)
        x = self.unpack(*args)
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1), self.log_scale.exp()).expand([*z.shape, 3]).to_event(1), obs=x
            )

    def guide(self, *args):
        pyro.module("hierarchy", self)
        x = self.unpack(*args)
        theta = pyro.sample("theta", dist.Normal(self.mean, 0.3))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x.mean(-1) + 0.2 * theta, 0.6))


def test_models_whose_data_share_latents_are_raced_by_their_predictive_densities():
    race = pv.race(Hierarchy, X, ["elbo", pv.objectives.IWAE(3)], (0, 1), batch_size=6, held_out=X[:5], **SETTINGS)
    for run in race.runs:
        assert run.log_px.value.shape == (5,)
        assert run.log_px.value.isfinite().all()
        assert run.active_units is None
        assert len(run.curve) == 1
    assert race.difference(race.objectives[1])["seed_error"] is not None
    assert "log p(x)" in str(race)


def test_the_error_of_data_that_share_latents_is_in_rows_tables_curves_and_the_folder(tmp_path):
    """Data that are all alike have one weight for each draw of theta: their mean varies as much as one of them."""
    settings = {"held_out": torch.ones(50, 3), "folder": tmp_path, **SETTINGS, "num_samples": 400}

    class WithoutOwn(Hierarchy):
        def model(self, x):
            pyro.module("hierarchy", self)
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(theta, self.log_scale.exp()).expand([len(x), 3]).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("hierarchy", self)
            pyro.sample("theta", dist.Normal(self.mean, 0.3))

    for _ in range(2):  # the second is read from the folder
        race = pv.race(WithoutOwn, X, ["elbo"], (0,), **settings)
        (run,), (row,) = race["elbo"], race.rows()
        one = run.log_px.standard_error[0].item()
        assert run.log_px.monte_carlo_error == pytest.approx(one, rel=1e-4)
        assert (
            row["monte_carlo_error"] == race.to_dict()["runs"][0]["monte_carlo_error"] == run.log_px.monte_carlo_error
        )
        assert race.to_pandas()["monte_carlo_error"].item() == run.log_px.monte_carlo_error
        ((_, _, _, of_curve),) = run.curve
        assert of_curve == pytest.approx(2 * one, rel=0.5)  # of a quarter of the draws


ARGUMENTS = {
    "a dict": (lambda batch: batch["x"], [{"x": X[:6]}, {"x": X[6:]}], {"x": X}),
    "an image and a number": (lambda x, shift: x + shift, [(X, 0.5)], (X, 0.5)),
    "none": (lambda: X, None, ()),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_may_be_of_any_kind(name, tmp_path):
    unpack, data, held_out = ARGUMENTS[name]

    def run():
        return pv.race(
            lambda: Hierarchy(unpack), data, ["elbo"], (0,),
            held_out=held_out, folder=tmp_path, **SETTINGS,
        )  # fmt: skip

    race = run()
    assert all(one.log_px.value.shape == (12,) for one in race.runs)
    again = run()  # from the folder
    assert all(torch.equal(a.log_px.value, b.log_px.value) for a, b in zip(race.runs, again.runs, strict=True))


def test_a_part_of_held_out_data_that_cannot_be_cut_is_refused_before_anything_is_trained():
    with pytest.raises(pv.InputError, match="num_data must be 12, as a part of the held-out data cannot be taken"):
        pv.race(lambda: Hierarchy(lambda: X), None, ["elbo"], (0,), held_out=(), num_data=4, **SETTINGS)
    objectives = [pv.objectives.ELBO(plate="rows"), pv.objectives.ELBO(plate="columns")]
    with pytest.raises(pv.InputError, match="objectives must name one data plate, got columns and rows"):
        pv.race(Hierarchy, X, objectives, (0,), held_out=X, **SETTINGS)
