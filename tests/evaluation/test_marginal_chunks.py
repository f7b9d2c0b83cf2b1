"""Importance sampling on given draws: the same numbers whatever the chunks, and in little memory."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import scaled_guide
from helpers import draw, linear_gaussian, suite_seed

import pyrovae as pv
from pyrovae.programs import gate


class FixedNoise:
    """Holds a guide whose draw for particle k and datum n is fixed, so that chunks can be compared with the whole."""

    def __init__(self, vae, x, num_samples):
        self.vae, self.x = vae, x
        self.noise = torch.randn(num_samples, len(x), vae.latent_dim, dtype=torch.float64)
        self.used = [0] * len(x)
        torch.manual_seed(suite_seed(1))

    def guide(self, x):
        q = self.vae.encode(x)
        rows = [int((self.x == row).all(-1).nonzero()[0]) for row in x]
        with pyro.plate("data", len(x), dim=-1):
            stack = pyro.poutine.runtime._PYRO_STACK
            size = next((h.size for h in stack if getattr(h, "name", "") == "num_particles"), 1)
            start = self.used[rows[0]]
            if torch.initial_seed() in (0, 1):  # the checks of the pair, on draws of its own
                z = q.mean + q.stddev * torch.randn(size, len(x), self.vae.latent_dim, dtype=torch.float64)
            else:
                z = q.mean + q.stddev * self.noise[start : start + size, rows]
                for row in rows:
                    self.used[row] += size
            pyro.sample("z", FixedDraw(q, z))


class FixedDraw(dist.TorchDistribution):
    """q(z|x) whose next draw is already made."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, value):
        self.base, self.value = base, value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return self

    def rsample(self, sample_shape=()):
        return self.value

    def log_prob(self, value):
        return self.base.log_prob(value)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 300, 10_000])
def test_chunked_equals_unchunked_on_the_same_draws_also_where_the_count_does_not_divide(chunk_size, monkeypatch):
    monkeypatch.setattr(pv.evaluation.sampled_weights, "DATA_PER_CHUNK", 3)
    vae, num = linear_gaussian(4), 41
    x = draw(vae, 7)
    noise = FixedNoise(vae, x, num_samples=num)
    result = pv.log_marginal(vae.model, noise.guide, x, num_samples=num, chunk_size=chunk_size)
    assert noise.used == [num] * 7
    z = vae.encode(x).mean + vae.encode(x).stddev * noise.noise
    log_w = (vae.prior.log_prob(z) + vae.decode(z).log_prob(x) - vae.encode(x).log_prob(z)).detach()
    w = log_w.exp()
    torch.testing.assert_close(result.log_px, w.mean(0).log(), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.standard_error, w.std(0) / w.mean(0) / math.sqrt(num), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.ess, w.sum(0) ** 2 / w.square().sum(0), atol=1e-9, rtol=0)
    largest = log_w.sort(0, descending=True).values[: math.ceil(0.2 * num) + 1].exp()
    for index in range(7):
        k, _ = pyro.ops.stats.fit_generalized_pareto((largest[:-1, index] - largest[-1, index]) / largest[0, index])
        assert result.pareto_k[index].item() == pytest.approx(k, abs=1e-9)


