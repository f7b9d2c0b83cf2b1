"""Transforms that remember, or differ between modes: densities are those of the present parameters, or are refused."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from flow_pairs import NO_INVERSE, W, X, model, planar, through
from helpers import suite_seed
from pyro.distributions import transforms as T

import pyrovae as pv
from pyrovae.objectives import ELBO


class Unscored(dist.Normal):
    def log_prob(self, value):
        raise NotImplementedError


class Unreparameterised(dist.Normal):
    has_rsample = False


def test_a_model_that_has_no_density_at_the_draws_is_refused_in_one_line():
    flow = planar()

    def with_prior(prior, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z @ W.T, 0.7).to_event(1), obs=x)

    base, guide = dist.Normal(W.new_zeros(2), 1.0).to_event(1), through()
    for prior, said in (
        (lambda: dist.TransformedDistribution(base, [flow]), "Planar has no inverse"),
        (lambda: Unscored(W.new_zeros(2), 1.0).to_event(1), 'site "z" has no log-density at its value'),
    ):
        for door in (ELBO().loss, partial(pv.log_marginal, num_samples=10, progress=False)):
            with pytest.raises(pv.InputError, match=said):
                door(partial(with_prior, prior), guide, X)


def test_a_site_without_rsample_learns_the_parameters_of_a_transform_with_a_memory():
    """The memory gives back what the draw was made from, and for that no gradient was kept."""
    gradients = []
    for cache_size in (0, 1):
        shift = W.new_zeros(2).requires_grad_()
        guide = through(T.AffineTransform(shift, 1.0, 1, cache_size), family=Unreparameterised)
        torch.manual_seed(suite_seed())
        ELBO(2).loss_and_grads(model, guide, X)
        gradients.append(shift.grad)
    assert gradients[0].abs().min() > 0.01
    torch.testing.assert_close(*gradients)
    with pytest.raises(pv.InputError, match=f"without rsample.*{NO_INVERSE}"):
        ELBO(2).loss(model, through(planar(), family=Unreparameterised), X)


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (T.planar(3).double().inv, lambda flow: flow.inv.parameters()),
        (T.affine_coupling(3).double(), lambda f: f.parameters()),
    ],
    ids=["inverse of a planar", "affine coupling"],
)
def test_data_have_the_density_of_the_parameters_as_they_are(flow, parameters):
    """A transform's memory of the data, which are the same object in every step, is that of old parameters."""

    def observed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.TransformedDistribution(dist.Normal(z, 0.5).to_event(1), [flow]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5).to_event(1))

    def log_weights(x):
        torch.manual_seed(suite_seed())
        return pv.log_weights(observed, guide, x, num_particles=3)

    before = log_weights(X)
    with torch.no_grad():
        for parameter in parameters(flow):
            parameter.add_(0.3)
    after = log_weights(X)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, log_weights(X.clone()))
    for _ in range(2):  # the second ended in an error about a graph that is gone
        ELBO().loss_and_grads(observed, guide, X)


def test_batch_normalisation_as_a_transform_is_taken_in_evaluation_mode_alone():
    flow = T.batchnorm(2).double()
    with pytest.raises(pv.InputError, match=r'site "z".*BatchNorm.*eval'):
        ELBO(vectorize_particles=False).loss(model, through(flow), X)
    assert math.isfinite(ELBO().loss(model, through(flow.eval()), X))


def test_a_flow_with_bounds_is_refused_where_it_would_hide_a_part_of_the_prior():
    bounded = through(T.block_autoregressive(2).double())
    with pytest.raises(pv.InputError, match=r"never draws a part.*BlockAutoregressive have bounds"):
        pv.log_marginal(model, bounded, X, num_samples=10, progress=False)
    with pytest.warns(UserWarning, match="valid but never tight"):
        assert math.isfinite(ELBO().loss(model, bounded, X))


def test_a_draw_through_the_inverse_of_a_transform_without_one_is_refused():
    with pytest.raises(pv.InputError, match='site "z" cannot be drawn through the inverse of Planar'):
        ELBO().loss(model, through(planar().inv), X)
