"""Every public function and class with arguments that it takes, for tests that put something else in place of each.

`never` stands for the programs wherever a wrong setting must be found before they are run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch

import pyrovae as pv
from pyrovae import objectives, posteriors, priors


def never(*args) -> None:
    raise AssertionError("the pair was run")


class Never(NamedTuple):
    model: Callable = never
    guide: Callable = never


X, POINTS = torch.zeros(4, 2), pv.load("ring", num_train=10, num_validation=4, num_test=4)
VALUE = pv.Estimate(torch.zeros(4), torch.zeros(4))
VAE = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
DRAWS = pv.posterior(VAE, X, num_samples=5)
VQVAE = pv.VQVAE((2,), num_tokens=2, num_codes=3, code_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
IMAGES, LAYERS = {"hidden": (4,)}, {"latent_dims": (2, 2), "hidden": ((4,),)}
SPLITS = {f"{split}_x": X for split in ("train", "validation", "test")}


class Door(NamedTuple):
    call: Callable
    given: Mapping[str, Any]
    names: tuple[str, ...]
    """The settings that are replaced, of which `given` has those that have no default."""


DOORS: dict[str, Door] = {}


def door(name: str, call: Callable, /, *left_out: str, **given: Any) -> None:
    """`left_out` are data, which tests/bad_input/test_kinds_of_data.py is about, and what may be anything."""
    parameters = signature(call).parameters.values()
    named = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    DOORS[name] = Door(call, given, tuple(n for n in named if n not in left_out))


def estimator(name: str, **given: Any) -> None:
    """Adds a function of a model and a guide."""
    call = getattr(pv, name)
    names = [p.name for p in signature(call).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    DOORS[name] = Door(lambda **settings: call(never, never, X, **settings), given, tuple(names))


door("Column", pv.Column, name="a", kind="continuous")
door("Dataset", pv.Dataset, *SPLITS, name="a", kind="real", train_y=(), validation_y=(), test_y=(), **SPLITS)
for name, settings in {
    "arguments": {"split": "train"},
    "batches": {"batch_size": 2},
    "batch": {"rows": torch.arange(2)},
    "to": {"device": "cpu"},
    "with_conditions": {"condition": lambda x, y: y},
}.items():
    door(f"Dataset.{name}", getattr(POINTS, name), **settings)
door("load", pv.load, source="ring")
door("MLP", pv.MLP, in_shape=(2,), out_shape=(3,), hidden=(4,))
for name in ("ConvEncoder", "ResNetEncoder"):
    door(name, getattr(pv, name), in_shape=(1, 8, 8), out_shape=(3,))
for name in ("ConvDecoder", "ResNetDecoder"):
    door(name, getattr(pv, name), in_shape=(3,), out_shape=(1, 8, 8))
door("OneHot", pv.OneHot, num_classes=3)
door("Embedding", pv.Embedding)
door("Bernoulli", pv.Bernoulli)
for name in ("Gaussian", "LogNormal", "DiscretizedLogistic"):
    door(name, getattr(pv, name), scale=0.5)
door("StudentT", pv.StudentT, df=3.0, scale=0.5)
door("HeteroscedasticGaussian", pv.HeteroscedasticGaussian, min_scale=0.1)
door("Categorical", pv.Categorical)
door("Columns", pv.Columns, families={"a": pv.Gaussian(0.5)})
for space, kinds in (("posteriors", posteriors), ("priors", priors)):
    for name in kinds.__all__:
        made = getattr(kinds, name)
        if isinstance(made, type) and name not in ("Posterior", "Prior"):
            needed = {"num_classes": 3, "temperature": 0.5, "pseudo_inputs": X}
            sizes = LAYERS if name == "Layered" else {"latent_dim": 2}
            taken = signature(made).parameters
            door(f"{space}.{name}", made, **{k: v for k, v in (needed | sizes).items() if k in taken})
door("VAE", pv.VAE, event_shape=(2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
door("VAE.sample", VAE.sample, num_samples=3)
door("VAE.interpolate", VAE.interpolate, x1=X, x2=X)
door("VAE.set_beta", VAE.set_beta, beta=1.0)
door(
    "VQVAE",
    pv.VQVAE,
    **{"event_shape": (2,), "num_tokens": 2, "num_codes": 3, "code_dim": 2, "hidden": (4,)},
    likelihood=pv.Gaussian(0.5),
)
door("VQVAE.sample", VQVAE.sample, num_samples=3)
door("LinearGaussianVAE", pv.LinearGaussianVAE, weight=torch.ones(3, 2), bias=torch.zeros(3), scale=0.5)
for name, kind in objectives.OBJECTIVES.items():
    door(f"objectives.{kind.__name__}", kind)
    door(f"objectives.from_name {name}", partial(objectives.from_name, num_particles=2), name=name)
door("objectives.from_text", objectives.from_text, text="elbo")
door("objectives.parse", objectives.parse, text="elbo")
door("objectives.resolve", objectives.resolve, objective="elbo", settings={})
door("log_weights", lambda num_particles: pv.log_weights(never, never, X, num_particles=num_particles), num_particles=2)
door("CompiledSVI", pv.CompiledSVI, model=never, guide=never)
door("Checkpoints", pv.Checkpoints, folder="folder")
door("fit", pv.fit, "data", "validation", vae=Never(), data=X, epochs=1, device="cpu")
door("Estimate", pv.Estimate, value=torch.zeros(4), standard_error=torch.zeros(4))
door("Estimate.minus", VALUE.minus, other=VALUE)
for name, settings in {
    "expectation": {"f": lambda site: site["z"]},
    "mean": {"name": "z"},
    "quantile": {"name": "z", "levels": 0.5},
    "sample": {"num_samples": 3},
    "to_arviz": {"num_samples": 3},
}.items():
    door(f"WeightedDraws.{name}", getattr(DRAWS, name), **settings)
for name, settings in {
    "log_marginal": {},
    "posterior": {},
    "impute": {},
    "predictive_check": {"statistic": lambda x: x.mean(-1)},
    "conditional_log_marginal": {"given": torch.tensor([True, False])},
    "importance_bound": {"num_particles": 2},
    "annealed_log_marginal": {},
    "bidirectional_gap": {},
    "annealed_rate_distortion": {},
    "annealed_posterior": {},
    "evaluate": {},
    "elbo_surgery": {},
    "inference_gaps": {},
    "simulation_based_calibration": {},
    "compare": {},
}.items():
    estimator(name, **settings)
door("quadrature_log_marginal", lambda **settings: pv.quadrature_log_marginal(never, X, **settings))
DOORS["quadrature_log_marginal"] = DOORS["quadrature_log_marginal"]._replace(
    names=("limit", "num_points", "chunk_size")
)
DOORS["factor_information"] = Door(
    lambda **settings: pv.factor_information(VAE, X, **settings),
    {"factors": [torch.arange(4)]},
    ("factors", "num_draws"),
)
door("proposals.defensive", pv.proposals.defensive, model=never, guide=never)
door("proposals.widened", pv.proposals.widened, guide=never, factor=2.0)
door("DifferentiableAIS", pv.DifferentiableAIS, pair=Never(), num_transitions=2)
door("race", pv.race, "data", "held_out", make_vae=never, data=X, objectives=["elbo"], epochs=1, held_out=X)
door("RunConfig", pv.RunConfig)
door("load_run", pv.load_run, "data_root", "dataset", folder="folder")

# Results, base classes of the user's own, modules, and what takes a pair and its data alone.
NO_DOORS = {
    *("Condition", "SizeFactor", "Likelihood", "ContinuousBernoulli", "Beta", "Poisson", "NegativeBinomial"),
    *("ZeroInflatedNegativeBinomial", "History", "MarginalLikelihood", "AnnealedEstimate", "Evaluation", "Comparison"),
    *(
        "Expectation",
        "WeightedDraws",
        "Imputation",
        "ConditionalLikelihood",
        "PredictiveCheck",
        "RateDistortion",
        "FactorInformation",
        "Race",
        "RaceRun",
        "Run",
        "InputError",
    ),
    "enumerated_log_marginal",
    *("posteriors", "priors", "objectives", "schedules", "proposals", "diagnostics", "plots", "workers"),
}
