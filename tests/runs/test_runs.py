import json
import math
import os
import statistics
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import suite_seed, tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pyrovae as pv
from pyrovae.runs import TensorBoard, build_vae, measure, results_table, train_run

SMALL = {"dataset": "ring", "hidden": (8,), "epochs": 2, "batch_size": 500}
NUM_EPOCHS = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ring"
    return train_run(pv.RunConfig(**{**SMALL, "epochs": NUM_EPOCHS, "lr": 0.01}, beta=2.0), folder)


def test_codes_of_more_bits_than_can_be_enumerated_are_measured_without_that():
    data = pv.load("ring", num_test=10)
    vae = pv.VAE((2,), latent_dim=20, hidden=(4,), likelihood=pv.Gaussian(0.5), posterior="bernoulli")
    result = measure(vae, data, num_samples=10)
    assert result["log_px_enumeration"] is None
    assert math.isfinite(result["log_px"])


def test_the_error_over_data_in_file_units_is_of_rows_with_different_cells_missing():
    nan = float("nan")
    cells = torch.tensor([[0.0, 5.0], [20.0, 5.0], [0.0, nan], [20.0, 1005.0], [0.0, 1005.0], [nan, 1005.0]])
    data = pv.load(cells, kinds="continuous", missing="mask", standardise=True, shares=(1, 0, 0))
    data = replace(data, test_x=data.train_x, test_y=data.train_y)
    vae = pv.VAE((2,), latent_dim=1, hidden=(2,), likelihood=pv.Gaussian(1.0), missing="mask")
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)  # then log p(x) is that of a normal, whatever z is
    result = measure(vae, data, num_samples=20)
    by_hand = []
    for row in data.in_file_units(data.test_x):
        logs = [
            -0.5 * ((cell - column.mean) / column.sd) ** 2 - math.log(column.sd * math.sqrt(2 * math.pi))
            for cell, column in zip(row.tolist(), data.columns, strict=True)
            if not math.isnan(cell)
        ]
        by_hand.append(sum(logs))
    assert result["log_px_in_file_units"] == pytest.approx(statistics.mean(by_hand), abs=1e-5)
    error = statistics.stdev(by_hand) / math.sqrt(6)
    assert result["log_px_in_file_units_data_error"] == pytest.approx(error, rel=1e-5)
    assert result["log_px_data_error"] < 0.5 * error
    rows = [line.rsplit(None, 1) for line in results_table({"run": result}).splitlines()]
    label = "standard error over data"
    at = [row[0] for row in rows].index(label)
    assert rows[at + 1] == [f"{label}, in the units of the file", f"{error:.3f}"]


def test_a_run_comes_back_as_it_was(trained):
    run = pv.load_run(trained.folder)
    assert run.config == trained.config
    assert repr(run) == f"run {trained.folder}: elbo on ring, {NUM_EPOCHS} of {NUM_EPOCHS} epochs"
    assert run.history == trained.history
    for name, value in trained.vae.state_dict().items():
        assert torch.equal(run.vae.state_dict()[name], value)
    assert torch.equal(run.data.test_x, trained.data.test_x)
    assert run.vae.beta.item() == 2.0
    seeds = []
    for vae in (run.vae, trained.vae):
        torch.manual_seed(0)
        seeds.append(pv.log_marginal(vae.model, vae.guide, run.data.test_x[:50], num_samples=20).log_px)
    assert torch.equal(*seeds)


def test_the_same_config_gives_the_same_run_whatever_was_drawn_before(tmp_path):
    config = pv.RunConfig(**SMALL, beta=2.0)
    one = train_run(config, tmp_path / "one")
    torch.manual_seed(12345)
    again = train_run(config, tmp_path / "again")
    assert again.history.loss == one.history.loss
    assert again.history.elbo == one.history.elbo
    other = train_run(replace(config, seed=1), tmp_path / "other")
    assert other.history.loss != one.history.loss


def test_metrics_have_a_line_per_epoch_with_the_history(trained):
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == trained.history.records()
    assert [line["epoch"] for line in lines] == list(range(1, NUM_EPOCHS + 1))


