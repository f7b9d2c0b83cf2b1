"""The configuration of a run: one frozen dataclass that validates itself and is saved beside the results."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pyrovae.data import BINARIZE, DATASETS, IMAGE_SETS
from pyrovae.errors import InputError, require, require_choice, require_count, require_number
from pyrovae.networks import ACTIVATIONS
from pyrovae.objectives.choose import OBJECTIVES
from pyrovae.training import SCHEDULES

LIKELIHOODS = ("bernoulli", "bernoulli_grey", "gaussian", "gaussian_learned")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training run computes. None means the usual value for the data set."""

    dataset: str = "ring"
    """ring, four_clusters, pinwheel, mnist, fashion_mnist or kmnist"""
    data_root: str | None = None
    """folder of the image sets (default: $PYROVAE_DATA, else ./data)"""
    binarize: str | None = None
    """none, static or dynamic (default for images: dynamic)"""
    hidden: tuple[int, ...] | None = None
    """units of the encoder's hidden layers, mirrored in the decoder (default: 400 for images, 128 128 for points)"""
    activation: str = "relu"
    """relu, tanh, softplus, elu, gelu, silu or leaky_relu"""
    latent_dim: int | None = None
    """dimensions of z (default: 20 for images, 2 for points)"""
    likelihood: str | None = None
    """bernoulli, bernoulli_grey (a cross-entropy), gaussian or gaussian_learned (default: what fits the data)"""
    scale: float = 0.3
    """standard deviation of a gaussian likelihood; where it is learned, its start"""
    objective: str = "elbo"
    """elbo, elbo_analytic_kl, iwae or renyi"""
    num_particles: int = 1
    """samples of z per datum in the objective"""
    alpha: float | None = None
    """order of the renyi objective"""
    beta: float = 1.0
    """weight of the KL term in training; evaluation is always at 1"""
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    """constant, or cosine (decays to 0)"""
    max_grad_norm: float | None = None
    """gradients of the loss per datum are clipped to this norm"""
    patience: int | None = None
    """stop after so many epochs without a better validation ELBO"""
    seed: int = 0
    """fixes the data's draws, the initial parameters and the training"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        require_choice("dataset", self.dataset, DATASETS)
        images = self.dataset in IMAGE_SETS
        if images:
            self._default(binarize="dynamic", hidden=(400,), latent_dim=20)
            require_choice("binarize", self.binarize, BINARIZE)
            self._default(likelihood="bernoulli_grey" if self.binarize == "none" else "bernoulli")
        else:
            require(
                self.binarize is None,
                f"binarize is for image sets, and {self.dataset} holds points; got {self.binarize!r}",
            )
            self._default(hidden=(128, 128), latent_dim=2, likelihood="gaussian_learned")
        require(
            self.data_root is None or isinstance(self.data_root, str),
            f"data_root must be a path, got {self.data_root!r}",
        )
        require(isinstance(self.hidden, list | tuple), f"hidden must be whole numbers >= 1, got {self.hidden!r}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for units in self.hidden:
            require_count("hidden", units)
        for name in ("latent_dim", "num_particles", "epochs", "batch_size"):
            require_count(name, getattr(self, name))
        require_count("seed", self.seed, 0)
        for name in ("scale", "beta", "lr"):
            require_number(name, getattr(self, name), above=0)
        if self.max_grad_norm is not None:
            require_number("max_grad_norm", self.max_grad_norm, above=0)
        if self.patience is not None:
            require_count("patience", self.patience)
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("likelihood", self.likelihood, LIKELIHOODS)
        require_choice("objective", self.objective, OBJECTIVES)
        require_choice("schedule", self.schedule, SCHEDULES)
        require(isinstance(self.device, str), f"device must be a name, got {self.device!r}")
        if self.objective == "renyi":
            require_number("alpha", self.alpha)
            require(self.alpha != 1, "alpha must not be 1: at 1 the Renyi bound is the ELBO, objective elbo")
        else:
            require(
                self.alpha is None,
                f"alpha must be given for objective renyi only, got {self.alpha!r} with {self.objective}",
            )
        weighted = self.objective in ("iwae", "renyi")
        require(
            not weighted or self.beta == 1,
            f"beta must be 1 with objective {self.objective}, got {self.beta}: inside the logsumexp it gives no bound",
        )
        likelihood = self.likelihood
        require(
            images or not likelihood.startswith("bernoulli"),
            f"likelihood must be gaussian or gaussian_learned for points, got {likelihood!r}",
        )
        require(
            self.binarize != "none" or likelihood != "bernoulli",
            "likelihood must not be bernoulli for grey pixels: bernoulli_grey is the cross-entropy, by name",
        )
        require(
            not images or self.binarize == "none" or likelihood == "bernoulli",
            f"likelihood must be bernoulli for binarised images, got {likelihood!r}",
        )

    def _default(self, **values: object) -> None:
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: object) -> "RunConfig":
        require(isinstance(values, dict), f"a config must be a table of fields, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        for name in values:
            require(name in known, f"config has an unknown field {name!r}; known are {', '.join(known)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable config ({str(error).splitlines()[0]})") from error
        return cls.from_dict(values)
