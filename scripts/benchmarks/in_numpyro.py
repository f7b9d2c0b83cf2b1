"""NumPyro's column of the table; None where NumPyro is not installed."""

import math
from collections.abc import Callable

import torch
from cases import GAUSSIAN_SCALE, LEARNING_RATE, Case, Gradient, Step
from torch import Tensor

try:
    import jax
    import numpyro
except ImportError:
    numpyro = None

STEPS_PER_CALL = 10


def in_numpyro(case: Case) -> tuple[Step, Gradient, Callable[[Tensor], Step]]:
    """Writes the same VAE in NumPyro, with steps that are jitted and scanned.

    Returns a function that takes STEPS_PER_CALL steps on one batch, one that computes loss and gradients, and one that
    makes an epoch of data: their batches in a new random order, scanned in one call.
    """
    import jax.numpy as jnp
    import numpyro.distributions as npd
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
    from numpyro.infer.util import log_density

    vae, device = case.vae(torch.device("cpu")), torch.device("cpu")
    names = [name for name, _ in vae.named_parameters()]
    initial = {name: jnp.asarray(value.detach().numpy()) for name, value in vae.named_parameters()}
    x = jnp.asarray(case.batch(device).flatten(1).numpy())

    def parameter(name: str):
        return numpyro.param(name, initial[name])

    def linear(name: str, value):
        return value @ parameter(f"{name}.weight").T + parameter(f"{name}.bias")

    def mlp(part: str, value):
        return linear(f"{part}.output", jax.nn.relu(linear(f"{part}.layers.0", value)))

    def images(convolve, name: str, value, padding: int, **settings):
        around, layout = [(padding, padding)] * 2, ("NCHW", "OIHW", "NCHW")
        return convolve(value, parameter(f"{name}.weight"), (2, 2), around, dimension_numbers=layout, **settings)

    def bias(name: str):
        return parameter(f"{name}.bias")[:, None, None]

    def conv_encoder(value):
        maps = value.reshape(-1, *case.event_shape)
        for name in ("encoder.layers.0", "encoder.layers.2"):
            maps = jax.nn.relu(images(jax.lax.conv_general_dilated, name, maps, 1) + bias(name))
        return linear("encoder.output", maps.reshape(len(maps), -1))

    def conv_decoder(value):
        maps = jax.nn.relu(linear("decoder.input", value)).reshape(len(value), case.hidden[-1], 7, 7)
        name, last = "decoder.layers.1", "decoder.layers.3"
        maps = jax.nn.relu(images(jax.lax.conv_transpose, name, maps, 2, transpose_kernel=True) + bias(name))
        output = images(jax.lax.conv_transpose, last, maps, 2, transpose_kernel=True) + parameter("decoder.output_bias")
        return output.reshape(len(value), -1)

    def network(part: str, value):
        if case.network == "mlp":
            return mlp(part, value)
        return conv_encoder(value) if part == "encoder" else conv_decoder(value)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", npd.Normal(jnp.zeros(case.latent_dim), 1.0).to_event(1))
            output = network("decoder", z)
            likelihood = npd.Bernoulli(logits=output) if case.binary else npd.Normal(output, GAUSSIAN_SCALE)
            numpyro.sample("x", likelihood.to_event(1), obs=x)

    def posterior(x):
        output = network("encoder", x)
        return output[:, : case.latent_dim], jnp.exp(0.5 * output[:, case.latent_dim :])

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", npd.Normal(*posterior(x)).to_event(1))

    single = case.num_particles == 1
    loss = Trace_ELBO() if single else RenyiELBO(alpha=0, num_particles=case.num_particles)
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), loss)
    state = [svi.init(jax.random.PRNGKey(0), x)]

    update = jax.jit(lambda state: svi.update(state, x))

    @jax.jit
    def many(state):
        return jax.lax.scan(lambda state, _: svi.update(state, x), state, None, length=STEPS_PER_CALL)

    def ten_steps() -> None:
        if case.network == "mlp":
            state[0], loss = many(state[0])
        else:  # XLA's convolutions are 7 times slower within a scan
            for _ in range(STEPS_PER_CALL):
                state[0], loss = update(state[0])
        loss.block_until_ready()

    def epoch_of(data: Tensor) -> Step:
        rows, num_batches = jnp.asarray(data.flatten(1).numpy()), len(data) // case.batch_size
        key = [jax.random.PRNGKey(1)]

        @jax.jit
        def epoch(state, key):
            order = jax.random.permutation(key, len(rows))[: num_batches * case.batch_size]
            return jax.lax.scan(lambda state, at: svi.update(state, rows[at]), state, order.reshape(num_batches, -1))

        def step() -> None:
            key[0], now = jax.random.split(key[0])
            state[0], losses = epoch(state[0], now)
            losses.block_until_ready()

        return step

    def gradient() -> tuple[float, list[Tensor]]:
        noise = jnp.asarray(torch.randn(case.num_particles, case.batch_size, case.latent_dim).numpy())

        def value(parameters):
            with numpyro.handlers.substitute(data=parameters), numpyro.handlers.seed(rng_seed=0):
                loc, scale = posterior(x)

            def log_weight(eps):
                draw = {"z": loc + scale * eps}

                def one(x, z):  # a datum's own log-weight
                    per_datum = {"z": z[None]}
                    log_p, _ = log_density(model, (x[None],), {}, parameters | per_datum)
                    log_q, _ = log_density(guide, (x[None],), {}, parameters | per_datum)
                    return log_p - log_q

                return jax.vmap(one)(x, draw["z"])

            log_weights = jax.lax.map(log_weight, noise)
            return -(jax.scipy.special.logsumexp(log_weights, axis=0) - math.log(case.num_particles)).sum()

        loss, gradients = jax.jit(jax.value_and_grad(value))(initial)
        return float(loss), [torch.tensor(jax.device_get(gradients[name])) for name in names]

    return ten_steps, gradient, epoch_of
