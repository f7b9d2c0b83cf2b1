"""The `pyrovae` command: what it says of its flags, of mistyped ones, and of what comes next."""

import json
import os
import re
import signal
import sys
import warnings

import pytest
from running_scripts import FOLDER, command_here, module_here, without_drawing

import pyrovae as pv
from pyrovae.cli import app, command_line, helper_processes
from pyrovae.common import progress
from pyrovae.lab import comparison_report
from pyrovae.runs import report, train_run
from pyrovae.training.steps import Steps

GROUPS = ["data", "model", "objective", "training", "run"]


def test_it_does_what_the_scripts_do(tmp_path, monkeypatch):
    """By `python -m pyrovae`, as torchrun starts it, too; test_streams.py starts a process of its own by it."""
    flags = ["--dataset", "four_clusters", "--hidden", "4", "--epochs", "1", "--out", "a run"]
    without_drawing(monkeypatch)
    done = module_here("train", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("next: python -m pyrovae evaluate 'a run'\n")
    evaluated = command_here("evaluate", "a run", "--num-samples", 20, "--num-data", 10, cwd=tmp_path)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "report: a run/report.md" in evaluated.stdout
    few = ("--num-particles", 1, "--num-data", 10, "--repeats", 4, "--no-compile")
    compared = command_here("compare", "a run", "--objectives", "elbo", *few, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    again = command_here("train", "--config", "a run/config.json", "--out", "again", cwd=tmp_path)
    assert again.stdout.endswith("next: pyrovae evaluate again\n")
    assert pv.load_run(tmp_path / "again").config == pv.load_run(tmp_path / "a run").config


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_says_what_each_flag_means_in_groups(command, tmp_path):
    shown = command_here(command, "--help", cwd=tmp_path).stdout
    assert shown.startswith(f"usage: pyrovae {command} ")
    groups = re.findall(r"^\W+(data|model|objective|training|run) options\W+$", shown, re.MULTILINE)
    assert groups == {"train": GROUPS, "race": GROUPS[:-1]}.get(command, [])
    flags = re.split(r"\n--(?=[a-z])", "\n".join(line.strip("│| ") for line in shown.splitlines()))[1:]
    assert len(flags) >= 5
    for flag in flags:  # its name, its text, its default
        text = re.sub(r"^\S+(, --no-\S+| {\S+| \[\S+ \[\S+ ...\]\]\S*| [A-Z]+)*", "", flag)
        assert len(text.split("(default")[0].strip()) > 5, flag
        assert not re.search(r"\(default: (None|\s*)\)|\(default[^()]*\) \(default", " ".join(flag.split())), flag


def test_a_mistyped_word_is_answered_with_the_nearest(tmp_path):
    wrong = command_here("trian", "--epochs", 3, cwd=tmp_path)
    known = ", ".join(app.COMMANDS)
    said = f"error: the command must be one of {known}; got 'trian': did you mean train?\n"
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", said)
    assert command_here("xyz", cwd=tmp_path).stderr == f"error: the command must be one of {known}; got 'xyz'\n"
    flag = command_here("train", "--hiden", 4, cwd=tmp_path)
    said = "error: pyrovae train has no flag --hiden: did you mean --hidden?\n"
    assert (flag.returncode, flag.stdout, flag.stderr) == (2, "", said)
    nothing = command_here(cwd=tmp_path)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr == f"error: a command must be given: one of {', '.join(app.COMMANDS)}\n"


def test_bad_input_is_one_line(tmp_path):
    for arguments, said in (
        (("evaluate", "nowhere"), "run folder nowhere does not exist"),
        (("train", "--epochs", 0), "epochs must be a whole number >= 1, got 0"),
        (("train", "--config", "nowhere.json"), "nowhere.json is not a readable config ([Errno 2] No such file"),
        (("race", "--seeds", "--out", "out"), "seeds must hold at least one, got none"),
    ):
        done = command_here(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {said}")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_version_is_the_packages(tmp_path):
    assert command_here("--version", cwd=tmp_path).stdout == f"pyrovae {pv.__version__}\n"


def test_what_comes_next_is_typed_as_this_program_was(tmp_path, monkeypatch):
    for program, said in (
        ("/usr/bin/pyrovae", "pyrovae evaluate 'my run'"),
        ("/lib/pyrovae/__main__.py", "python -m pyrovae evaluate 'my run'"),
        (str(FOLDER / "train.py"), f"python {FOLDER}/evaluate.py 'my run'"),
        ("/somewhere/of_mine.py", "pyrovae evaluate 'my run'"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert command_line.command_for("evaluate", "my run") == said


@pytest.mark.parametrize("program", ["/usr/bin/pyrovae", "scripts/race.py"])
def test_helper_processes_run_the_same_program(program, monkeypatch):
    commands = []

    class Started:
        def __init__(self, command, **settings):
            commands.append(command[1:])

        def wait(self): ...

        terminate = wait

    monkeypatch.setattr(helper_processes.subprocess, "Popen", Started)
    monkeypatch.setattr(sys, "argv", [program, "race", "--processes", "2"])
    with helper_processes.helpers(2):
        pass
    by = ["-m", "pyrovae"] if program == "/usr/bin/pyrovae" else [program]
    assert commands == [[*by, "race", "--processes", "2"]]


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1])
@pytest.mark.parametrize("flag", ["--hidden", "--latent-dim", "--num-particles"])
def test_sizes_that_torch_cannot_hold_are_out_of_memory(flag, size, tmp_path):
    done = command_here("train", "--objective", "iwae", "--num-particles", 2, flag, size, "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: (out of memory: reduce --hidden, .+|\w+ must be .+)\n", done.stderr)


def test_draws_that_torch_cannot_hold_are_out_of_memory(tmp_path):
    train_run(pv.RunConfig(hidden=(4,), epochs=1, batch_size=1_000), tmp_path / "run", progress=False)
    for size in (2**40, 2**62, 2**63 - 1):
        for flags in (("--num-samples", size), ("--methods", f"iwae_{size}"), ("--methods", f"is_{size}")):
            done = command_here("evaluate", "run", "--num-data", 2, *flags, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, "")
            assert re.fullmatch(r"error: (out of memory: reduce .+|\w+ must be .+)\n", done.stderr)
    done = command_here("compare", "run", "--num-particles", 2**62, "--repeats", 4, "--num-data", 2, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("where", ["flag", "config", "file"])
@pytest.mark.parametrize("name", ["epochs", "hidden", "dataset", "objective", "device", "out"])
def test_a_value_of_ten_megabytes_is_refused_in_one_short_line(name, where, tmp_path):
    value, flags = "9" * 10_000_000, ()
    if where == "flag":
        flags = (f"--{name}", value)
    else:
        content = {name: value} if where == "config" else {value: name}
        (tmp_path / "config.json").write_text(json.dumps({**pv.RunConfig().to_dict(), **content}))
        flags = ("--config", "config.json")
    done = command_here("train", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert (done.stderr.count("\n"), len(done.stderr) < 1_100) == (1, True)


def test_what_takes_long_says_how_far_it_is_where_there_is_no_terminal(tmp_path, monkeypatch):
    """The log of a training said nothing before its end."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(report, "draw_figures", lambda run: {})
    monkeypatch.setattr(comparison_report, "draw_comparison", lambda found: {})
    one = ("--objectives", "elbo", "--num-particles", 1, "--repeats", 4, "--num-data", 4, "--no-compile")
    for said, arguments in {
        "training: epoch 2 of 2": ("train", "--hidden", 4, "--batch-size", 1_000, "--epochs", 2, "--out", "run"),
        "log p(x): datum 4 of 4": ("evaluate", "run", "--num-samples", 20, "--num-data", 4),
        "comparing: repeat 4 of 4": ("compare", "run", *one),
    }.items():
        done = command_here(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{re.escape(said)}, \d\d:\d\d", done.stderr, re.MULTILINE), done.stderr
        assert said not in done.stdout  # which may be a table that somebody keeps


def test_a_value_that_reads_like_a_flag_does_not_say_what_to_train(tmp_path):
    """`train --resume --out dataset` began a run on the ring in a folder `dataset`."""
    for folder in ("dataset", "seed", "lr"):
        done = command_here("train", "--resume", "--out", folder, "--epochs", 2, cwd=tmp_path)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert done.stderr.startswith(f"error: {folder} holds no run to resume: ")


def test_without_out_a_resumption_takes_its_settings_from_the_folder_that_the_flags_name(tmp_path):
    """It found the run and took the usual values in place of its own: `begun with num_particles 3, and now None`."""
    flags = ["--dataset", "pinwheel", "--objective", "iwae(num_particles=3)", "--seed", 4]
    small = ["--hidden", 4, "--batch-size", 1_000]
    assert command_here("train", *flags, *small, "--epochs", 1, cwd=tmp_path).returncode == 0
    for epochs in (2, 3):
        done = command_here("train", "--resume", *flags, "--epochs", epochs, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"resumes after epoch {epochs - 1} of {epochs}")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pinwheel-iwae-seed4"]
    other = command_here("train", "--resume", *flags, "--lr", 0.5, cwd=tmp_path)
    assert (other.returncode, "begun with lr 0.001, and lr is now 0.5" in other.stderr) == (2, True)
    new = command_here("train", "--resume", *flags[:-1], 5, *small, "--epochs", 1, cwd=tmp_path)
    assert new.stdout.startswith("no run in runs/pinwheel-iwae-seed5 yet: ")


def test_a_resumption_says_where_it_begins(tmp_path, monkeypatch):
    """With a mistyped folder another run began without a word."""
    flags = ["--hidden", 4, "--batch-size", 1_000, "--dataset", "pinwheel"]
    typed = command_here("train", "--out", "typo", "--resume", "--epochs", 9, "--tensorboard", cwd=tmp_path)
    assert (typed.returncode, typed.stdout, list(tmp_path.iterdir())) == (2, "", [])  # it trained on the ring
    assert typed.stderr.startswith("error: typo holds no run to resume: name its folder with --out, ")

    def said(*more):
        done = command_here("train", *more, "--resume", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[0]

    assert said(*flags, "--epochs", 1, "--out", "run") == "no run in run yet: a new one on pinwheel begins"
    assert command_here("evaluate", "run", "--num-samples", 5, "--num-data", 5, cwd=tmp_path).returncode == 0
    anew = command_here("train", *flags, "--out", "run", cwd=tmp_path)
    assert anew.stderr == ("error: out must be a new or empty folder, and run holds a run: --resume goes on with it\n")
    longer = command_here("train", "--out", "run", "--epochs", 3, "--resume", cwd=tmp_path).stdout.splitlines()
    assert longer[0] == "resumes after epoch 1 of 3"
    assert longer[1] == "written before this run went on: evaluation.json; --overwrite replaces them"
    assert re.match(r"3 epochs in \d+\.\d s, 2 of them in this call; next: ", longer[-1])  # not as if all were new
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["epoch"] == 1
    assert (tmp_path / "run/report.md").read_text().splitlines()[0] == "# pinwheel, elbo, epoch 1"
    assert said("--out", "wrong", *flags, "--epochs", 1) == "no run in wrong yet: a new one on pinwheel begins"
    step = Steps.take

    def take_and_stop(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", take_and_stop)
        stopped = command_here("train", *flags, "--out", "new", "--epochs", 9, cwd=tmp_path).stdout.splitlines()
    assert stopped[-1] == "stopped in epoch 1 of 9; the same command with --resume goes on from there"
    shorter = command_here("train", "--out", "new", "--resume", "--epochs", 2, cwd=tmp_path).stdout.splitlines()
    assert shorter[:2] == ["shortened from 9 to 2 epochs", "resumes in epoch 1 of 2"]
    assert re.match(r"2 epochs in \d+\.\d s; next: ", shorter[-1])
    with (tmp_path / "new/metrics.jsonl").open("a") as file:
        file.write("{}\n" * 3)  # of epochs after its last checkpoint
    longer = ("--out", "new", "--epochs", 5)
    assert said(*longer) == "resumes after epoch 2 of 5: 3 epochs trained since the last checkpoint are repeated"
    with pytest.warns(UserWarning, match=r"nothing was trained; more epochs \(--epochs\) train it for longer"):
        assert "resumes" not in said("--out", "new")
    with warnings.catch_warnings(), monkeypatch.context() as patch:  # as Python does, in place of pytest
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", lambda *warned: sys.stderr.write(warnings.formatwarning(*warned[:4])))
        ended = command_here("train", "--out", "new", "--resume", cwd=tmp_path)
    assert ended.stderr.startswith(
        "warning: the training in new is finished, so "
    )  # not "tyro/_calling.py:255: User..."
    assert ended.stderr.endswith(", so nothing was trained; more epochs (--epochs) train it for longer\n")
    assert ended.stderr.count("\n") == 1
    plain = command_here("train", *flags, "--out", "plain", "--epochs", 1, cwd=tmp_path)
    assert "yet" not in plain.stdout
