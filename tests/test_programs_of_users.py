"""Programs as Pyro's users write them, through every door: each works, or is refused for a reason in mathematics."""

import functools
import re
from pathlib import Path

import pyro
import pytest
import torch
from helpers import refusal, suite_seed
from programs_of_users import PROGRAMS, Program, doors, semi_supervised
from programs_of_users.verdicts import DOORS, JOINT, REFUSED, compared, markdown, reason_at

import pyrovae as pv

PAGE = Path(__file__).parent.parent / "docs" / "programs.md"
CELLS = [(name, door) for name in PROGRAMS for door in DOORS]


@functools.cache
def program_of(name: str, alone: bool) -> Program:
    """Returns a program that goes through several doors, as a user's does: what one finds out, the next one knows.

    The doors of a single particle, `alone`, have a program of their own. The first loss of several finds out that they
    do not run at once, if that was not known, and then takes more random numbers than the next.
    """
    return PROGRAMS[name]()


def take(name: str, door: str) -> None:
    """Takes a program through a door, with all the claims of that door."""
    program = program_of(name, door in ("elbo", "fit"))
    if door == "elbo":
        doors.train_by_elbo(program)
    elif door == "fit":
        doors.fit(program)
    elif door == "log_marginal":
        doors.log_marginal(program)
    elif door == "compare":
        joint = {"joint": True} if reason_at(name, "iwae") is JOINT else {}
        doors.compare(program, compared(name) or ["elbo"], reason_at(name, "log_marginal") is None, **joint)
    else:
        doors.train_by(door, program)


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize(("name", "door"), CELLS)
def test_a_program_goes_through_a_door_or_is_told_why_not(name, door, monkeypatch):
    monkeypatch.setattr("pyrovae.lab.comparing.LOG_PX_SAMPLES", 5)  # a program run one particle at a time takes long
    reason = reason_at(name, door)
    if reason is None:
        take(name, door)
    else:
        message = refusal(take, name, door)
        assert re.search(reason.says, message), message


@pytest.mark.parametrize(
    ("unlabelled", "labelled", "objective"),
    [
        (semi_supervised.enumerated_m2, semi_supervised.labelled_m2, "elbo"),
        (semi_supervised.drawn_m2, semi_supervised.labelled_m2, "iwae"),
        (semi_supervised.summed_m2, semi_supervised.labelled_summed_m2, "iwae"),
        (semi_supervised.summed_m2, semi_supervised.labelled_summed_m2, "dreg"),
    ],
)
def test_labels_may_be_given_for_a_part_of_the_data(unlabelled, labelled, objective):
    program, batches = unlabelled(), [unlabelled().args, labelled().args]
    how = {"epochs": 4, "objective": doors.OBJECTIVES[objective](3), "lr": 0.03, "progress": False}
    history = pv.fit(program, batches, **how)
    assert torch.tensor(history.loss).isfinite().all()
    assert history.loss[-1] < history.loss[0]


def test_refusals_are_of_programs_and_doors_that_exist():
    assert REFUSED.keys() <= PROGRAMS.keys()
    assert all(refused.keys() <= set(DOORS) for refused in REFUSED.values())


def test_every_program_starts_from_the_same_data_at_every_call():
    """Cells are compared with each other only if their programs are the same."""
    for make in PROGRAMS.values():
        found = []
        for _ in range(2):
            pyro.clear_param_store()
            torch.manual_seed(suite_seed())
            program = make()
            found.append([arg for arg in program.args if isinstance(arg, torch.Tensor)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_page_shows_the_table():
    assert markdown() in PAGE.read_text()


def test_readme_and_results_say_how_many_programs_there_are():
    for page in (PAGE.parent.parent / "README.md", PAGE.parent / "results.md"):
        assert f"{len(PROGRAMS)} programs" in page.read_text()
