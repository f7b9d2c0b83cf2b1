"""Milliseconds per training step, and decodes per second of log p(x): ours beside stock Pyro, PyTorch and NumPyro.

python scripts/benchmarks/speed.py            # make benchmark; NumPyro's column needs pip install -e '.[benchmark]'

Everything is timed in one run, interleaved, and given as medians: on a noisy machine only the ratios mean something.
All columns train the same VAE from the same parameters, and their losses and gradients are compared first. The floor is
the step's matrix products alone, each by the fastest float32 routine that this PyTorch has.
"""

import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import require, require_count
from pyrovae.evaluation.importance_sampling import _log_weights
from pyrovae.evaluation.importance_weights import bounds, jackknifed, log_mean, pareto_smoothed
from pyrovae.models.modules import unique_name
from pyrovae.programs.gate import Weights
from pyrovae.runs import require_new_folder
from pyrovae.training import choose_device

try:
    import jax
    import numpyro
except ImportError:
    numpyro = None

LR = 1e-3
GAUSSIAN_SCALE = 0.3
SCANNED = 10  # steps in one call of NumPyro's column


@dataclass(frozen=True)
class Row:
    """A VAE, its batch and its objective."""

    name: str
    event_shape: tuple[int, ...]
    latent_dim: int
    hidden: tuple[int, ...]
    batch_size: int
    num_particles: int = 1
    network: str = "mlp"

    @property
    def binary(self) -> bool:
        return len(self.event_shape) == 3

    def vae(self, device: torch.device) -> pv.VAE:
        torch.manual_seed(0)
        likelihood = pv.Bernoulli() if self.binary else pv.Gaussian(GAUSSIAN_SCALE)
        settings = {"latent_dim": self.latent_dim, "hidden": self.hidden, "network": self.network}
        return pv.VAE(self.event_shape, likelihood=likelihood, **settings).to(device)

    def batch(self, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch_size, *self.event_shape, generator=generator)
        return (x > 0.8).float().to(device) if self.binary else x.to(device)


ROWS = [
    Row("ring 2-128-2, B 256, ELBO", (2,), 2, (128,), 256),
    Row("MNIST 784-400-20, B 128, ELBO", (1, 28, 28), 20, (400,), 128),
    Row("MNIST 784-400-20, B 100, IWAE-50", (1, 28, 28), 20, (400,), 100, num_particles=50),
    Row("MNIST conv 32-64, B 128, ELBO", (1, 28, 28), 20, (32, 64), 128, network="conv"),
]
DECODER = ROWS[1]
LOG_PX, OBJECTIVES = "log p(x)", "objectives"


def main(
    rounds: int = 12,
    num_data: int = 384,
    num_samples: int = 5_000,
    device: str = "cpu",
    full: bool = False,
    only: str = "",
    out: str = "runs/benchmark",
) -> None:
    """Time training steps and log p(x).

    Args:
        rounds: how often the columns take turns
        num_data: images for decodes per second
        num_samples: draws of z for each of them
        device: cpu or cuda
        full: also log p(x) of 10,000 images in a process of its own, with its peak memory
        only: the rows with this in their names (the last two: log p(x), objectives)
        out: folder for results.json, report.md and benchmark.png, new or empty
    """
    require_count("rounds", rounds)
    require_count("num_data", num_data, 3)
    require_count("num_samples", num_samples)
    folder, where = Path(out), choose_device(device)
    require_new_folder(folder)
    if numpyro is None:
        print("NumPyro is not installed: no column for it (pip install -e '.[benchmark]')")
    results = {"machine": machine(where), "threads": torch.get_num_threads(), "rows": []}
    rows = [row for row in ROWS if only in row.name]
    require(
        len(rows) > 0 or only in LOG_PX or only in OBJECTIVES or full, f"only must be in a row's name, got {only!r}"
    )
    for row in rows:
        results["rows"].append(time_steps(row, rounds, where))
        print(f"{row.name}: " + ", ".join(f"{k} {v:.2f}" for k, v in results["rows"][-1]["ms"].items()), flush=True)
    if only in LOG_PX:
        results["log_px"] = time_log_px(DECODER, num_data, num_samples, where)
    if only in OBJECTIVES:
        results["objectives"] = time_objectives(DECODER, rounds, where)
    if full:
        results["full"] = full_log_px(num_samples)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + report(results, "simple"))
    (folder / "report.md").write_text(report(results, "github") + "\n")
    draw(results).savefig(folder / "benchmark.png", dpi=120)
    print(f"\nreport: {folder / 'report.md'}")


# The columns ---------------------------------------------------------------------------------------------------------

