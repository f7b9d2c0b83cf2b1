"""Guides with sites marked for enumeration: the ELBO sums over them, and draws the others."""

import itertools
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, suite_seed
from mixed_pairs import GUIDES, MODEL, STATES, Given, X, all_draws, parameters, programs
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from scalar_pairs import OnLatents, double
from torch import Tensor, nn

from pyrovae.objectives import (
    ELBO,
    IWAE,
    VIMCO,
    DReG,
    EnumeratedELBO,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
)

MARK = {"enumerate": "parallel"}


def pyros(num_particles: int) -> TraceEnum_ELBO:
    return TraceEnum_ELBO(
        num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1, strict_enumeration_warning=False
    )


def assert_equal(ours, theirs, leaves, model, guide, *args) -> None:
    """Compares value and gradients on the same noise."""
    found = []
    for objective in (ours, theirs):
        torch.manual_seed(suite_seed(1))
        loss = objective.differentiable_loss(model, guide, *args)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*found, strict=True):
        assert other.norm() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("order", "marked"), [
    ("c to z", ("c",)), ("z to c", ("c",)), ("z to b to u to c", ("b", "c")), ("c and b", ("c", "b")),
])  # fmt: skip
def test_the_elbo_is_pyros_on_the_same_noise(order, marked, num_particles):
    a, t = (parameters(size, seed).requires_grad_() for size, seed in ((12, 1), (8, 2)))
    x = X + torch.arange(4.0)
    assert_equal(ELBO(num_particles), pyros(num_particles), (a, t), *programs(order, a, t, marked=marked), x)


