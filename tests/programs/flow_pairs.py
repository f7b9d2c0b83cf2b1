"""A pair of two latents whose guide draws them through flows, in float64."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms as T

W = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.7]], dtype=torch.float64)
X = torch.linspace(-1.5, 2.0, 12, dtype=torch.float64).reshape(4, 3)
NO_INVERSE = 'site "z".*Planar.*no inverse'


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(W.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.T, 0.7).to_event(1), obs=x)


def log_px(x):
    return dist.MultivariateNormal(W.new_zeros(3), W @ W.T + 0.49 * torch.eye(3, dtype=W.dtype)).log_prob(x)


def through(*flows, family=dist.Normal, scale=0.8):
    """Returns a guide that draws z through flows, which may be conditions on the data."""

    def guide(x):
        for index, flow in enumerate(flows):
            if isinstance(flow, torch.nn.Module):
                pyro.module(f"flow_{index}", flow)
        with pyro.plate("data", len(x)):
            made = [flow.condition(x) if hasattr(flow, "condition") else flow for flow in flows]
            base = family(0.4 * x @ W, scale).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, made))

    return guide


def planar():
    return T.planar(2).double()
