"""Flags of the scripts that are refused: one line and exit status 2, never a traceback."""

from functools import partial

import broken_files as files
import pytest
from helpers import IMAGE_FILES
from refusals import Table, check_refusal
from running_scripts import SCRIPTS, refused_script

CASES = Table()
add = CASES.add


def add_script(command: str, said: str) -> None:
    add(f"script: {command}", f"error: ({said})", refused_script, *command.split(), given=files.corrupt_and_mine)


for low, commands in {
    0: ("demo.py --seed -1", "benchmarks/kill_test.py --seed -1", "papers/semi_supervised.py --warm-up -1"),
    1: (
        *("train.py --num-particles 0", "train.py --checkpoint-epochs 0", "demo.py --epochs 0"),
        "demo.py --epochs 1 --num-samples 0",
        *("papers/tutorials.py --epochs 0", "benchmarks/speed.py --rounds 0", "benchmarks/speed.py --num-samples 0"),
        *(
            *("benchmarks/scaling.py --rounds 0", "benchmarks/gate.py --steps 0"),
            "benchmarks/kill_test.py --kills 0",
            "benchmarks/kill_test.py --epochs 0",
        ),
        *("race.py --processes 0", "race.py --epochs 0", "papers/beyond_gaussian.py --processes 0"),
        *("papers/semi_supervised.py --epochs 0", "papers/semi_supervised.py --batch-size 0"),
    ),
    2: (
        "race.py --num-samples 1",
        *("race.py --num-data 1", "benchmarks/scaling.py --processes 1", "benchmarks/scaling.py --epochs 1"),
        "benchmarks/programs.py --turns 1",
        "papers/rainforth2018.py --num-data 1",
    ),
    256: ("benchmarks/speed.py --num-data 255",),
    4: ("papers/rainforth2018.py --repeats 3", "papers/rainforth2018.py --max-particles 3"),
}.items():
    for command in commands:
        flag, value = command.split()[-2:]
        field = flag.removeprefix("--checkpoint-").removeprefix("--").replace("-", "_")
        add_script(command, f"{field} must be a whole number >= {low}, got {value}")
for name in ("train.py", "demo.py", "papers/tutorials.py", "papers/rainforth2018.py", "benchmarks/speed.py"):
    add_script(f"{name} --out full", "out must be a new or empty folder, and full holds files")
names = ("vqvae", "bit_codes", "semi_supervised", "missing_cells", "disentanglement", "draws", "interpolation")
for name in (*names, "miwae2019", "half_images"):
    add_script(f"papers/{name}.py --out full", "out must be a new or empty folder, and full holds files")
for name in ("train.py", "benchmarks/speed.py"):
    add_script(f"{name} --device abacus", "device must be auto or one that torch can use here, got 'abacus'")
for name in (
    "train.py --dataset mnist",
    "papers/burda2016.py",
    "papers/tutorials.py --images",
    "papers/beyond_gaussian.py",
    "papers/semi_supervised.py",
    "papers/vqvae.py",
    "papers/bit_codes.py",
    "papers/draws.py --images",
    "papers/interpolation.py --images",
    "papers/half_images.py",
):
    add_script(f"{name} --data-root nowhere", f"{IMAGE_FILES[0]}, .* not found in nowhere/MNIST/raw, .+")
for flag in ("latent-dim", "batch-size", "num-particles"):
    add_script(f"train.py --{flag} {10**20}", f"{flag.replace('-', '_')} must be .*, got {10**20}")