class SemiSupervised(nn.Module):
    """Kingma's M2 as Pyro's users write it: y is observed where a label is given, and enumerated in the guide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(suite_seed(2))
        self.decoder, self.classifier = nn.Linear(2 + 3, 4).double(), nn.Linear(4, 3).double()
        self.encoder = nn.Linear(4 + 3, 2 * 2).double()

    @staticmethod
    def joined(*parts: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            pyro.sample("x", dist.Normal(self.decoder(self.joined(z, y)).tanh(), 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            loc, log_scale = self.encoder(self.joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("expand", [False, True])
def test_a_semi_supervised_model_trains_as_under_pyro(num_particles, labelled, expand):
    pair, x = SemiSupervised(), torch.randn(5, 4, dtype=torch.float64)
    args = (x, torch.eye(3, dtype=torch.float64)[torch.arange(5) % 3]) if labelled else (x,)
    leaves = [p for name, p in pair.named_parameters() if not labelled or "classifier" not in name]
    guide = config_enumerate(pair.guide, default="parallel", expand=expand)
    assert_equal(ELBO(num_particles), pyros(num_particles), leaves, pair.model, guide, *args)


def test_with_every_site_marked_it_is_the_enumerated_elbo():
    pair, x = programs("c and b", *(p.requires_grad_() for p in (parameters(12, 1), parameters(8, 2)))), X.expand(3)
    marked = programs("c and b", parameters(12, 1), parameters(8, 2), marked=("c", "b"))
    assert ELBO(2).loss(*marked, x) == pytest.approx(EnumeratedELBO().loss(*pair, x), abs=1e-12)


def test_a_value_that_the_guide_never_gives_has_no_part_and_one_that_the_model_never_gives_makes_it_infinite():
    logits = double(0.3, -0.2, 0.1).requires_grad_()
    mask, loc = double(0.0, 0.0, -float("inf")), double(0.4).requires_grad_()

    def model(x, prior):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=prior))
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(c.double(), 1.0)), 1.0), obs=x)

    def guide(x, prior):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits + mask), infer=MARK)
            pyro.sample("z", dist.Normal(loc * c, 1.0))

    x = double(0.5, -1.0)
    for prior in (mask, double(0.0, 0.0, 0.0)):
        assert_equal(ELBO(2), pyros(2), (loc, logits), model, guide, x, prior)
    assert ELBO(2).loss(model, guide, x, double(0.0, -float("inf"), 0.0)) == float("inf")


# A site of each kind in one guide -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("marked", ["b", "c"])
def test_a_sum_a_score_function_and_a_path_in_one_guide_have_the_exact_mean(marked, num_particles, beta):
    """With b summed, each of its values has a draw of u and one of c; with c summed, only itself comes after b and u.

    Two nodes for each continuous draw are enough, as the estimator is exact node by node.
    """
    order = "z to b to u to c"
    a, t = parameters(12, 1), parameters(8, 2)
    nodes = all_draws("z to c", 2)
    normal = nodes.by_site["z"].unique()
    per_state = STATES["b"] if marked == "b" else 1
    drawn = [name for name in GUIDES[order] if name != marked]
    copies = {name: per_state if name in ("u", "c") else 1 for name in drawn}
    each = [
        list(range(STATES[name])) if name in STATES else normal.tolist() for name in drawn for _ in range(copies[name])
    ]
    one = torch.tensor(list(itertools.product(*each)), dtype=torch.float64)  # (combinations, draws of one particle)
    index = torch.cartesian_prod(*[torch.arange(len(one))] * num_particles).reshape(-1, num_particles).T
    columns = dict(zip(drawn, one.split([copies[name] for name in drawn], -1), strict=True))
    draws = {name: values[index].movedim(-1, 0) for name, values in columns.items()}  # (copies, particles, data)
    draws = {name: values.long() if name == "c" else values for name, values in draws.items()}
    num = index.shape[1]

    def chances(a: Tensor) -> tuple[Tensor, Tensor]:
        """Returns by hand the chance of each combination's draws, and its ELBO."""
        values: dict[str, Tensor] = {}
        log_q: dict[str, Tensor] = {}
        of_marked = torch.arange(STATES[marked]).reshape(-1, 1, 1)
        for name, site in GUIDES[order].items():
            fn = site(a, values)
            if name == marked:
                values[name] = of_marked.double() if marked == "b" else of_marked
            else:
                values[name] = draws[name] if name in STATES else fn.loc + fn.scale * draws[name]
            log_q[name] = fn.log_prob(values[name])
        log_p = {name: MODEL[name](t, values).log_prob(values[name]) for name in log_q}
        likelihood = MODEL["x"](t, values).log_prob(X)
        log_w = likelihood + beta * (sum(log_p.values()) - sum(log_q.values()))
        elbo = (log_q[marked].exp() * log_w).sum(0).mean(0)
        others = [log_q[name].expand(copies[name], num_particles, num) for name in drawn if name in STATES]
        weight = 0.5 ** sum(copies[name] for name in drawn if name not in STATES)
        return torch.stack([one.sum((0, 1)) for one in others]).sum(0).exp() * weight**num_particles, elbo

    leaf = a.clone().requires_grad_()
    chance, elbo = chances(leaf)
    assert chance.sum().item() == pytest.approx(1.0)
    (exact,) = torch.autograd.grad(-(chance * elbo).sum(), leaf)

    copied = a.expand(num, -1).clone().requires_grad_()

    def guide(x):
        values: dict[str, Tensor] = {}
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            for name, site in GUIDES[order].items():
                fn = site(copied, values)
                fn = fn if name == marked else Given(fn, draws[name])
                values[name] = pyro.sample(name, fn, infer=MARK if name == marked else {})

    model = programs(order, a, t, beta)[0]
    loss = ELBO(num_particles).differentiable_loss(model, guide, X.expand(num))
    assert -loss.item() == pytest.approx(elbo.sum().item(), rel=1e-10)
    found = (chance.detach()[:, None] * torch.autograd.grad(loss, copied)[0]).sum(0)
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)


# Doors ----------------------------------------------------------------------------------------------------------------


