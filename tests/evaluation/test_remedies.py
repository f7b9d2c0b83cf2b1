"""What a verdict advises can be done: with this pair, and where the verdict is read."""

from collections.abc import Callable
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import guide_of
from helpers import draw, linear_gaussian, refusal, small_vae

import pyrovae as pv
from pyrovae.evaluation import IN_METHODS, IN_SHELL
from pyrovae.evaluation.evaluation_table import Measured

X = torch.tensor([0.5, 3.0, 8.0])
PARTICLES = "more draws of the latents of each datum (num_particles)"
WIDENED = "a wider proposal (pv.proposals.widened(guide, 12))"
BETTER = "a better guide (no factor of pv.proposals.widened is enough)"
DEFENSIVE = "a proposal mixed with the prior (pv.proposals.defensive(model, guide))"


def pair_of(prior: Callable, posterior: Callable, likelihood: Callable, event_dim=0):
    """Returns a pair with one latent of each datum, whose guide is a bad proposal."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior().to_event(event_dim))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior().to_event(event_dim))

    return SimpleNamespace(model=model, guide=guide)


def of_normal():
    return pair_of(lambda: dist.Normal(0.0, 1.0), lambda: dist.Normal(0.0, 0.1), lambda z: dist.Normal(z, 0.5))


def of_noise():
    return pair_of(lambda: dist.Normal(0.0, 1.0), lambda: dist.Normal(0.0, 0.1), lambda z: dist.Normal(z, 5.0))


def of_rates():
    return pair_of(lambda: dist.Gamma(2.0, 1.0), lambda: dist.LogNormal(0.0, 0.1), lambda z: dist.Normal(z, 0.5))


def of_codes():
    bits = dist.Poisson(1.0)
    return pair_of(lambda: bits, lambda: dist.Poisson(0.5), lambda z: dist.Normal(z, 0.2))


def with_globals(matmul):
    """A loading shared by all data, positive, so that `widened` takes it no more than the rates above."""

    def model(x):
        w = pyro.sample("w", dist.Gamma(torch.ones(2, 1), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ w if matmul else (z.unsqueeze(-2) @ w).squeeze(-2)
            pyro.sample("x", dist.Normal(loc.squeeze(-1), 0.1), obs=x)

    def guide(x):
        pyro.sample("w", dist.LogNormal(torch.zeros(2, 1), 0.05).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 0.1).to_event(1))

    return SimpleNamespace(model=model, guide=guide)


@pytest.mark.parametrize(
    ("pair", "advised"),
    [
        (of_normal(), f"take annealed_log_marginal, {BETTER} or more draws"),
        (of_noise(), f"take {WIDENED}, annealed_log_marginal or more draws"),
        (of_rates(), f"take annealed_log_marginal, {DEFENSIVE} or more draws"),
        (of_codes(), f"take {DEFENSIVE} or more draws"),
        (with_globals(False), "take annealed_log_marginal or more draws"),
        (with_globals(True), "take more draws"),
    ],
    ids=["normal", "noise", "rates", "codes", "globals", "globals one by one"],
)
@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_each_remedy_that_is_named_can_be_taken_and_no_other(pair, advised):
    torch.manual_seed(0)
    found = pv.log_marginal(pair.model, pair.guide, X, num_samples=900)
    assert found.is_unreliable.any()
    assert found.verdict.endswith(f"amount; {advised}")
    settings = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, "compile": False}
    tried = {
        "widened": lambda: pv.log_marginal(pair.model, pv.proposals.widened(pair.guide, 2.0), X, num_samples=50),
        "annealed": lambda: pv.annealed_log_marginal(pair.model, pair.guide, X, **settings),
    }
    if "defensive" in advised:
        tried["defensive"] = lambda: pv.log_marginal(
            pair.model, pv.proposals.defensive(pair.model, pair.guide), X, num_samples=50
        )
    for name, attempt in tried.items():
        if name in advised:
            attempt()
        else:
            with pytest.raises(pv.InputError):
                attempt()


@pytest.mark.parametrize(
    ("pair", "advised"),
    [
        (of_normal(), f"take annealed_posterior, {BETTER} or more draws"),
        (of_noise(), f"take {WIDENED}, annealed_posterior or more draws"),
        (of_rates(), f"take annealed_posterior, {DEFENSIVE} or more draws"),
        (of_codes(), f"take {DEFENSIVE} or more draws"),
        (with_globals(False), f"take {PARTICLES}, annealed_posterior or more draws"),
    ],
    ids=["normal", "noise", "rates", "codes", "globals"],
)
def test_answers_name_the_same_remedies_in_words_of_their_own(pair, advised):
    """They named `widened` for every pair, also where it refuses the pair."""
    torch.manual_seed(0)
    post = pv.posterior(pair, X, num_samples=100 if PARTICLES in advised else 900)  # nested draws are dear
    for found in (post, post.mean("z"), post.quantile("z", 0.5)):
        assert found.verdict.startswith("not to be relied on")
        assert found.verdict.endswith(f"means much; {advised}")
    of_log_px = pv.log_marginal(pair.model, pair.guide, X, num_samples=900)
    assert [one for one in post.log_marginal.remedies if one != "particles"] == list(of_log_px.remedies)
    assert post.log_marginal.verdict.endswith(of_log_px.verdict.partition("; take ")[2])


def test_missing_cells_under_a_flow_are_not_told_to_widen_it():
    vae = small_vae((3,), posterior="flow", likelihood=pv.Gaussian(1e-3), missing="mask")
    x = torch.tensor([[1.0, -1.0, torch.nan]]).expand(4, 3).contiguous()
    torch.manual_seed(0)
    found = pv.impute(vae, x, num_samples=100)
    assert found.verdict.endswith(f"means much; take {DEFENSIVE} or more draws")
    with pytest.raises(pv.InputError):
        pv.proposals.widened(vae.guide, 2.0)(x)


def test_the_command_names_its_flags_and_no_functions():
    vae = linear_gaussian(3)
    found = pv.log_marginal(vae.model, guide_of(vae, 0.1), draw(vae, 6), num_samples=1_000)
    assert found.verdict_in(IN_SHELL).endswith(
        "take annealed importance sampling (pyrovae evaluate RUN --methods ais_1000) or more draws (pyrovae evaluate "
        "RUN --num-samples 10000 --overwrite)"
    )
    table = pv.Evaluation((Measured("is_1000", found, 1.0),), 1.0, None)
    assert "is_1000: a lower bound only" in table.verdict_in(IN_METHODS)
    assert " or more draws (--methods is_10000)" in table.verdict_in(IN_METHODS)
    assert "pv." not in table.verdict_in(IN_METHODS)


def test_annealed_chains_over_latents_that_data_share_say_that_they_give_one_evidence():
    """It said "log p(x) of 1 data"."""
    pair, settings = with_globals(False), {"num_distributions": 2, "num_chains": 8, "num_leapfrog": 1, "compile": False}
    found = pv.annealed_log_marginal(pair.model, pair.guide, X, **settings)
    assert repr(found).startswith("joint evidence -")
    assert found.verdict.startswith("joint evidence of all 3 data: ")
    assert pv.annealed_log_marginal(of_normal().model, of_normal().guide, X, **settings).evidence_of is None


def test_annealed_chains_refuse_programs_of_one_particle_and_name_no_argument_that_they_lack():
    pair, settings = with_globals(True), {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, "compile": False}
    message = refusal(lambda: pv.annealed_log_marginal(pair.model, pair.guide, X, **settings))
    assert "vectorize_particles" not in message
    assert message.endswith("as in alpha[..., g], (X * beta).sum(-1) and (z.unsqueeze(-2) @ W).squeeze(-2)")
    pair = with_globals(False)  # as the message says
    assert pv.annealed_log_marginal(pair.model, pair.guide, X, **settings).value.isfinite().all()


def test_a_guide_that_draws_a_discrete_latent_of_few_values_is_advised_to_leave_it_to_the_model():
    """Only more draws were advised, and with 25 times as many of them more data were bad; summed out, none is."""
    torch.manual_seed(0)
    x, probs = 2 * torch.randn(40), torch.ones(5) / 5

    def model(x, infer=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs), infer=infer)
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2.0 * z + u, 0.5), obs=x)

    def guide_of_u(x):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(0.0, 2.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probs))
            pyro.sample("u", dist.Normal(0.0, 2.0))

    found = pv.log_marginal(model, guide, x, num_samples=100)
    assert found.remedies == ("summed_out", "draws")
    advised = 'take the discrete latents out of the guide (the model sums them out where they are marked `infer={"enum'
    assert advised in found.verdict
    marked = pv.log_marginal(lambda x: model(x, {"enumerate": "parallel"}), guide_of_u, x, num_samples=100)
    assert marked.is_unreliable.sum() < found.is_unreliable.sum()
    assert "summed_out" not in marked.remedies


def test_a_count_without_an_end_is_not_said_to_be_summed_out():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Poisson(3.0)), 0.1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(0.5))

    assert "summed_out" not in pv.log_marginal(model, guide, torch.tensor([6.0, 7.0]), num_samples=100).remedies
