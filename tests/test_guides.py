"""The code on the pages of the guide runs, and what they say is refused is refused in these words."""

import math
import re
from pathlib import Path

import pyro
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed

import pyrovae as pv

DOCS = Path(__file__).parent.parent / "docs"
# The pages, each with what is smaller here than on the page.
PAGES = {
    "your_own_program": {},
    "your_own_networks": {"num_images, epochs = 4_000, 18": "num_images, epochs = 16, 1", "sprites(500": "sprites(8"},
    "saving": {},
    "compiled_svi": {"Trace_ELBO())": "Trace_ELBO(), inductor=False)", "range(200)": "range(3)"},
    "vae": {"epochs=200": "epochs=1", "num_particles=50": "num_particles=2"},
    "trusting_log_px": {"num_distributions=1_000, num_chains=16": "num_distributions=2, num_chains=2"},
    "posterior": {
        "num_distributions=100, num_chains=50": "num_distributions=3, num_chains=4",
        "num_samples=300, num_particles=16": "num_samples=60, num_particles=4",
    },
    "your_own_data": {},
    "pair": {},
    "beta": {"num_distributions=100": "num_distributions=3"},
    "masks": {"1_000": "100", "IWAE(20), epochs=150": "IWAE(2), epochs=1", "=500": "=50"},
    "globals": {},
    "objectives": {},
}


@pytest.mark.filterwarnings("ignore:particles run one after another", "ignore:.*holds no code of your own")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_its_refusals_are_those_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text_of_page = (DOCS / f"{page}.md").read_text()
    for shown, smaller in PAGES[page].items():
        assert shown in text_of_page
        text_of_page = text_of_page.replace(shown, smaller)
    blocks = re.findall(r"```(python|text)\n(.*?)```", text_of_page, re.DOTALL)
    torch.manual_seed(suite_seed())
    scope = {"__name__": page}
    for (kind, text), (following, said) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "text":
            continue
        if following != "text":
            exec(text, scope)
            continue
        *works, refused = text.rstrip().splitlines()
        exec("\n".join(works), scope)
        with pytest.raises(pv.InputError) as error:
            exec(refused, scope)
        assert f"InputError: {error.value}" == said.strip()
    assert pyro.get_param_store()


def test_a_model_of_why_cells_are_missing_mends_what_is_filled_in(capsys):
    page = (DOCS / "masks.md").read_text()
    section = page.partition("## Cells that are not missing at random")[2]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    scope = {"torch": torch, "pyro": pyro, "dist": pyro.distributions, "pv": pv}
    torch.manual_seed(suite_seed())
    for shown, smaller in {"IWAE(20), epochs=150": "IWAE(5), epochs=100", "num_samples=500": "num_samples=50"}.items():
        assert shown in code
        code = code.replace(shown, smaller)
    exec(code, scope)
    at_random, with_why = scope["off"][False], scope["off"][True]
    assert at_random.mean() < -0.5
    assert with_why.mean().abs() < 0.25
    assert with_why.square().mean() < 0.5 * at_random.square().mean()  # without a model of why it is 1
    assert f"{with_why.mean():.2f}" in capsys.readouterr().out
    for says_why in (False, True):
        check_incomes_at_the_true_parameters(scope["Survey"], says_why, scope["x"][:40], scope["seen"][:40])


def check_incomes_at_the_true_parameters(survey, says_why, x, seen):
    """E[income | age, schooling, not stated] on a grid: a Normal times, with a model of why, the share not stated."""
    pyro.clear_param_store()
    pair = survey(says_why)
    with torch.no_grad():
        for parameter, value in ((pair.decoder.weight, 1.0), (pair.decoder.bias, 0.0), (pair.log_sd, math.log(0.5))):
            parameter.fill_(value)
        pair.why.copy_(torch.tensor([0.0, -3.0]))
        pair.encoder.weight.copy_(torch.tensor([[0.44, 0.44, 0.0, 0.0, 0.0, 0.0]]))  # of z given age and schooling
        pair.encoder.bias.zero_()
    found = pv.posterior(pair, x, seen, num_samples=4_000).expectation(lambda site: site["missing"][..., 2])
    lost = ~seen[:, 2]
    grid = torch.linspace(-6, 6, 2_001).double()
    mean, variance = x[lost, :2].double().sum(1) / 2.25, 1.25 - 2 / 2.25  # x has covariance 1 + 0.25 on the diagonal
    log_p = -(grid - mean.unsqueeze(1)).square() / (2 * variance)
    log_p = log_p + torch.nn.functional.logsigmoid(3 * grid) if says_why else log_p
    exact = log_p.softmax(1) @ grid
    assert_within_standard_errors(found.value[lost], exact, found.standard_error[lost], dtype=torch.float32)


def test_the_page_on_data_shows_the_columns_as_they_print(tmp_path, monkeypatch):
    page = (DOCS / "your_own_data.md").read_text()
    first, table = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    shown = re.search(r"prints what was found.*?\n\n(    .*?)\n\n", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(first + table, scope)
    assert [line.split() for line in repr(scope["people"].columns).splitlines()] == [
        line.split() for line in shown.splitlines()
    ]
