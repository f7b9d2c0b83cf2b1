"""What a check did not see at its first data, or at its first parameters, it sees at others: nothing is taken for good.

The kind of fault: a check whose finding holds for its data and parameters alone is remembered for all later ones.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import SGD
from scalar_pairs import Pair, double

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE
from pyrovae.programs import run_pair

X = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FEW = {"progress": False}
CHAINS = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1}
SAID = "depends on the latents of other data"


def ring(weight=lambda: 0.9, partner=None) -> Pair:
    """x_n ~ N(z_n + w z_m, 0.5), where m is the datum before n, or its partner."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            other = z.roll(1, -1) if partner is None else z[..., partner[: len(x)]]
            pyro.sample("x", dist.Normal(z + weight() * other, double(0.5)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, double(0.8)))

    return Pair(model, guide)


def trained_ring() -> Pair:
    return ring(lambda: pyro.param("weight", double(0.0)))


def without_gradients(pair: Pair, x: torch.Tensor) -> None:
    with torch.no_grad():
        pv.log_weights(*pair, x, num_particles=2)


DOORS = {
    "log_marginal": lambda pair, x: pv.log_marginal(*pair, x, num_samples=10, **FEW),
    "importance_bound": lambda pair, x: pv.importance_bound(*pair, x, num_particles=2, num_repeats=2, **FEW),
    "evaluate": lambda pair, x: pv.evaluate(*pair, x, methods=["iwae_5"], **FEW),
    "annealed": lambda pair, x: pv.annealed_log_marginal(*pair, x, **CHAINS, **FEW),
    "posterior": lambda pair, x: pv.posterior(*pair, x, num_samples=20, **FEW).mean("z"),
    "log_weights": without_gradients,
    "loss": lambda pair, x: IWAE(4).loss(*pair, x),
}


@pytest.mark.parametrize("door", DOORS)
def test_one_datum_shows_no_coupling_and_says_nothing_of_six(door):
    pair = ring()
    DOORS[door](pair, X[:1])
    with pytest.raises(pv.InputError, match=SAID):
        DOORS[door](pair, X)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "loss"])
def test_a_coupling_that_was_0_is_found_by_an_estimate_at_other_parameters(door):
    pair = trained_ring()
    for _ in range(2):
        DOORS[door](pair, X)
    with torch.no_grad():
        pyro.param("weight").add_(0.9)
    with pytest.raises(pv.InputError, match=SAID):
        DOORS[door](pair, X)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "loss"])
def test_a_coupling_of_later_data_is_found_by_an_estimate_of_them(door):
    partner = torch.arange(6)
    pair = ring(partner=partner)
    for _ in range(2):
        DOORS[door](pair, X)
    partner[4:] = torch.tensor([5, 4])
    with pytest.raises(pv.InputError, match=SAID):
        DOORS[door](pair, X)


def test_rows_after_those_that_are_run_first_are_checked():
    partner = torch.arange(200)
    partner[150:] = partner[150:].flip(0)
    with pytest.warns(UserWarning, match="all 200 data"), pytest.raises(pv.InputError, match=SAID):
        DOORS["log_marginal"](ring(partner=partner), X.repeat(34)[:200])


# Steps ----------------------------------------------------------------------------------------------------------------


def refused_at(step, most: int, said: str = SAID) -> int:
    """Returns the number of the first step that is refused, of `most`."""
    taken = []

    def train() -> None:
        for _ in range(most):
            taken.append(step(X))

    with pytest.raises(pv.InputError, match=said):
        train()
    return len(taken) + 1


def test_a_coupling_that_was_0_ends_a_training_at_a_step_that_is_a_power_of_two():
    assert refused_at(SVI(*trained_ring(), SGD({"lr": 0.01}), IWAE(4)).step, 20) == 16


def test_it_ends_a_compiled_training_where_graph_and_program_are_compared():
    svi = pv.CompiledSVI(*trained_ring(), SGD({"lr": 0.01}), IWAE(4), inductor=False)
    assert refused_at(svi.step, 20) == 17  # the sixteenth use of the graph


def test_fit_raises_it():
    with pytest.raises(pv.InputError, match=SAID):
        pv.fit(trained_ring(), X, epochs=16, objective=IWAE(4), compile=False, **FEW)


def test_more_data_than_were_checked_are_checked():
    pair, objective = ring(), IWAE(4)
    objective.loss(*pair, X[:1])
    with pytest.raises(pv.InputError, match=SAID):
        objective.loss(*pair, X)


def test_a_check_in_the_middle_of_a_training_takes_no_random_numbers_and_leaves_its_steps_as_they_are():
    pair = ring(lambda: 0.0)
    torch.manual_seed(1)
    losses = [IWAE(4).loss(*pair, X) for _ in range(17)]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    for loss in losses:
        log_w = run_pair(*pair, X, num_particles=4).terms().log_weights
        assert loss == -IWAE(4).bound(log_w).sum().item()
    assert torch.equal(torch.get_rng_state(), state)


# Other checks that hold for their data and parameters alone -----------------------------------------------------------


def masked_and_read() -> Pair:
    """The likelihood reads the latents of the masked half of the data, by a weight that begins at 0."""

    def model(x):
        weight = pyro.param("weight", double(0.0))
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
                z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(weight * z, double(0.5)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
            pyro.sample("z", dist.Normal(0.5 * x, double(0.8)))

    return Pair(model, guide)


def without_jacobian() -> Pair:
    """The latent is a point made by a map whose log-Jacobian is left out, and is 0 at first."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(double(0.0), 1.0)), double(0.5)), obs=x)

    def guide(x):
        scale = pyro.param("weight", double(0.0)).exp()
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.5 * x, double(1.0)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(scale * a))

    return Pair(model, guide)


OTHERS = {"masked and read": (masked_and_read, "must not read"), "without Jacobian": (without_jacobian, "log_density")}


@pytest.mark.parametrize("name", OTHERS)
def test_other_checks_are_made_again_too(name):
    make, said = OTHERS[name]
    assert refused_at(SVI(*make(), SGD({"lr": 0.01}), ELBO(2)).step, 20, said) == 16
    pyro.clear_param_store()
    pair = make()
    DOORS["log_marginal"](pair, X)
    with torch.no_grad():
        pyro.param("weight").add_(0.9)
    with pytest.raises(pv.InputError, match=said):
        DOORS["log_marginal"](pair, X)


@pytest.mark.parametrize("objective", [IWAE(4), ELBO(4)], ids=str)
def test_particles_of_other_densities_than_alone_are_found_later_and_run_one_after_another(objective):
    def model(x):
        weight = pyro.param("weight", double(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + weight * (z.dim() - 1), double(0.5)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, double(0.8)))

    for _ in range(15):
        objective.loss(model, guide, X)
    with torch.no_grad():
        pyro.param("weight").add_(0.9)
    with pytest.warns(UserWarning, match="particles run one after another"):
        objective.loss(model, guide, X)


def test_elbo_terms_are_those_of_particles_one_after_another():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + (z.dim() - 1), double(0.5)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, double(1e-6)))

    with pytest.warns(UserWarning, match="particles run one after another"):
        found = pv.diagnostics.elbo_terms(model, guide, X, num_particles=4)["reconstruction"]
    torch.testing.assert_close(found, dist.Normal(0.5 * X, double(0.5)).log_prob(X), rtol=0, atol=1e-3)
