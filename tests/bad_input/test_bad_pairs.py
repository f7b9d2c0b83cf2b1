"""Pairs that are refused, at every function that takes a pair."""

from functools import partial

import pyro
import pytest
import torch
from broken_pairs import ON_PAIRS, PAIRS, ROWS, Pair
from helpers import discrete_pair, small_vae
from pyro import poutine
from refusals import Table, check_refusal

import pyrovae as pv
from pyrovae.objectives.registry import NEED_NUM_PARTICLES

CASES = Table()
add = CASES.add

LATENTS = r"model and guide must have the same latent sites, got \['z'\] in the model and \[{}\] in the guide"
OUTSIDE = (
    'the latent site "z" must lie in the data plate in both programs or in neither, got in a data plate in the model '
    "and outside it in the guide"
)
ONE_FOR_TWO = (
    'the latent site "z" must have a value for each of the 2 elements of the plate "parts" that it lies in, got a '
    r"guide that draws values of shape \(.+\)"
)
OBSERVES = 'the guide must observe nothing, and observes site "{}": its density would be a part of no weight; .+'
SCALES = r"poutine.scale must be the same in model and guide at the latent site \"z\", got {} in the model and {} .+"
NO_DENSITY = r'log p\(x\) does not exist or cannot be had: site "{}" {}'
WEIGHED = ("log_marginal", "importance_bound", "evaluate")
for name, said, uses in (
    ("crossing", 'plate must say which is the data plate: observed sites lie in "rows" and "columns", .+', ON_PAIRS),
    ("undeclared", 'every dimension of a site must be declared: site "x" has 3 values along dim -1, .+', ON_PAIRS),
    ("no size", r'the value at site "z" must have a dimension of the 4 data, left of its 1 event .+', ON_PAIRS),
    ("guide outside", OUTSIDE, ON_PAIRS),
    ("one for two", ONE_FOR_TWO, ON_PAIRS),
    ("guide observes", OBSERVES.format("y"), ON_PAIRS),
    ("one name twice", "the pair does not run: Multiple sample sites named 'data'", ON_PAIRS),
    ("no site", "model must observe the data at a site, and observes none", ON_PAIRS),
    ("other latents", LATENTS.format("'u'"), ON_PAIRS),
    ("no latent in the guide", LATENTS.format(""), ON_PAIRS),
    ("scale of the model", SCALES.format(4.0, 1.0), ON_PAIRS),
    ("scale of the guide", SCALES.format(1.0, 4.0), ON_PAIRS),
    ("another size", 'the plate "data" must have one size, got 4 in the model and 6 in the guide .+', ON_PAIRS),
    ("no parameter", r"model and guide must register a parameter \(.+\), found none", ["fit"]),
    ("delta guide", NO_DENSITY.format("z", "is a point .+"), WEIGHED),
    (
        "auxiliary",
        'all latents must be Deltas and together a bijection of the guide\'s auxiliary site "u", .+',
        WEIGHED,
    ),
    ("factor", OBSERVES.format("f"), ON_PAIRS),
    ("nothing observed", "model must observe .*", ON_PAIRS),
    ("swapped", '.+ observes site "x", while the model observes nothing: are model and guide swapped[?]', ON_PAIRS),
    ("other arguments", "model and guide must take .*", ON_PAIRS),
):
    for use in uses:
        add(f"pair: {name}, {use}", said, ON_PAIRS[use], PAIRS[name])
for objective in ("elbo_analytic_kl", pyro.infer.RenyiELBO(alpha=0, num_particles=5)):
    said = r'.+ needs a reparameterised guide, and site "z" has no rsample: use .+'
    call = partial(pv.fit, discrete_pair(), torch.ones(6, 3), epochs=1, objective=objective)
    add(f"pair: discrete guide, {objective if isinstance(objective, str) else 'RenyiELBO'}", said, call)
MARK = {"enumerate": "parallel"}
for objective in pv.objectives.OBJECTIVES:
    if objective not in ("elbo", "elbo_enumerated", "elbo_analytic_kl"):  # which sum over it, or say what they need
        said = r'\w+ draws every site of the guide, and "z" is marked for enumeration: use elbo, .+'
        many = {"num_particles": 5} if objective in NEED_NUM_PARTICLES else {}
        marked = Pair(discrete_pair().model, poutine.infer_config(discrete_pair().guide, lambda site: MARK))
        add(
            f"pair: marked, {objective}",
            said,
            partial(pv.fit, marked, torch.ones(6, 3), epochs=1, objective=objective, **many),
        )