def test_a_run_that_is_broken_off_goes_on_from_its_folder(tmp_path, monkeypatch):
    config = pv.RunConfig(**{**SMALL, "epochs": 5, "patience": 4, "schedule": "cosine"})
    whole = train_run(config, tmp_path / "whole")
    real = pv.training.checkpoints.Checkpoints.save

    def interrupted(self, state, check):
        real(self, state, check)
        if state["position"]["epoch"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pv.training.checkpoints.Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "run", checkpoint_epochs=1)
    broken = pv.load_run(tmp_path / "run")
    assert broken.history.epoch == [1, 2, 3]
    assert broken.history.loss == whole.history.loss[:3]
    with open(tmp_path / "run/metrics.jsonl", "a") as file:  # as a power cut leaves it
        file.write('{"epoch": 4, "loss"')
    run = train_run(config, tmp_path / "run", resume=True)
    assert run.history.loss == whole.history.loss
    assert all(torch.equal(value, whole.vae.state_dict()[name]) for name, value in run.vae.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == run.history.records()
    with pytest.warns(UserWarning, match="run is finished, so nothing was trained"):
        finished = train_run(config, tmp_path / "run", resume=True)
    assert finished.history == run.history
    with pytest.raises(pv.InputError, match=r"the run in .* was begun with lr 0.001, and lr is now 0.5"):
        train_run(replace(config, lr=0.5), tmp_path / "run", resume=True)


def test_a_run_that_ended_goes_on_for_longer_and_more_patience_lets_it(tmp_path):
    config = pv.RunConfig(**{**SMALL, "epochs": 6, "lr": 0.5, "patience": 1})  # so large a rate soon makes things worse
    early = train_run(config, tmp_path / "run")
    assert len(early.history.epoch) < 6
    whole = train_run(replace(config, patience=9, epochs=8), tmp_path / "whole")
    with pytest.warns(UserWarning, match="nothing was trained; patience 1 ended it after epoch"):
        train_run(replace(config, epochs=8), tmp_path / "run", resume=True)
    run = train_run(replace(config, patience=9, epochs=8), tmp_path / "run", resume=True)
    assert run.history.loss == whole.history.loss
    assert pv.load_run(tmp_path / "run").config == whole.config
    cosine = pv.RunConfig(**SMALL, schedule="cosine")
    train_run(cosine, tmp_path / "cosine")
    with pytest.raises(pv.InputError, match="on which its schedule depends: for 3 take schedule 'constant' from the"):
        train_run(replace(cosine, epochs=3), tmp_path / "cosine", resume=True)
    assert pv.RunConfig.load(tmp_path / "cosine/config.json").epochs == 2


def test_a_run_that_was_not_begun_begins_and_one_without_an_epoch_cannot_be_looked_at(tmp_path):
    config = pv.RunConfig(**SMALL)
    assert train_run(config, tmp_path / "new", resume=True).history.epoch == [1, 2]
    (tmp_path / "new/checkpoint.pt").unlink()  # the first checkpoint of all is left
    with pytest.raises(pv.InputError, match="was interrupted before its first epoch ended"):
        pv.load_run(tmp_path / "new")
    (tmp_path / "new/checkpoint-previous.pt").unlink()
    with pytest.raises(pv.InputError, match="new holds no checkpoint"):
        pv.load_run(tmp_path / "new")
    before = tree(tmp_path)
    with pytest.raises(pv.InputError, match=r"new holds config.json and metrics.jsonl and no checkpoint, so that its"):
        train_run(config, tmp_path / "new", resume=True)
    assert tree(tmp_path) == before


def test_in_the_place_of_a_damaged_checkpoint_comes_the_one_before(trained, tmp_path):
    folder = tmp_path / "run"
    train_run(pv.RunConfig(**SMALL), folder, checkpoint_epochs=1)
    (folder / "checkpoint.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint.pt is not a readable checkpoint .*: the one before it is used"):
        assert len(pv.load_run(folder).history.epoch) >= 1


def test_initial_parameters_come_from_the_seed_and_leave_the_callers_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (build_vae(pv.RunConfig(**SMALL, seed=seed), (2,)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.encoder.output.weight, same.encoder.output.weight)
    assert not torch.equal(one.encoder.output.weight, other.encoder.output.weight)


def test_a_run_that_may_only_be_read_is_loaded(trained, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write to a read-only folder
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert pv.load_run(trained.folder).history == trained.history
    with pytest.raises(pv.InputError, match=r"must be writable, and .* is not \(Permission denied\)"):
        pv.fit(trained.vae, trained.data, epochs=1, checkpoints=pv.Checkpoints(trained.folder))


def test_the_checkpoint_is_an_ordinary_one_of_torchs(trained):
    assert zipfile.is_zipfile(trained.folder / "checkpoint.pt")
    checkpoint = torch.load(trained.folder / "checkpoint.pt", weights_only=True)
    assert tuple(checkpoint["event_shape"]) == (2,)


# Evaluation ----------------------------------------------------------------------------------------------------------


def test_the_evaluation_is_what_the_estimators_say(trained):
    result = measure(trained.vae, trained.data, num_samples=4_000, num_data=20, seed=suite_seed(3))
    x = trained.data.test_x[:20]
    truth, _ = pv.quadrature_log_marginal(trained.vae.model, x)
    assert result["num_data"] == 20
    assert result["log_px_quadrature"] == pytest.approx(truth.mean().item(), abs=1e-9)
    off = result["log_px_quadrature"] - result["log_px"]
    assert result["verdict"].startswith(f"log p(x) is {truth.mean().item():.3f} nats by quadrature (error at most ")
    side = "below" if off >= 0 else "above"
    assert f"; importance sampling is {abs(off):.2g} nats {side} it (Monte Carlo error " in result["verdict"]
    assert abs(result["log_px"] - truth.mean().item()) < 5 * result["log_px_standard_error"] + 1e-4
    assert result["elbo"] < result["iwae_50"] < result["log_px"] + 5 * result["log_px_standard_error"]
    assert result["data_log_density"] == pytest.approx(trained.data.log_density(x).mean().item(), abs=1e-5)
    q = trained.vae.encode(x)
    with torch.no_grad():
        z = q.rsample((4_000,))
        elbo = (trained.vae.decode(z).log_prob(x) + trained.vae.prior.log_prob(z) - q.log_prob(z)).mean(0)
    assert abs(result["elbo"] - elbo.mean().item()) < 10 * result["elbo_standard_error"]


def test_the_evaluation_does_not_depend_on_training_beta_or_the_callers_generator(trained):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = measure(trained.vae, trained.data, num_samples=30, num_data=4)
    assert torch.equal(torch.get_rng_state(), state)
    trained.vae.set_beta(1.0)
    torch.manual_seed(6)
    other = measure(trained.vae, trained.data, num_samples=30, num_data=4)
    trained.vae.set_beta(2.0)
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_grey_pixels_get_a_cross_entropy_bound_and_never_a_log_px():
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(allow_grey=True))
    x, y = torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.long)
    data = pv.Dataset("grey", "grey", x, y, x, y, x, y)
    result = measure(vae, data, num_samples=10)
    assert result["measure"] == "cross-entropy bound"
    assert [result[name] for name in ("log_px", "iwae_50", "log_px_quadrature", "data_log_density")] == [None] * 4
    table = results_table({"run": result})
    assert "cross-entropy bound" in table
    assert "log p(x)" not in table
    assert "ELBO" not in table
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number >= 1, got 0"),
        ({"num_samples": 5, "num_data": 0}, "num_data must be a whole number >= 1, got 0"),
        ({"num_samples": 5, "num_data": 2_001}, "num_data must be <= 2000, the number of test data; got 2001"),
    ],
)
def test_bad_evaluation_settings_are_refused(trained, settings, message):
    with pytest.raises(pv.InputError, match=message):
        measure(trained.vae, trained.data, **settings)


