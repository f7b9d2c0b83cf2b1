"""The Bernoulli and the Gaussian likelihood: formulas, draws, supports, refusals."""

import itertools
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import assert_within_standard_errors, doubles, refusal

import pyrovae as pv

# Bernoulli ----------------------------------------------------------------------------------------------------------


def test_bernoulli_log_prob_is_the_formula():
    outputs, x = 2 * doubles(6, 3, 4), (doubles(6, 3, 4) > 0).double()
    p = 1 / (1 + (-outputs).exp())
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2))
    found = pv.Bernoulli()(outputs, event_dim=2).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_bernoulli_log_prob_stays_finite_where_the_probability_rounds_to_one():
    likelihood, outputs = pv.Bernoulli(), torch.tensor([60.0, -60.0], dtype=torch.float64)
    found = [likelihood(outputs, event_dim=0).log_prob(torch.full((2,), x, dtype=torch.float64)) for x in (0.0, 1.0)]
    expected = torch.tensor([[-60.0, -math.exp(-60)], [-math.exp(-60), -60.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("allow_grey", [False, True])
def test_bernoulli_sums_to_one_over_all_events(allow_grey):
    events = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    likelihood = pv.Bernoulli(allow_grey)(3 * doubles(5, 1, 4), event_dim=1)
    torch.testing.assert_close(likelihood.log_prob(events).exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_bernoulli_mean_is_the_sigmoid_and_its_draws_have_it():
    outputs, num = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64), 40_000
    likelihood = pv.Bernoulli()(outputs, event_dim=1)
    p = 1 / (1 + (-outputs).exp())
    torch.testing.assert_close(likelihood.mean, p, rtol=1e-12, atol=0)
    assert_within_standard_errors(likelihood.sample((num,)).mean(0), p, (p * (1 - p) / num).sqrt())


def test_grey_levels_under_bernoulli_are_a_cross_entropy_when_allowed():
    outputs, x = 2 * doubles(5, 4), torch.rand(5, 4, dtype=torch.float64)
    p = 1 / (1 + (-outputs).exp())
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    found = pv.Bernoulli(allow_grey=True)(outputs, event_dim=1).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("allow_grey", [False, True])
def test_bernoulli_output_bias_gives_back_the_mean_clipped_at_the_ends(allow_grey):
    likelihood = pv.Bernoulli(allow_grey)
    mean = torch.tensor([[0.0, 0.0005, 0.001, 0.25], [0.5, 0.9, 0.9999, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.001, 0.001, 0.001, 0.25], [0.5, 0.9, 0.999, 0.999]], dtype=torch.float64)
    bias = likelihood.output_bias(mean)
    assert bias.shape == likelihood.output_shape((2, 4)) == (2, 4)
    torch.testing.assert_close(likelihood(bias, event_dim=2).mean, expected, rtol=1e-12, atol=0)


def test_bernoulli_accepts_pixels_that_are_0_or_1():
    for x in (torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.zeros(3, 2), torch.ones(3, 2)):
        pv.Bernoulli().check(x)


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "0.5"), (1e-3, "0.001"), (0.25, "0.25"), (-1.0, "-1"), (2.0, "2"), (255.0, "255")]
)
def test_bernoulli_refuses_any_other_pixel_by_value_and_index(value, said):
    x = torch.ones(2, 3, 4)
    x[1, 2, 0], x[1, 2, 3] = value, 0.75
    message = refusal(pv.Bernoulli().check, x)
    assert message.startswith("x ")
    assert f"got {said} at index (1, 2, 0);" in message
    assert "allow_grey=True" in message


def test_grey_levels_are_accepted_when_allowed():
    for x in (torch.tensor([[0.0, 0.5], [0.999, 1.0]]), torch.rand(4, 3), torch.zeros(2), torch.ones(2)):
        pv.Bernoulli(allow_grey=True).check(x)


@pytest.mark.parametrize(("value", "said"), [(-0.25, "-0.25"), (1.5, "1.5"), (255.0, "255"), (-1e-6, "-1e-06")])
def test_levels_outside_0_to_1_are_refused_even_when_grey_is_allowed(value, said):
    x = torch.full((3, 2, 2), 0.5)
    x[2, 0, 1] = value
    message = refusal(pv.Bernoulli(allow_grey=True).check, x)
    assert message.startswith("x ")
    assert f"got {said} at index (2, 0, 1)" in message
    assert "[0, 1]" in message


def test_bernoulli_has_nothing_to_learn():
    assert list(pv.Bernoulli().parameters()) == list(pv.Bernoulli(allow_grey=True).parameters()) == []


