"""Pairs whose guides mix sites with and without `rsample`, and exact expectations over all that they can draw.

The draws of a guide are a state for each discrete site and a node of Gauss-Hermite for each continuous one. A grid has
a datum for each combination of K such draws, and a copy of the parameters for each datum: the exact expectation of an
estimator's gradient is then a weighted sum, without any noise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scalar_pairs import OnLatents, double
from torch import Tensor

X = double(0.7)
STATES = {"c": 3, "b": 2}
Sites = dict[str, Callable[[Tensor, dict[str, Tensor]], dist.TorchDistribution]]


def picked(values: Tensor, index: Tensor) -> Tensor:
    """Returns the value of each index among the last dimension's."""
    values, index = torch.broadcast_tensors(values, index[..., None])
    return values.gather(-1, index[..., :1]).squeeze(-1)


# Guides: each site's distribution, given the parameters (..., 12) and the values of the sites before it.
GUIDES: dict[str, Sites] = {
    "c to z": {
        "c": lambda a, v: dist.Categorical(logits=a[..., :3]),
        "z": lambda a, v: dist.Normal(picked(a[..., 3:6], v["c"]), picked(a[..., 6:9], v["c"]).exp()),
    },
    "z to c": {
        "z": lambda a, v: dist.Normal(a[..., 0], a[..., 1].exp()),
        "c": lambda a, v: dist.Categorical(logits=a[..., 3:6] + a[..., 6:9] * v["z"][..., None]),
    },
    "z to b to u to c": {
        "z": lambda a, v: dist.Normal(a[..., 0], a[..., 1].exp()),
        "b": lambda a, v: dist.Bernoulli(logits=a[..., 2] * v["z"]),
        "u": lambda a, v: dist.Normal(a[..., 9] * v["z"] + a[..., 10] * v["b"], a[..., 11].exp()),
        "c": lambda a, v: dist.Categorical(logits=a[..., 3:6] + a[..., 6:9] * (v["u"] + v["z"])[..., None]),
    },
    "c and b": {
        "c": lambda a, v: dist.Categorical(logits=a[..., :3]),
        "b": lambda a, v: dist.Bernoulli(logits=picked(a[..., 3:6], v["c"])),
    },
}
# The model's, given its parameters t (..., 8). Each takes the sites that the guide has.
MODEL: Sites = {
    "c": lambda t, v: dist.Categorical(logits=t[..., :3]),
    "b": lambda t, v: dist.Bernoulli(logits=t[..., 3] + 0.3 * v["c"].double()),
    "z": lambda t, v: dist.Normal(picked(t[..., 4:7], v["c"]), 1.0),
    "u": lambda t, v: dist.Normal(0.5 * v["z"], 0.9),
    "x": lambda t, v: dist.Normal(
        (0.4 + 0.4 * v["c"].double()) * (v.get("z", t[..., 7]) + v.get("u", 0.0)) + v.get("b", 0.0) * t[..., 7], 2.0
    ),
}


def parameters(size: int, seed: int) -> Tensor:
    """Returns numbers that are the same in every run: the quadrature is exact for some guides, and slow for others."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)


class Given(dist.TorchDistribution):
    """Has the density of `base`, and draws what it is given: noise of a Normal, or values of a discrete site."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base: dist.TorchDistribution, draws: Tensor, batch_shape: torch.Size | None = None) -> None:
        self.base, self.draws = base, draws
        self.has_rsample = base.has_rsample
        super().__init__(base.batch_shape if batch_shape is None else batch_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    def expand(self, batch_shape, _instance=None):
        return Given(self.base, self.draws, torch.Size(batch_shape))

    def enumerate_support(self, expand=True):
        return self.base.enumerate_support(expand=expand)

    def _own(self) -> Tensor:
        """Returns the draws in the batch shape; the gate looks at other numbers of particles."""
        draws, dims = self.draws, len(self.batch_shape)
        while draws.dim() > dims:
            draws = draws[0]
        if dims > 1:
            draws = draws.index_select(-2, torch.arange(self.batch_shape[-2]) % draws.shape[-2])
        return draws.expand(self.batch_shape)

    def rsample(self, sample_shape=()):
        return self.base.loc + self.base.scale * self._own()

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample() if self.has_rsample else self._own()

    def log_prob(self, value):
        return self.base.log_prob(value)


@dataclass
class Draws:
    """All that a guide can draw for one particle: the draws `(grid,)` by site, and the weights of their nodes."""

    by_site: dict[str, Tensor]
    weight: Tensor


def all_draws(order: str, num_nodes: int) -> Draws:
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(num_nodes))
    weights = weights / weights.sum()
    each, chances = [], []
    for name in GUIDES[order]:
        if name in STATES:
            kind = torch.float64 if name == "b" else torch.long
            each.append(torch.arange(STATES[name]).to(kind).tolist())
            chances.append([1.0] * STATES[name])
        else:
            each.append(nodes.tolist())
            chances.append(weights.tolist())
    columns = zip(*itertools.product(*each), strict=True)
    by_site = {
        name: torch.tensor(column, dtype=torch.float64) for name, column in zip(GUIDES[order], columns, strict=True)
    }
    by_site = {name: draws.long() if name == "c" else draws for name, draws in by_site.items()}
    return Draws(by_site, torch.tensor(list(itertools.product(*chances)), dtype=torch.float64).prod(-1))


