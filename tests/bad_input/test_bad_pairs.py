"""Pairs that break the contract, at every function that takes a pair."""

from functools import partial

import pyro
import pytest
import torch
from broken_pairs import ON_PAIRS, PAIRS, Pair
from helpers import discrete_pair
from pyro import poutine
from refusals import Table, check_refusal

import pyrovae as pv
from pyrovae.objectives.registry import NEED_NUM_PARTICLES

CASES = Table()
add = CASES.add

IN_PLATE = (
    r"every sample site must lie in one data plate at dim -1, and in no other; site {} of the model lies in {}: .+"
)
LATENTS = r"model and guide must have the same latent sites, got \['z'\] in the model and \[{}\] in the guide"
SCALES = r"poutine.scale must be the same in model and guide at the latent site \"z\", got {} in the model and {} .+"
NO_DENSITY = r'log p\(x\) does not exist or cannot be had: site "{}" {}'
WEIGHED = ("log_marginal", "importance_bound", "evaluate")
for name, said, uses in (
    ("site outside", IN_PLATE.format('"scale"', "none"), ON_PAIRS),
    ("no plate", IN_PLATE.format('"z"', "none"), ON_PAIRS),
    ("wrong dim", IN_PLATE.format('"z"', '"data" at dim -3'), ON_PAIRS),
    ("nested", IN_PLATE.format('"z"', '"pixels" at dim -2, "data" at dim -1'), ON_PAIRS),
    ("sequential", IN_PLATE.format('"x0"', '"data", sequential'), ON_PAIRS),
    ("two plates", r"all sites must share one data plate .+, got \[\('again', 4\), \('data', 4\)\]", ON_PAIRS),
    ("one name twice", '.*"?data"?.*', ON_PAIRS),
    ("no site", r"all sites must share one data plate \(name, size\), got \[\]", ON_PAIRS),
    ("other latents", LATENTS.format("'u'"), ON_PAIRS),
    ("no latent in the guide", LATENTS.format(""), ON_PAIRS),
    ("scale of the model", SCALES.format(4.0, 1.0), ON_PAIRS),
    ("scale of the guide", SCALES.format(1.0, 4.0), ON_PAIRS),
    ("no parameter", r"model and guide must register a parameter \(.+\), found none", ["fit"]),
    ("delta guide", NO_DENSITY.format("z", "is a point .+"), WEIGHED),
    ("auxiliary", 'the guide\'s auxiliary site "u" must be what all latents are a bijection of, .+', WEIGHED),
    ("factor", LATENTS.format("'f', 'z'") + "|" + NO_DENSITY.format("f", "is a factor.*"), WEIGHED),
    ("nothing observed", "model must observe .*", WEIGHED),
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


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