for command, said in {
    "train.py --dataset cifar": r"dataset must be one of ring, .+; got 'cifar': did you mean cifar10\?",
    "train.py --objective vimco --num-particles 1": "num_particles must be a whole number >= 2, got 1",
    "train.py --objective iwae": "num_particles must be given with objective iwae: with one it is the elbo",
    "train.py --lr nan": "lr must be a finite number > 0, got nan",
    "train.py --hidden 8 0": "hidden must be a whole number >= 1, got 0",
    "train.py --beta 1e300": r"beta must be .*, got 1e\+300",
    "train.py --seed 99999999999999999999": r"seed must be < 2\^63, got 99999999999999999999",
    "train.py --dataset mnist --data-root corrupt": r"\S+/t10k-labels-idx1-ubyte is not a readable IDX .+",
    "train.py --out full --resume": "full holds no run to resume: name its folder with --out, or .+",
    "train.py --resume --epochs 3": "runs/ring-elbo-seed0 holds no run to resume: .+",
    "train.py --out full --resume --dataset ring": "out must be a new or empty folder, and full holds files",
    "train.py --out full/notes.txt/run": r"out must be a folder, and \S+/full/notes.txt is a file",
    "train.py --out /proc/run": "No such file or directory: /proc/run|out must be .+",
    "train.py --config nowhere.json": r"nowhere.json is not a readable config \(.+\)",
    "train.py --config full/notes.txt": r"full/notes.txt is not a readable config \(.+\)",
    "train.py --checkpoint-minutes 0": "minutes must be a finite number > 0, got 0.*",
    "evaluate.py nowhere": "run folder nowhere does not exist",
    "evaluate.py full": "full holds no checkpoint",
    "compare.py nowhere": "run folder nowhere does not exist",
    "compare.py full": "full holds no checkpoint",
    "papers/rainforth2018.py --seed -1": "seed must be a whole number >= 0, got -1",
    "demo.py --epochs 1 --num-data 2001": "num_data must be <= 2000, the number of test data; got 2001",
    "race.py --seeds": "seeds must hold at least one, got none",
    "race.py --seeds -1": "seed must be a whole number >= 0, got -1",
    "race.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "race.py --objective dreg": "objective must be given in --objectives, got --objective 'dreg'",
    "race.py --patience 2": "patience must be None in a race, got 2",
    "race.py --objectives": "objectives must hold at least one",
    "race.py --objectives elbo elbo": "objectives must differ, got elbo, elbo",
    "race.py --objectives renyi(alpha)": r"objective must be a name or name\(setting=value, ...\), got .+",
    "race.py --objectives renyi(beta=2)": "beta must be one of num_particles, .+ with objective renyi; got 2",
    "race.py --objectives magic": "objective must be one of elbo, .+; got 'magic'",
    "race.py --out full/notes.txt": "folder must be a folder, got the file full/notes.txt",
    "papers/burda2016.py --k 2": r"k must be of 1, 5 and 50, got \(2,\)",
    "papers/burda2016.py --swap": r"swap needs k of 1 and 50, got \(1, 5\)",
    "papers/tutorials.py --seeds -1": "seed must be a whole number >= 0, got -1",
    "papers/tutorials.py --seeds": "seeds must .*, got .*",
    "papers/tutorials.py --only nothing": "only must be a part of some run's name, got 'nothing'",
    "benchmarks/speed.py --only nothing": "only must be in a row's name, got 'nothing'",
    "benchmarks/programs.py --only nothing": "only must be in a program's name, got 'nothing'",
    "benchmarks/gpu.py --parts all": "parts must be of tests, speed, burda, got 'all'",
    "benchmarks/gpu.py --total 0": "total must be a finite number > 0, got 0.0",
    "benchmarks/gpu.py --limit 0": "limit must be a finite number > 0, got 0.0",
    "benchmarks/gpu.py --device tpu": "device must be one of cuda, cpu; got 'tpu'",
    "papers/missing_cells.py --share 1": "share must be a finite number > 0 and < 1, got 1.0",
    "papers/half_images.py --num-data 7": "num_data must be a whole number >= 8, got 7",
    "papers/missing_cells.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "papers/disentanglement.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "papers/disentanglement.py --betas 1 0": "betas must be a finite number > 0, got 0.0",
    "papers/disentanglement.py --epochs 0": "epochs must be a whole number >= 1, got 0",
    "papers/interpolation.py --steps 2": "steps must be a whole number >= 3, got 2",
    "papers/interpolation.py --seeds": "seeds must .*, got .*",
    "papers/draws.py --repeats 1": "repeats must be a whole number >= 2, got 1",
    "papers/vqvae.py --seed -1": "seed must be a whole number >= 0, got -1",
    "papers/bit_codes.py --num-particles 1": "num_particles must be a whole number >= 2, got 1",
    "papers/bit_codes.py --temperature 0": "temperature must be a finite number > 0, got 0.0",
    "papers/bit_codes.py --hidden 8 0": "hidden must be a whole number >= 1, got 0",
    "papers/bit_codes.py --seeds": "seeds must hold at least one, got none",
    "papers/bit_codes.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "papers/semi_supervised.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "papers/tutorials.py --seeds 1 1": r"seeds must differ, got \(1, 1\): .+",
    "papers/bit_codes.py --num-bits 0": "num_bits must be a whole number >= 1, got 0",
    "papers/semi_supervised.py --seeds": "seeds must hold at least one, got none",
    "papers/semi_supervised.py --seeds 0 -1": "seed must be a whole number >= 0, got -1",
    "papers/semi_supervised.py --num-labelled 105": "num_labelled must be a multiple of 10, got 105",
    "papers/semi_supervised.py --num-labelled 0": "num_labelled must be a whole number >= 10, got 0",
    "papers/semi_supervised.py --alpha 0": "alpha must be a finite number > 0, got 0.0",
}.items():
    add_script(command, said)
