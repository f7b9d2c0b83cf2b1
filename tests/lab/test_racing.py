"""race: broken off it ends as one that was not; its numbers against what they are made of; nothing left behind."""

import dataclasses
import functools
import json
import math
import multiprocessing
import shutil
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draw, linear_gaussian, parameters_of, refusal, ring, small_vae, tree
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.common.files import held
from pyrovae.common.rng import derived_seed, local_seed
from pyrovae.evaluation.diagnostics import active_units, latent_use
from pyrovae.lab import racing

SETTINGS = {"epochs": 3, "batch_size": 25, "lr": 0.01, "num_samples": 20, "progress": False}
OBJECTIVES = {"ELBO": "elbo", "IWAE": pv.objectives.IWAE(4)}


def make():
    return small_vae(seed=None)


def run(folder=None, objectives=OBJECTIVES, seeds=(0, 1), data=None, **settings):
    return pv.race(make, ring() if data is None else data, objectives, seeds, folder=folder, **{**SETTINGS, **settings})


def numbers(race):
    """All but the times."""
    return [
        (r.objective, r.seed, r.epochs, r.log_px.value.tolist(), r.active_units, [(p[0], *p[2:]) for p in r.curve])
        for r in race.runs
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    return run(folder), folder


def test_a_run_is_fits_from_the_seeds_start_and_measured_by_log_marginal(whole):
    race, _ = whole
    with local_seed(derived_seed(1, "initial parameters")):
        vae = make()
    data = ring()
    fit = {name: SETTINGS[name] for name in ("epochs", "batch_size", "lr", "progress")}
    pv.fit(vae, data, objective=OBJECTIVES["IWAE"], seed=1, **fit)
    one = race["IWAE"][1]
    other = make()
    one.restore(other)
    assert torch.equal(parameters_of(other), parameters_of(vae))
    with local_seed(derived_seed(1, "evaluation")):
        exact = pv.log_marginal(vae.model, vae.guide, data.test_x, num_samples=20)
    assert torch.equal(one.log_px.value, exact.value)
    assert torch.equal(one.log_px.standard_error, exact.standard_error)
    assert one.active_units == latent_use(vae, data.test_x).num_active
    with local_seed(derived_seed(1, "curve")):
        last = pv.log_marginal(vae.model, vae.guide, data.test_x, num_samples=100)
    assert [point[0] for point in one.curve] == [1, 2, 3]
    assert one.curve[-1][2] == last.mean
    assert one.curve[-1][1] == pytest.approx(one.seconds)


def test_objectives_start_from_the_same_parameters_and_seeds_from_others(whole, monkeypatch):
    starts = {}
    real = racing.fit

    @functools.wraps(real)
    def fit(vae, *args, **kwargs):
        starts.setdefault(kwargs["seed"], []).append(parameters_of(vae))
        return real(vae, *args, **kwargs)

    monkeypatch.setattr(racing, "fit", fit)
    monkeypatch.setattr(racing, "_check", lambda *args: None)
    run()
    assert all(torch.equal(one, two) for one, two in starts.values())
    assert not torch.equal(starts[0][0], starts[1][0])


def test_a_race_that_was_broken_off_ends_as_one_that_was_not(whole, tmp_path, monkeypatch):
    race, _ = whole

    class Killed(BaseException):
        pass

    real_add, calls = racing.LearningCurve.add, []

    def add(self, record):
        real_add(self, record)
        calls.append(record)
        if len(calls) in (2, 5, 8):  # in the midst of a run, after a point of its curve
            raise Killed

    monkeypatch.setattr(racing.LearningCurve, "add", add)
    for _ in range(3):
        with pytest.raises(Killed):
            run(tmp_path)
    monkeypatch.setattr(racing, "log_marginal", lambda *args, **kwargs: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    assert numbers(run(tmp_path)) == numbers(race)


def test_a_finished_race_is_read_and_not_run_again(whole, monkeypatch):
    race, folder = whole
    before = tree(folder)
    monkeypatch.setattr(racing, "log_marginal", None)
    again = run(folder)
    assert numbers(again) == numbers(race)
    assert [r.seconds for r in again.runs] == [r.seconds for r in race.runs]
    assert tree(folder) == before
    assert again.to_dict() == race.to_dict()


def test_an_objective_of_pyros_own_has_the_same_folder_in_every_process(tmp_path):
    one = run(tmp_path, objectives=[Trace_ELBO()], seeds=(0,))
    assert numbers(run(tmp_path, objectives=[Trace_ELBO()], seeds=(0,))) == numbers(one)
    assert [path.name for path in tmp_path.iterdir()] == ["Trace_ELBO-seed0-3epochs"]


def test_nothing_is_left_of_the_param_store_and_the_generators():
    pyro.param("mine", torch.tensor(2.0))
    state = torch.get_rng_state()
    run(objectives=["elbo"], seeds=(0,))
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)


def in_a_process(folder, results):
    torch.set_num_threads(1)
    results.put(numbers(run(folder)))


def test_two_processes_share_a_race(whole, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=in_a_process, args=(tmp_path, results))
    process.start()
    while not list(tmp_path.glob("*/race.lock")):  # it has begun
        time.sleep(0.05)
    assert numbers(run(tmp_path)) == results.get(timeout=120) == numbers(whole[0])
    process.join()


def with_activation(activation="relu", **settings):
    return lambda: small_vae(activation=activation, seed=None, **settings)


@pytest.mark.parametrize(
    ("make_vae", "settings", "message"),
    [
        (with_activation("tanh"), {}, "of another model: its loss on the same data was 1"),
        (with_activation(likelihood=pv.Gaussian(0.6, learn_scale=True)), {}, "of a training from other initial param"),
        (lambda: small_vae(seed=5), {}, "of a training from other initial parameters"),
        (with_activation(), {"optimizer": functools.partial(torch.optim.Adam, eps=0.1)}, "of other optimizer settings"),
        (with_activation(), {"optimizer": torch.optim.SGD}, "written with optimizer 'Adam', and optimizer is now"),
    ],
)
def test_a_run_of_another_model_or_optimiser_is_not_taken_for_this_one(make_vae, settings, message, whole):
    _, folder = whole
    found = refusal(pv.race, make_vae, ring(), OBJECTIVES, (0, 1), folder=folder, **SETTINGS, **settings)
    assert message in found


def test_a_race_of_before_the_checkpoints_said_what_they_are_of_is_read(whole, tmp_path):
    """Its runs had that in a file of their own."""
    race, folder = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/checkpoint*.pt"):
        state = torch.load(path)
        del state["identity"]
        torch.save(state, path)
        (path.parent / "start.json").write_text('{"data": "0123", "loss of the start": 1.0}')
    assert numbers(run(tmp_path)) == numbers(race)


def test_pairs_that_share_a_parameter_or_are_one_are_refused():
    one = make()
    assert "must make all parameters anew at each call" in refusal(pv.race, lambda: one, ring(), OBJECTIVES, **SETTINGS)
    net = torch.nn.Linear(2, 2)

    def sharing():
        vae = make()
        vae.decoder.layers[0] = net
        return vae

    assert "must make all parameters anew at each call" in refusal(pv.race, sharing, ring(), OBJECTIVES, **SETTINGS)


def test_where_draws_are_too_few_to_tell_k_is_unknown():
    race = run(num_samples=5, seeds=(0,), objectives=["elbo"])
    assert race.rows()[0]["share_pareto_k_above_0.7"] is None
    assert "unknown" in str(race)
    json.dumps(race.to_dict(), allow_nan=False)


def test_steps_are_timed_as_they_are_trained(monkeypatch):
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 12)  # 3 epochs of 4 batches
    compiled = []
    real = racing.gradients_of
    monkeypatch.setattr(racing, "gradients_of", lambda *args: real(*args[:3], compiled.append(args[3])))
    racer = racing._Racer(
        make, ring(), OBJECTIVES, (0,), 3, racing.Path("."), None, None, 10, False, {"batch_size": 25}
    )
    racer._step_seconds({})
    assert compiled == [True, True]
    assert racer._compiles("IWAE")
    racer.epochs = 2
    assert not racer._compiles("IWAE")


