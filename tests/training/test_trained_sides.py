"""Model and guide trained each in its own way: rates, clipping, steps of the guide alone, one side alone."""

import copy
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from broken_off import ring_data
from helpers import draw, linear_gaussian, parameters_of, refusal, ring, small_vae, suite_seed
from pairs_of_sides import EAGER, ONE_BY_ONE, Normalised, by_side
from torch import nn

import pyrovae as pv
from pyrovae.training.checkpoints import CURRENT
from pyrovae.training.optimizers import ADAM

SGD = torch.optim.SGD
RATES = {"model": 0.01, "guide": 0.03}


def batches_of(vae, num, size=4):
    torch.manual_seed(suite_seed(11))
    return list(draw(vae, num * size).split(size))


# Learning rates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [ADAM, torch.optim.Adam, SGD, pyro.optim.Adam({})])
def test_equal_rates_of_both_sides_are_one_rate_to_the_bit(optimizer):
    ends = []
    for lr in (0.01, {"model": 0.01, "guide": 0.01}):
        vae = small_vae()
        history = pv.fit(vae, ring(), epochs=2, batch_size=25, lr=lr, optimizer=optimizer, seed=1, **EAGER)
        ends.append((parameters_of(vae), history.loss))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_each_side_has_its_rate_and_the_history_shows_both():
    """Without momentum a parameter's move is its rate times its gradient."""
    vae = linear_gaussian(1)
    x = draw(vae, 6)

    def move(twin, side):
        named = by_side(vae)[side]
        return [(p - named[name]).detach() for name, p in by_side(twin)[side].items()]

    moves = []
    for lr in (1e-3, {"model": 1e-3, "guide": 3e-3}):
        twin = copy.deepcopy(vae)
        history = pv.fit(twin, x, epochs=1, batch_size=6, optimizer=SGD, lr=lr, seed=suite_seed(2), **EAGER)
        moves.append({side: move(twin, side) for side in ("model", "guide")})
    for side, factor in (("model", 1), ("guide", 3)):
        for one, other in zip(moves[0][side], moves[1][side], strict=True):
            assert one.abs().max() > 1e-6
            torch.testing.assert_close(other, factor * one, rtol=1e-9, atol=1e-15)
    assert (history.lr, history.guide_lr) == ([1e-3], [3e-3])
    assert "guide_lr" in history.table()
    decayed = pv.fit(copy.deepcopy(vae), x, epochs=2, lr=RATES, schedule="cosine", **EAGER)
    assert decayed.guide_lr == pytest.approx([0.03, 0.015])
    assert decayed.lr == pytest.approx([0.01, 0.005])


def test_rates_may_be_numbers_of_numpy():
    ends = []
    for kind in (float, np.float64):
        vae = small_vae()
        lr = {"model": kind(0.01), "guide": kind(0.03)}
        history = pv.fit(vae, ring(), epochs=1, lr=lr, max_grad_norm={"guide": kind(2.0)}, seed=1, **EAGER)
        ends.append((parameters_of(vae), history.guide_lr))
    assert torch.equal(ends[0][0], ends[1][0])
    assert type(ends[1][1][0]) is float
    pv.fit(small_vae(), ring(), epochs=1, lr={"model": np.float32(0.01), "guide": np.float32(0.03)}, **EAGER)


def test_an_optimiser_that_makes_one_group_of_both_sides_is_refused():
    def merged(groups, lr):
        return SGD([parameter for group in groups for parameter in group["params"]], lr=lr)

    said = refusal(pv.fit, small_vae(), ring(), epochs=1, lr=RATES, optimizer=merged)
    assert said == "optimizer must keep the groups of lr by side, 2, and SGD has 1"