def run(order: str, a: Tensor, t: Tensor, draws: dict[str, Tensor], beta: float, held: bool = False):
    """Returns values, log q by site, log w and the chance of the discrete draws, by hand.

    With `held` values do not move with the parameters.
    """
    values: dict[str, Tensor] = {}
    log_q = {}
    for name, site in GUIDES[order].items():
        fn = site(a, values)
        value = draws[name] if name in STATES else fn.loc + fn.scale * draws[name]
        values[name] = value.detach() if held else value
        log_q[name] = fn.log_prob(values[name])
    log_p = {name: MODEL[name](t, values) for name in MODEL if name in values or name == "x"}
    log_p = {name: fn.log_prob(values.get(name, X)) for name, fn in log_p.items()}
    prior = sum(value for name, value in log_p.items() if name != "x")
    log_w = log_p["x"] + beta * (prior - sum(log_q.values()))
    chance = sum(value for name, value in log_q.items() if name in STATES).exp()
    return values, log_q, log_w, chance


@dataclass
class Grid:
    """Holds the parameters of an order, and the combinations of K draws: `index` is `(K, combinations)`."""

    order: str
    num_particles: int
    num_nodes: int
    beta: float = 1.0
    size: float = 1.0  # of the guide's parameters

    def __post_init__(self) -> None:
        self.a, self.t = self.size * parameters(12, 1), parameters(8, 2)
        self.draws = all_draws(self.order, self.num_nodes)
        each = torch.arange(len(self.draws.weight))
        self.index = torch.cartesian_prod(*[each] * self.num_particles).reshape(-1, self.num_particles).T

    def by_hand(self, a: Tensor, t: Tensor, held: bool = False):
        return run(self.order, a, t, self.draws.by_site, self.beta, held)

    def mass(self, chance: Tensor) -> Tensor:
        """Returns the probability of each combination."""
        return (self.draws.weight * chance)[self.index].prod(0)

    def exact(self, bound: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the gradient of minus the mean bound in the parameters of the guide and of the model."""
        a, t = (p.clone().requires_grad_() for p in (self.a, self.t))
        _, _, log_w, chance = self.by_hand(a, t)
        mean = (self.mass(chance) * bound(log_w[self.index])).sum()
        return torch.autograd.grad(-mean, (a, t))

    def mean_gradient(self, objective) -> tuple[Tensor, Tensor]:
        """Returns the exact mean of an objective's gradient, from one loss over all combinations."""
        num = self.index.shape[1]
        a, t = (p.expand(num, -1).clone().requires_grad_() for p in (self.a, self.t))
        draws = {name: values[self.index] for name, values in self.draws.by_site.items()}
        model, guide = programs(self.order, a, t, self.beta, draws)
        loss = objective.differentiable_loss(model, guide, X.expand(num))
        mass = self.mass(self.by_hand(self.a, self.t)[3])
        gradients = torch.autograd.grad(loss, (a, t))
        return tuple((mass[:, None] * gradient).sum(0) for gradient in gradients)


def programs(
    order: str, a: Tensor, t: Tensor, beta: float = 1.0, draws: dict[str, Tensor] | None = None, marked: tuple = ()
):
    """Returns model and guide with a copy of the parameters for each datum, or one for all."""

    def model(x):
        values: dict[str, Tensor] = {}
        with pyro.plate("data", len(x), dim=-1):
            with OnLatents(beta):
                for name in (name for name in MODEL if name in GUIDES[order]):
                    values[name] = pyro.sample(name, MODEL[name](t, values))
            pyro.sample("x", MODEL["x"](t, values), obs=x)

    def guide(x):
        values: dict[str, Tensor] = {}
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            for name, site in GUIDES[order].items():
                fn = site(a, values)
                fn = fn if draws is None or name in marked else Given(fn, draws[name])
                infer = {"enumerate": "parallel"} if name in marked else {}
                values[name] = pyro.sample(name, fn, infer=infer)

    return model, guide
