"""The ELBO with its KL in closed form, on pairs in plates of other kinds: against the ELBO, or refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import pyrovae as pv
from pyrovae.objectives import ELBO, AnalyticKLELBO, check_objective

ONE = torch.ones((), dtype=torch.float64)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def programs(subsample_size: int | None = None, observed: bool = True):
    """A row has a latent, and so does each of its entries, all of them or a subsample."""

    def run(x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0 * ONE, ONE) if observed else dist.Normal(0.3 * ONE, 0.5))
            with pyro.plate("entries", 6, subsample_size=subsample_size, dim=-2) as entries:
                u = pyro.sample("u", dist.Normal(0.0 * ONE, ONE) if observed else dist.Normal(-0.2 * ONE, 0.4))
                if observed:
                    pyro.sample("x", dist.Normal(z + u, ONE), obs=x.T[entries])

    return run


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_subsample_inside_a_datum_counts_for_the_whole_in_the_kl_too(vectorize):
    """The KL of the latents that are drawn for 2 of 6 entries is a third of that of all."""
    pair = programs(2), programs(2, observed=False)
    objectives = AnalyticKLELBO(), ELBO(vectorize_particles=vectorize)
    losses = [torch.tensor([one.loss(*pair, X) for _ in range(120)]) for one in objectives]
    (mean, error), (expected, other) = map(mean_and_error, losses)
    whole = AnalyticKLELBO(2_000).loss(programs(), programs(observed=False), X)
    assert_within_standard_errors(mean, whole, error, dtype=torch.float32)
    assert_within_standard_errors(mean, expected, (error**2 + other**2).sqrt())


@pytest.mark.parametrize("objective", [AnalyticKLELBO(), TraceMeanField_ELBO()], ids=lambda one: type(one).__name__)
def test_a_guide_whose_latents_are_made_of_others_has_no_closed_form(objective):
    """Pyro's "KL" of a point is minus its log-prior, without the entropy of what the point was made of."""
    model = programs()
    guide = AutoNormal(pyro.poutine.block(model, hide=["x"]), init_loc_fn=lambda site: site["fn"].mean)
    with pytest.raises(pv.InputError, match="needs a guide that draws the latents themselves") as caught:
        check_objective(objective, model, guide, X)
    assert "\n" not in str(caught.value)
