"""The fields of a run's configuration, in groups: each is a flag of `pyrovae train`, and its text the flag's help."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pyrovae.common import parse_call
from pyrovae.runs.choices import OBJECTIVE_NAMES, SHORTHANDS

Value = TypeVar("Value")


def filled_in(value: Value | None) -> Value:
    """Returns the value of a field for which None stands for the usual value, once `check_config` has filled it in."""
    assert value is not None
    return value


@dataclass(frozen=True)
class DataFields:
    """What is modelled."""

    dataset: str = "ring"
    """ring, four_clusters, pinwheel, mnist, fashion_mnist, kmnist, omniglot, cifar10, svhn, sprites, rotated_mnist,
    digits; or data of your own: a table (.csv, .tsv, .parquet), arrays (.npy, .npz, .pt), a folder of images, or
    module:function, which returns a Dataset"""
    data_root: str | None = None
    """folder of the image sets (default: $PYROVAE_DATA, else ./data)"""
    binarize: str | None = None
    """what becomes of the levels of images: none, dequantise, static or dynamic (default: dynamic for grey sets by
    name, none for images in colour and for your own)"""
    columns: tuple[str, ...] = ()
    """of a table, those to model (default: all but the label column and the split column)"""
    exclude: tuple[str, ...] = ()
    """of these, those to leave out, such as identifiers and dates"""
    label_column: str | None = None
    """of a table, the one with the labels, which colour figures and are the condition with --conditional"""
    split_column: str | None = None
    """of a table, the one that says train, validation or test (default: drawn by --seed, 80%, 10% and 10%)"""
    header: bool | None = None
    """of a .csv or .tsv file, whether the first row has the names of the columns (--header), or is data (--no-header)
    in columns x1, x2, ... (default: it has them, unless all its cells are numbers)"""
    kinds: tuple[str, ...] = ()
    """kinds of columns, as in age=count town=category, or one for all: continuous, positive, unit (between 0 and 1),
    count, binary or category (default: guessed, and shown before training)"""
    missing: str | None = None
    """mask: cells of a table may be missing; the bound is then that of the observed cells"""
    standardise: bool = True
    """give continuous columns of a table mean 0 and standard deviation 1; log p(x) is also shown in the file's units"""
    image_size: int | None = None
    """scale the images of a folder to squares of so many pixels"""


@dataclass(frozen=True)
class ModelFields:
    """The VAE: networks, posterior, prior, likelihood."""

    hidden: tuple[int, ...] | None = None
    """units of the encoder's hidden layers, mirrored in the decoder (default: 400 for images, 128 128 for points and
    tables)"""
    activation: str = "relu"
    """relu, tanh, softplus, elu, gelu, silu or leaky_relu"""
    latent_dim: int | None = None
    """dimensions of z (default: 20 for images, 2 for points and tables)"""
    network: str | None = None
    """mlp, conv or resnet; for the latter two, hidden are channels (default: 32 64) and each halves the image (default:
    mlp; for images in colour and for your own, resnet)"""
    posterior: str = "diagonal"
    """diagonal, full_covariance, flow, mixture (of Gaussians); bernoulli (codes of bits) or relaxed_bernoulli; delta:
    an autoencoder"""
    posterior_components: int | None = None
    """components of posterior mixture (default: 4)"""
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
    gaussian_predicted, student_t (4 degrees of freedom), categorical, discretized_logistic, poisson, negative_binomial,
    zero_inflated_negative_binomial, or columns (each column of a table the family of its kind; default: the usual one
    for the data)"""
    scale: float = 0.3
    """standard deviation of a gaussian likelihood: its start if it is learned, its floor if it is predicted"""


@dataclass(frozen=True)
class ObjectiveFields:
    """The bound that training maximises."""

    objective: str = "elbo"
    """elbo, iwae, dreg, ... (a name of objectives.OBJECTIVES), or with settings, as in dreg(num_particles=64)"""
    num_particles: int | None = None
    """samples of z per datum in the objective (default: the objective's own; iwae and its kin have none, siwae and
    miselbo take one of each component)"""
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


@dataclass(frozen=True)
class TrainingFields:
    """How the bound is maximised."""

    epochs: int = 10
    """passes through the training data"""
    batch_size: int = 128
    """data per step"""
    lr: float = 1e-3
    """learning rate"""
    guide_lr: float | None = None
    """learning rate of the guide, where it differs; lr is then the model's"""
    schedule: str = "constant"
    """constant, or cosine (decays to 0)"""
    max_grad_norm: float | None = None
    """clip gradients of the loss per datum to this norm"""
    guide_max_grad_norm: float | None = None
    """clip the guide's gradients by themselves to this norm, and the model's to max_grad_norm"""
    guide_steps: int = 1
    """steps of the guide for each step of the model, each on a batch of its own"""
    train: str = "both"
    """both, or model or guide alone, with the other side as it is"""
    patience: int | None = None
    """stop after this many epochs without a better validation ELBO"""
    nonfinite: str = "stop"
    """stop at a loss or gradient that is not finite, or skip such steps and count them"""
    seed: int = 0
    """fixes the data's draws, the initial parameters and the training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class ConfigFields(TrainingFields, ObjectiveFields, ModelFields, DataFields):  # the fields of the last come first
    """Holds the settings that decide what a run computes; None stands for the usual value for the data set."""

    def objective_settings(self) -> dict[str, Any]:
        """Returns the keywords of `fit` that belong to the objective."""
        from pyrovae.objectives import OBJECTIVES  # which import torch

        known = {field.name for field in fields(OBJECTIVES[self.objective_name])}
        usual = {**{field.name: field.default for field in fields(self)}, "num_particles": 1}
        settings = {name: getattr(self, name) for name in SHORTHANDS}
        same = {n for n, value in settings.items() if type(value) is type(usual[n]) and value == usual[n]}
        return {name: value for name, value in settings.items() if name in known or name not in same}

    @property
    def objective_name(self) -> str:
        """The objective without its settings, a name of `objectives.OBJECTIVES`."""
        return parse_call("objective", self.objective, OBJECTIVE_NAMES)[0]
