"""Numbers that took long to compute are printed before any figure is drawn, so that no drawing can lose them."""

import sys

import pytest
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.cli import run_command
from pyrovae.runs import train_run

FEW = ["--num-data", "4"]
ONE = ["--objectives", "elbo", "--num-particles", "1"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["evaluate", "run", "--num-samples", "5", *FEW], "IWAE-50 bound"),
        (["evaluate", "run", "--methods", "elbo", *FEW], "elbo   "),
        (["compare", "run", *ONE, "--repeats", "4", "--no-compile", *FEW], "elbo   "),
        (
            [
                "race",
                *ONE,
                "--seeds",
                "0",
                "--budget",
                "epochs",
                "--epochs",
                "1",
                "--batch-size",
                "1000",
                "--num-samples",
                "9",
                *FEW,
            ],
            "elbo   ",
        ),
    ],
    ids=lambda value: " ".join(value[:3:2]) if isinstance(value, list) else "",
)
def test_a_figure_that_cannot_be_drawn_loses_no_number(command, said, tmp_path, monkeypatch, capsys):
    class Broken(Exception):
        pass

    def savefig(*_, **__):
        raise Broken

    train_run(pv.RunConfig(hidden=(4,), latent_dim=3, epochs=1, batch_size=1_000), tmp_path / "run", progress=False)
    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(sys, "argv", ["pyrovae", *command])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Broken):
        run_command()
    assert said in capsys.readouterr().out
