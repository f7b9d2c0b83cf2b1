"""GDReG on two layers of linear Gaussians and on other priors: its formula, its mean, its noise, and its refusals."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, refusal, small_vae, suite_seed
from mixed_pairs import Given
from pyro.infer.autoguide import AutoNormal
from ragged_pairs import chain, sequences
from scalar_pairs import OnLatents, double, gradients
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.objectives import IWAE, DReG, GDReG

# Two layers: z2 ~ N(m, s), z1 ~ N(a z2 + b, t), x ~ N(c z1, u), and q(z1|x) q(z2|z1) --------------------------------

PRIORS, GUIDE = slice(0, 5), slice(7, None)  # m, log s, a, b, log t | c, log u | d, e, log scale, f, h, log scale
OFF = double(0.3, -0.2, 0.8, -0.4, 0.4, 0.9, 0.4, 0.2, 0.1, -0.2, 0.3, 0.2, 0.1)
X = double(1.3)


def at_the_posterior(**model: float) -> Tensor:
    """Returns parameters whose guide is the exact posterior."""
    m, log_s, a, b, log_t, c, log_u = OFF[:7].tolist()
    a, c, log_u = (model.get(name, value) for name, value in (("a", a), ("c", c), ("log_u", log_u)))
    s2, t2, u2 = (math.exp(2 * log) for log in (log_s, log_t, log_u))
    of_z1, of_z2 = 1 / (1 / (a**2 * s2 + t2) + c**2 / u2), 1 / (1 / s2 + a**2 / t2)
    d, e = of_z1 * c / u2, of_z1 * (a * m + b) / (a**2 * s2 + t2)
    f, h = of_z2 * a / t2, of_z2 * (m / s2 - a * b / t2)
    return double(m, log_s, a, b, log_t, c, log_u, d, e, math.log(of_z1) / 2, f, h, math.log(of_z2) / 2)


class TwoLayers:
    """Has a copy of the parameters for each datum, so that one backward pass gives as many independent gradients."""

    def __init__(self, parameters: Tensor, num: int, beta: float = 1.0) -> None:
        self.parameters = parameters.expand(num, -1).clone().requires_grad_()
        self.x, self.beta = X.expand(num), beta

    def prior_of_z2(self) -> dist.Normal:
        return dist.Normal(self.parameters[:, 0], self.parameters[:, 1].exp())

    def prior_of_z1(self, z2: Tensor) -> dist.Normal:
        _, _, a, b, log_t = self.parameters[:, PRIORS].unbind(-1)
        return dist.Normal(a * z2 + b, log_t.exp())

    def of_x(self, z1: Tensor) -> dist.Normal:
        return dist.Normal(self.parameters[:, 5] * z1, self.parameters[:, 6].exp())

    def guides(self, z1: Tensor | None) -> tuple[dist.Normal, dist.Normal]:
        d, e, log_first, f, h, log_second = self.parameters[:, GUIDE].unbind(-1)
        first = dist.Normal(d * self.x + e, log_first.exp())
        return first, dist.Normal(h if z1 is None else f * z1 + h, log_second.exp())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with OnLatents(self.beta):
                z1 = pyro.sample("z1", self.prior_of_z1(pyro.sample("z2", self.prior_of_z2())))
            pyro.sample("x", self.of_x(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), OnLatents(self.beta):
            z1 = pyro.sample("z1", self.guides(None)[0])
            pyro.sample("z2", self.guides(z1)[1])

    def gradients(self, objective, seed: int = 1) -> Tensor:
        """Returns the gradient of minus the bound for each datum, `(num, 13)`."""
        torch.manual_seed(suite_seed(seed))
        loss = objective.differentiable_loss(self.model, self.guide, self.x)
        return torch.autograd.grad(loss, self.parameters)[0]

    def by_hand(self, count: int, seed: int = 1) -> Tensor:
        """Returns the gradients by the formula on the same noise, with z_l = T(e; theta) written out."""
        torch.manual_seed(suite_seed(seed))
        with torch.no_grad():
            drawn = pv.programs.run_pair(self.model, self.guide, self.x, num_particles=count).draws()
        z1, z2 = (drawn[name].clone().requires_grad_() for name in ("z1", "z2"))
        own1, own2 = (z.detach().requires_grad_() for z in (z1, z2))
        priors = self.prior_of_z2().log_prob(z2) + self.prior_of_z1(z2).log_prob(z1)
        proposals = self.guides(None)[0].log_prob(z1) + self.guides(z1)[1].log_prob(z2)
        log_p = self.of_x(z1).log_prob(self.x) + self.beta * priors
        log_w = log_p - self.beta * proposals
        w = log_w.detach().softmax(0)
        path = w * ((1 - self.beta) + self.beta * w)

        def slope(of: Tensor, at: Tensor) -> Tensor:
            return torch.autograd.grad(of.sum(), at, retain_graph=True)[0]

        def moved(fn: dist.Normal, z: Tensor) -> Tensor:
            return fn.loc + fn.scale * ((z - fn.loc) / fn.scale).detach()

        own = self.prior_of_z2().log_prob(own2) + self.prior_of_z1(z2.detach()).log_prob(own1)
        total = (w * self.of_x(z1.detach()).log_prob(self.x)).sum()
        held1, held2 = z1.detach(), z2.detach()
        for z, of_own, prior in (
            (z2, own2, moved(self.prior_of_z2(), held2)),
            (z1, own1, moved(self.prior_of_z1(held2), held1)),
        ):
            along = w * (slope(log_p, z) - self.beta * slope(own, of_own)) - path * slope(log_w, z)
            total = total + (along * prior).sum()
        of_guide = moved(self.guides(None)[0], held1)
        total = total + (path * slope(log_w, z1) * of_guide).sum()
        total = total + (path * slope(log_w, z2) * moved(self.guides(of_guide)[1], held2)).sum()
        return torch.autograd.grad(-total, self.parameters)[0]


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_is_the_formula_on_the_captured_noise(count, beta):
    pair = TwoLayers(OFF, 5, beta)
    torch.testing.assert_close(pair.gradients(GDReG(count)), pair.by_hand(count), atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("count", [1, 4])
def test_the_mean_gradient_is_iwaes_in_every_parameter(count, beta):
    pair = TwoLayers(OFF, 10_000, beta)
    found, dreg, iwae = (pair.gradients(objective(count)) for objective in (GDReG, DReG, IWAE))
    mean, error = mean_and_error(found - iwae)  # on the same noise
    assert_within_standard_errors(mean, torch.zeros(13).double(), error)
    assert (error[PRIORS] > 0).all()
    torch.testing.assert_close(found[:, 5:], dreg[:, 5:], atol=1e-10, rtol=1e-10)  # all but the priors is DReG's


def test_another_power_of_the_weights_would_be_seen():
    class Wrong(GDReG):
        def coefficients(self, log_weights, beta):
            found = super().coefficients(log_weights, beta)
            return replace(found, prior_path=-found.model)

    pair = TwoLayers(OFF, 10_000)
    mean, error = mean_and_error(pair.gradients(Wrong(4)) - pair.gradients(IWAE(4)))
    assert (mean.abs() > 10 * error)[PRIORS].any()


def test_at_the_exact_posterior_the_guides_gradient_has_no_noise_in_two_layers():
    pair = TwoLayers(at_the_posterior(), 20)
    for objective, has_noise in ((GDReG(3), False), (DReG(3), False), (IWAE(3), True)):
        assert (pair.gradients(objective)[:, GUIDE].abs().max() > 1e-3) == has_noise, objective


def test_a_layer_on_which_nothing_depends_has_a_priors_gradient_without_noise():
    """Where z1 tells x nothing, p(z1|z2) is such a layer. z2 is one only if it tells z1 nothing, either."""
    for free, model in ((slice(2, 5), {"c": 0.0}), (PRIORS, {"c": 0.0, "a": 0.0})):
        pair = TwoLayers(at_the_posterior(**model), 20)
        assert pair.gradients(GDReG(3))[:, free].abs().max() < 1e-9
        assert pair.gradients(DReG(3))[:, free].abs().max() > 0.1


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize(("log_u", "is_quieter"), [(1.5, True), (-1.5, False)], ids=["weak data", "strong data"])
def test_the_priors_gradient_has_less_noise_where_the_data_say_less_than_the_prior(log_u, is_quieter):
    """At the posterior the slopes along b are (z1 - a z2 - b) / t^2 and (x - c z1) c / u^2, each over K draws."""
    pair = TwoLayers(at_the_posterior(log_u=log_u), 20_000)
    a, log_t, c, log_first, f, log_second = pair.parameters[0, [2, 4, 5, 9, 10, 12]].tolist()
    var1, var2 = math.exp(2 * log_first), math.exp(2 * log_second)
    u2, t2 = math.exp(2 * log_u), math.exp(2 * log_t)
    along_b = {DReG: ((1 - a * f) ** 2 * var1 + a**2 * var2) / t2**2, GDReG: c**4 * var1 / u2**2}
    ratio = {}
    for objective, expected in along_b.items():
        variance = pair.gradients(objective(4)).var(0)
        assert_within_standard_errors(variance[3], expected / 4, expected / 4 * math.sqrt(2 / 20_000))
        ratio[objective] = variance[PRIORS]
    assert (along_b[GDReG] < along_b[DReG]) == is_quieter
    if is_quieter:
        assert (ratio[GDReG] < ratio[DReG]).all(), ratio


# Priors of other kinds -----------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Has some of a site "u", whose prior is a mixture, and a site "z", whose prior is a Normal."""

    def __init__(self, *sites: str, half: bool = False) -> None:
        super().__init__()
        self.sites, self.half = sites, half
        self.prior = nn.Parameter(double(0.4, -0.5))

    def priors(self) -> dict[str, dist.TorchDistribution]:
        parts = dist.Normal(self.prior, double(0.8))
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.full((2,), 0.5).double()), parts)
        return {"u": mixture, "z": dist.Normal(self.prior[0], self.prior[1].exp())}

    def model(self, x: Tensor) -> None:
        pyro.module("mixed", self)
        with pyro.plate("data", len(x), dim=-1):
            z = sum(pyro.sample(name, self.priors()[name]) for name in self.sites)
            pyro.sample("x", dist.Normal(z, double(1.0)), obs=x)

    def guide(self, x: Tensor) -> None:
        scale = pyro.param("scale", double(0.9))
        kind = dist.HalfNormal(scale) if self.half else dist.Normal(0.3 * x, scale)
        with pyro.plate("data", len(x), dim=-1):
            for name in self.sites:
                pyro.sample(name, kind)