def test_the_table_shows_each_value_with_its_error(trained):
    result = measure(trained.vae, trained.data, num_samples=50, num_data=4)
    line = next(line for line in results_table({"run": result}).splitlines() if line.startswith("ELBO"))
    assert line.split()[1:] == [f"{result['elbo']:.3f}", f"({result['elbo_standard_error']:.2g})"]


def test_a_run_may_train_its_sides_apart(tmp_path):
    own = {"guide_lr": 0.03, "guide_max_grad_norm": 5.0, "guide_steps": 2}
    run = train_run(pv.RunConfig(**SMALL, **own), tmp_path / "run", progress=False)
    assert run.history.guide_lr == [0.03] * len(run.history.epoch)
    assert json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["guide_lr"] == 0.03
    saved = pv.Checkpoints(run.folder).load()["settings"]
    lr = f"model {run.config.lr!r}, guide 0.03"
    assert (saved["lr"], saved["max_grad_norm"], saved["guide_steps"]) == (lr, "guide 5.0", 2)


def test_the_history_table_has_at_most_ten_rows_and_the_last_epoch():
    history = pv.History()
    for epoch in range(1, 26):
        record = {"epoch": epoch, "loss": math.pi, "elbo": None, "reconstruction": None, "kl": None}
        record |= {"train_reconstruction": None, "train_kl": None}
        history.append({**record, "lr": 1e-3, "skipped": None, "seconds": 0.5})
    rows = history.table().splitlines()
    assert rows[0].split() == ["epoch", "loss", "lr", "seconds"]
    assert [int(row.split()[0]) for row in rows[2:]] == [1, 4, 7, 10, 13, 16, 19, 22, 25]