def test_a_run_that_another_process_has_is_waited_for(whole, tmp_path, monkeypatch):
    race, folder = whole
    name = race.runs[0].folder.name
    waits = []
    lock = held(tmp_path / name / "race.lock")
    lock.__enter__()

    def wait(_):
        waits.append(sorted(path.name for path in tmp_path.iterdir() if list(path.glob("log_px*"))))
        lock.__exit__(None, None, None)
        shutil.copytree(folder / name, tmp_path / name, dirs_exist_ok=True)

    monkeypatch.setattr(racing.time, "sleep", wait)
    assert numbers(run(tmp_path)) == numbers(race)
    assert waits == [sorted(r.folder.name for r in race.runs[1:])]


def test_models_are_raced_as_objectives_are(whole):
    race, _ = whole
    makers = {"same": make, "wider": lambda: small_vae(hidden=(16,), seed=None)}
    models = pv.race(makers, ring(), ["elbo"], (0, 1), **SETTINGS)
    assert models.objectives == ["same", "wider"]
    for ours, theirs in zip(models["same"], race["ELBO"], strict=True):
        assert torch.equal(ours.log_px.value, theirs.log_px.value)
    assert models.difference("wider")["value"] != 0
    both = refusal(pv.race, makers, ring(), ["elbo", "iwae"], **SETTINGS)
    assert both == "objectives must be one where make_vae are several, got elbo, iwae"
    assert "make_vae must be a function without arguments, or a dict of them" in refusal(
        pv.race, {}, ring(), ["elbo"], **SETTINGS
    )