def test_particles_in_chunks_give_the_same_gradient():
    a, t = (parameters(size, seed).requires_grad_() for size, seed in ((12, 1), (8, 2)))
    model, guide = programs("c to z", a, t, marked=("c",))
    runs = []

    def recorded(x):
        trace = pyro.poutine.trace(guide).get_trace(x)
        runs.append(trace.nodes["z"]["value"].detach())

    x, objective = X.expand(4), ELBO(3)
    replace(objective, chunk_size=2).loss(model, recorded, x)
    runs.clear()
    loss = replace(objective, chunk_size=2).differentiable_loss(model, recorded, x)
    in_chunks = torch.autograd.grad(loss, (a, t))
    z = torch.cat(runs[2:4], -2)
    fn = GUIDES["c to z"]["z"](a.detach(), {"c": torch.arange(3).reshape(3, 1, 1)})
    given = programs("c to z", a, t, draws={"z": (z - fn.loc) / fn.scale}, marked=("c",))
    whole = objective.differentiable_loss(*given, x)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-10)
    for found, expected in zip(in_chunks, torch.autograd.grad(whole, (a, t)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_steps_of_svi_are_those_of_pyro():
    losses = []
    for objective in (ELBO(2), pyros(2)):
        pyro.clear_param_store()
        pair, x = SemiSupervised(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        svi = SVI(pair.model, config_enumerate(pair.guide), pyro.optim.Adam({"lr": 0.05}), objective)
        torch.manual_seed(suite_seed(5))
        losses.append([svi.step(x) for _ in range(6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


# Refusals -------------------------------------------------------------------------------------------------------------


INSTEAD = "use elbo, which sums over it, or mark it in the model alone and leave it out of the guide"
RULE = "enumeration needs discrete latents of the same finitely many values"


@pytest.mark.parametrize("objective", [
    IWAE(2), DReG(2), VIMCO(2), ScoreFunction(2), StickingTheLanding(2), ReweightedWakeSleep(2),
], ids=str)  # fmt: skip
def test_an_objective_that_draws_every_site_refuses_a_marked_one(objective):
    pair = programs("c to z", parameters(12, 1), parameters(8, 2), marked=("c",))
    said = refusal(objective.loss, *pair, X.expand(3))
    name = type(objective).__name__
    assert said == f'{name} draws every site of the guide, and "c" is marked for enumeration: {INSTEAD}'


def test_a_mark_that_comes_later_is_looked_at():
    marks = [{}]

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer=marks[0])

    model = marked_pair(dist.Bernoulli(torch.tensor(0.5)))[0]
    assert IWAE(2).loss(model, guide, torch.zeros(3)) > 0
    marks[0] = MARK
    assert refusal(IWAE(2).loss, model, guide, torch.zeros(3)).startswith("IWAE draws every site of the guide, and ")


def marked_pair(fn, mark=MARK):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Normal(z.sum(-1) if fn.event_dim else z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn, infer=mark)

    return model, guide


def test_what_cannot_be_summed_over_is_refused():
    x = torch.zeros(3)
    bits = dist.Bernoulli(torch.full((17,), 0.5)).to_event(1)
    for fn, said in (
        (bits, 'latents to be enumerated must have at most 65,536 values, got 2 for each of 17 at site "z"'),
        (
            dist.Poisson(torch.tensor(3.0)),
            f'{RULE}, got Poisson at site "z"',
        ),
        (
            dist.Normal(torch.tensor(3.0), 1.0),
            f'{RULE}, got Normal at site "z"',
        ),
    ):
        assert refusal(ELBO().loss, *marked_pair(fn), x) == said
    sequential = marked_pair(dist.Bernoulli(torch.tensor(0.5)), {"enumerate": "sequential"})
    assert refusal(ELBO().loss, *sequential, x) == (
        'the guide must mark site "z" as enumerate="parallel", got \'sequential\''
    )
    assert ELBO().loss(*marked_pair(dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)), x) > 0

    def many(x):
        with pyro.plate("data", len(x)):
            for number in range(17):
                pyro.sample(f"z{number}", dist.Bernoulli(torch.tensor(0.5)), infer=MARK)

    def model(x):
        many(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    assert "must have at most 65,536 values" in refusal(ELBO().loss, model, many, x)