def test_a_function_of_names_gives_each_parameter_its_settings_as_it_does_in_svi():
    """Pyro has an optimiser for each parameter, and `fit` groups of one."""

    def settings(name):
        own = name.rpartition(".")[2]  # after that of the model
        return {"lr": 0.03 if own.startswith("guide") else 0.01, "weight_decay": 0.1 * (own == "bias")}

    vae = linear_gaussian(1)
    (x,) = batches_of(vae, 1)
    fitted, stepped = copy.deepcopy(vae), copy.deepcopy(vae)
    pv.fit(fitted, [x], epochs=3, optimizer=pyro.optim.Adam(settings), seed=suite_seed(3), **EAGER)
    with pyro.get_param_store().scope():
        elbo, parameters = pv.objectives.ELBO(), dict(stepped.named_parameters())
        by_hand = [torch.optim.Adam([p], **settings(name)) for name, p in parameters.items()]
        torch.manual_seed(suite_seed(3))
        for _ in range(3):
            stepped.zero_grad()
            (elbo.differentiable_loss(stepped.model, stepped.guide, x) / len(x)).backward()
            for one in by_hand:
                one.step()
    for name, parameter in fitted.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-9, atol=1e-12)
    untouched = copy.deepcopy(vae)
    pv.fit(untouched, [x], epochs=3, optimizer=pyro.optim.Adam({"lr": 0.01}), seed=suite_seed(3), **EAGER)
    assert (parameters_of(untouched) - parameters_of(fitted)).abs().max() > 1e-3
    said = "lr must not be given by side beside optimizer Adam, whose arguments are a function of names"
    assert refusal(pv.fit, vae, [x], epochs=1, optimizer=pyro.optim.Adam(settings), lr=RATES) == said
    for rate in ("0.1", -0.1, float("nan")):
        said = refusal(pv.fit, vae, [x], epochs=1, optimizer=pyro.optim.Adam(lambda name: {"lr": rate}))  # noqa: B023
        assert said == f"optimizer Adam must have finite learning rates >= 0, got lr {rate!r}"
    said = "lr must be said once, got 0.03 in optimizer Adam and 0.5 beside it"
    assert refusal(pv.fit, vae, [x], epochs=1, optimizer=pyro.optim.Adam(settings), lr=0.5) == said


# Steps of the guide ---------------------------------------------------------------------------------------------------


def by_hand(vae, batches, epochs, guide_steps, lr, max_norm, seed, optimizer=torch.optim.Adam):
    """Every step moves the guide, and the last of so many the model, too."""
    sides = {side: list(named.values()) for side, named in by_side(vae).items()}
    optimizers = {side: optimizer(some, lr=lr[side]) for side, some in sides.items()}
    elbo = pv.objectives.ELBO(2)
    torch.manual_seed(seed)
    for step, x in enumerate(batches * epochs, 1):
        vae.zero_grad()
        (elbo.differentiable_loss(vae.model, vae.guide, x) / len(x)).backward()
        for side in ("model", "guide") if step % guide_steps == 0 else ("guide",):
            if side in max_norm:
                norm = sum(p.grad.square().sum() for p in sides[side]).sqrt()
                for p in sides[side]:
                    p.grad *= min(1.0, (max_norm[side] / (norm + 1e-6)).item())
            optimizers[side].step()


@pytest.mark.parametrize(
    ("guide_steps", "max_norm", "compiled"),
    [(3, {}, False), (3, {"guide": 0.2}, True), (1, {"model": 0.3, "guide": 0.2}, False), (1, {"model": 0.1}, False)],
)
def test_steps_and_clipping_of_the_guide_are_those_of_a_loop_by_hand(
    guide_steps, max_norm, compiled, without_machine_code
):
    """Four batches an epoch, so that the count goes on from one epoch to the next."""
    vae = linear_gaussian(1)
    batches, seed = batches_of(vae, 4), suite_seed(5)
    ours, hand = copy.deepcopy(vae), copy.deepcopy(vae)
    settings = {"lr": RATES, "guide_steps": guide_steps, "max_grad_norm": max_norm or None, "seed": seed}
    pv.fit(ours, batches, epochs=2, num_particles=2, **settings, **{**EAGER, "compile": compiled})
    by_hand(hand, batches, 2, guide_steps, RATES, max_norm, seed)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, dict(hand.named_parameters())[name], rtol=1e-9, atol=1e-12)
    other = copy.deepcopy(vae)
    by_hand(other, batches, 2, guide_steps + 1, RATES, {}, seed)
    assert (parameters_of(other) - parameters_of(ours)).abs().max() > 1e-4


