"""Each particle has the density that it has alone: work across leading dimensions is refused, and rounding is not."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from scalar_pairs import double

import pyrovae as pv
from pyrovae.objectives import ELBO
from pyrovae.programs import Reading, run_pair

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def normal(shape=(2,)):
    return dist.Normal(ZERO, ONE).expand(shape).to_event(len(shape))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sd", [1.0, 30.0, 60.0])
def test_rounding_is_not_taken_for_work_across_leading_dimensions(sd, seed):
    torch.manual_seed(seed)
    vae = pv.VAE((2,), latent_dim=2, hidden=(16,), likelihood=pv.Gaussian(sd), posterior="flow")
    x = sd * torch.randn(64, 2)
    assert math.isfinite(replace(ELBO(), num_particles=2).loss(vae.model, vae.guide, x))


def test_work_across_leading_dimensions_is_found_in_large_values_too():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 0.1 * torch.softmax(z, 0), 1.0).to_event(1), obs=x)

    pyro.param("unused", double(0.0))
    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        ELBO().loss(model, guide, 100 * torch.randn(8, 2))


def test_particles_of_a_network_that_works_across_leading_dimensions_run_one_after_another():
    """With a dimension of particles it runs, and normalises over the batch in place of the features."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((3,)))
            pyro.sample("x", dist.Normal(3 * z.softmax(1), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    vectorized = pv.objectives.IWAE(3, vectorize_particles=True)
    with pytest.raises(pv.InputError, match="the model must give each particle the density that it has alone"):
        vectorized.loss(model, guide, X)
    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        first = mean_and_error(pv.log_weights(model, guide, X, num_particles=300))
    later = mean_and_error(pv.log_weights(model, guide, X, num_particles=300))
    assert_within_standard_errors(first[0], later[0], (first[1] ** 2 + later[1] ** 2).sqrt())
    pair = run_pair(model, guide, X, num_particles=3)
    z = pair.draws()["z"]
    log_likelihood = dist.Normal(3 * z.softmax(-1), 0.1).log_prob(X).sum(-1)
    torch.testing.assert_close(pair.terms().log_likelihood, log_likelihood, atol=1e-10, rtol=0)


class Mixing(torch.nn.Module):
    """A pair of a module, which has a mode, and takes its softmax over the batch where there are particles."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((3,)))
            pyro.sample("x", dist.Normal(3 * z.softmax(1), 0.1).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))


@pytest.mark.parametrize("training", [True, False])
def test_what_the_check_finds_in_evaluation_holds_in_training_too(training):
    pair = Mixing().train(training)
    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        pv.objectives.IWAE(3).loss(pair.model, pair.guide, X)
    for mode in (True, False):
        assert not run_pair(pair.train(mode).model, pair.guide, X, num_particles=3).layout.is_vectorized


def test_joint_weights_of_a_network_that_works_across_leading_dimensions_are_those_of_each_particle():
    """With global sites the weights are those of all data, a reading of its own that is checked, too."""

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(ZERO, 0.1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((3,)))
            pyro.sample("x", dist.Normal(3 * z.softmax(1), scale.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x):
        pyro.sample("scale", dist.LogNormal(ZERO, 0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        first = mean_and_error(pv.log_weights(model, guide, X, num_particles=300)[:, 0])
    joint = Reading(joint=True)
    draws = run_pair(model, guide, X, num_particles=300, reading=joint).draws()
    z, scale = draws["z"], draws["scale"].reshape(-1, 1, 1)
    log_w = dist.Normal(3 * z.softmax(-1), scale).log_prob(X) + dist.Normal(ZERO, ONE).log_prob(z)
    log_w = (log_w - dist.Normal(X, 0.5).log_prob(z)).sum((-1, -2))
    later = mean_and_error(log_w)
    assert_within_standard_errors(first[0], later[0], (first[1] ** 2 + later[1] ** 2).sqrt())


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_weights_of_a_part_of_the_data_or_of_their_terms_are_refused(where):
    """E[w] would not be p(x); N/B of the data plate stands outside, and only where the weights are per datum."""

    def program(observes):
        def run(x):
            if where == "outside":
                pyro.sample("scale", dist.LogNormal(ZERO, 0.1))
            rows = (
                pyro.plate("data", 8, subsample_size=4, dim=-1) if where == "outside" else pyro.plate("data", 4, dim=-1)
            )
            with rows:
                z = pyro.sample("z", dist.Normal(ZERO, ONE))
                with pyro.plate("entries", 3, subsample_size=1 if where == "inside" else 3, dim=-2) as entries:
                    if observes:
                        pyro.sample("x", dist.Normal(z, ONE), obs=x.T[entries])

        return run

    with pytest.raises(pv.InputError, match="log-weights need all terms") as caught:
        pv.log_weights(program(True), program(False), X, num_particles=3)
    assert "\n" not in str(caught.value)


def test_particles_of_a_subsampled_pair_are_checked_at_the_same_subsample():
    def program(observes):
        def run(x):
            with pyro.plate("data", 8, subsample_size=4, dim=-1) as rows:
                z = pyro.sample("z", normal((3,)))
                if observes:
                    pyro.sample("x", dist.Normal(3 * z.softmax(1), 0.1).to_event(1), obs=x[rows])

        return run

    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        pv.objectives.IWAE(3).loss(program(True), program(False), torch.cat([X, X]))


def asserting() -> tuple[Callable, Callable]:
    """A network that checks the number of its input's dimensions, as many do."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((3,)))
            assert z.dim() == 2, "z must be (batch, 3)"
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    return model, guide


def test_a_network_that_asserts_the_shape_of_its_input_runs_one_particle_after_another():
    with pytest.warns(UserWarning, match=r"at once they fail \(z must be \(batch, 3\)\): latents are .+"):
        assert pv.objectives.IWAE(3).loss(*asserting(), X) > 0


def test_that_particles_run_one_after_another_is_said_once_and_not_before_there_are_several():
    pair = asserting()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_pair(*pair, X, num_particles=1)
        assert not caught
        for _ in range(2):
            run_pair(*pair, X, num_particles=3)
    assert [str(one.message).partition(",")[0] for one in caught] == ["particles run one after another"]
