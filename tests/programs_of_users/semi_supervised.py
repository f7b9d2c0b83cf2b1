"""Programs whose labels are known for some calls and latent in others."""

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from programs_of_users.program import Program, TwoHeads, bits, joined, mlp, normals, source

NUM, PIXELS, CLASSES, LATENT = 5, 6, 3, 2


class M2(nn.Module):
    """Kingma et al. 2014: a class y and a style z, in a plate without a size. A call has labels or it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = mlp(PIXELS, 8, CLASSES)
        self.encoder, self.decoder = TwoHeads(PIXELS + CLASSES, LATENT), mlp(LATENT + CLASSES, 8, PIXELS)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), LATENT), 1.0).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), CLASSES) / CLASSES), obs=ys)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(joined(zs, ys))).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(xs)))
            pyro.sample("z", dist.Normal(*self.encoder(joined(xs, ys))).to_event(1))


class SummedM2(M2):
    """The class is summed out in the model alone, and the guide draws the style from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TwoHeads(PIXELS, LATENT)
        del self.classifier

    def model(self, xs, ys=None):
        config_enumerate(super().model, "parallel", expand=True)(xs, ys)

    def guide(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(*self.encoder(xs)).to_event(1))


def _m2(pair: M2, *labels, enumerated: bool = True) -> Program:
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    guide = config_enumerate(pair.guide, "parallel", expand=True) if enumerated else pair.guide
    untrained = ("ss_vae$$$classifier",) if labels else ()
    args = (bits(source(2), NUM, PIXELS), *labels)
    return Program(pair.model, guide, args, NUM, pyro_loss=loss, untrained=untrained)


def _labels() -> Tensor:
    return one_hot(torch.arange(NUM) % CLASSES, CLASSES).float()


def enumerated_m2() -> Program:
    return _m2(M2())


def drawn_m2() -> Program:
    return _m2(M2(), enumerated=False)


def labelled_m2() -> Program:
    return _m2(M2(), _labels())


def summed_m2() -> Program:
    return _m2(SummedM2(), enumerated=False)


def labelled_summed_m2() -> Program:
    return _m2(SummedM2(), _labels(), enumerated=False)


def _fully_connected(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        layers += [nn.Linear(one, other), nn.BatchNorm1d(other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SingleCells(nn.Module):
    """Xu et al. 2021 (scANVI): counts of genes with a library size, batch normalisation, a scale on every site."""

    GENES = 4

    def __init__(self) -> None:
        super().__init__()
        self.z2_decoder, self.x_decoder = (
            _fully_connected(LATENT + CLASSES, 6, 2 * LATENT),
            _fully_connected(LATENT, 6, 2 * self.GENES),
        )
        self.z2_encoder = _fully_connected(self.GENES, 6, 2 * LATENT + 2)
        self.z1_encoder = _fully_connected(LATENT + CLASSES, 6, 2 * LATENT)
        self.classifier = _fully_connected(LATENT, 6, CLASSES)

    @staticmethod
    def _heads(network, *parts):
        """Flattens all leading dimensions, which BatchNorm1d would take for something else."""
        whole = joined(*parts)
        loc, scale = network(whole.reshape(-1, whole.shape[-1])).reshape(*whole.shape[:-1], -1).chunk(2, -1)
        return loc, softplus(scale) + 1e-3

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        theta = pyro.param("inverse_dispersion", 5.0 * x.new_ones(self.GENES), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1 / x.numel()):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(LATENT)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(CLASSES)), obs=y)
            z2 = pyro.sample("z2", dist.Normal(*self._heads(self.z2_decoder, z1, y)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(2.0, x.new_ones(1)).to_event(1))
            gate, mu = self.x_decoder(z2).chunk(2, -1)
            logits = (size * mu.softmax(-1) + 5e-3).log() - (theta + 5e-3).log()
            counts = dist.ZeroInflatedNegativeBinomial(gate_logits=gate, total_count=theta, logits=logits)
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1 / x.numel()):
            one, other = self.z2_encoder(x.log1p()).chunk(2, -1)
            pyro.sample("l", dist.LogNormal(one[..., -1:], softplus(other[..., -1:])).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(one[..., :-1], softplus(other[..., :-1])).to_event(1))
            labels = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", labels)
            else:
                pyro.factor("classification_loss", -0.1 * labels.log_prob(y), has_rsample=False)
            pyro.sample("z1", dist.Normal(*self._heads(self.z1_encoder, z2, y)).to_event(1))


def _single_cells(*labels) -> Program:
    pair = SingleCells()
    x = torch.poisson(4 * torch.ones(NUM, pair.GENES), generator=source(3))
    guide = config_enumerate(pair.guide, "parallel", expand=True)
    loss = TraceEnum_ELBO(strict_enumeration_warning=False)
    return Program(pair.model, guide, (x, *labels), NUM, pyro_loss=loss, same_draws=False)


def unlabelled_cells() -> Program:
    return _single_cells()


def labelled_cells() -> Program:
    return _single_cells(_labels())


class CausalEffect(nn.Module):
    """Louizos et al. 2017: a confounder z, a treatment t and an outcome y, which the guide observes, too."""

    FEATURES = 3

    def __init__(self) -> None:
        super().__init__()
        self.x_net, self.t_net = TwoHeads(LATENT, self.FEATURES), nn.Linear(LATENT, 1)
        self.y_net = mlp(LATENT + 1, 8, 1)
        self.guide_t, self.guide_y = nn.Linear(self.FEATURES, 1), mlp(self.FEATURES + 1, 8, 1)
        self.guide_z = TwoHeads(self.FEATURES + 2, LATENT)

    def model(self, x, t, y):
        pyro.module("cevae", self)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1))
            pyro.sample("x", dist.Normal(*self.x_net(z)).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.t_net(z).squeeze(-1)), obs=t)
            loc = self.y_net(joined(z, t.unsqueeze(-1))).squeeze(-1)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(self, x, t, y):
        pyro.module("cevae", self)
        auxiliary = {"is_auxiliary": True}
        with pyro.plate("data", x.size(0)):
            t = pyro.sample("t", dist.Bernoulli(logits=self.guide_t(x).squeeze(-1)), obs=t, infer=auxiliary)
            loc = self.guide_y(joined(x, t.unsqueeze(-1))).squeeze(-1)
            y = pyro.sample("y", dist.Normal(loc, 1.0), obs=y, infer=auxiliary)
            pyro.sample("z", dist.Normal(*self.guide_z(joined(x, t.unsqueeze(-1), y.unsqueeze(-1)))).to_event(1))


def causal_effect_vae() -> Program:
    pair, generator = CausalEffect(), source(4)
    x, t, y = normals(generator, NUM, pair.FEATURES), bits(generator, NUM), normals(generator, NUM)
    untrained = ("cevae$$$guide_t", "cevae$$$guide_y")
    return Program(pair.model, pair.guide, (x, t, y), NUM, untrained=untrained, same_draws=False)
