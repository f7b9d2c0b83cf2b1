"""A run and its folder: config.json, metrics.jsonl and checkpoint.pt, beside what the evaluation adds."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.conditions import OneHot
from pyrovae.config import RunConfig
from pyrovae.data import NUM_CLASSES, Dataset, load
from pyrovae.errors import InputError, require, require_finite
from pyrovae.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
)
from pyrovae.rng import derived_seed, local_seed
from pyrovae.training import History, fit
from pyrovae.vae import VAE

CHECKPOINT_SECONDS = 30


def load_data(config: RunConfig) -> Dataset:
    """The data that `config` says."""
    return load(config.dataset, binarize=config.binarize, data_root=config.data_root, seed=config.seed)


LIKELIHOODS: dict[str, Callable[[RunConfig], Likelihood]] = {
    "bernoulli": lambda config: Bernoulli(),
    "bernoulli_grey": lambda config: Bernoulli(allow_grey=True),
    "continuous_bernoulli": lambda config: ContinuousBernoulli(),
    "gaussian": lambda config: Gaussian(config.scale),
    "gaussian_learned": lambda config: Gaussian(config.scale, learn_scale=True),
    "gaussian_predicted": lambda config: HeteroscedasticGaussian(min_scale=config.scale),
    "categorical": lambda config: Categorical(),
    "discretized_logistic": lambda config: DiscretizedLogistic(config.scale),
}


def build_vae(config: RunConfig, event_shape: tuple[int, ...], data_mean: Tensor | None = None) -> VAE:
    """The untrained VAE that `config` says, with the initial parameters that its seed gives."""
    with local_seed(derived_seed(config.seed, "initial parameters")):
        return VAE(
            event_shape,
            latent_dim=config.latent_dim,
            hidden=config.hidden,
            likelihood=LIKELIHOODS[config.likelihood](config),
            activation=config.activation,
            network=config.network,
            condition=OneHot(NUM_CLASSES[config.dataset]) if config.conditional else (),
            posterior=config.posterior,
            beta=config.beta,
            data_mean=data_mean if config.network == "mlp" else None,
        )


@dataclass(frozen=True)
class Run:
    """A training run: its folder, config, trained VAE and history. `data` is loaded when it is first asked for."""

    folder: Path
    config: RunConfig
    vae: VAE
    history: History
    load_data: Callable[[], Dataset]

    @cached_property
    def data(self) -> Dataset:
        return self.load_data()


def train_run(config: RunConfig, folder: str | Path, progress: bool | None = None) -> Run:
    """Trains what `config` says and keeps it in `folder`, which must not exist or be empty.

    After every epoch metrics.jsonl has a line more; after the first, then every 30 seconds and at the end
    checkpoint.pt, replaced in one step, has the parameters, so that a run that is broken off leaves both whole.
    Raises `InputError` on bad input, before anything is written.
    """
    folder = Path(folder)
    require_new(folder)
    data = load_data(config)
    vae = build_vae(config, data.event_shape, data.train_mean)
    history, saved = History(), -math.inf

    def save(record: dict[str, float | None]) -> None:
        nonlocal saved
        if not history.epoch:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / "config.json")
        history.append(record)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:  # to force it to the disk may take longer than an epoch
            save_checkpoint(vae, folder / "checkpoint.pt")
            saved = time.monotonic()

    try:
        fit(
            vae,
            data,
            epochs=config.epochs,
            objective=config.objective,
            **config.objective_settings(),
            beta_schedule=config.beta_schedule,
            batch_size=config.batch_size,
            lr=config.lr,
            schedule=config.schedule,
            max_grad_norm=config.max_grad_norm,
            patience=config.patience,
            device=config.device,
            seed=config.seed,
            progress=progress,
            on_epoch=save,
        )
    except KeyboardInterrupt:
        if history.epoch:  # the parameters that the metrics speak of, or newer by part of an epoch
            save_checkpoint(vae, folder / "checkpoint.pt")
        raise
    save_checkpoint(vae, folder / "checkpoint.pt")
    return Run(folder, config, vae, history, lambda: data)


def load_run(folder: str | Path, data_root: str | Path | None = None) -> Run:
    """The run that `train_run` or `scripts/train.py` kept in `folder`, its VAE on the CPU.

    `data_root` replaces the config's, where the data have moved. Raises `InputError` where a file is missing, damaged,
    or does not fit the architecture that config.json says.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"run folder {folder} does not exist")
    config = RunConfig.load(folder / "config.json")
    if data_root is not None:
        config = RunConfig.from_dict({**vars(config), "data_root": str(data_root)})
    path = folder / "checkpoint.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        event_shape, state = tuple(checkpoint["event_shape"]), dict(checkpoint["state"])
    except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:80]!r})"
        ) from error
    vae = build_vae(config, event_shape)
    expected = vae.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        shapes = [tuple(d[name].shape) if name in d else None for d in (expected, state)]
        require(
            shapes[0] == shapes[1],
            f"{path} does not fit config.json: {name} must have shape {shapes[0]}, got {shapes[1]}",
        )
    for name, value in state.items():
        require_finite(f"{name} in {path}", value)
    vae.load_state_dict(state)
    vae.set_beta(config.beta)  # a run that broke off was saved at what its schedule had reached
    return Run(folder, config, vae.eval(), _load_history(folder / "metrics.jsonl"), partial(load_data, config))


def save_checkpoint(vae: VAE, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save({"event_shape": vae.event_shape, "state": vae.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def require_new(folder: Path) -> None:
    """`folder` can be made, or is empty: nothing in it would be overwritten."""
    require(not folder.exists() or folder.is_dir(), f"out must be a folder, got the file {folder}")
    require(
        not folder.exists() or not any(folder.iterdir()), f"out must be a new or empty folder, and {folder} holds files"
    )
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    require(existing.is_dir(), f"out must be a folder, and {existing} is a file")
    require(os.access(existing, os.W_OK), f"out must be writable, and {existing} is not")


def _load_history(path: Path) -> History:
    history = History()
    try:
        for line in path.read_text().splitlines():
            history.append(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a readable history ({type(error).__name__}: {error})") from error
    require(len(history.epoch) > 0, f"{path} is not a readable history (it holds no epoch)")
    return history