# Gaussian -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn_scale", [False, True])
def test_gaussian_log_prob_is_that_of_scipy(learn_scale):
    outputs, x = doubles(6, 3, 4), doubles(6, 3, 4)
    likelihood = pv.Gaussian(0.7, learn_scale).double()
    expected = scipy.stats.norm.logpdf(x.numpy(), outputs.numpy(), likelihood.scale.item()).sum((1, 2))
    found = likelihood(outputs, event_dim=2).log_prob(x)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learn_scale", [False, True])
def test_an_expanded_gaussian_is_the_same_gaussian(learn_scale):
    """Pyro expands a distribution in this way within a plate."""
    likelihood, outputs, x = pv.Gaussian(0.7, learn_scale).double(), doubles(1, 3), doubles(4, 5, 3)
    for event_dim in (0, 1):
        narrow = likelihood(outputs, event_dim)
        wide = narrow.expand((4, 5, 3) if event_dim == 0 else (4, 5))
        assert wide.batch_shape + wide.event_shape == (4, 5, 3)
        torch.testing.assert_close(wide.log_prob(x), narrow.log_prob(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wide.mean, outputs.expand(4, 5, 3))


@pytest.mark.parametrize("learn_scale", [False, True])
def test_gaussian_draws_have_the_mean_and_the_scale(learn_scale):
    likelihood, num = pv.Gaussian(0.3, learn_scale).double(), 40_000
    outputs = torch.tensor([-2.0, 0.5], dtype=torch.float64)
    noise = likelihood(outputs, event_dim=1).sample((num,)) - outputs
    assert_within_standard_errors(noise.mean(0), 0.0, 0.3 / math.sqrt(num))
    assert_within_standard_errors(noise.square().mean(0), 0.09, 0.09 * math.sqrt(2 / num))


@pytest.mark.parametrize("learn_scale", [False, True])
def test_gaussian_has_the_entropy_and_the_divergence_in_closed_form(learn_scale):
    likelihood, outputs = pv.Gaussian(0.3, learn_scale).double(), doubles(4, 3)
    p = likelihood(outputs, event_dim=1)
    entropy = torch.full((4,), 3 * 0.5 * math.log(2 * math.pi * math.e * 0.3**2), dtype=torch.float64)
    torch.testing.assert_close(p.entropy().detach(), entropy, rtol=1e-6, atol=0)
    standard = torch.distributions.Independent(torch.distributions.Normal(torch.zeros_like(outputs), 1.0), 1)
    kl = (0.5 * (0.3**2 + outputs**2 - 1) - math.log(0.3)).sum(-1)
    torch.testing.assert_close(torch.distributions.kl_divergence(p, standard).detach(), kl, rtol=1e-6, atol=0)


def test_gaussian_integrates_to_one_with_its_mean_and_standard_deviation():
    likelihood, outputs = pv.Gaussian(0.3).double(), torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    side = torch.linspace(-4.0, 4.0, 161, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    weight = likelihood(outputs, event_dim=1).log_prob(x).exp() * (side[1] - side[0]) ** 2
    mean = weight @ x
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(mean, outputs[0], rtol=0, atol=1e-9)
    variance = torch.full((2,), 0.3**2, dtype=torch.float64)
    torch.testing.assert_close(weight @ (x - mean) ** 2, variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 1, 25.0])
def test_the_scale_starts_where_it_is_told(scale, learn_scale):
    assert pv.Gaussian(scale, learn_scale).scale.item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("scale", [0.2, 1.5])
def test_a_learned_scale_has_the_gradient_in_closed_form(scale):
    """d/d log s of log N(x; m, s^2) = (x - m)^2 / s^2 - 1, summed over coordinates."""
    likelihood = pv.Gaussian(scale, learn_scale=True).double()
    outputs, x = doubles(5, 3), doubles(5, 3)
    likelihood(outputs, event_dim=1).log_prob(x).sum().backward()
    expected = ((x - outputs) ** 2 / likelihood.scale.detach() ** 2 - 1).sum()
    torch.testing.assert_close(likelihood.log_scale.grad, expected, rtol=1e-10, atol=1e-10)


def test_only_a_learned_scale_is_a_parameter_and_both_are_saved():
    learned, fixed = pv.Gaussian(0.3, learn_scale=True), pv.Gaussian(0.3)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    assert list(fixed.parameters()) == []
    for likelihood in (learned, fixed):
        other = pv.Gaussian(2.0, learn_scale=likelihood is learned)
        other.load_state_dict(likelihood.state_dict())
        assert other.scale.item() == pytest.approx(0.3, rel=1e-6)


def test_a_fixed_scale_gets_no_gradient():
    outputs = doubles(5, 3).requires_grad_()
    likelihood = pv.Gaussian(0.3).double()
    likelihood(outputs, event_dim=1).log_prob(torch.zeros(5, 3, dtype=torch.float64)).sum().backward()
    assert likelihood.log_scale.grad is None
    torch.testing.assert_close(outputs.grad, -outputs.detach() / likelihood.scale**2, rtol=1e-12, atol=1e-12)


def test_gaussian_output_bias_gives_back_the_mean():
    likelihood, mean = pv.Gaussian(0.3), torch.tensor([[-7.0, 0.0, 3.5]])
    bias = likelihood.output_bias(mean)
    assert bias.shape == likelihood.output_shape((1, 3)) == (1, 3)
    assert torch.equal(likelihood(bias, event_dim=2).mean, mean)


def test_gaussian_takes_any_finite_x():
    for learn_scale in (False, True):
        pv.Gaussian(0.3, learn_scale).check(torch.tensor([[-1e6, 0.5], [3.0, 1e6]]))


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "0.3", True, None, [0.3]])
def test_a_bad_scale_is_refused(scale):
    message = refusal(pv.Gaussian, scale)
    assert message.startswith("scale ")
    assert repr(scale) in message


