"""The fields of a run's configuration: each is a flag of scripts/train.py, and the text below it is the flag's help."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pyrovae.objectives import OBJECTIVES, SHORTHANDS, parse

Value = TypeVar("Value")


def filled_in(value: Value | None) -> Value:
    """Returns the value of a field for which None stands for the usual value, once `check_config` has filled it in."""
    assert value is not None
    return value


@dataclass(frozen=True)
class ConfigFields:
    """Holds the settings that decide what a run computes; None stands for the usual value for the data set."""

    dataset: str = "ring"
    """ring, four_clusters, pinwheel, mnist, fashion_mnist or kmnist"""
    data_root: str | None = None
    """folder of the image sets (default: $PYROVAE_DATA, else ./data)"""
    binarize: str | None = None
    """none (grey), dequantise, static or dynamic (default for images: dynamic)"""
    hidden: tuple[int, ...] | None = None
    """units of the encoder's hidden layers, mirrored in the decoder (default: 400 for images, 128 128 for points)"""
    activation: str = "relu"
    """relu, tanh, softplus, elu, gelu, silu or leaky_relu"""
    latent_dim: int | None = None
    """dimensions of z (default: 20 for images, 2 for points)"""
    network: str = "mlp"
    """mlp, conv or resnet; for the latter two, hidden are channels (default: 32 64) and each halves the image"""
    posterior: str = "diagonal"
    """diagonal, full_covariance, flow; bernoulli (codes of bits) or relaxed_bernoulli; delta: an autoencoder"""
    temperature: float | None = None
    """of relaxed_bernoulli (default: 0.5), or of straight-through gradients for bernoulli, which otherwise has the
    gradient of a score function"""
    prior: str = "standard"
    """standard, mixture (of Gaussians), vamp (of posteriors of pseudo-inputs) or flow"""
    num_components: int | None = None
    """components of a mixture (default: 10), or pseudo-inputs of vamp (default: 500)"""
    layers: tuple[int, ...] = ()
    """dimensions of further stochastic layers z2, z3, ... above z, each with networks of two hidden layers of twice as
    many units"""
    conditional: bool = False
    """condition model and guide on the labels"""
    likelihood: str | None = None
    """bernoulli, bernoulli_grey (a cross-entropy), continuous_bernoulli, gaussian, gaussian_learned,
    gaussian_predicted, categorical or discretized_logistic (default: the usual one for the data)"""
    scale: float = 0.3
    """standard deviation of a gaussian likelihood: its start if it is learned, its floor if it is predicted"""
    objective: str = "elbo"
    """elbo, iwae, dreg, ... (a name of objectives.OBJECTIVES), or with settings, as in dreg(num_particles=64)"""
    num_particles: int | None = None
    """samples of z per datum in the objective (default: the objective's own; iwae and its kin have none)"""
    alpha: float | None = None
    """order of the renyi objective"""
    num_batches: int | None = None
    """sets of num_particles samples, for miwae and piwae"""
    beta: float = 1.0
    """weight of the KL term in training; evaluation is always at 1"""
    beta_schedule: str = "constant"
    """constant, linear, cyclical or sigmoid: how beta changes over the training"""
    free_bits: float | None = None
    """floor under the KL of each latent dimension, in nats, for elbo_analytic_kl"""
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    """constant, or cosine (decays to 0)"""
    max_grad_norm: float | None = None
    """clip gradients of the loss per datum to this norm"""
    patience: int | None = None
    """stop after this many epochs without a better validation ELBO"""
    nonfinite: str = "stop"
    """stop at a loss or gradient that is not finite, or skip such steps and count them"""
    seed: int = 0
    """fixes the data's draws, the initial parameters and the training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def objective_settings(self) -> dict[str, Any]:
        """Returns the keywords of `fit` that belong to the objective."""
        known = {field.name for field in fields(OBJECTIVES[self.objective_name])}
        usual = {**{field.name: field.default for field in fields(self)}, "num_particles": 1}
        settings = {name: getattr(self, name) for name in SHORTHANDS}
        return {name: value for name, value in settings.items() if name in known or value != usual[name]}

    @property
    def objective_name(self) -> str:
        """The objective without its settings, a name of `objectives.OBJECTIVES`."""
        return parse(self.objective)[0]