# The numbers ----------------------------------------------------------------------------------------------------------


def made(log_px, budget="epochs"):
    """A `Race` of `{objective: (seeds, data)}` log p(x)."""
    runs = [
        pv.RaceRun(name, seed, 5, pv.Estimate(value, torch.full_like(value, 0.1)), 0.25, 2, 10.0, (), None)
        for name, values in log_px.items()
        for seed, value in enumerate(torch.as_tensor(values, dtype=torch.float64))
    ]
    return pv.Race(tuple(runs), budget)


def test_differences_are_paired_and_their_interval_is_students():
    base = torch.tensor([[-10.0, 0.0, -20.0, 6.0], [-11.0, 1.0, -19.0, 9.0], [-9.0, 2.0, -18.0, 5.0]])
    gain = torch.tensor([[1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0], [1.5, 1.5, 1.0, 2.0]])
    race = made({"a": base, "b": base + gain, "c": base - 0.01 * (gain - 1.5)})
    found = race.difference("b")
    by_seed, by_datum = gain.mean(1), gain.mean(0)
    assert found["value"] == pytest.approx(1.5)
    assert found["seed_error"] == pytest.approx(by_seed.std().item() / math.sqrt(3))
    assert found["data_error"] == pytest.approx(by_datum.std().item() / 2)
    reach = math.hypot(4.302653 * found["seed_error"], 1.959964 * found["data_error"])  # t of two degrees of freedom
    assert found["low"] == pytest.approx(1.5 - reach, rel=1e-5)
    assert found["high"] == pytest.approx(1.5 + reach, rel=1e-5)
    assert race.difference("a", "b")["value"] == pytest.approx(-1.5)
    assert race.verdict == "against a, 3 seeds, equal epochs: b is better; not resolved: c"
    assert made({"a": base, "b": base - gain}).verdict.endswith("b is worse")
    assert made({"a": base[:1], "b": base[:1] + 1}).verdict == "one seed cannot tell a difference from chance"
    row = race.rows()[1]
    assert row["log_px"] == pytest.approx((base + gain).mean().item())
    assert row["log_px_error"] == pytest.approx((base + gain).mean(1).std().item() / math.sqrt(3))
    assert f"1.500 ({found['seed_error']:.2g})" in race.table()


