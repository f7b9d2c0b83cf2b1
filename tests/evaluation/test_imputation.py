"""Missing cells of a VAE given the observed ones: against the conditional of a Gaussian, which has a closed form."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, small_vae, suite_seed
from torch import nn

import pyrovae as pv

SCALE, CELLS = 0.6, 4


def linear_vae():
    """x = W z + b + 0.6 noise, of 4 cells: jointly normal, whatever is missing."""
    generator = torch.Generator().manual_seed(0)
    decoder = nn.Linear(2, CELLS)
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(CELLS, 2, generator=generator))
    return pv.VAE(
        (CELLS,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(SCALE), decoder=decoder, missing="mask"
    ).double()


class Cauchy(pv.Likelihood):
    def forward(self, outputs, event_dim):
        return dist.Cauchy(outputs, 1.0).to_event(event_dim)


def holes(num, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, CELLS, generator=generator, dtype=torch.float64)
    x[:, 0] = torch.nan
    x[::2, 3] = torch.nan
    return x


def parts(vae, x):
    """Mean and covariance of x, and of z given the observed cells of each datum."""
    weight, bias = vae.decoder.weight.detach(), vae.decoder.bias.detach()
    precision = torch.stack(
        [torch.eye(2).double() + (w.T @ w) / SCALE**2 for w in (weight * ~row[:, None].isnan() for row in x)]
    )
    pull = torch.where(x.isnan(), 0.0, x - bias) @ weight / SCALE**2
    return weight, bias, torch.linalg.solve(precision, pull), precision


def guide_of(vae, widen):
    def guide(x):
        _, _, mean, precision = parts(vae, x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision / widen**2))

    return guide


@pytest.mark.parametrize("widen", [1.0, 1.4])
def test_missing_cells_have_their_gaussian_conditional(widen):
    vae, x = linear_vae(), holes(30, 1)
    torch.manual_seed(suite_seed(1))
    found = pv.impute(vae.model, guide_of(vae, widen), x, num_samples=2_000, num_draws=400)
    weight, bias, mean, precision = parts(vae, x)
    exact = mean @ weight.T + bias
    deviation = ((weight @ torch.linalg.inv(precision)) * weight).sum(-1).add(SCALE**2).sqrt()
    at = x.isnan()
    assert torch.equal(found.missing, at)
    assert torch.equal(found.value[~at], x[~at])
    assert (found.draws[:, ~at] == x[~at]).all()
    assert (found.standard_deviation[~at] == 0).all()
    assert_within_standard_errors(found.value[at], exact[at], found.standard_error[at])
    # of a standard deviation from S draws: its size / sqrt(2 S), and more where weights vary
    assert_within_standard_errors(found.standard_deviation[at], deviation[at], deviation[at] / math.sqrt(2_000), most=6)
    draws = found.draws[:, at]
    assert_within_standard_errors(draws.mean(0), exact[at], deviation[at] / 20, most=6)
    assert_within_standard_errors(draws.std(0), deviation[at], deviation[at] / math.sqrt(800), most=6)
    assert found.verdict.startswith(
        "reliable as far as its own draws can tell: Pareto k <= 0.7 at all 45 missing cells"
    )


def test_cells_of_one_draw_belong_together():
    """Two missing cells of one datum covary as p(x_m | x_o) says, in the draws, which means cannot show."""
    vae, x = linear_vae(), holes(2, 2)[:1]
    torch.manual_seed(suite_seed(2))
    found = pv.impute(vae.model, guide_of(vae, 1.0), x, num_samples=2_000, num_draws=2_000)
    weight, _, _, precision = parts(vae, x)
    exact = (weight @ torch.linalg.inv(precision)[0] @ weight.T)[0, 3]
    draws = found.draws[:, 0]
    products = (draws[:, 0] - draws[:, 0].mean()) * (draws[:, 3] - draws[:, 3].mean())
    assert_within_standard_errors(products.mean(), exact, products.std() / math.sqrt(2_000))


def test_cells_of_every_kind_are_filled_with_what_they_can_be():
    likelihood = pv.Columns({"a": pv.Gaussian(1.0), "b": pv.Bernoulli(), "c": pv.Poisson(), "d": pv.Categorical(3)})
    vae = small_vae((4,), likelihood=likelihood, missing="mask")
    x = torch.tensor([[0.3, 1.0, torch.nan, torch.nan], [torch.nan, torch.nan, 2.0, 1.0]])
    draws = pv.impute(vae, x, num_samples=200).draws
    assert draws.dtype == x.dtype
    assert set(draws[:, 1, 1].tolist()) <= {0.0, 1.0}
    assert set(draws[:, 0, 3].tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(draws[:, 0, 2], draws[:, 0, 2].round())


def test_conditions_go_with_their_data():
    """Over two runs of data; a decoder that reads the condition alone."""
    vae = small_vae((2,), condition=pv.OneHot(2), likelihood=pv.Gaussian(0.1), missing="mask")
    y = (torch.arange(90) // 3) % 2
    found = pv.impute(vae, torch.tensor([[0.1, torch.nan]]).expand(90, 2).clone(), y, num_samples=300)
    same = [pv.impute(vae, torch.tensor([[0.1, torch.nan]]), torch.tensor([c]), num_samples=2_000) for c in (0, 1)]
    for c, one in enumerate(same):
        of_condition = found.value[y == c, 1] - one.value[0, 1]
        error = (found.standard_error[y == c, 1] ** 2 + one.standard_error[0, 1] ** 2).sqrt()
        assert_within_standard_errors(of_condition, 0.0, error, most=6)


def test_cells_that_are_there_are_imputed_where_they_are_said_to_be_missing():
    vae, x = linear_vae(), holes(4, 5)
    filled = x.nan_to_num(nan=7.0)
    found = []
    for args in ({"x": x}, {"x": filled, "missing": x.isnan()}):
        torch.manual_seed(suite_seed(5))
        found.append(pv.impute(vae.model, guide_of(vae, 1.0), args.pop("x"), num_samples=200, **args))
    assert torch.equal(found[0].value, found[1].value)
    assert torch.equal(found[0].draws, found[1].draws)
    assert torch.equal(found[0].missing, found[1].missing)


def test_what_cannot_be_imputed_is_refused():
    vae, x = linear_vae(), holes(3, 3)
    rule = (
        "the VAE must take a part of the data, as it does with missing='mask'; where cells are left out, it draws nan"
    )
    assert refusal(pv.impute, small_vae((CELLS,)), x.float()) == rule
    assert refusal(pv.impute, vae, x.nan_to_num()) == "x must have a missing cell (NaN), and has none"
    assert "num_draws must be" in refusal(pv.impute, vae, x, num_draws=0)
    no_mean = small_vae((CELLS,), likelihood=Cauchy(), missing="mask")
    assert refusal(pv.impute, no_mean, x.float()) == "impute needs a likelihood that has a mean, got Cauchy"
    shape = "missing must be a tensor of True and False, of shape (3, 4), got"
    assert refusal(pv.impute, vae, x, missing=torch.ones(CELLS).bool()) == f"{shape} (4,)"
    assert refusal(pv.impute, vae, x, missing=torch.ones(3, CELLS)) == f"{shape} torch.float32"

    def summed(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            for i in range(CELLS):
                pyro.sample(f"x_{i}", dist.Normal(z + c, 1.0), obs=x[:, i])

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))

    assert refusal(pv.impute, summed, guide, x).startswith("impute needs latents that are drawn, and the model sums")

    def half(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            for i in range(1, CELLS):
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[:, i])

    assert refusal(pv.impute, half, guide, x, num_samples=30).endswith("; one is at none of its sites")

    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            for i in range(CELLS):
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[index, i])

    def guide_of_some(x, mask):
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))

    said = 'as the plate "data" holds a subsample of 2 of 3'
    assert refusal(pv.impute, subsampled, guide_of_some, x).endswith(said)


def test_a_standard_deviation_that_does_not_exist_is_flagged():
    vae = small_vae((CELLS,), likelihood=pv.StudentT(df=1.2, scale=0.5), missing="mask")
    torch.manual_seed(suite_seed(4))
    found = pv.impute(vae, holes(8, 4).float(), num_samples=2_000)
    assert (found.pareto_k[found.missing] > 0.7).double().mean() > 0.8
    assert "not to be relied on" in repr(found)


@pytest.mark.parametrize("likelihood", [pv.Bernoulli(), pv.Poisson()], ids=["Bernoulli", "Poisson"])
def test_cells_that_no_draw_saw_above_0_say_so_and_blame_no_rounding(likelihood):
    vae = small_vae((CELLS,), likelihood=likelihood, missing="mask")
    last = [module for module in vae.decoder.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -14.0)
    torch.manual_seed(suite_seed(5))
    found = pv.impute(vae, torch.tensor([[0.0, 0.0, 0.0, torch.nan]]), num_samples=100)
    assert found.draws[..., 3].sum() == 0
    told = "it cannot be judged: a cell is the same at every draw, and what no draw has seen may still have a share"
    assert found.verdict == told


def test_one_draw_tells_no_standard_deviation():
    """It was 0, as if the cell had been known."""
    found = pv.impute(linear_vae(), holes(4, 6), num_samples=1, num_draws=2)
    assert found.standard_deviation[found.missing].isnan().all()
    assert (found.standard_deviation[~found.missing] == 0).all()
    assert found.value.isfinite().all()
    assert "standard deviations and standard errors unknown\n1 draw is too few" in repr(found)


@pytest.mark.parametrize("likelihood", [pv.DiscretizedLogistic, pv.Bernoulli, partial(pv.Categorical, 9), pv.Beta])
def test_a_filled_cell_is_the_mean_of_what_is_drawn_for_it(likelihood):
    """Under `DiscretizedLogistic` it was the location, clipped to [0, 1]: 0 where the mean of the draws is 0.05."""
    vae = small_vae((CELLS,), likelihood=likelihood(), missing="mask").double()
    x = torch.full((3, CELLS), torch.nan, dtype=torch.float64)
    found = pv.impute(vae, x, num_samples=4_000, num_draws=4_000)
    error = found.draws.std(0) / math.sqrt(len(found.draws)) + found.standard_error
    assert ((found.value - found.draws.mean(0)).abs() < 5 * error).all()


def test_a_cell_that_follows_another_one_beside_the_latents_is_refused():
    """x_1 ~ N(x_0, 0.1) of a given x_0 was filled in with x_0 drawn anew, and so with x_0 / 2."""

    def chain(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            first = pyro.sample("x_0", dist.Normal(z, 1.0), obs=x[:, 0])
            pyro.sample("x_1", dist.Normal(first, 0.1), obs=x[:, 1])

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))

    said = refusal(pv.impute, chain, guide, torch.tensor([[1.0, math.nan]]).double(), num_samples=30)
    rule = "impute needs cells that depend on each other through latents alone"
    assert said == f'{rule}; one site reads what another one returns, at the site "x_1"'


def test_a_standard_deviation_from_few_draws_is_not_too_small():
    """Of the variance the mean of the same draws takes 1/ESS: from two draws it was half, from one weight 0."""
    vae, x = linear_vae(), holes(1_000, 7)
    x[:] = x[:1]
    found = pv.impute(vae.model, guide_of(vae, 1.0), x, num_samples=2, num_draws=1)
    weight, _, _, precision = parts(vae, x[:1])
    variance = ((weight @ torch.linalg.inv(precision[0])) * weight).sum(-1) + SCALE**2
    seen = found.standard_deviation[:, 0].square()
    assert_within_standard_errors(seen.mean(), variance[0], seen.std() / math.sqrt(len(seen)))

    def far(x):  # one draw outweighs the others by hundreds of nats
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((len(x), 2), 90.0).double(), 1.0).to_event(1))

    found = pv.impute(vae.model, far, x[:3], num_samples=30, num_draws=1)
    assert found.standard_deviation[found.missing].isnan().all()