# TensorBoard ----------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_history_and_samples_also_of_a_run_that_goes_on(tmp_path):
    config = pv.RunConfig(**{**SMALL, "epochs": 3})
    board, folder = TensorBoard(), tmp_path / "run"

    def interrupted(run, record):
        board(run, record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config, folder, checkpoint_epochs=1, on_epoch=interrupted)
    run = train_run(config, folder, resume=True, on_epoch=TensorBoard())
    plain = train_run(config, tmp_path / "plain")
    assert run.history.loss == plain.history.loss  # drawing does not change the training's random numbers
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    for name in ("elbo", "train_reconstruction", "train_kl"):
        values = getattr(run.history, name)
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)[name] for line in lines] == values == getattr(plain.history, name)
    assert [event.step for event in events.Images("samples")] == [1, 2, 3]
    assert "skipped" not in events.Tags()["scalars"]


def test_tensorboard_writes_through_a_link_of_ones_own_and_of_nobody_else(tmp_path, monkeypatch):
    run = train_run(pv.RunConfig(**{**SMALL, "epochs": 1}), tmp_path / "run", progress=False)
    (tmp_path / "outside").mkdir()
    (tmp_path / "run/tensorboard").symlink_to(tmp_path / "outside")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(pv.InputError, match="run/tensorboard must be a folder, and is a symbolic link of another"):
            TensorBoard()(run, run.history.records()[0])
    assert list((tmp_path / "outside").iterdir()) == []
    TensorBoard()(run, run.history.records()[0])
    assert len(list((tmp_path / "outside").iterdir())) == 1


def test_tensorboard_that_is_not_there_is_said_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(pv.InputError, match="tensorboard must be installed"):
        TensorBoard()


def test_a_measure_that_is_known_of_one_run_alone_is_unknown_of_the_other():
    """The error of quadrature was infinite for one datum, and the table ended in a traceback."""
    names = ("elbo", "iwae_50", "log_px")
    known = dict.fromkeys(names, -2.0) | {f"{name}_standard_error": 0.1 for name in names}
    known |= {"log_px_data_error": 0.01, "share_pareto_k_above_0.7": 0.1, "active_units": 2, "measure": "ELBO"}
    known |= {"num_data": 9, "num_samples": 8, "log_px_enumeration": None, "data_log_density": None}
    of_grid = {"log_px_quadrature": -2.5, "log_px_quadrature_error": 0.001}
    nothing = dict.fromkeys(of_grid)
    for one, other in ((of_grid, nothing), (nothing, of_grid)):
        (line,) = [row for row in results_table({"a": known | one, "b": known | other}).splitlines() if "quadr" in row]
        assert ("unknown" in line, "-2.500 (0.001)" in line) == (True, True)
    assert "quadrature" not in results_table({"a": known | nothing})
