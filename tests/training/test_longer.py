"""Trainings that go on for more epochs than they were begun with: 2 and then 1 are 3, to the bit."""

import re
import warnings
from functools import partial

import pytest
import torch
from broken_off import ENDED, BeforeDeath, Killed, assert_same, dies_after, ring_data, train as train_with_defaults
from helpers import parameters_of, refusal, small_vae
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    MultiplicativeLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import pyrovae as pv
from pyrovae.training.checkpoints import CURRENT, Checkpoints


def batches():
    return [x.clone() for x in ring_data().train_x.split(25)]


def loader():
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(ring_data().train_x, batch_size=25, shuffle=True, generator=generator)


def warm_up(optimizer):
    steps = [LambdaLR(optimizer, lambda epoch: 0.1 * (epoch + 1)), StepLR(optimizer, 2, 0.5)]
    return SequentialLR(optimizer, steps, milestones=[2])


train = partial(train_with_defaults, batch_size=25)  # two steps an epoch
PLATEAU = partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=1.0, threshold_mode="abs")
CASES = {
    "a data set with validation": (ring_data, {}),
    "random numbers of the caller": (ring_data, {"seed": None}),
    "an iterable": (batches, {}),
    "a loader": (loader, {"validation": ring_data().validation_x}),
    "compiled": (ring_data, {"compile": True}),
    "several objectives": (ring_data, {"objective": {1: "elbo", 2: "iwae(num_particles=3)"}}),
    "patience": (ring_data, {"patience": 3, "lr": 0.05}),
    "a schedule of the caller's": (ring_data, {"schedule": warm_up}),
    "a plateau": (ring_data, {"schedule": PLATEAU, "lr": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_epochs_and_one_more_are_three_to_the_bit(case, tmp_path, without_machine_code):
    train_case = partial(train, (small_vae, *CASES[case]))
    whole = train_case(tmp_path / "whole", epochs=3)
    train_case(tmp_path / "run", epochs=2)
    assert_same(train_case(tmp_path / "run", epochs=3), whole)


@pytest.mark.parametrize("num_steps", [3, 5])
def test_an_interrupted_training_is_lengthened_and_interrupted_again_to_the_bit(num_steps, tmp_path):
    case = (small_vae, ring_data, {"patience": 3, "lr": 0.05})
    whole = train(case, tmp_path / "whole", epochs=4)
    for epochs, steps in ((3, num_steps), (4, 2)):
        with pytest.raises(Killed):
            train(case, tmp_path / "run", dies_after(steps), epochs=epochs)
    assert_same(train(case, tmp_path / "run", epochs=4), whole)


def test_an_interrupted_training_is_cut_short_to_the_bit(tmp_path):
    case = (small_vae, ring_data, {})
    whole = train(case, tmp_path / "whole", epochs=4)
    with pytest.raises(Killed):
        train(case, tmp_path / "run", dies_after(5), epochs=9)
    said = "has done 2 epochs and a part of epoch 3: epochs must be >= 3, got 2"
    assert said in refusal(train, case, tmp_path / "run", epochs=2)
    assert_same(train(case, tmp_path / "run", epochs=4), whole)
    assert "has done 4 epochs: epochs must be >= 4, got 3" in refusal(train, case, tmp_path / "run", epochs=3)


def test_a_training_cut_short_at_the_epochs_that_are_done_ends_with_its_best_parameters(better, tmp_path):
    better(1, 2)
    case = (small_vae, ring_data, {"patience": 5})
    whole = train(case, tmp_path / "whole", epochs=3)
    with pytest.raises(ZeroDivisionError):
        train(case, tmp_path / "run", minutes=1e-9, epochs=9, on_epoch=lambda record: 1 / (3 - record["epoch"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(train(case, tmp_path / "run", epochs=3), whole)
    assert torch.load(tmp_path / "run" / CURRENT)["position"]["done"]


def test_an_objective_may_come_later_and_none_may_change(tmp_path):
    case, first = (small_vae, ring_data, {}), {1: "elbo", 2: "iwae(num_particles=3)"}
    then = {**first, 3: "dreg(num_particles=3)"}
    whole = train(case, tmp_path / "whole", epochs=3, objective=then)
    train(case, tmp_path / "run", epochs=2, objective=first)
    other = {**first, 2: "dreg(num_particles=3)"}
    assert "was written with objective 'ELBO" in refusal(train, case, tmp_path / "run", epochs=3, objective=other)
    assert_same(train(case, tmp_path / "run", epochs=3, objective=then), whole)


# Early stopping -------------------------------------------------------------------------------------------------------


class Improving(pv.training.validation.Validation):
    """Validation whose ELBO gets better in some epochs alone."""

    better = ()

    def terms(self, epoch):
        elbo = float(epoch) if epoch in self.better else 0.0
        return {**super().terms(epoch), "elbo": elbo}


@pytest.fixture
def better(monkeypatch):
    monkeypatch.setattr(pv.training.preparation, "Validation", Improving)

    def set_to(*epochs):
        monkeypatch.setattr(Improving, "better", epochs)

    return set_to


def test_the_last_parameters_and_not_the_best_go_on(better, tmp_path):
    better(1, 2, 4)
    case = (small_vae, ring_data, {"patience": 5})
    whole = train(case, tmp_path / "whole", epochs=5)
    three = train(case, tmp_path / "run", epochs=3)
    two = train((small_vae, ring_data, {}), tmp_path / "two", epochs=2)
    assert all(torch.equal(value, two[0][name]) for name, value in three[0].items())  # the best
    assert_same(train(case, tmp_path / "run", epochs=5), whole)


def test_a_training_that_stopped_early_goes_on_with_more_patience_alone(better, tmp_path):
    better(1, 4)
    case = (small_vae, ring_data, {})
    whole = train(case, tmp_path / "whole", epochs=5, patience=3)
    early = train(case, tmp_path / "run", epochs=4, patience=2)
    assert len(early[2]) == 3
    with pytest.warns(UserWarning, match=f"{ENDED}; patience 2 ended it after epoch 3, and a larger one trains it"):
        assert_same(train(case, tmp_path / "run", epochs=5, patience=2), early)
    assert "was written with patience 2, and patience is now 1" in refusal(
        train, case, tmp_path / "run", epochs=5, patience=1
    )
    assert_same(train(case, tmp_path / "run", epochs=5, patience=3), whole)


def test_best_parameters_alone_are_not_taken_for_the_last(better, tmp_path):
    better(1)
    case = (small_vae, ring_data, {"patience": 5})
    train(case, tmp_path, epochs=3)
    state = torch.load(tmp_path / CURRENT)
    del state["best"]["last"]
    torch.save(state, tmp_path / CURRENT)
    vae = small_vae()
    before = parameters_of(vae)
    said = "has no more than the best parameters"
    assert said in refusal(train, (lambda: vae, *case[1:]), tmp_path, epochs=4)
    assert torch.equal(parameters_of(vae), before)


# What depends on the number of epochs ---------------------------------------------------------------------------------

DEPENDENT = {
    "cosine": ({"schedule": "cosine"}, "schedule"),
    "beta": ({"beta_schedule": "linear"}, "beta_schedule"),
    "a function": ({"beta_schedule": lambda share: 0.5 + share / 2}, "beta_schedule"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_schedule_over_all_epochs_is_not_lengthened(name, tmp_path):
    settings, field = DEPENDENT[name]
    case = (small_vae, ring_data, settings)
    train(case, tmp_path, epochs=2)
    content = (tmp_path / CURRENT).read_bytes()
    said = f"the checkpoint in {tmp_path} was begun for 2 epochs, on which its {field} depends"
    hint = f"for 4 take {field} 'constant' from the start, or another folder"
    assert refusal(train, case, tmp_path, epochs=4) == f"{said}: {hint}"
    assert (tmp_path / CURRENT).read_bytes() == content


OF_A_TOTAL = {
    "T_max": lambda total: lambda optimizer: CosineAnnealingLR(optimizer, T_max=total),
    "a function": lambda total: lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 - epoch / total),
}


@pytest.mark.parametrize("name", OF_A_TOTAL)
def test_a_schedule_of_the_callers_must_give_the_rates_that_it_gave(name, tmp_path):
    case, make = (small_vae, ring_data, {}), OF_A_TOTAL[name]
    train(case, tmp_path / "run", epochs=3, schedule=make(8), lr=0.1)
    message = refusal(train, case, tmp_path / "run", epochs=6, schedule=make(16), lr=0.1)
    said = (
        r"had lr 0.0\d+ in epoch 2, and its schedule now gives 0.09\d+: where the number of epochs changes, a schedule "
    )
    assert re.search(f"{said}must keep its rates and settings$", message)
    whole = train(case, tmp_path / "whole", epochs=6, schedule=make(8), lr=0.1)
    assert_same(train(case, tmp_path / "run", epochs=6, schedule=make(8), lr=0.1), whole)


def test_auto_may_choose_to_compile_the_longer_training(monkeypatch, tmp_path, without_machine_code):
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 5)
    case = (small_vae, ring_data, {"compile": "auto"})
    whole = train(case, tmp_path / "whole", epochs=3)
    train(case, tmp_path / "run", epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(case, tmp_path / "run", epochs=3)
    assert torch.load(tmp_path / "run" / CURRENT)["settings"]["compile"]
    assert found[2] == whole[2]  # to the bit, without machine code
    assert "was written with compile True" in refusal(train, case, tmp_path / "run", epochs=4, compile=False)


def test_a_run_goes_on_and_fit_returns_all_epochs(tmp_path):
    vae, kept = small_vae(), Checkpoints(tmp_path)
    pv.fit(vae, ring_data(), epochs=2, seed=0, checkpoints=kept)
    seen = []
    history = pv.fit(vae, ring_data(), epochs=4, seed=0, checkpoints=kept, on_epoch=lambda r: seen.append(r["epoch"]))
    assert (history.epoch, seen) == ([1, 2, 3, 4], [3, 4])


@pytest.mark.parametrize("later", [[8], [2, 4]])
def test_a_schedule_whose_settings_have_changed_is_refused_before_its_rates_differ(later, tmp_path):
    case = (small_vae, ring_data, {})
    train(case, tmp_path, epochs=3, schedule=lambda optimizer: MultiStepLR(optimizer, [4]), lr=0.1)
    other = {"schedule": lambda optimizer: MultiStepLR(optimizer, later), "lr": 0.1}
    for epochs, advice in (
        (6, "where the number of epochs changes, a schedule must keep its rates and settings"),
        (3, "take another folder"),
    ):
        message = refusal(train, case, tmp_path, **other, epochs=epochs)
        assert ("another schedule (milestones" in message) or (epochs == 6 and "its schedule now gives 0.01" in message)
        assert message.endswith(advice)


@pytest.mark.parametrize("kind", [LambdaLR, MultiplicativeLR])
def test_a_schedule_that_reads_something_outside_goes_on_with_the_rates_that_it_had(kind, tmp_path):
    """It was refused, as if it were another one."""
    outside = {"factor": 1.0}

    def lower(record):
        outside["factor"] *= 0.7

    def fit(folder, optimizer=torch.optim.Adam, epochs=4):
        vae, settings = small_vae(), {"lr": 0.05, "batch_size": 25, "seed": 0, "on_epoch": lower}
        kept = BeforeDeath(tmp_path / folder, optimizer)
        schedule = partial(kind, lr_lambda=lambda epoch: outside["factor"])
        history = pv.fit(
            vae, ring_data(), epochs=epochs, optimizer=optimizer, schedule=schedule, checkpoints=kept, **settings
        )
        return parameters_of(vae), history.lr

    whole, rates = fit("whole")
    outside["factor"] = 1.0
    with pytest.raises(Killed):
        fit("killed", dies_after(5))
    assert outside["factor"] == pytest.approx(0.49)
    with pytest.raises(
        pv.InputError, match=r"had lr 0.05 in epoch [12], and its schedule now gives 0.0245: where the num"
    ):
        fit("killed", epochs=7)
    parameters, again = fit("killed")
    assert again == rates
    assert torch.equal(parameters, whole)
