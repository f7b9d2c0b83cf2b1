"""VAEs of images, written as Pyro's tutorials write them, each with one habit that vectorised particles meet."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, planar
from torch import Tensor, nn
from torch.nn.functional import softplus

from programs_of_users.program import Program, TwoHeads, bits, mlp, source

NUM, HEIGHT, WIDTH, LATENT = 5, 4, 4, 2
PIXELS = HEIGHT * WIDTH


def images() -> Tensor:
    return bits(source(1), NUM, 1, HEIGHT, WIDTH)


class PlainVAE(nn.Module):
    """The tutorial's VAE: images are flattened on the way in, and the plate has the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TwoHeads(PIXELS, LATENT), mlp(LATENT, 8, PIXELS)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], LATENT), x.new_ones(x.shape[0], LATENT)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, PIXELS))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x.reshape(-1, PIXELS))
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def vae() -> Program:
    pair = PlainVAE()
    return Program(pair.model, pair.guide, (images(),), NUM)


class ConvolutionalVAE(nn.Module):
    """A decoder of transposed convolutions, which take images of four dimensions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Softplus(), nn.Flatten())
        self.heads = TwoHeads(3 * 4, LATENT)
        self.spread = nn.Linear(LATENT, 3 * 4)
        self.deconvolve = nn.ConvTranspose2d(3, 1, 2, stride=2)

    def model(self, x):
        pyro.module("convolutional", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], LATENT), 1.0).to_event(1))
            logits = self.deconvolve(softplus(self.spread(z)).view(-1, 3, 2, 2))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("convolutional", self)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.heads(self.convolve(x))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def convolutional_vae() -> Program:
    pair = ConvolutionalVAE()
    return Program(pair.model, pair.guide, (images(),), NUM)


class NormalisedVAE(PlainVAE):
    """Batch normalisation in both networks: one datum's density depends on the rest of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.body.insert(1, nn.BatchNorm1d(8))
        self.decoder.insert(1, nn.BatchNorm1d(8))


def batch_norm_vae() -> Program:
    pair = NormalisedVAE()
    return Program(pair.model, pair.guide, (images(),), NUM)


class FlowVAE(PlainVAE):
    """An inverse autoregressive flow on top of the encoder's Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = affine_autoregressive(LATENT, hidden_dims=[8])

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        pyro.module("flow", self.flow)
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(*self.encoder(x.reshape(-1, PIXELS))).to_event(1)
            pyro.sample("latent", dist.TransformedDistribution(base, [self.flow]))


def flow_vae() -> Program:
    pair = FlowVAE()
    return Program(pair.model, pair.guide, (images(),), NUM)


def planar_flow_vae() -> Program:
    """Returns a pair whose guide has a density at its own draws alone."""
    pair = FlowVAE()
    pair.flow = planar(LATENT)
    return Program(pair.model, pair.guide, (images(),), NUM)


class SubsampledVAE(PlainVAE):
    """The programs take the whole data set, and draw the minibatch themselves."""

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("latent", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            batch = x[rows].reshape(-1, PIXELS)
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=batch)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            loc, scale = self.encoder(x[rows].reshape(-1, PIXELS))
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def subsampled_vae() -> Program:
    pair = SubsampledVAE()
    return Program(pair.model, pair.guide, (images(),), NUM)


class BayesianDecoderVAE(PlainVAE):
    """The decoder's weights are latent, too: one set of them for all data."""

    def model(self, x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(LATENT, PIXELS), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x.reshape(-1, PIXELS))

    def guide(self, x):
        loc = pyro.param("weight_loc", lambda: 0.1 * torch.randn(LATENT, PIXELS))
        scale = pyro.param("weight_scale", 0.3 * torch.ones(LATENT, PIXELS), constraint=dist.constraints.positive)
        pyro.sample("weight", dist.Normal(loc, scale).to_event(2))
        super().guide(x)


def bayesian_decoder_vae() -> Program:
    pair = BayesianDecoderVAE()
    return Program(pair.model, pair.guide, (images(),))


class ConditionalVAE(nn.Module):
    """Completes an image of which a part is seen; -1 marks what is not. The plate has no size."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.recognition = TwoHeads(PIXELS, LATENT), TwoHeads(2 * PIXELS, LATENT)
        self.generation = mlp(LATENT, 8, PIXELS)

    def model(self, seen, whole):
        pyro.module("conditional", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(*self.prior(seen.flatten(1))).to_event(1))
            hidden = (seen == -1).flatten(1)
            logits = self.generation(z)[hidden].view(len(seen), -1)
            pyro.sample(
                "y", dist.Bernoulli(logits=logits).to_event(1), obs=whole.flatten(1)[hidden].view(len(seen), -1)
            )

    def guide(self, seen, whole):
        with pyro.plate("data"):
            loc, scale = self.recognition(torch.cat([seen.flatten(1), whole.flatten(1)], 1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def conditional_vae() -> Program:
    pair, whole = ConditionalVAE(), images()
    seen = whole.clone()
    seen[..., HEIGHT // 2 :, :] = -1
    return Program(pair.model, pair.guide, (seen, whole), NUM)
