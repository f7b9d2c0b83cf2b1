"""Objectives about many particles that are named without a number of particles, at every door."""

from functools import partial

import pytest
import torch
from helpers import small_vae
from refusals import Table, check_refusal, fit

import pyrovae as pv
from pyrovae import RunConfig
from pyrovae.objectives.registry import NEED_NUM_PARTICLES, from_text

CASES = Table()
add = CASES.add
load_ring = partial(pv.load, "ring", num_train=20, num_validation=5, num_test=5)

for objective in NEED_NUM_PARTICLES:
    said = f"num_particles must be given with objective {objective}: with one it is the elbo"
    more = {"num_batches": 4} if objective in ("miwae", "piwae") else {}
    settings = "(num_batches=4)" if more else ""
    for door, call in {
        "config": partial(RunConfig, objective=objective, **more),
        "from_name": partial(pv.objectives.from_name, objective, **more),
        "from_text": partial(from_text, objective + settings),
        "fit": lambda o=objective, m=more: fit(small_vae(), torch.zeros(4, 2), objective=o, **m),
        "fit, later": lambda o=objective: fit(small_vae(), torch.zeros(4, 2), epochs=2, objective={1: "elbo", 2: o}),
        "race": lambda o=objective: pv.race(small_vae, load_ring(), ["elbo", o], epochs=1),
        "race, one of them": lambda o=objective: pv.race(small_vae, load_ring(), {"late": {1: "elbo", 2: o}}, epochs=2),
    }.items():
        add(f"objective alone: {objective}, {door}", said, call)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
