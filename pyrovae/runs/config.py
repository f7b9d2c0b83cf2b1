"""The configuration of a run: one frozen dataclass that validates itself and is saved beside the results."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from pyrovae.common import InputError, require, require_choice, require_count, require_number, require_seed, write_text
from pyrovae.data import BINARIZE, DATASETS, IMAGE_SETS
from pyrovae.models import ACTIVATIONS, NETWORKS, POSTERIORS, PRIORS
from pyrovae.objectives import MAX_STATES, NEED_NUM_PARTICLES, OBJECTIVES, resolve
from pyrovae.training import BETA_SCHEDULES, LEARNING_RATE_SCHEDULES, NONFINITE

LARGEST = float(torch.finfo(torch.float32).max)
# Which likelihoods are for which data: by dataset and binarize.
LIKELIHOODS = {
    "points": ("gaussian", "gaussian_learned", "gaussian_predicted"),
    "binary": ("bernoulli",),
    "grey": ("bernoulli_grey", "categorical", "discretized_logistic"),
    "dequantised": ("continuous_bernoulli", "gaussian", "gaussian_learned", "gaussian_predicted"),
}
USUAL_LIKELIHOOD = {
    "points": "gaussian_learned",
    "binary": "bernoulli",
    "grey": "bernoulli_grey",
    "dequantised": "continuous_bernoulli",
}
NO_PATH = ("score_function", "vimco", "reweighted_wake_sleep", "thermodynamic", "elbo_enumerated")
CODES = ("bernoulli", "relaxed_bernoulli")
NUM_COMPONENTS = {"mixture": 10, "vamp": 500}
KINDS = {None: "points", "none": "grey", "dequantise": "dequantised", "static": "binary", "dynamic": "binary"}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training run computes. None means the usual value for the data set."""

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
    """mlp or conv; for conv, hidden are channels (default: 32 64) and each halves the image"""
    posterior: str = "diagonal"
    """diagonal, full_covariance, flow; bernoulli (codes of bits) or relaxed_bernoulli; delta: an autoencoder"""
    temperature: float | None = None
    """of relaxed_bernoulli (default: 0.5); of straight-through gradients for bernoulli, which otherwise needs an
    objective of the score function"""
    prior: str = "standard"
    """standard, mixture (of Gaussians), vamp (of posteriors of pseudo-inputs) or flow"""
    num_components: int | None = None
    """components of a mixture (default: 10), or pseudo-inputs of vamp (default: 500)"""
    layers: tuple[int, ...] = ()
    """dimensions of further stochastic layers z2, z3, ... above z, with nets of two layers of twice as many units"""
    conditional: bool = False
    """condition model and guide on the labels"""
    likelihood: str | None = None
    """bernoulli, bernoulli_grey (a cross-entropy), continuous_bernoulli, gaussian, gaussian_learned,
    gaussian_predicted, categorical or discretized_logistic (default: what fits the data)"""
    scale: float = 0.3
    """standard deviation of a gaussian likelihood; where it is learned, its start; where it is predicted, its floor"""
    objective: str = "elbo"
    """elbo, iwae, dreg, renyi, miwae, ...: any name in objectives.OBJECTIVES"""
    num_particles: int | None = None
    """samples of z per datum in the objective (default: the objective's; iwae and its kin must be told)"""
    alpha: float | None = None
    """order of the renyi objective"""
    num_batches: int | None = None
    """sets of num_particles samples, for miwae and piwae"""
    beta: float = 1.0
    """weight of the KL term in training; evaluation is always at 1"""
    beta_schedule: str = "constant"
    """constant, linear, cyclical or sigmoid: how beta goes over the training"""
    free_bits: float | None = None
    """floor under the KL of each latent dimension, in nats, for elbo_analytic_kl"""
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    """constant, or cosine (decays to 0)"""
    max_grad_norm: float | None = None
    """gradients of the loss per datum are clipped to this norm"""
    patience: int | None = None
    """stop after so many epochs without a better validation ELBO"""
    nonfinite: str = "stop"
    """stop at a loss or gradient that is not finite, or skip such steps and count them"""
    seed: int = 0
    """fixes the data's draws, the initial parameters and the training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        require_choice("dataset", self.dataset, DATASETS)
        require_choice("network", self.network, NETWORKS)
        images, conv = self.dataset in IMAGE_SETS, self.network == "conv"
        if images:
            self._default(binarize="dynamic", hidden=(32, 64) if conv else (400,), latent_dim=20)
            require_choice("binarize", self.binarize, BINARIZE)
        else:
            self._default(hidden=(128, 128), latent_dim=2)
            for field, wrong in (("binarize", self.binarize is not None), ("network", conv)):
                rule = f"is for image sets, and {self.dataset} holds points"
                require(not wrong, f"{field} {getattr(self, field)!r} {rule}")
        kind = KINDS[self.binarize]
        self._default(likelihood=USUAL_LIKELIHOOD[kind])
        fitting = ", ".join(LIKELIHOODS[kind])
        require(
            self.likelihood in LIKELIHOODS[kind],
            f"likelihood must be one of {fitting} for {kind} data, got {self.likelihood!r}",
        )
        for name in ("data_root", "device"):
            value = getattr(self, name)
            optional = value is None and name == "data_root"
            require(optional or isinstance(value, str), f"{name} must be a string, got {value!r}")
        for name in ("hidden", "layers"):
            value = getattr(self, name)
            require(isinstance(value, list | tuple), f"{name} must be whole numbers >= 1, got {value!r}")
            object.__setattr__(self, name, tuple(value))
            for units in getattr(self, name):
                require_count(name, units)
        for name in ("latent_dim", "epochs", "batch_size"):
            require_count(name, getattr(self, name))
        require_seed(self.seed)
        for name in ("scale", "beta", "lr"):
            require_number(name, value := getattr(self, name), above=0)
            require(value <= LARGEST, f"{name} must be a float32, at most {LARGEST:.3g}, got {value:.3g}")
        if self.max_grad_norm is not None:
            require_number("max_grad_norm", self.max_grad_norm, above=0)
        if self.patience is not None:
            require_count("patience", self.patience)
        require(isinstance(self.conditional, bool), f"conditional must be true or false, got {self.conditional!r}")
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("posterior", self.posterior, POSTERIORS)
        require_choice("prior", self.prior, PRIORS)
        require_choice("schedule", self.schedule, LEARNING_RATE_SCHEDULES)
        require_choice("nonfinite", self.nonfinite, NONFINITE)
        require_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        require_choice("objective", self.objective, OBJECTIVES)
        if self.objective not in NEED_NUM_PARTICLES:
            defaults = {field.name: field.default for field in fields(OBJECTIVES[self.objective])}
            self._default(num_particles=defaults.get("num_particles", 1))
        if self.num_particles is not None:
            require_count("num_particles", self.num_particles)
        resolve(self.objective, self.objective_settings())
        self._check_parts()

    def _check_parts(self) -> None:
        """What of posterior, prior, layers, condition and objective does not go together."""
        if self.temperature is not None:
            require_number("temperature", self.temperature, above=0)
            rule = "temperature is for objectives that differentiate draws"
            own = self.posterior == "relaxed_bernoulli"  # whose density it is a part of
            require(own or self.objective not in NO_PATH, f"{rule}, and {self.objective} does not")
            rule = f"temperature is for posterior {' or '.join(CODES)}"
            require(self.posterior in CODES, f"{rule}, got {self.posterior}")
        if self.posterior == "relaxed_bernoulli":
            self._default(temperature=0.5)
        rule = f"posterior {self.posterior} has a prior of its own"
        require(self.posterior not in CODES or self.prior == "standard", f"{rule}, got {self.prior}")
        point, plain = self.posterior == "delta", (self.posterior, self.prior) == ("diagonal", "standard")
        rule = "posterior delta (an autoencoder) needs"
        require(not point or self.objective == "elbo", f"{rule} objective elbo, got {self.objective}")
        require(not point or self.prior == "standard", f"{rule} prior standard, got {self.prior}")
        rule = "layers need posterior diagonal and prior standard, whose place they take"
        require(not self.layers or plain, f"{rule}, got {self.posterior} and {self.prior}")
        require(not (self.conditional and self.prior == "vamp"), "prior vamp needs a VAE that is not conditional")
        if self.objective == "elbo_enumerated":
            most = MAX_STATES.bit_length() - 1
            rule = f"objective elbo_enumerated needs posterior bernoulli and latent_dim <= {most}"
            small = self.posterior == "bernoulli" and self.latent_dim <= most
            require(small, f"{rule}, got {self.posterior} and {self.latent_dim}")
        if self.objective == "elbo_analytic_kl":
            rule = "objective elbo_analytic_kl needs a KL in closed form, of posterior diagonal and prior standard"
            require(plain and not self.layers, rule)
        if self.num_components is not None:
            require_count("num_components", self.num_components)
            require(self.prior in NUM_COMPONENTS, f"num_components is for prior mixture or vamp, got {self.prior}")
        self._default(num_components=NUM_COMPONENTS.get(self.prior))

    def _default(self, **values: object) -> None:
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def objective_settings(self) -> dict[str, object]:
        """The keywords of `fit` that belong to the objective."""
        known = {field.name for field in fields(OBJECTIVES[self.objective])}
        usual = {**{field.name: field.default for field in fields(self)}, "num_particles": 1}
        settings = {name: getattr(self, name) for name in ("num_particles", "alpha", "num_batches", "free_bits")}
        return {name: value for name, value in settings.items() if name in known or value != usual[name]}

    @classmethod
    def from_dict(cls, values: object) -> "RunConfig":
        require(isinstance(values, dict), f"a config must be a table of fields, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        for name in values:
            require(name in known, f"config has an unknown field {name!r}; known are {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, object]:
        """As JSON has it: a tuple is a list there."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: Path) -> None:
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a readable config ({str(error).splitlines()[0]})") from error
        return cls.from_dict(values)
