"""A run and its folder: config.json, metrics.jsonl and checkpoint.pt, beside what the evaluation adds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from pyrovae.common import (
    InputError,
    Workers,
    alone,
    check_folder,
    derived_seed,
    device_of_worker,
    local_seed,
    require,
    require_finite,
    write_text,
)
from pyrovae.data import IMAGE_SETS, NUM_CLASSES, Dataset, load
from pyrovae.models import (
    VAE,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    OneHot,
    posteriors,
    priors,
)
from pyrovae.runs.config import RunConfig
from pyrovae.training import LOCK, Checkpoints, History, check_fits, fit


def load_data(config: RunConfig) -> Dataset:
    """The data that `config` says."""
    return load(config.dataset, binarize=config.binarize, data_root=config.data_root, seed=config.seed)


CONFIG, METRICS = "config.json", "metrics.jsonl"

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


def posterior_of(config: RunConfig) -> posteriors.Posterior:
    if config.layers:
        between = [(2 * dim, 2 * dim) for dim in config.layers]
        return posteriors.Layered((config.latent_dim, *config.layers), between, config.activation)
    settings = {} if config.temperature is None else {"temperature": config.temperature}
    return posteriors.POSTERIORS[config.posterior](config.latent_dim, **settings)


def prior_of(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None) -> priors.Prior | None:
    """None of `standard`, which is the posterior's own.

    Pseudo-inputs start as training data drawn with the seed; without data, as zeros in whose place a state comes."""
    if config.prior == "standard":
        return None
    if config.prior == "mixture":
        return priors.Mixture(config.latent_dim, config.num_components)
    if config.prior == "vamp":
        start = torch.zeros(config.num_components, *event_shape)
        if data is not None:
            most = len(data.train_x)
            rule = f"num_components must be <= {most}, the number of training data"
            require(config.num_components <= most, f"{rule}; got {config.num_components}")
            start = data.train_x[torch.randperm(most)[: config.num_components]]
        return priors.Vamp(start, "unit_interval" if config.dataset in IMAGE_SETS else "real")
    return priors.PRIORS[config.prior](config.latent_dim)


def build_vae(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None) -> VAE:
    """The untrained VAE that `config` says, with the initial parameters that its seed and the data give."""
    with local_seed(derived_seed(config.seed, "initial parameters")):
        return unseeded_vae(config, event_shape, data)


def unseeded_vae(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None) -> VAE:
    """The same with initial parameters from torch's generator as it is, whatever the config's seed."""
    return VAE(
        event_shape,
        latent_dim=config.latent_dim,
        hidden=config.hidden,
        likelihood=LIKELIHOODS[config.likelihood](config),
        activation=config.activation,
        network=config.network,
        condition=OneHot(NUM_CLASSES[config.dataset]) if config.conditional else (),
        posterior=posterior_of(config),
        prior=prior_of(config, event_shape, data),
        beta=config.beta,
        data_mean=data.train_mean if data is not None and config.network == "mlp" else None,
    )


def fit_settings(config: RunConfig) -> dict[str, object]:
    """The keywords of `fit` that say how `config` trains, whatever the objective."""
    names = ("beta_schedule", "batch_size", "lr", "schedule", "max_grad_norm", "patience", "nonfinite")
    return {**{name: getattr(config, name) for name in names}, "device": device_of_worker(config.device)}


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


def train_run(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 1.0,
    checkpoint_epochs: int | None = None,
    progress: bool | None = None,
    watch: Callable[["Run", dict[str, float | None]], None] | None = None,
) -> Run:
    """Trains what `config` says and keeps it in `folder`, which must not exist or be empty.

    A checkpoint and config.json are there before the first step; metrics.jsonl has a line more after every epoch, and
    checkpoint.pt is replaced every `checkpoint_minutes`, after every `checkpoint_epochs` epochs, at Ctrl-C or SIGTERM,
    and at the end (see `Checkpoints`). With `resume` a run that was broken off goes on from there, to the bit, and one
    that was not begun begins. `watch` is called after every epoch, with the run and the record of its history. Raises
    `InputError` on bad input, before anything is written.
    """
    folder, first = Path(folder), Workers().is_first
    if resume and (folder / CONFIG).exists():
        _check_same(config, RunConfig.load(folder / CONFIG), folder)
    elif resume and folder.is_dir() and Checkpoints(folder).paths:  # killed between its first checkpoint and its config
        begun = Checkpoints(folder).load().get("config", {})
        _check_same(config, RunConfig.from_dict(begun), folder)
    elif first:  # which makes it: the others may come later
        require_new(folder)
    data = load_data(config)
    vae = build_vae(config, data.event_shape, data)
    extra = {"event_shape": vae.event_shape, "config": config.to_dict()}
    checkpoints = Checkpoints(folder, minutes=checkpoint_minutes, epochs=checkpoint_epochs, extra=extra)

    run = Run(folder, config, vae, History(), lambda: data)

    def start(history: History) -> None:
        nonlocal run
        run = replace(run, history=history)
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG)
            lines = "".join(_line(record) for record in history.records())
            write_text(folder / METRICS, lines)

    def add(record: dict[str, float | None]) -> None:
        if first:
            with open(folder / METRICS, "a") as file:
                file.write(_line(record))
            if watch is not None:
                with alone():
                    watch(run, record)

    fit(
        vae,
        data,
        epochs=config.epochs,
        objective=config.objective,
        **config.objective_settings(),
        **fit_settings(config),
        seed=config.seed,
        checkpoints=checkpoints,
        progress=progress,
        on_start=start,
        on_epoch=add,
    )
    return run


def load_run(folder: str | Path, data_root: str | Path | None = None) -> Run:
    """The run that `train_run` or `scripts/train.py` kept in `folder`, its VAE on the CPU.

    `data_root` replaces the config's, where the data have moved. Raises `InputError` where a file is missing, damaged,
    or does not fit the architecture that config.json says.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"run folder {folder} does not exist")
    config = RunConfig.load(folder / CONFIG)
    if data_root is not None:
        config = RunConfig.from_dict({**vars(config), "data_root": str(data_root)})
    saved = Checkpoints(folder).load()
    require(saved is not None, f"{folder} holds no checkpoint")
    try:
        event_shape, state = tuple(saved["event_shape"]), dict(saved["state"])
        history = History()
        for record in saved["history"]:
            history.append(record)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint in {folder} is not one of a run ({type(error).__name__}: {error})") from error
    require(len(history.epoch) > 0, f"the run in {folder} was broken off before its first epoch ended")
    vae = build_vae(config, event_shape)
    check_fits(f"the checkpoint in {folder}", CONFIG, vae.state_dict(), state)
    for name, value in state.items():
        require_finite(f"{name} in the checkpoint in {folder}", value)
    vae.load_state_dict(state)
    vae.set_beta(config.beta)  # a run that broke off was saved at what its schedule had reached
    return Run(folder, config, vae.eval(), history, partial(load_data, config))


def require_new(folder: Path) -> None:
    """`folder` can be made, or is empty: nothing in it would be overwritten."""
    check_folder(folder, "out")
    rest = (path.name for path in folder.iterdir()) if folder.exists() else ()
    holds_files = any(name != LOCK and not name.endswith(".tmp") for name in rest)  # which a killed run leaves
    require(not holds_files, f"out must be a new or empty folder, and {folder} holds files")


def _check_same(config: RunConfig, begun: RunConfig, folder: Path) -> None:
    for name, was in begun.to_dict().items():
        now = config.to_dict()[name]
        require(was == now, f"the run in {folder} was begun with {name} {was!r}, and {name} is now {now!r}")


def _line(record: dict[str, float | None]) -> str:
    return json.dumps(record) + "\n"