# Both ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [pv.Bernoulli(), pv.Bernoulli(allow_grey=True), pv.Gaussian(0.3)])
@pytest.mark.parametrize("event_dim", [0, 1, 2, 3])
def test_event_dim_splits_the_outputs_into_batch_and_event(likelihood, event_dim):
    outputs = torch.randn(2, 3, 4, 5)
    found = likelihood(outputs, event_dim=event_dim)
    assert found.batch_shape == (2, 3, 4, 5)[: 4 - event_dim]
    assert found.event_shape == (2, 3, 4, 5)[4 - event_dim :]
    x = (outputs > 0).float()
    elementwise = likelihood(outputs, event_dim=0).log_prob(x)
    torch.testing.assert_close(
        found.log_prob(x), elementwise.flatten(4 - event_dim).sum(-1) if event_dim else elementwise
    )


class TwoForOne(pv.Likelihood):
    def forward(self, outputs, event_dim):
        loc, scale = outputs.exp().unbind(-event_dim - 1)
        return dist.Normal(loc, scale).to_event(event_dim)


class NoEvent(pv.Likelihood):
    def forward(self, outputs, event_dim):
        return dist.Normal(outputs, 1.0)


class Nothing(pv.Likelihood):
    def forward(self, outputs, event_dim):
        return None


class OfTorch(pv.Likelihood):
    def forward(self, outputs, event_dim):
        return torch.distributions.Laplace(outputs, 1.0)


class WithoutEventDim(pv.Likelihood):
    def forward(self, outputs):
        return dist.Normal(outputs, 1.0)


def test_a_class_of_likelihoods_in_place_of_one_is_told_apart():
    said = "likelihood must be an instance, as NoEvent(), got the class NoEvent"
    assert refusal(pv.VAE, (5,), latent_dim=2, likelihood=NoEvent) == said


@pytest.mark.parametrize(
    ("likelihood", "said"),
    [
        (OfTorch(), ".+ a distribution of Pyro's, got Laplace.+: import it from pyro.distributions, not torch.+"),
        (WithoutEventDim(), r"likelihood WithoutEventDim must have a forward that takes outputs, event_dim: .+"),
        (
            TwoForOne(),
            r"likelihood TwoForOne must take the outputs that its output_shape says, here \(.*5\): too many .+",
        ),
        (
            NoEvent(),
            r"likelihood NoEvent must return a distribution over events .+, got 0: to_event\(event_dim\) missing\?",
        ),
        (Nothing(), "likelihood Nothing must return a distribution of Pyro's, got None"),
    ],
)
def test_a_likelihood_of_ones_own_that_fails_is_named(likelihood, said):
    """It was "the pair does not run: too many values to unpack", or a clash of shapes in a plate."""
    vae, x = pv.VAE((5,), latent_dim=2, hidden=(4,), likelihood=likelihood), torch.zeros(8, 5)
    for door in (
        lambda: vae.sample(3),
        lambda: pv.fit(vae, x, epochs=1, progress=False),
        lambda: pv.log_marginal(vae.model, vae.guide, x, num_samples=3),
        lambda: pv.CompiledSVI(vae.model, vae.guide, inductor=False).step(x),
    ):
        assert re.fullmatch(said, refusal(door))


def test_a_site_of_a_program_that_lacks_to_event_is_asked_about_it():
    def draw():
        return pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))

    def guide(x):
        with pyro.plate("data", len(x)):
            draw()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(draw().sum(-1, keepdim=True).expand(-1, 5), 1.0), obs=x)

    said = refusal(pv.log_marginal, model, guide, torch.zeros(12, 5), num_samples=4)
    assert said.startswith("the pair does not run: Shape mismatch inside plate('data') at site x dim -1, ")
    assert said.endswith(": to_event missing?")