@pytest.mark.parametrize("likelihood", [pv.Categorical(), pv.Bernoulli(), pv.HeteroscedasticGaussian(0.01)])
def test_a_chunk_holds_as_many_outputs_of_a_decoder_whatever_their_number_per_pixel(likelihood, monkeypatch):
    """With 256 outputs for each pixel, a chunk took 256 times the memory."""
    monkeypatch.setattr(pv.evaluation.chunks, "OUTPUTS_PER_CHUNK", 40_000)
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(3,), likelihood=likelihood)
    decoded, decoder = [], vae.decoder.forward

    def forward(z, *args):
        decoded.append(z.shape[:-1].numel())
        return decoder(z, *args)

    monkeypatch.setattr(vae.decoder, "forward", forward)
    x = torch.zeros(5, 1, 4, 4)
    num_samples = 200 if isinstance(likelihood, pv.Categorical) else 700
    pv.log_marginal(vae.model, vae.guide, x, num_samples=num_samples, progress=False)
    most = min(8_192, 40_000 // (16 * (256 if isinstance(likelihood, pv.Categorical) else 1)))
    assert most - 5 < max(decoded) <= max(most, 6 * 5)  # up to six particles of the five data are checked
    decoded.clear()
    pv.log_marginal(vae.model, vae.guide, x, num_samples=num_samples, chunk_size=1_000, progress=False)
    assert max(decoded) == 1_000


def with_little_memory(vae, monkeypatch, rows, error):
    """Makes the decoder fail for more than `rows` rows, and returns the list of sizes that it was asked for."""
    asked, decode = [], vae.decode

    def decode_some(z, *args):
        asked.append(z.shape[:-1].numel())
        if asked[-1] > rows:
            raise error
        return decode(z, *args)

    monkeypatch.setattr(vae, "decode", decode_some)
    return asked


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CPU: can't allocate memory")]


@pytest.mark.parametrize(
    ("rows", "error"), list(zip([2_000, 300, 70], [*OUT_OF_MEMORY, OUT_OF_MEMORY[0]], strict=True))
)
def test_out_of_memory_takes_smaller_pieces_and_gives_the_same_answer(rows, error, monkeypatch):
    vae = linear_gaussian(2)
    x = draw(vae, 30)

    def estimate():
        torch.manual_seed(suite_seed(4))
        return pv.log_marginal(vae.model, scaled_guide(vae, [1.4, 1.2]), x, num_samples=333, chunk_size=3_000)

    whole, state = estimate(), None
    state = torch.get_rng_state()
    asked = with_little_memory(vae, monkeypatch, rows, error)
    in_pieces = estimate()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(in_pieces.log_px, whole.log_px, atol=1e-10, rtol=0)
    torch.testing.assert_close(in_pieces.pareto_k, whole.pareto_k, atol=1e-6, rtol=0)
    failed = [size for size in asked if size > rows]
    assert 1 <= len(failed) <= 8  # found once and then kept
    assert max(size for size in asked if size <= rows) > rows / 4


def test_out_of_memory_of_a_single_datum_is_an_error(monkeypatch):
    vae = linear_gaussian(2)
    x = draw(vae, 3)
    with_little_memory(vae, monkeypatch, 6, OUT_OF_MEMORY[1])  # enough for the check of the pair
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: decode(z.expand(7, *z.shape) if z.shape[0] != 2 else z))
    with pytest.raises(RuntimeError, match="allocate memory"):
        pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=333)


def test_importance_bound_on_given_draws_is_the_mean_over_repeats_of_the_log_mean_over_particles():
    # M != K, so that swapped axes would show.
    vae = linear_gaussian(4)
    x = draw(vae, 6)
    noise = FixedNoise(vae, x, num_samples=12)
    result = pv.importance_bound(vae.model, noise.guide, x, num_particles=4, num_repeats=3)
    z = vae.encode(x).mean + vae.encode(x).stddev * noise.noise
    w = (vae.prior.log_prob(z) + vae.decode(z).log_prob(x) - vae.encode(x).log_prob(z)).detach().exp()
    bounds = w.reshape(3, 4, 6).mean(1).log()
    torch.testing.assert_close(result.value, bounds.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.standard_error, bounds.std(0) / math.sqrt(3), atol=1e-12, rtol=0)


def test_data_that_were_run_to_open_them_are_not_run_again_to_be_checked(monkeypatch):
    """At 128 data a chunk, the first of three is the one that was run."""
    ran, check = [], gate.check
    monkeypatch.setattr(gate, "check", lambda *args, **kwargs: ran.append(len(args[3])) or check(*args, **kwargs))
    vae = linear_gaussian(2)
    x = draw(vae, 300)
    for rows, expected in ((x[:20], [20]), (x, [128, 128, 44])):
        ran.clear()
        pv.log_marginal(vae, rows, num_samples=2)
        assert ran == expected
    ran.clear()
    pv.evaluate(vae, x[:20], methods=["elbo", "is_2"])
    assert ran == [20] * 3  # once by itself, and once for each method


def test_data_that_were_run_to_open_them_are_still_asked_whether_the_guide_reaches_all_of_the_prior():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(x - 1, x + 1))

    pv.importance_bound(model, guide, torch.zeros(5), num_particles=2)  # a bound need not
    with pytest.raises(pv.InputError, match=r"log p\(x\) would be too low; use proposals.defensive"):
        pv.log_marginal(model, guide, torch.zeros(5), num_samples=2)


def test_data_of_which_memory_held_a_half_when_they_were_opened_are_all_checked(monkeypatch):
    """The run that opened them is then of the first half, and says nothing of the second."""
    ran, check = [], gate.check

    def with_little_memory(model, guide, needs, x):
        ran.append(len(x))
        if len(x) > 64:
            raise MemoryError
        return check(model, guide, needs, x)

    monkeypatch.setattr(gate, "check", with_little_memory)
    vae = linear_gaussian(2)
    pv.log_marginal(vae, draw(vae, 128), num_samples=2)
    assert ran == [128, 64, 64] * 2
