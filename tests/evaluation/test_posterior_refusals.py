"""What `posterior` and its questions refuse, each in one line."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draw, linear_gaussian, refusal

import pyrovae as pv


@pytest.fixture(scope="module")
def post():
    vae = linear_gaussian(0, pinned=True)
    return pv.posterior(vae, draw(vae, 3), num_samples=40)


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (
            lambda site: site["z"].mean(),
            "f must return (draws, data, ...), here (1, 1, ...), of each draw of each datum alone, got ()",
        ),
        (lambda site: site["z"].sum(0), "here (1, 1, ...), of each draw of each datum alone, got (1, 2)"),
        (
            lambda site: site["z"].T if len(site["z"]) > 1 else site["z"],
            "here (40, 3, 2), of each draw of each datum alone, got (2, 3, 40)",
        ),
        (
            lambda site: site["z"][:, :, : len(site["z"])],
            "here (40, 3, 1), of each draw of each datum alone, got (40, 3, 2)",
        ),
        (lambda site: 3.0, "f must return a tensor of real numbers, got 3.0"),
        (lambda site: site["z"].cfloat(), "f must return a tensor of real numbers, got"),
        (lambda site: site["z"].to_sparse(), "what f returns must be a dense tensor of numbers, got torch.sparse_coo"),
        (lambda site: site["z"].to("meta"), "what f returns must be a dense tensor of numbers, got a meta tensor"),
        (
            lambda site: site["z"][..., :0],
            "f must return a number or more for each draw of each datum, got the shape (1, 1, 0)",
        ),
        (lambda site: 1 / (site["z"] * 0), "f must be finite at every draw, got inf"),
        (lambda site: site["z"].log(), "f must be a number at every draw, got nan at some of them"),
    ],
)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_an_f_of_the_wrong_shape_or_value_is_refused(post, f, said):
    assert said in refusal(post.expectation, f)


def test_questions_that_have_no_answer_are_refused(post):
    assert refusal(post.mean, "y") == "name must be z; got 'y'"
    assert refusal(post.quantile, "y", 0.5) == "name must be z; got 'y'"
    assert "levels must be a finite number > 0 and < 1" in refusal(post.quantile, "z", 1.0)
    assert "levels must hold at least one number, got none" in refusal(post.quantile, "z", ())
    assert "num_samples must be" in refusal(post.sample, 0)
    assert "f must be a function" in refusal(post.expectation, "z")
    wrong = refusal(post.expectation, lambda site, y: site["z"] + y, torch.zeros(2))
    assert wrong == "data must have shape (3, ...), as there are so many data, got (2,)"


def test_what_log_marginal_refuses_is_refused():
    vae = linear_gaussian(0)
    x = draw(vae, 3)
    x[1, 0] = torch.nan
    for function in (pv.posterior, pv.log_marginal):
        assert "finite" in refusal(function, vae, x)
    grey = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli())
    both = [refusal(function, grey, torch.full((3, 2), 0.5)) for function in (pv.posterior, pv.log_marginal)]
    assert both[0] == both[1]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_pairs_without_rows_of_latents_are_refused():
    x = torch.zeros(3)

    def no_latent(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)

    assert "posterior needs a latent site, and the guide draws none" in refusal(
        pv.posterior, no_latent, lambda x: None, x
    )

    def one_by_one(observes):
        def program(x):
            for i in pyro.plate("data", len(x)):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                if observes:
                    pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

        return program

    assert 'site "z_0" is of one datum alone' in refusal(pv.posterior, one_by_one(True), one_by_one(False), x)

    def two(observes):
        def program(x):
            for name in ("a", "b"):
                with pyro.plate(name, len(x)):
                    z = pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0).expand([len(x)]))
                    if observes:
                        pyro.sample(f"x_{name}", dist.Normal(z, 1.0), obs=x)

        return program

    assert "posterior needs data along one dimension, got the plates a, b" in refusal(
        pv.posterior, two(True), two(False), x
    )
