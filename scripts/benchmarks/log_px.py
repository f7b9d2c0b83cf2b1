"""Decodes per second of log p(x) by importance sampling: ours, a plain loop, and the floor."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import torch
from cases import Case, seconds_per_call
from floor import fastest_product
from torch.nn.functional import binary_cross_entropy_with_logits

from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.importance_weights import bounds, jackknifed, log_mean, pareto_smoothed
from pyrovae.evaluation.sampled_weights import sampled_log_weights
from pyrovae.programs import Weights


def time_log_px(case: Case, num_data: int, num_samples: int, device: torch.device) -> dict:
    """Returns thousands of decodes per second of importance sampling from the guide, for each column."""
    vae = case.vae(device)
    x = case.batch(device).repeat(-(-num_data // case.batch_size), 1, 1, 1)[:num_data]
    size = min(128, num_data // 3)

    def plain() -> float:
        """Loops over data, with all draws of one at once: as it is usually written, but without gradients."""
        started, num = time.perf_counter(), max(2, size // 8)
        with torch.no_grad():
            for datum in x[:num]:
                loc, log_variance = vae.encoder(datum[None]).unbind(-2)
                noise = torch.randn(num_samples, case.latent_dim, device=device)
                z = loc + (0.5 * log_variance).exp() * noise
                output = vae.decoder(z)
                target = datum.expand_as(output)
                log_px = -binary_cross_entropy_with_logits(output, target, reduction="none").flatten(1).sum(-1)
                log_weights = log_px + 0.5 * (noise.square() + log_variance - z.square()).sum(-1)
                (log_weights.logsumexp(0) - math.log(num_samples)).item()
        return num * num_samples / (time.perf_counter() - started)

    def ours(compile: bool) -> Iterator[float]:
        """Yields a rate for each run of data after the first, in which the graph is compiled."""
        started = None
        found = opened(vae.model, vae.guide, (x,), 64 * size)
        for log_w in sampled_log_weights(vae.model, vae.guide, found, num_samples, compile, False, Weights()):
            count = len(log_mean(log_w)[0])
            pareto_smoothed(log_w), jackknifed(log_w), bounds(log_w)  # as log_marginal does
            if started is not None:
                yield count * num_samples / (time.perf_counter() - started)
            started = time.perf_counter()

    def products() -> float:
        step = [fastest_product(8_192, case.latent_dim, case.hidden[0], device)]
        step.append(fastest_product(8_192, case.hidden[0], math.prod(case.event_shape), device))
        return 8_192 / seconds_per_call(lambda: [product() for product in step], 20, device)

    rates: dict[str, list[float]] = {"plain PyTorch": [], "ours eager": [], "ours": [], "floor": []}
    eager, compiled = ours(False), ours(True)
    for own, other in zip(eager, compiled, strict=True):
        rates["ours eager"].append(own)
        rates["ours"].append(other)
        rates["plain PyTorch"].append(plain())
        rates["floor"].append(products())
    return {name: median(values) / 1e3 for name, values in rates.items()}


FULL_LOG_PX_CODE = """
import re, time, torch, pyrovae as pv
torch.manual_seed(0)
vae = pv.VAE((1, 28, 28), latent_dim=20, hidden=(400,), likelihood=pv.Bernoulli())
x = (torch.rand(10_000, 1, 28, 28) < 0.2).float()
started = time.perf_counter()
pv.log_marginal(vae.model, vae.guide, x, num_samples=NUM_SAMPLES)
status = open("/proc/self/status").read()  # ru_maxrss would be that of the parent process
print(time.perf_counter() - started, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


def full_log_px(num_samples: int) -> dict:
    """Returns seconds and peak memory of the whole call, in a process of its own."""
    code = FULL_LOG_PX_CODE.replace("NUM_SAMPLES", str(num_samples))
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8").stdout
    seconds, kilobytes = map(float, output.split())
    return {"num_samples": num_samples, "seconds": seconds, "peak_gigabytes": kilobytes / 1e6}