def test_the_table_and_json_have_the_numbers(whole):
    race, _ = whole
    flat = json.loads(json.dumps(race.to_dict(), allow_nan=False))
    assert [row["objective"] for row in flat["rows"]] == ["ELBO", "IWAE"]
    assert len(flat["runs"]) == 4
    for text in (str(race), race.to_markdown(), race._repr_html_()):
        for row in race.rows():
            assert f"{row['log_px']:.3f} ({row['log_px_error']:.2g})" in text


def seconds_of(*of_each):
    """In the place of `_step_seconds`: these, of the objectives in their order."""
    return lambda self, known: dict(zip(self.timed, of_each, strict=True))


def test_equal_seconds_are_those_of_the_first_objective_by_the_times_of_steps(tmp_path, monkeypatch):
    settings = {"budget": "seconds", "epochs": 5, "seeds": (0,)}
    monkeypatch.setattr(racing._Racer, "_step_seconds", seconds_of(0.01, 0.0205))
    race = run(tmp_path, **settings)
    assert [r.epochs for r in race.runs] == [5, 2]
    assert [len(r.curve) for r in race.runs] == [5, 2]
    monkeypatch.setattr(racing._Racer, "_step_seconds", None)  # they are kept
    assert numbers(run(tmp_path, **settings)) == numbers(race)
    both = run(tmp_path, **{**settings, "budget": "epochs"})
    assert numbers(both)[0] == numbers(race)[0]
    assert both.runs[1].epochs == 5
    monkeypatch.undo()
    first = json.loads((tmp_path / "step_seconds.json").read_text())
    more = run(tmp_path, {**OBJECTIVES, "DReG": pv.objectives.DReG(4)}, **settings)
    assert [r.epochs for r in more.runs][:2] == [5, 2]
    then = json.loads((tmp_path / "step_seconds.json").read_text())
    assert len(then) == 3
    assert first.items() <= then.items()
    (tmp_path / "step_seconds.json").write_text('{"ELBO": "fast"}')
    assert "step_seconds.json must have the seconds of steps by name: remove it" in refusal(run, tmp_path, **settings)


@pytest.mark.parametrize(("objectives", "settings"), [
    ({"one": pv.objectives.IWAE(1), "many": pv.objectives.IWAE(64)}, {}),
    (["iwae", "dreg"], {"num_particles": 64}),
])  # fmt: skip
def test_the_times_of_steps_are_those_of_steps(objectives, settings):
    def timed(**more):
        racer = racing._Racer(
            lambda: pv.VAE((2,), latent_dim=2, hidden=(64,), likelihood=pv.Gaussian(0.5)), ring(num_train=2_000),
            objectives, (0,), 2, racing.Path("."), None, None, 10, False, {"batch_size": 500, **more},
        )  # fmt: skip
        return list(racer._step_seconds({}).items())

    (one, first), (many, second) = timed(**settings)
    if not settings:
        assert second > 3 * first
    else:  # the particles are those of the race's settings
        assert "num_particles=64" in one
        assert "num_particles=64" in many
        assert first > 3 * timed(num_particles=1)[0][1]


# Active units ---------------------------------------------------------------------------------------------------------


def test_active_units_of_any_guide_are_those_of_the_closed_form():
    vae = linear_gaussian(0, data_dim=4, latent_dim=3)
    with torch.no_grad():
        vae.guide_weight[1] = 0.0
        vae.guide_weight[2] *= 0.13 / (vae.encode(draw(vae, 4_000)).mean[:, 2].std())  # variance 0.017
    x = draw(vae, 600)
    assert active_units(vae.model, vae.guide, x) == latent_use_of(vae, x) == 2

    def through_another(x):  # the mean of z given u is x's only through the draw u
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))
            pyro.sample("z", dist.Normal(torch.cat((u, x[:, :1].expand(*u.shape[:-1], 1)), -1), 0.1).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.cat((u, u[..., :1]), -1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], 4), 1.0).to_event(1), obs=x)

    assert active_units(model, through_another, x) == 1

    def one_number(x):  # a site without event dimensions
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 0.1))

    def model_of_one(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 4), 1.0).to_event(1), obs=x)

    assert active_units(model_of_one, one_number, x) == 1


