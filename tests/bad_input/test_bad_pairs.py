"""Pairs that are refused, at every function that takes a pair."""

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
    ("no size", r'the value at site "z" must have the 4 data left of its 1 event dimensions, got shape .+', ON_PAIRS),
    ("guide outside", OUTSIDE, ON_PAIRS),
    ("one for two", ONE_FOR_TWO, ON_PAIRS),
    ("guide observes", OBSERVES.format("y"), ON_PAIRS),
    ("one name twice", "the pair does not run: Multiple sample sites named 'data'", ON_PAIRS),
    ("no site", "model must observe the data at a site, and observes none", ON_PAIRS),
    ("other latents", LATENTS.format("'u'"), ON_PAIRS),
    ("no latent in the guide", LATENTS.format(""), ON_PAIRS),
    ("scale of the model", SCALES.format(4.0, 1.0), ON_PAIRS),
    ("scale of the guide", SCALES.format(1.0, 4.0), ON_PAIRS),
    ("no parameter", r"model and guide must register a parameter \(.+\), found none", ["fit"]),
    ("delta guide", NO_DENSITY.format("z", "is a point .+"), WEIGHED),
    (
        "auxiliary",
        'all latents must be Deltas and together a bijection of the guide\'s auxiliary site "u", .+',
        WEIGHED,
    ),
    ("factor", OBSERVES.format("f"), ON_PAIRS),
    ("nothing observed", "model must observe .*", ON_PAIRS),
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
