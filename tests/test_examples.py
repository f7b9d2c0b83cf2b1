"""The examples in docstrings (`>>>`) run, and print what they say they print."""

import doctest
import importlib
import inspect

import pyro
import pytest
import torch
from matplotlib import pyplot as plt
from test_rooms import FILES, module_of

import pyrovae as pv

MODULES = [".".join(module_of(path)) for path in FILES]


@pytest.mark.parametrize(
    "name", [name for name in MODULES if ">>>" in importlib.import_module(name).__loader__.get_source(name)]
)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    """Each starts from seed 0, an empty folder and an empty param store, with `pv`, `torch` and `pyro` imported."""
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    module, said = importlib.import_module(name), []
    for example in doctest.DocTestFinder(exclude_empty=True).find(
        module, globs={"pv": pv, "torch": torch, "pyro": pyro}
    ):
        if example.examples:
            torch.manual_seed(0)
            pyro.clear_param_store()
            runner.run(example, out=said.append)
    plt.close("all")  # a plot that is given no axes opens a figure
    assert not runner.failures, "".join(said)


MODULES_OF_NAMES = [pv.objectives, pv.plots, pv.priors, pv.posteriors, pv.proposals, pv.diagnostics]
PUBLIC = {f"pv.{name}": getattr(pv, name) for name in pv.__all__}
PUBLIC |= {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES_OF_NAMES for name in vars(module)}
WITHOUT_EXAMPLE = {  # for our own use
    *(
        "DifferentiableELBO",
        "KeptTerms",
        "Slope",
        "check_layers",
        "check_on_runs",
        "has_kl_per_dimension",
        "keeping_terms",
    ),
}


def test_every_public_function_and_class_has_an_example():
    lacking = set()
    for name, thing in PUBLIC.items():
        ours = getattr(thing, "__module__", "").startswith(name.rpartition(".")[0].replace("pv", "pyrovae", 1))
        public = ours and not name.rpartition(".")[2].startswith("_")
        documented = inspect.isclass(thing) or inspect.isfunction(thing)
        if public and documented and ">>>" not in (inspect.getdoc(thing) or ""):
            lacking.add(thing.__name__)
    assert lacking == WITHOUT_EXAMPLE