def latent_use_of(vae, x):
    return int((vae.encode(x).mean.var(0) > 0.01).sum())


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": []}, "objectives must hold at least one"),
        ({"objectives": "elbo"}, "objectives must be a sequence or a dict of objectives, got 'elbo'"),
        ({"objectives": ["elbo", "elbo"]}, "objectives must differ, got elbo, elbo"),
        ({"objectives": ["vae"]}, "objective must be one of elbo, "),
        ({"objectives": {"a b": "elbo", "a/b": "iwae"}}, "objectives' names must differ as names of folders"),
        ({"objectives": {"later": {2: "elbo"}}}, "objective must have one from epoch 1 on"),
        ({"objectives": {"a": {1: "elbo", 2: "iwae"}}}, "num_particles must be given with objective iwae"),
        ({"objectives": ["elbo", "iwae"]}, "num_particles must be given with objective iwae: with one it is the elbo"),
        ({"objectives": {"a": {1: "elbo", 2: "vimco"}}, "budget": "seconds"}, "budget seconds is for objectives that"),
        ({"seeds": ()}, "seeds must hold at least one, got none"),
        ({"seeds": (1, 1)}, "seeds must differ, got (1, 1)"),
        ({"seeds": (-1,)}, "seed must be a whole number >= 0, got -1"),
        ({"budget": "nats"}, "budget must be one of epochs, seconds; got 'nats'"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"num_data": 31}, "num_data must be <= 30, the number of held-out data; got 31"),
        ({"num_samples": 1}, "num_samples must be a whole number >= 2, got 1"),
        ({"held_out": torch.zeros(1, 2)}, "held_out must hold at least 2 data, got 1"),
        ({"lr": -1.0}, "lr must be a finite number > 0, got -1.0"),
        ({"patience": 3}, "patience must be a keyword of fit that is not the race's own"),
        ({"objective": "elbo"}, "objective must be a keyword of fit that is not the race's own"),
        ({"data": torch.randn(9, 2)}, "held_out must be given where data is no Dataset but Tensor"),
        ({"data": torch.randn(9, 3), "held_out": torch.randn(9, 3)}, "x must have shape (batch, 2)"),
        ({"held_out": torch.randn(9, 3)}, "x must have shape (batch, 2)"),
        ({"held_out": torch.tensor([[math.nan, 0.0]])}, "x must be finite, got nan at index (0, 0)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(settings, message, tmp_path):
    assert message in refusal(run, tmp_path / "race", **settings)
    assert not any(path.is_dir() for path in (tmp_path / "race").glob("*"))


def test_a_folder_of_another_race_is_refused(whole, tmp_path):
    race, folder = whole
    assert "make_vae must return what has a model and a guide, got 3" in refusal(
        pv.race, lambda: 3, ring(), OBJECTIVES, **SETTINGS
    )
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = ring(seed=5)
    for name in ("training", "validation", "held-out"):
        part = {"held-out": "test_x"}.get(name, f"{name.removesuffix('ing')}_x")
        data = dataclasses.replace(ring(), **{part: getattr(other, part)})
        assert f"is of other {name} data: take another folder" in refusal(run, tmp_path, data=data)
    assert "was written with lr 0.01, and lr is now 0.02" in refusal(run, tmp_path, lr=0.02)
    assert "was written with batch_size 25, and batch_size is now 20" in refusal(run, tmp_path, batch_size=20)
    other = {"ELBO": "elbo", "IWAE": pv.objectives.IWAE(5)}
    assert "was written with objective 'IWAE(num_particles=4, " in refusal(run, tmp_path, other)
    larger = refusal(pv.race, lambda: small_vae(hidden=(9,), seed=None), ring(), OBJECTIVES, (0, 1), folder=tmp_path,
                     **SETTINGS)  # fmt: skip
    assert "does not fit the model" in larger
    result = next((tmp_path / race.runs[0].folder.name).glob("log_px*"))
    result.write_bytes(result.read_bytes()[:50])
    assert "is not a readable result" in refusal(run, tmp_path)