Step = Callable[[], None]
Gradient = Callable[[], tuple[float, list[Tensor]]]


def time_steps(row: Row, rounds: int, device: torch.device) -> dict:
    steps: dict[str, Step] = {}
    gradients: dict[str, Gradient] = {}
    makers = {"stock Pyro": stock_pyro, "plain PyTorch": plain_pytorch, "ours eager": ours_eager, "ours": ours_compiled}
    for name, make in makers.items():
        steps[name], gradients[name] = make(row, device)
    if numpyro is not None and row.network == "mlp" and device.type == "cpu":
        steps["NumPyro"], gradients["NumPyro"] = in_numpyro(row)
    if row.network == "mlp":
        steps["floor"] = floor(row, device)
    differences = compare(gradients)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    slowest = max(once(step, 1, device) for step in steps.values())
    count = max(2, min(50, int(0.5 / slowest)))
    for _ in range(rounds):
        for name, step in steps.items():
            in_one_call = SCANNED if name == "NumPyro" else 1
            times[name].append(once(step, -(-count // in_one_call), device) / in_one_call)
    return {
        "row": row.name,
        "ms": {name: 1e3 * median(values) for name, values in times.items()},
        **differences,
    }


def once(step: Step, count: int, device: torch.device) -> float:
    """Seconds per step, over `count` of them."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def compare(gradients: dict[str, Gradient]) -> dict[str, float]:
    """The largest relative distance of a column's loss and gradient, on the same noise, to plain PyTorch's; the time
    that ours took is that of its compilation."""
    outcomes, seconds = {}, {}
    for name, gradient in gradients.items():
        torch.manual_seed(2)
        started = time.perf_counter()
        outcomes[name] = gradient()
        seconds[name] = time.perf_counter() - started
    loss, reference = outcomes["plain PyTorch"]
    norm = math.sqrt(sum(g.double().square().sum().item() for g in reference))
    off = {
        name: math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in zip(g, reference, strict=True)))
        for name, (_, g) in outcomes.items()
    }
    return {
        "compile_seconds": seconds["ours"],
        "loss_difference": max(abs(other - loss) / abs(loss) for other, _ in outcomes.values()),
        "gradient_difference": max(off.values()) / norm,
    }


def stock_pyro(row: Row, device: torch.device) -> tuple[Step, Gradient]:
    """The same networks in a model and guide as Pyro's VAE tutorial writes them, under Pyro's SVI, loss and Adam."""
    vae, x = row.vae(device), row.batch(device)
    name, latent, event_dim = unique_name(vae), row.latent_dim, len(row.event_shape)

    def model(x: Tensor) -> None:
        pyro.module(f"{name}.stock_decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), latent)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            output = vae.decoder(z)
            if row.binary:
                likelihood = dist.Bernoulli(logits=output, validate_args=False)
            else:
                likelihood = dist.Normal(output, GAUSSIAN_SCALE)
            pyro.sample("x", likelihood.to_event(event_dim), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(f"{name}.stock_encoder", vae.encoder)
        with pyro.plate("data", len(x)):
            loc, log_variance = vae.encoder(x).unbind(-2)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    settings = {"num_particles": row.num_particles, "vectorize_particles": True, "max_plate_nesting": 1}
    if row.num_particles == 1:
        loss = pyro.infer.Trace_ELBO(max_plate_nesting=1)
    else:
        loss = pyro.infer.RenyiELBO(alpha=0, **settings)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss)

    def gradient() -> tuple[float, list[Tensor]]:
        value = loss.loss_and_grads(model, guide, x)
        return value, take_gradients(vae)

    return lambda: svi.step(x), gradient


def plain_pytorch(row: Row, device: torch.device) -> tuple[Step, Gradient]:
    """The step written by hand, with autograd and fused Adam."""
    vae, x = row.vae(device), row.batch(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)

    def loss() -> Tensor:
        loc, log_variance = vae.encoder(x).unbind(-2)
        noise = torch.randn(row.num_particles, *loc.shape, device=device)
        z = loc + (0.5 * log_variance).exp() * noise
        output = vae.decoder(z)
        if row.binary:
            log_likelihood = -binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none")
        else:
            normaliser = math.log(GAUSSIAN_SCALE) + 0.5 * math.log(2 * math.pi)
            log_likelihood = -0.5 * ((x - output) / GAUSSIAN_SCALE).square() - normaliser
        log_ratio = 0.5 * (noise.square() + log_variance - z.square()).sum(-1)  # log p(z) - log q(z|x)
        log_weights = log_likelihood.flatten(2).sum(-1) + log_ratio
        return -(log_weights.logsumexp(0) - math.log(row.num_particles)).sum()

    def gradient() -> tuple[float, list[Tensor]]:
        value = loss()
        value.backward()
        return value.item(), take_gradients(vae)

    def step() -> None:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        value.item()  # as all others do

    return step, gradient


def objective_of(row: Row) -> pv.objectives.ELBO:
    return pv.objectives.from_name("elbo" if row.num_particles == 1 else "iwae", num_particles=row.num_particles)


def ours_eager(row: Row, device: torch.device) -> tuple[Step, Gradient]:
    vae, x, objective = row.vae(device), row.batch(device), objective_of(row)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)

    def gradient() -> tuple[float, list[Tensor]]:
        return objective.loss_and_grads(vae.model, vae.guide, x), take_gradients(vae)

    def step() -> None:
        optimizer.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        optimizer.step()

    return step, gradient


def ours_compiled(row: Row, device: torch.device) -> tuple[Step, Gradient]:
    vae, x = row.vae(device), row.batch(device)
    svi = pv.CompiledSVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), lr=LR, fused=True), objective_of(row))

    def gradient() -> tuple[float, list[Tensor]]:
        for _ in range(2):  # the first is run by Pyro
            torch.manual_seed(2)
            loss, _ = svi.compiled.loss_and_grads(x)
        return loss.item(), take_gradients(vae)

    return lambda: svi.step(x), gradient


def take_gradients(vae: pv.VAE) -> list[Tensor]:
    gradients = [parameter.grad.clone() for parameter in vae.parameters()]
    for parameter in vae.parameters():
        parameter.grad = None
    return gradients


def in_numpyro(row: Row) -> tuple[Step, Gradient]:
    """The same VAE in NumPyro, its steps jitted and scanned."""
    import jax.numpy as jnp
    import numpyro.distributions as npd
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
    from numpyro.infer.util import log_density

    vae, device = row.vae(torch.device("cpu")), torch.device("cpu")
    names = [name for name, _ in vae.named_parameters()]
    initial = {name: jnp.asarray(value.detach().numpy()) for name, value in vae.named_parameters()}
    x = jnp.asarray(row.batch(device).flatten(1).numpy())

    def network(part: str, value):
        def parameter(name: str):
            return numpyro.param(f"{part}.{name}", initial[f"{part}.{name}"])

        hidden = value @ parameter("layers.0.weight").T + parameter("layers.0.bias")
        return jax.nn.relu(hidden) @ parameter("output.weight").T + parameter("output.bias")

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", npd.Normal(jnp.zeros(row.latent_dim), 1.0).to_event(1))
            output = network("decoder", z)
            likelihood = npd.Bernoulli(logits=output) if row.binary else npd.Normal(output, GAUSSIAN_SCALE)
            numpyro.sample("x", likelihood.to_event(1), obs=x)

    def posterior(x):
        output = network("encoder", x)
        return output[:, : row.latent_dim], jnp.exp(0.5 * output[:, row.latent_dim :])

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", npd.Normal(*posterior(x)).to_event(1))

    single = row.num_particles == 1
    loss = Trace_ELBO() if single else RenyiELBO(alpha=0, num_particles=row.num_particles)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), loss)
    state = [svi.init(jax.random.PRNGKey(0), x)]

    @jax.jit
    def many(state):
        return jax.lax.scan(lambda state, _: svi.update(state, x), state, None, length=SCANNED)

    def ten_steps() -> None:
        state[0], losses = many(state[0])
        losses.block_until_ready()

    def gradient() -> tuple[float, list[Tensor]]:
        noise = jnp.asarray(torch.randn(row.num_particles, row.batch_size, row.latent_dim).numpy())

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
            return -(jax.scipy.special.logsumexp(log_weights, axis=0) - math.log(row.num_particles)).sum()

        loss, gradients = jax.jit(jax.value_and_grad(value))(initial)
        return float(loss), [torch.tensor(jax.device_get(gradients[name])) for name in names]

    return ten_steps, gradient


# The floor -----------------------------------------------------------------------------------------------------------


def floor(row: Row, device: torch.device) -> Step:
    """The step's matrix products: of each layer W x, and backwards those for W and, but for the encoder's first, x."""
    layers = []
    sizes = [math.prod(row.event_shape), *row.hidden, 2 * row.latent_dim]
    layers += [(row.batch_size, *pair, index > 0) for index, pair in enumerate(itertools.pairwise(sizes))]
    sizes = [row.latent_dim, *row.hidden[::-1], math.prod(row.event_shape)]
    layers += [(row.batch_size * row.num_particles, *pair, True) for pair in itertools.pairwise(sizes)]
    products = []
    for rows, inner, outer, needs_input in layers:
        products.append(fastest_product(rows, inner, outer, device))
        products.append(fastest_product(outer, rows, inner, device))
        if needs_input:
            products.append(fastest_product(rows, outer, inner, device))

    def step() -> None:
        for product in products:
            product()

    return step


def fastest_product(rows: int, inner: int, columns: int, device: torch.device) -> Step:
    """left @ right by the fastest of PyTorch's float32 routines, its operands laid out as that one likes them."""
    left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    out, transposed = torch.empty(rows, columns, device=device), right.t().contiguous()
    left_transposed = left.t().contiguous()
    candidates = [
        lambda: torch.mm(left, right, out=out),
        lambda: torch.mm(left, transposed.t(), out=out),
        lambda: torch.mm(left_transposed.t(), right, out=out),
    ]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        candidates.append(lambda: linear(left, transposed, None, "none", [], ""))
        candidates.append(lambda: linear(left, right.t(), None, "none", [], ""))
    for candidate in candidates:
        candidate()
    timed = [median(once(candidate, 1, device) for _ in range(7)) for candidate in candidates]
    return candidates[timed.index(min(timed))]


# log p(x) ------------------------------------------------------------------------------------------------------------


def time_log_px(row: Row, num_data: int, num_samples: int, device: torch.device) -> dict:
    """Thousands of decodes a second: of importance sampling from the guide, per datum."""
    vae = row.vae(device)
    x = row.batch(device).repeat(-(-num_data // row.batch_size), 1, 1, 1)[:num_data]
    size = min(128, num_data // 3)

    def plain() -> float:
        """A loop over data, all draws of one at once: as it is usually written, but without gradients."""
        started, num = time.perf_counter(), max(2, size // 8)
        with torch.no_grad():
            for datum in x[:num]:
                loc, log_variance = vae.encoder(datum[None]).unbind(-2)
                noise = torch.randn(num_samples, row.latent_dim, device=device)
                z = loc + (0.5 * log_variance).exp() * noise
                output = vae.decoder(z)
                target = datum.expand_as(output)
                log_px = -binary_cross_entropy_with_logits(output, target, reduction="none").flatten(1).sum(-1)
                log_weights = log_px + 0.5 * (noise.square() + log_variance - z.square()).sum(-1)
                (log_weights.logsumexp(0) - math.log(num_samples)).item()
        return num * num_samples / (time.perf_counter() - started)

    def ours(compile: bool) -> Iterator[float]:
        """A rate for each run of data after the first, in which the graph is compiled."""
        started = None
        for log_w in _log_weights(vae.model, vae.guide, (x,), num_samples, 64 * size, compile, False, Weights()):
            count = len(log_mean(log_w)[0])
            pareto_smoothed(log_w), jackknifed(log_w), bounds(log_w)  # as log_marginal does
            if started is not None:
                yield count * num_samples / (time.perf_counter() - started)
            started = time.perf_counter()

    def products() -> float:
        step = [fastest_product(8_192, row.latent_dim, row.hidden[0], device)]
        step.append(fastest_product(8_192, row.hidden[0], math.prod(row.event_shape), device))
        return 8_192 / once(lambda: [product() for product in step], 20, device)

    rates: dict[str, list[float]] = {"plain PyTorch": [], "ours eager": [], "ours": [], "floor": []}
    eager, compiled = ours(False), ours(True)
    for own, other in zip(eager, compiled, strict=True):
        rates["ours eager"].append(own)
        rates["ours"].append(other)
        rates["plain PyTorch"].append(plain())
        rates["floor"].append(products())
    return {name: median(values) / 1e3 for name, values in rates.items()}


FULL = """
import re, time, torch, pyrovae as pv
torch.manual_seed(0)
vae = pv.VAE((1, 28, 28), latent_dim=20, hidden=(400,), likelihood=pv.Bernoulli())
x = (torch.rand(10_000, 1, 28, 28) < 0.2).float()
started = time.perf_counter()
pv.log_marginal(vae.model, vae.guide, x, num_samples=NUM_SAMPLES)
status = open("/proc/self/status").read()  # ru_maxrss would be that of the process which started this one
print(time.perf_counter() - started, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


def full_log_px(num_samples: int) -> dict:
    """Seconds and peak memory of the whole call, in a process of its own."""
    code = FULL.replace("NUM_SAMPLES", str(num_samples))
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    seconds, kilobytes = map(float, output.split())
    return {"num_samples": num_samples, "seconds": seconds, "peak_gigabytes": kilobytes / 1e6}


# Objectives ----------------------------------------------------------------------------------------------------------


def time_objectives(row: Row, rounds: int, device: torch.device, draws: int = 16) -> dict[str, float]:
    """Milliseconds per compiled step of each objective that takes these latents, with as many draws of z in each."""
    settings = {name: {"num_particles": draws} for name in pv.objectives.OBJECTIVES if name != "elbo_enumerated"}
    settings["miwae"] = settings["piwae"] = {"num_particles": draws // 4, "num_batches": 4}
    steps = {}
    for name, own in settings.items():
        vae, x = row.vae(device), row.batch(device)
        optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)
        svi = pv.CompiledSVI(vae.model, vae.guide, optimizer, pv.objectives.from_name(name, **own))
        steps[name] = partial(svi.step, x)
        for _ in range(3):
            steps[name]()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(once(step, 3, device))
    return {name: 1e3 * median(values) for name, values in times.items()}


# The report ----------------------------------------------------------------------------------------------------------

COLUMNS = ("stock Pyro", "plain PyTorch", "NumPyro", "ours eager", "ours", "floor")


def report(results: dict, tablefmt: str) -> str:
    lines, ratios, checks = [], [], []
    for row in results["rows"]:
        ms = row["ms"]
        lines.append([row["row"], *(f"{ms[c]:.2f}" if c in ms else "-" for c in COLUMNS)])
        times = [f"{ms[c] / ms['ours']:.2f}" if c in ms else "-" for c in COLUMNS[:3]]
        of_floor = f"{ms['ours'] / ms['floor']:.2f}" if "floor" in ms else "-"
        ratios.append([row["row"], *times, of_floor])
        differences = (f"{row[name]:.1e}" for name in ("loss_difference", "gradient_difference"))
        checks.append([row["row"], *differences, f"{row['compile_seconds']:.1f}"])
    if "log_px" in results:
        rate = results["log_px"]
        lines.append([f"{LOG_PX}, thousand decodes/s", *(f"{rate[c]:.0f}" if c in rate else "-" for c in COLUMNS)])
        plain, floors = rate["ours"] / rate["plain PyTorch"], rate["floor"] / rate["ours"]
        ratios.append([LOG_PX, "-", f"{plain:.2f}", "-", f"{floors:.2f}"])

    def table(lines: list, header: list) -> str:
        return tabulate(lines, header, tablefmt, disable_numparse=True)

    parts = [f"{results['machine']}, {results['threads']} threads; ms per step, medians", table(lines, ["", *COLUMNS])]
    parts += ["How many times faster ours is, and its time in floors", table(ratios, ["", *COLUMNS[:3], "floors"])]
    if checks:
        parts.append("Largest relative difference of the columns on the same noise; seconds of the first compilation")
        parts.append(table(checks, ["", "loss", "gradient", "compilation, s"]))
    if "objectives" in results:
        ms = results["objectives"]
        parts.append("Compiled steps of the objectives, 16 draws of z in each")
        parts.append(table([[n, f"{t:.1f}", f"{t / ms['elbo']:.2f}"] for n, t in ms.items()], ["", "ms", "ELBOs"]))
    if "full" in results:
        full = results["full"]
        seconds, memory = f"{full['seconds']:.0f} s", f"peak memory {full['peak_gigabytes']:.2f} GB"
        parts.append(f"log p(x) of 10,000 images with {full['num_samples']:,} samples: {seconds}, {memory}")
    return "\n\n".join(parts)


def draw(results: dict) -> Figure:
    """Bars: the time of each column in units of ours, for steps and for log p(x)."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    columns = [c for c in COLUMNS if c != "ours"]
    names = [row["row"].replace(", ", "\n", 1) for row in results["rows"]]
    relative = [{c: ms / row["ms"]["ours"] for c, ms in row["ms"].items()} for row in results["rows"]]
    if "log_px" in results:
        rate = results["log_px"]
        names.append(LOG_PX)
        relative.append({c: rate["ours"] / value for c, value in rate.items()})
    for index, column in enumerate(columns):
        shown = [(place, values[column]) for place, values in enumerate(relative) if column in values]
        places = [place + 0.16 * (index - 2) for place, _ in shown]
        axes.bar(places, [value - 1 for _, value in shown], 0.15, bottom=1, label=column)  # up: slower than ours
    axes.axhline(1, color="black", linewidth=1, label="ours")
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("time / time of ours")
    axes.legend(ncols=3)
    return figure


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{os.cpu_count()} cores of an {name}, torch {torch.__version__.partition('+')[0]}"


if __name__ == "__main__":
    run_script(main)