def test_beside_such_a_site_a_prior_without_that_form_keeps_its_plain_gradient():
    x, pair = torch.randn(2_000, dtype=torch.float64), Mixed("u", "z")
    pyro.module("mixed", pair)
    found = []
    for objective in (GDReG(3), DReG(3)):
        torch.manual_seed(suite_seed(3))
        found.append(gradients(objective, (pair.model, pair.guide), x, num=14))
    mean, error = mean_and_error(found[0] - found[1])
    assert_within_standard_errors(mean, torch.zeros_like(mean), error)
    assert (error > 0).any()


def test_what_gdreg_is_not_for_is_refused_in_one_line():
    x = torch.zeros(4, dtype=torch.float64)
    none = "GDReG needs a latent of each datum that the guide draws with rsample and whose prior is a location and "
    mixture = Mixed("u")
    assert refusal(GDReG(3).loss, mixture.model, mixture.guide, x).startswith(none)
    pyro.clear_param_store()
    auto = Mixed("z")
    guide = AutoNormal(auto.model)
    assert refusal(GDReG(3).loss, auto.model, guide, x).startswith(none)
    pyro.clear_param_store()
    half = Mixed("z", half=True)
    said = refusal(GDReG(3).loss, half.model, half.guide, x)
    assert said.startswith("GDReG needs a guide that reaches all that the prior can give: the guide never draws a part")