def test_a_skipped_step_does_not_count_as_one_of_the_guide():
    vae = linear_gaussian(1)
    batches = batches_of(vae, 6)
    spoilt = [*batches[:1], 1e200 * batches[0], *batches[1:]]
    ours, whole = copy.deepcopy(vae), copy.deepcopy(vae)
    settings = {"epochs": 1, "lr": RATES, "guide_steps": 3, "objective": "elbo_analytic_kl", "nonfinite": "skip"}
    with torch.no_grad():
        for one in (ours, whole):
            one.guide_log_scale.fill_(-40.0)  # so that draws do not matter
    with pytest.warns(UserWarning, match="1 of 7 steps"):
        pv.fit(ours, spoilt, **settings, **EAGER)
    pv.fit(whole, batches, **settings, **EAGER)
    torch.testing.assert_close(parameters_of(ours), parameters_of(whole), rtol=1e-9, atol=1e-9)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_of_one_way_to_train_the_sides(tmp_path):
    def train(vae=None, **settings):
        kept = pv.Checkpoints(tmp_path, minutes=100.0)
        return pv.fit(vae or small_vae(), ring_data(), batch_size=50, seed=1, checkpoints=kept, **settings, **EAGER)

    train(epochs=1)
    for name, value, was in (
        ("lr", {"model": 1e-3, "guide": 2e-3}, "0.001"), ("max_grad_norm", {"guide": 1.0}, "None"),
        ("guide_steps", 2, "1"), ("train", "guide", "'both'"),
    ):  # fmt: skip
        said = refusal(train, epochs=2, **{name: value})
        assert f"was written with {name} {was}, and {name} is now " in said
    content = torch.load(tmp_path / CURRENT, weights_only=True)
    assert content["position"].pop("guide_only") == 0
    for name in ("guide_steps", "train"):
        del content["settings"][name]
    for record in content["history"]:
        del record["guide_lr"]
    torch.save(content, tmp_path / CURRENT)  # as an older version wrote it
    assert train(epochs=2).guide_lr == [None, None]


def test_a_training_ended_within_the_guide_s_steps_goes_on_there(tmp_path):
    """Four batches an epoch and three steps: the first epoch ends with one step of the guide alone."""
    settings = {"guide_steps": 3, "lr": RATES, "max_grad_norm": {"guide": 0.5}, "batch_size": 16, "seed": 1, **EAGER}
    whole, longer = small_vae(), small_vae()
    pv.fit(whole, ring_data(), epochs=2, **settings)
    pv.fit(longer, ring_data(), epochs=1, checkpoints=pv.Checkpoints(tmp_path), **settings)
    content = torch.load(tmp_path / CURRENT, weights_only=True)
    assert content["position"]["guide_only"] == 1
    assert content["settings"]["lr"] == "model 0.01, guide 0.03"
    again = small_vae()
    pv.fit(again, ring_data(), epochs=2, checkpoints=pv.Checkpoints(tmp_path), **settings)
    assert torch.equal(parameters_of(again), parameters_of(whole))
    content["position"]["guide_only"] = 3
    torch.save(content, tmp_path / "x")
    (tmp_path / CURRENT).write_bytes((tmp_path / "x").read_bytes())
    said = refusal(pv.fit, small_vae(), ring_data(), epochs=2, checkpoints=pv.Checkpoints(tmp_path), **settings)
    assert "position.guide_only must be a whole number >= 0 and <= 2, got 3" in said


