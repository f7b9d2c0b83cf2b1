"""Factorisations: matrices of ratings, in which two plates cross, and deep exponential families."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from torch import Tensor
from torch.nn.functional import softplus

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, normals, source

USERS, ITEMS, FACTORS = 4, 3, 2


def matrix_factorisation() -> Program:
    """Salakhutdinov and Mnih 2008: a rating lies in both plates, and either may be the data."""
    ratings = normals(source(21), USERS, ITEMS)

    def model(ratings):
        users, items = pyro.plate("users", USERS, dim=-2), pyro.plate("items", ITEMS, dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(torch.zeros(FACTORS), 1.0).to_event(1))
        with items:
            v = pyro.sample("v", dist.Normal(torch.zeros(FACTORS), 1.0).to_event(1))
        with users, items:
            pyro.sample("rating", dist.Normal((u * v).sum(-1), 0.5), obs=ratings)

    def guide(ratings):
        u_loc = pyro.param("u_loc", lambda: 0.1 * torch.randn(USERS, 1, FACTORS))
        v_loc = pyro.param("v_loc", lambda: 0.1 * torch.randn(ITEMS, FACTORS))
        with pyro.plate("users", USERS, dim=-2):
            pyro.sample("u", dist.Normal(u_loc, positive("u_scale", torch.ones(USERS, 1, FACTORS))).to_event(1))
        with pyro.plate("items", ITEMS, dim=-1):
            pyro.sample("v", dist.Normal(v_loc, positive("v_scale", torch.ones(ITEMS, FACTORS))).to_event(1))

    return Program(model, guide, (ratings,))


def matrix_factorisation_by_users() -> Program:
    return replace(matrix_factorisation(), plate="users")


class GammaFamily:
    """Ranganath et al. 2015: two layers of Gamma factors, weights for all data, and parameters for each datum."""

    TOP, BOTTOM, PIXELS = 3, 2, 4

    def model(self, x):
        with pyro.plate("w_top_plate", self.TOP * self.BOTTOM):
            w_top = pyro.sample("w_top", dist.Gamma(1.0, 1.0))
        with pyro.plate("w_bottom_plate", self.BOTTOM * self.PIXELS):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", x.size(0)):
            z_top = pyro.sample("z_top", dist.Gamma(1.0, 1.0).expand([self.TOP]).to_event(1))
            mean = z_top @ self._as_matrices(w_top, self.TOP, self.BOTTOM)
            z_bottom = pyro.sample("z_bottom", dist.Gamma(1.0, 1.0 / mean).to_event(1))
            rate = z_bottom @ self._as_matrices(w_bottom, self.BOTTOM, self.PIXELS)
            pyro.sample("obs", dist.Poisson(rate).to_event(1), obs=x)

    @staticmethod
    def _as_matrices(flat: Tensor, rows: int, columns: int) -> Tensor:
        return flat.reshape(rows, columns) if flat.dim() == 1 else flat.reshape(-1, rows, columns)

    def _draw(self, name: str, *shape: int):
        shapes = positive(f"{name}_shape", 4.0 * torch.ones(shape))
        means = positive(f"{name}_mean", torch.ones(shape))
        return dist.Gamma(shapes, shapes / means)

    def guide(self, x):
        with pyro.plate("w_top_plate", self.TOP * self.BOTTOM):
            pyro.sample("w_top", self._draw("w_top", self.TOP * self.BOTTOM))
        with pyro.plate("w_bottom_plate", self.BOTTOM * self.PIXELS):
            pyro.sample("w_bottom", self._draw("w_bottom", self.BOTTOM * self.PIXELS))
        with pyro.plate("data", x.size(0)):
            pyro.sample("z_top", self._draw("z_top", len(x), self.TOP).to_event(1))
            pyro.sample("z_bottom", self._draw("z_bottom", len(x), self.BOTTOM).to_event(1))


def gamma_family() -> Program:
    pair = GammaFamily()
    x = torch.poisson(2 * torch.ones(5, pair.PIXELS), generator=source(22))
    return Program(pair.model, pair.guide, (x,))


class GroupedGuide(EasyGuide):
    """Pyro's example: one Normal for all weights and one for the factors of each datum, moved to positive numbers."""

    def guide(self, x):
        weights = self.group(match="w_.*")
        loc, scale = (pyro.param(f"w_{name}", torch.full(weights.event_shape, -0.5)) for name in ("loc", "scale"))
        weights.sample("ws", dist.Normal(loc, softplus(scale)).to_event(1))
        factors = self.group(match="z_.*")
        with self.plate("data", len(x)):
            shape = (len(x), *factors.event_shape)
            loc, scale = (pyro.param(f"z_{name}", torch.full(shape, -0.5)) for name in ("loc", "scale"))
            factors.sample("zs", dist.Normal(loc, softplus(scale)).to_event(1))


def gamma_family_with_groups() -> Program:
    program = gamma_family()
    return replace(program, guide=GroupedGuide(program.model))