# Structures ----------------------------------------------------------------------------------------------------------


def test_a_prior_without_parameters_leaves_dreg():
    vae, x = small_vae().double(), torch.randn(6, 2, dtype=torch.float64)
    found = []
    for objective in (GDReG(4), DReG(4)):
        torch.manual_seed(suite_seed(2))
        found.append(torch.autograd.grad(objective.differentiable_loss(vae.model, vae.guide, x), [*vae.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_the_layers_of_a_vae_have_one_mean_gradient():
    torch.manual_seed(suite_seed(5))
    layers = (2, 3), ((4,),)
    vae = small_vae(prior=pv.priors.Layered(*layers), posterior=pv.posteriors.Layered(*layers)).double()
    x, priors = torch.randn(1, 2, dtype=torch.float64).expand(100, 2), [*vae.prior_family.parameters()]
    draws = []
    for seed in range(20):
        both = []
        for objective in (GDReG(2), DReG(2)):
            torch.manual_seed(suite_seed(seed))
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            both.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, priors)]))
        draws.append(both[0] - both[1])
    mean, error = mean_and_error(torch.stack(draws))
    assert_within_standard_errors(mean, torch.zeros_like(mean), error)
    assert (error > 0).any()


def test_ragged_sequences_have_the_mean_of_iwae_in_the_transitions():
    x, lengths = (part.repeat_interleave(50, 0) for part in sequences())
    pyro.param("shift", double(0.3))
    found = []
    for objective in (GDReG(3), IWAE(3)):
        torch.manual_seed(suite_seed(6))
        found.append(gradients(objective, chain(), x, lengths, num=14))
    mean, error = mean_and_error(found[0] - found[1])
    assert_within_standard_errors(mean, torch.zeros_like(mean), error)
    assert error[0] > 1e-3


class Recorded(TwoLayers):
    """Keeps the noise of each run of the guide, or is given that of all particles."""

    def __init__(self, noise: list[Tensor] | None = None) -> None:
        super().__init__(OFF, 4)
        self.noise, self.runs = noise, []

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            first = self.guides(None)[0]
            z1 = pyro.sample("z1", first if self.noise is None else Given(first, self.noise[0]))
            second = self.guides(z1)[1]
            z2 = pyro.sample("z2", second if self.noise is None else Given(second, self.noise[1]))
        self.runs.append([((z - q.loc) / q.scale).detach() for z, q in ((z1, first), (z2, second))])


@pytest.mark.parametrize(("how", "runs"), [
    ({"vectorize_particles": False}, slice(0, 3)), ({"chunk_size": 2}, slice(2, 4)),
], ids=["one by one", "in chunks"])  # fmt: skip
def test_particles_one_by_one_and_in_chunks_have_the_gradient_of_all_at_once(how, runs):
    apart = Recorded()
    apart.gradients(GDReG(3, **how))  # the gate looks at the pair
    apart.runs.clear()
    found = apart.gradients(GDReG(3, **how))
    noise = [torch.cat([one.reshape(-1, 4) for one in parts]) for parts in zip(*apart.runs[runs], strict=True)]
    assert noise[0].shape == (3, 4)
    assert len(noise[0].unique()) == 12
    torch.testing.assert_close(found, Recorded(noise).gradients(GDReG(3)), atol=1e-9, rtol=1e-9)