# Refusals -------------------------------------------------------------------------------------------------------------


def test_sides_that_share_a_parameter_are_refused():
    shared = small_vae(prior=pv.priors.Vamp(torch.randn(3, 2)))
    for settings, name in (
        ({"lr": RATES}, "lr by side"), ({"guide_steps": 2}, "guide_steps"), ({"train": "model"}, "train"),
        ({"max_grad_norm": {"model": 1.0}}, "max_grad_norm by side"),
    ):  # fmt: skip
        said = refusal(pv.fit, shared, ring(), epochs=1, **settings)
        assert said.startswith(f"{name} needs a model and a guide that share no parameter, and they share encoder.")

    class Unused(Normalised):
        def __init__(self):
            super().__init__()
            self.encoder.extra, self.extra = nn.Module(), nn.Linear(2, 2)
            self.encoder.extra.weight = nn.Parameter(torch.ones(1))
            self.encoder.extra.forward = lambda x: x

    pair = Unused()
    pair.model, pair.guide = (lambda x, f=f: (pyro.module("own", pair), f(x)) for f in (pair.model, pair.guide))
    pyro.clear_param_store()
    said = refusal(pv.fit, pair, torch.randn(20, 3), epochs=1, train="guide", objective=ONE_BY_ONE)
    assert said.endswith("is registered by both and used by none at the first batch")
    fixed = linear_gaussian(1)
    for parameter in by_side(fixed)["model"].values():
        parameter.requires_grad_(False)
    said = "guide_steps needs a model with a parameter, found none"
    assert refusal(pv.fit, fixed, draw(fixed, 4), epochs=1, guide_steps=2) == said
    pv.fit(fixed, draw(fixed, 4), epochs=1, train="guide", **EAGER)


def test_more_steps_of_the_guide_than_there_are_steps_are_refused():
    vae = linear_gaussian(1)
    said = "guide_steps must be at most the 4 steps of this training, or the model never moves; got 5"
    assert refusal(pv.fit, vae, draw(vae, 20), batch_size=10, epochs=2, guide_steps=5, **EAGER) == said
    pv.fit(vae, draw(vae, 20), batch_size=10, epochs=2, guide_steps=4, **EAGER)


@pytest.mark.parametrize(("settings", "said"), [
    ({"lr": {"guide": 1e-3}}, "lr must have both of \"model\" and \"guide\", got ['guide']"),
    ({"lr": {"model": 1e-3, "guide": 0.0}}, "lr of the guide must be a finite number > 0, got 0.0"),
    ({"lr": {}}, 'lr must have both of "model" and "guide", got []'),
    ({"max_grad_norm": {}}, 'max_grad_norm must have one or both of "model" and "guide", got []'),
    ({"max_grad_norm": {"z": 1.0}}, "max_grad_norm must have one or both of \"model\" and \"guide\", got ['z']"),
    ({"max_grad_norm": {"guide": -1}}, "max_grad_norm of the guide must be a finite number > 0, got -1"),
    ({"max_grad_norm": {"model": 5.0}, "train": "guide"},
     "max_grad_norm must have the guide, which alone is trained, got ['model']"),
    ({"guide_steps": 0}, "guide_steps must be a whole number >= 1, got 0"),
    ({"train": "encoder"}, "train must be one of both, model, guide; got 'encoder'"),
    ({"train": "model", "guide_steps": 3}, "guide_steps must be 1 where the model alone is trained, got 3"),
])  # fmt: skip
def test_bad_settings_are_refused_before_the_pair_runs(settings, said):
    never = SimpleNamespace(model=None, guide=None)
    never.model = never.guide = lambda x: pytest.fail("the pair was run")
    assert refusal(pv.fit, never, torch.zeros(4, 2), epochs=1, **settings) == said
    assert refusal(pv.race, lambda: small_vae(), ring(), ["elbo"], epochs=1, **settings) == said
