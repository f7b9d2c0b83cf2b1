"""Pairs in plates of every kind: the terms of a datum are the sum over all that is its own, written out by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from pyro.infer import Trace_ELBO
from scalar_pairs import Pair

from pyrovae.objectives import ELBO, IWAE, DReG
from pyrovae.programs import run_pair

ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
K = 3


def draws_and_loss(pair: Pair, objective) -> tuple[dict[str, torch.Tensor], float]:
    """Returns what the guide draws for an objective, and the loss at these draws."""
    objective.loss(*pair, X)  # the gate has been gone through
    torch.manual_seed(suite_seed(1))
    draws = run_pair(*pair, X, num_particles=objective.num_draws, reading=objective.reading).draws()
    torch.manual_seed(suite_seed(1))
    return draws, objective.loss(*pair, X)


def normal_log_prob(value, mean, scale=1.0):
    return dist.Normal(torch.as_tensor(mean, dtype=torch.float64), scale).log_prob(value)


def log_mean_exp(log_weights):
    return log_weights.exp().mean(0).log()


# The data plate -------------------------------------------------------------------------------------------------------


def vector_pair(dim: int = -1, size: bool = True) -> Pair:
    """A datum is a row of three entries with one latent, in a plate at any dim, with or without a size."""

    def plate(x):
        return pyro.plate("rows", len(x) if size else None, dim=dim)

    def shaped(values):
        return values.reshape(values.shape + (1,) * (-1 - dim))

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(ZERO, ONE).expand(shaped(x[:, 0]).shape))
            mean = z.unsqueeze(-1).expand(*z.shape, 3)
            pyro.sample("x", dist.Normal(mean, ONE).to_event(1), obs=x.reshape(len(x), *(1,) * (-1 - dim), 3))

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(shaped(x.mean(-1)), 0.6))

    return Pair(model, guide)


@pytest.mark.parametrize("objective", [ELBO(K), IWAE(K), DReG(K)], ids=str)
@pytest.mark.parametrize(("dim", "size"), [(-1, True), (-1, False), (-2, True), (-3, True), (-3, False)])
def test_the_data_plate_may_be_at_any_dim_and_without_a_size(dim, size, objective):
    draws, loss = draws_and_loss(vector_pair(dim, size), objective)
    z = draws["z"].reshape(K, 4)
    log_w = normal_log_prob(X, z[..., None]).sum(-1) + normal_log_prob(z, 0.0) - normal_log_prob(z, X.mean(-1), 0.6)
    bound = log_w.mean(0) if isinstance(objective, ELBO) else log_mean_exp(log_w)
    assert loss == pytest.approx(-bound.sum().item(), abs=1e-10)


def test_without_a_plate_the_whole_data_set_is_one_datum():
    """The model takes no dimension of particles, so that they run one after another, as one line says."""

    def model(x):
        z = pyro.sample("z", dist.Normal(ZERO, ONE).expand([len(x)]).to_event(1))
        pyro.sample("x", dist.Normal(z.reshape(len(x), 1).expand(-1, 3), ONE).to_event(2), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x.mean(-1), 0.6).to_event(1))

    pair = Pair(model, guide)
    with pytest.warns(UserWarning, match="particles run one after another") as warned:
        draws, loss = draws_and_loss(pair, IWAE(K))
    assert len(warned) == 1
    z = draws["z"]
    log_w = normal_log_prob(X, z[..., None]).sum((-1, -2))
    log_w = log_w + normal_log_prob(z, 0.0).sum(-1) - normal_log_prob(z, X.mean(-1), 0.6).sum(-1)
    assert log_w.shape == (K,)
    assert loss == pytest.approx(-log_mean_exp(log_w).item(), abs=1e-10)


# Plates inside it -----------------------------------------------------------------------------------------------------


def nested_pair(dims: tuple[int | None, int | None] = (-1, -2), sequential: bool = False) -> Pair:
    """A row has a latent, and each of its entries has one, too."""

    def entries(x):
        if sequential:
            yield from ((f"_{i}", x[:, i]) for i in pyro.plate("entries", 3))
        else:
            with pyro.plate("entries", 3, dim=dims[1]):
                yield "", x.T if dims[0] != -2 else x

    def rows(x):
        return pyro.plate("rows", len(x), dim=dims[0])

    def at_rows(values):
        return values.unsqueeze(-1) if dims[0] == -2 else values

    def model(x):
        with rows(x):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            for name, values in entries(x):
                u = pyro.sample(f"u{name}", dist.Normal(ZERO, 0.5))
                pyro.sample(f"x{name}", dist.Normal(z + u, ONE), obs=values)

    def guide(x):
        with rows(x):
            pyro.sample("z", dist.Normal(at_rows(x.mean(-1)), 0.6))
            for name, _ in entries(x):
                pyro.sample(f"u{name}", dist.Normal(ZERO, 0.4))

    return Pair(model, guide)


NESTED = {
    "inner plate to the left": nested_pair((-1, -2)),
    "inner plate to the right": nested_pair((-2, -1)),
    "dims found by Pyro": nested_pair((None, None)),
    "sequential": nested_pair(sequential=True),
}


@pytest.mark.parametrize("objective", [ELBO(K), IWAE(K), DReG(K)], ids=str)
@pytest.mark.parametrize("name", NESTED)
def test_a_datums_term_is_the_sum_over_the_plates_inside_it(name, objective):
    draws, loss = draws_and_loss(NESTED[name], objective)
    if name == "sequential":
        u = torch.stack([draws[f"u_{i}"] for i in range(3)], -1)
    else:
        u = draws["u"].squeeze()
        u = u if name == "inner plate to the right" else u.mT
    z = draws["z"].reshape(K, 4)
    log_w = (normal_log_prob(X, z[..., None] + u) + normal_log_prob(u, 0.0, 0.5) - normal_log_prob(u, 0.0, 0.4)).sum(-1)
    log_w = log_w + normal_log_prob(z, 0.0) - normal_log_prob(z, X.mean(-1), 0.6)
    bound = log_w.mean(0) if isinstance(objective, ELBO) else log_mean_exp(log_w)
    assert loss == pytest.approx(-bound.sum().item(), abs=1e-10)


@pytest.mark.parametrize("objective", [ELBO(K), IWAE(K)], ids=str)
def test_the_data_may_come_one_after_another(objective):
    def model(x):
        for i in pyro.plate("rows", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(ZERO, ONE))
            pyro.sample(f"x_{i}", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), ONE).to_event(1), obs=x[i])

    def guide(x):
        for i in pyro.plate("rows", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(x[i].mean(), 0.6))

    draws, loss = draws_and_loss(Pair(model, guide), objective)
    z = torch.stack([draws[f"z_{i}"].flatten() for i in range(4)], -1)
    log_w = normal_log_prob(X, z[..., None]).sum(-1) + normal_log_prob(z, 0.0) - normal_log_prob(z, X.mean(-1), 0.6)
    bound = log_w.mean(0) if isinstance(objective, ELBO) else log_mean_exp(log_w)
    assert loss == pytest.approx(-bound.sum().item(), abs=1e-10)


# Sites outside it -----------------------------------------------------------------------------------------------------


def global_pair() -> Pair:
    def program(mean_of, observe):
        def run(x):
            theta = pyro.sample("theta", dist.Normal(ZERO, 2.0) if observe else dist.Normal(0.3 * ONE, 0.5))
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(mean_of(theta, x), 0.8))
                if observe:
                    pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), ONE).to_event(1), obs=x)

        return run

    return Pair(program(lambda theta, x: theta, True), program(lambda theta, x: theta + x.mean(-1), False))


def test_a_site_outside_is_global_and_drawn_once():
    draws, loss = draws_and_loss(global_pair(), IWAE(K))
    theta, z = draws["theta"], draws["z"]
    assert theta.shape == ()
    log_w = normal_log_prob(X, z[..., None]).sum(-1) + normal_log_prob(z, theta, 0.8)
    log_w = log_w - normal_log_prob(z, theta + X.mean(-1), 0.8)
    outside = normal_log_prob(theta, 0.0, 2.0) - normal_log_prob(theta, 0.3, 0.5)
    assert loss == pytest.approx(-(outside + log_mean_exp(log_w).sum()).item(), abs=1e-10)


def test_latents_in_a_plate_of_their_own_are_global_to_the_plate_of_the_data():
    def model(x):
        with pyro.plate("latents", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), ONE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("latents", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.6))

    pair = Pair(model, guide)
    z, loss = draws_and_loss(pair, ELBO())
    assert z["z"].shape == (4,)
    torch.manual_seed(suite_seed(1))
    assert loss == pytest.approx(Trace_ELBO().loss(*pair, X), abs=1e-10)


def test_the_rows_and_the_columns_of_a_table_are_its_data_as_one_is_told():
    """Latents u of the rows and v of the columns: with the rows as data, v is global, and the other way round."""

    def plates(x):
        return pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1)

    def model(x):
        rows, columns = plates(x)
        with rows:
            u = pyro.sample("u", dist.Normal(ZERO, ONE))
        with columns:
            v = pyro.sample("v", dist.Normal(ZERO, ONE))
        with columns, rows:
            pyro.sample("x", dist.Normal(u + v, ONE), obs=x)

    def guide(x):
        rows, columns = plates(x)
        with columns:
            pyro.sample("v", dist.Normal(x.mean(0), 0.6))
        with rows:
            pyro.sample("u", dist.Normal(x.mean(1, keepdim=True), 0.7))

    def log_ratios(u, v):
        of_u = normal_log_prob(u, 0.0) - normal_log_prob(u, X.mean(1, keepdim=True), 0.7)
        return of_u, normal_log_prob(v, 0.0) - normal_log_prob(v, X.mean(0), 0.6)

    pair = Pair(model, guide)
    draws, loss = draws_and_loss(pair, IWAE(K, plate="rows"))
    u, v = draws["u"], draws["v"]
    assert (u.shape, v.shape) == ((K, 4, 1), (3,))
    of_u, of_v = log_ratios(u, v)
    log_w = (normal_log_prob(X, u + v)).sum(-1) + of_u.squeeze(-1)
    assert loss == pytest.approx(-(of_v.sum() + log_mean_exp(log_w).sum()).item(), abs=1e-10)

    draws, loss = draws_and_loss(pair, IWAE(K, plate="columns"))
    u, v = draws["u"], draws["v"]
    assert (u.shape, v.shape) == ((4, 1), (K, 1, 3))
    of_u, of_v = log_ratios(u, v)
    log_w = (normal_log_prob(X, u + v)).sum(-2) + of_v.squeeze(-2)
    assert loss == pytest.approx(-(of_u.sum() + log_mean_exp(log_w).sum()).item(), abs=1e-10)

    draws, loss = draws_and_loss(pair, IWAE(K, joint=True))
    of_u, of_v = log_ratios(draws["u"], draws["v"])
    log_w = normal_log_prob(X, draws["u"] + draws["v"]).sum((-1, -2)) + of_u.sum((-1, -2)) + of_v.sum((-1, -2))
    assert loss == pytest.approx(-log_mean_exp(log_w).item(), abs=1e-10)


# What is known of a pair ----------------------------------------------------------------------------------------------


def counted(pair: Pair) -> tuple[Pair, list[int]]:
    runs = [0]

    def model(x):
        runs[0] += 1
        pair.model(x)

    return Pair(model, pair.guide), runs


@pytest.mark.parametrize("name", ["nested", "global"])
def test_a_layout_is_found_once_and_a_step_runs_the_pair_once(name):
    pair, runs = counted(nested_pair() if name == "nested" else global_pair())
    for _ in range(2):
        run_pair(*pair, X, num_particles=K)
    runs[0] = 0
    run_pair(*pair, X, num_particles=K)
    assert runs[0] == 1


@pytest.mark.parametrize("objective", [ELBO(K), DReG(K)], ids=str)
def test_plates_that_change_from_step_to_step_give_the_numbers_of_a_pair_of_its_own(objective):
    use_nested = [False]

    def either(part):
        pairs = vector_pair(), nested_pair()
        return lambda x: getattr(pairs[use_nested[0]], part)(x)

    pair = Pair(either("model"), either("guide"))
    for use_nested[0] in (False, True, False, True):
        alone = (nested_pair if use_nested[0] else vector_pair)()
        assert objective.loss(*pair, X) > 0
        losses = []
        for one in (pair, alone):
            torch.manual_seed(suite_seed(3))
            losses.append(objective.loss(*one, X))
        assert losses[0] == pytest.approx(losses[1], abs=1e-10)
