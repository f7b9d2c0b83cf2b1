"""What is wrong with the words of a command is one line: field, rule, value and the nearest name."""

import pytest
from running_scripts import command_here

NO_FLAG = "pyrovae {} takes no {!r} without a flag".format
IMPUTE = "pyrovae impute FOLDER --data DATA --out OUT"
SAID = {
    # a file or a data set without its flag
    "train mine.csv": f"{NO_FLAG('train', 'mine.csv')}: did you mean --dataset mine.csv?",
    "train --epochs 3 away:make": f"{NO_FLAG('train', 'away:make')}: did you mean --dataset away:make?",
    "train ring": f"{NO_FLAG('train', 'ring')}: did you mean --dataset ring?",
    "race mine": f"{NO_FLAG('race', 'mine')}: did you mean --dataset mine?",
    "impute run mine.csv": f"{NO_FLAG('impute', 'mine.csv')}: did you mean --data mine.csv?",
    "evaluate mine.csv": "run folder must be a folder that training has made, and mine.csv is a file",
    # too many words, or too few
    "evaluate a b": NO_FLAG("evaluate", "b"),
    "train --epochs 3 4": NO_FLAG("train", "4"),
    "evaluate": "folder must be given: pyrovae evaluate FOLDER",
    "evaluate --methods elbo run": "folder must be given: pyrovae evaluate FOLDER",
    "impute run --data mine.csv": f"--out must be given: {IMPUTE}",
    "impute": f"folder and --data and --out must be given: {IMPUTE}",
    # flags
    "train --datset mine.csv": "pyrovae train has no flag --datset: did you mean --dataset?",
    "train --no-lr": "pyrovae train has no flag --no-lr; --help lists those that it has",
    "train --magic=3": "pyrovae train has no flag --magic; --help lists those that it has",
    "evaluate --run X": "pyrovae evaluate has no flag --run: call it as pyrovae evaluate FOLDER",
    "train --overwrite": "pyrovae train has no flag --overwrite; --help lists those that it has",
    # values
    "train --epochs ten": "epochs must be a whole number, got 'ten'",
    "train --epochs=1.5": "epochs must be a whole number, got '1.5'",
    "train --latent-dim two": "latent_dim must be a whole number, got 'two'",
    "train --latent_dim two": "latent_dim must be a whole number, got 'two'",
    "train --max-grad-norm two": "max_grad_norm must be a number, got 'two'",
    "train --lr None": "lr must be a number, got 'None'",
    "train --hidden 8 two": "hidden must be a whole number, got 'two'",
    "race --budget hours": "budget must be one of epochs, seconds, decoder_calls, both, all; got 'hours'",
    "train --epochs": "epochs must have a value, got none",
    "train --out --resume": "out must have a value, got none",
    "train --out -x": "out must have a value, got none",
    "train -x": "pyrovae train has no flag -x; --help lists those that it has",
    "train --": "pyrovae train has no flag --; --help lists those that it has",
    "train --resume yes": "resume takes no value, got 'yes': --resume or --no-resume",
    "train --standardise=False": "standardise takes no value, got 'False': --standardise or --no-standardise",
}


@pytest.mark.parametrize("command", SAID)
def test_a_command_that_is_mistyped_is_refused_in_one_line(command, tmp_path):
    """They were boxes of up to 18 lines, which named flags of other commands, and Python's own words."""
    (tmp_path / "mine.csv").write_text("a\n1\n")
    (tmp_path / "mine").mkdir()
    done = command_here(*command.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {SAID[command]}\n")


@pytest.mark.parametrize(
    "command",
    [
        "train --dataset mine --latent_dim=2 --hidden --no-standardise --kinds a=count b=unit --no-header --epochs 0",
        "train --dataset mine --max-grad-norm None --seed -1 --epochs 0 --header --layers=3 2",
        "race --seeds 0 1 --objectives elbo --budget seconds --processes 0",
    ],
)
def test_what_can_be_typed_is_read(command, tmp_path):
    """The value that is refused is one that only the program itself can judge."""
    (tmp_path / "mine").mkdir()
    done = command_here(*command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(("error: epochs must be a", "error: seed must be", "error: processes must be"))
