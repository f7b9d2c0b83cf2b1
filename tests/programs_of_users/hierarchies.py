"""Hierarchical models of statistics: a few global numbers, and groups below them."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import constraints

from programs_of_users.program import Program, bits, normals, source

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> Program:
    """Rubin 1981, in its centred form: mu and tau for all schools, theta for each."""

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("obs", dist.Normal(theta, sigma), obs=y)

    def guide(y, sigma):
        mu_loc, mu_scale = pyro.param("mu_loc", torch.tensor(6.0)), positive("mu_scale", torch.tensor(5.0))
        tau_loc, tau_scale = pyro.param("tau_loc", torch.tensor(1.3)), positive("tau_scale", torch.tensor(1.0))
        gain, scale = pyro.param("gain", torch.zeros(len(y))), positive("theta_scale", torch.ones(len(y)))
        mu = pyro.sample("mu", dist.Normal(mu_loc, mu_scale))
        tau = pyro.sample("tau", dist.LogNormal(tau_loc, tau_scale))
        with pyro.plate("schools", len(y)):
            precision = tau**-2 + sigma**-2
            loc = (mu / tau**2 + y / sigma**2) / precision + gain
            pyro.sample("theta", dist.Normal(loc, 1.1 * scale / precision.sqrt()))

    return Program(model, guide, (EFFECTS, ERRORS), log_px=_evidence_of_schools)


def positive(name: str, start: Tensor) -> Tensor:
    return pyro.param(name, start, constraint=constraints.positive)


def _evidence_of_schools() -> Tensor:
    """Returns log p(y) by the trapezoidal rule over log tau, with mu and all theta integrated in closed form."""
    log_tau = torch.linspace(-12, 12, 4_001, dtype=torch.float64)
    tau, y, variance = log_tau.exp(), EFFECTS.double(), ERRORS.double() ** 2
    covariance = torch.diag_embed(variance + tau.unsqueeze(-1) ** 2) + 100.0
    of_data = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    log_joint = of_data + math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5) ** 2) + log_tau
    return (log_joint.logsumexp(0) + (log_tau[1] - log_tau[0]).log()).reshape(1)


def _schools_without_centre(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)


def schools_with_auto_normal() -> Program:
    """The same schools in their form without a centre, with the guide that Pyro writes."""
    guide = AutoNormal(_schools_without_centre, init_scale=0.5)
    return Program(_schools_without_centre, guide, (EFFECTS, ERRORS))


def schools_with_multivariate() -> Program:
    """One joint Normal for the globals and all schools: it stands outside the plate."""
    guide = AutoMultivariateNormal(_schools_without_centre, init_scale=0.5)
    return Program(_schools_without_centre, guide, (EFFECTS, ERRORS))


def nested_logistic() -> Program:
    """Binary outcomes of pupils (inside) in classes (outside), with a slope for each class around a common one."""
    generator = source(11)
    x, y = normals(generator, 4, 3), bits(generator, 4, 3)

    def model(x, y):
        centre = pyro.sample("centre", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
        with pyro.plate("classes", x.shape[0], dim=-2):
            slope = pyro.sample("slope", dist.Normal(centre, spread))
            with pyro.plate("pupils", x.shape[1], dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

    def guide(x, y):
        pyro.sample("centre", dist.Normal(pyro.param("centre_loc", torch.tensor(0.0)), positive("c", torch.ones(()))))
        pyro.sample("spread", dist.LogNormal(pyro.param("spread_loc", torch.tensor(0.0)), 0.4))
        loc, scale = pyro.param("slope_loc", torch.zeros(len(x), 1)), positive("s", torch.ones(len(x), 1))
        with pyro.plate("classes", x.shape[0], dim=-2):
            pyro.sample("slope", dist.Normal(loc, scale))

    return Program(model, guide, (x, y))


def indexed_intercepts() -> Program:
    """Houses in counties of unequal sizes: every house looks up the intercept of its county."""
    generator = source(12)
    county, y = torch.tensor([0, 0, 0, 1, 2, 2]), normals(generator, 6)

    def model(county, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("counties", 3):
            intercept = pyro.sample("intercept", dist.Normal(mu, 0.5))
        with pyro.plate("houses", len(y)):
            pyro.sample("y", dist.Normal(intercept[county], 0.7), obs=y)

    guide = AutoNormal(model, init_scale=0.3)
    return Program(model, guide, (county, y), log_px=lambda: _evidence_of_houses(county, y))


def _evidence_of_houses(county: Tensor, y: Tensor) -> Tensor:
    same = (county.unsqueeze(0) == county.unsqueeze(1)).double()
    covariance = 1.0 + 0.25 * same + 0.49 * torch.eye(len(y), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double()).view(1)


def item_response() -> Program:
    """Ability of students and difficulty of items (Rasch), the answers in the long form."""
    generator = source(13)
    student, item = torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3)
    answers = bits(generator, 12)

    def model(student, item, answers):
        with pyro.plate("students", 3):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 4):
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pyro.plate("answers", len(answers)):
            logits = ability[student] - difficulty[item]
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=answers)

    return Program(model, AutoNormal(model, init_scale=0.5), (student, item, answers))


def capture_recapture() -> Program:
    """Cormack, Jolly and Seber: whether an animal is still alive is summed out in the model."""
    seen = torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1]])

    def model(seen):
        survival = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        sighting = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(seen), dim=-1):
            alive = torch.ones(len(seen))
            for t in pyro.markov(range(seen.shape[1])):
                if t > 0:
                    alive = pyro.sample(f"z_{t}", dist.Bernoulli(survival * alive), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(sighting * alive), obs=seen[:, t])

    def guide(seen):
        for name in ("phi", "rho"):
            a, b = positive(f"{name}_a", torch.tensor(3.0)), positive(f"{name}_b", torch.tensor(2.0))
            pyro.sample(name, dist.Beta(a, b))

    return Program(model, guide, (seen,), pyro_loss=TraceEnum_ELBO(max_plate_nesting=1), log_px=_evidence_of_animals)


def _evidence_of_animals() -> Tensor:
    """Returns log p by the midpoint rule: the four histories are polynomials in both probabilities."""
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    phi, rho = grid.unsqueeze(-1), grid
    hit, miss = phi * rho, phi * (1 - rho)
    never = 1 - phi + miss * (1 - phi + miss)
    histories = hit * (1 - phi + miss) * never * (miss * hit) * (hit * hit)
    return histories.mean().log().reshape(1)