VAE, D = small_vae(event_shape=(3,)), pv.diagnostics
KINDS = {
    **{"the model": VAE.model, "a method": VAE.encode, "a function": lambda x: x, "a module": torch.nn.Linear(3, 3)},
    **{"a class": pv.VAE, "nothing": None, "a text": "vae", "a number": 3, "a tensor": ROWS},
}
NO_PAIR = r"(model|guide) must be a function, or there must be a pair of a model and a guide, got .+"
OF_PAIRS = {
    **{name: getattr(pv, name) for name in ("log_marginal", "posterior", "impute", "evaluate", "compare")},
    **{name: getattr(pv, name) for name in ("annealed_log_marginal", "bidirectional_gap", "elbo_surgery")},
    "annealed_rate_distortion": pv.annealed_rate_distortion,
    "annealed_posterior": pv.annealed_posterior,
    "conditional_log_marginal": partial(pv.conditional_log_marginal, given=torch.tensor([True, False, False])),
    "predictive_check": partial(pv.predictive_check, statistic=lambda x: x.sum(-1)),
    **{name: getattr(pv, name) for name in ("inference_gaps", "simulation_based_calibration")},
    **{name: partial(getattr(pv, name), num_particles=2) for name in ("log_weights", "importance_bound")},
    **{name: getattr(D, name) for name in ("elbo_terms", "active_units")},
}
for name, function in OF_PAIRS.items():
    for kind, thing in KINDS.items():
        add(f"{kind} and no pair: {name}", NO_PAIR, function, thing, ROWS)
for name, function in OF_PAIRS.items():
    called = getattr(function, "func", function).__name__
    said = rf"guide must be .+, got a Tensor of .+: it comes before the data, as in {called}\(model, guide, x\)"
    add(f"a model and data, and no guide: {name}", said, function, VAE.model, ROWS)
LOSS = pv.objectives.IWAE(2)
for function in (
    LOSS.loss,
    LOSS.differentiable_loss,
    LOSS.loss_and_grads,
    partial(pv.objectives.check_objective, LOSS),
):
    name = getattr(function, "func", function).__name__
    said = "guide must be a function, and come before the data, got a Tensor of .+"
    add(f"a model and data, and no guide: {name}", said, function, VAE.model, ROWS)
for kind, thing in KINDS.items():
    add(
        f"{kind} and no pair: fit",
        "vae must have a model and a guide as attributes, got .+",
        pv.fit,
        thing,
        ROWS,
        epochs=1,
    )
for name in ("quadrature_log_marginal", "enumerated_log_marginal"):
    for kind in ("a class", "nothing", "a text", "a number", "a tensor"):
        add(f"{kind} and no model: {name}", NO_PAIR, getattr(pv, name), KINDS[kind], ROWS)
    said = r"model must take the 0 arguments given: VAE.model\(\) missing .+ 'x'"
    add(f"no data: {name}", said, getattr(pv, name), VAE)

for name in ("log_marginal", "posterior", "log_weights"):
    settings = {"num_particles": 2} if name == "log_weights" else {}
    said = r"model and guide must be given their data, and got none: .+ missing .+ 'x'"
    add(f"no data: {name}", said, partial(getattr(pv, name), **settings), VAE)

OTHERS = {
    "a linear VAE": pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5),
    "a VQ-VAE": pv.VQVAE((3,), num_tokens=2, num_codes=3, code_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5)),
}
OF_VAES = {
    "factor_information": partial(pv.factor_information, factors=[torch.arange(4) % 2]),
    "latent_use": D.latent_use,
    "kl_per_dimension": D.kl_per_dimension,
}
for kind, thing in (KINDS | OTHERS).items():
    for name, function in OF_VAES.items():
        add(f"{kind} and no VAE: {name}", "vae must be a pyrovae.VAE, got .+", function, thing, ROWS)
    add(f"{kind} and no VAE: diversity", "vae must be a pyrovae.VAE, got .+", D.sample_diversity, thing, 5)
for name, function in OF_VAES.items():
    add(f"no data: {name}", "x must be given, got no data", function, VAE)


def test_an_error_is_shown_by_the_name_under_which_it_is_caught():
    with pytest.raises(pv.InputError) as caught:
        ON_PAIRS["log_marginal"](PAIRS["undeclared"])
    assert caught.type is pv.InputError


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