for command, said in {  # found once there are images
    "papers/vqvae.py --num-codes 1": "num_codes must be a whole number >= 2, got 1",
    "papers/vqvae.py --hidden 0": "hidden must be a whole number >= 1, got 0",
    "papers/vqvae.py --commitment 0": "commitment must be a finite number > 0, got 0.0",
    "papers/vqvae.py --num-codes 5000": "x must have a token for each of [0-9]+ unused codes, got [0-9]+ tokens",
    "papers/vqvae.py --epochs 0": "epochs must be a whole number >= 1, got 0",
    "papers/bit_codes.py --num-data 1000": "num_data must be <= .+, got 1000",
    "papers/semi_supervised.py --num-labelled 1000": "num_labelled must be <= .+, for .+ of the rarest digit, got 1000",
}.items():
    flags = ["--data-root", str(files.IMAGES), "--num-train", "30"]
    given = partial(files.write_images, files.IMAGES, nums=(5_040, 12))
    add(f"script: {command}", f"error: {said}", refused_script, *command.split(), *flags, given=given)
A_FLAG = {
    "papers/burda2016.py": "--num-samples",
    "papers/rainforth2018.py": "--repeats",
    "compare.py": "--repeats",
    "evaluate.py": "--num-samples",
    "demo.py": "--seed",
    "benchmarks/speed.py": "--rounds",
    "benchmarks/kill_test.py": "--kills",
    "papers/front_picture.py": "--repeats",
    "benchmarks/gate.py": "--steps",
    "benchmarks/gpu.py": "--total",
    "benchmarks/programs.py": "--turns",
    "benchmarks/answers.py": "--num-samples",
    "benchmarks/dais_in_numpyro.py": "--num-transitions",
}
OF_A_RUN = ("evaluate.py", "compare.py", "papers/front_picture.py")
for number, name in enumerate(SCRIPTS):  # each script one of the three, which all have from one function
    flag, run = A_FLAG.get(name, "--epochs"), ["full"] if name in OF_A_RUN else []
    field = flag[2:].replace("-", "_")
    case, flags, said = (
        ("a wrong type", [flag, "many"], f"error: {field} must be a (whole )?number, got 'many'"),
        ("an unknown flag", ["--magic", "3"], r"error: \w+.py has no flag --magic; --help lists those that it has"),
        ("no value", [flag], f"error: {field} must have a value, got none"),
    )[number % 3]
    add(f"script: {name} {case}", said, refused_script, name, *run, *flags, given=files.mine)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)


def test_the_table_has_every_script():
    assert {case.name.split()[1] for case in CASES} == set(SCRIPTS)
