"""Measures a trained run on its test data: ELBO, IWAE-50 bound and log p(x), with errors; as does `pyrovae evaluate`.

python scripts/evaluate.py runs/mnist --num-samples 1000
python scripts/evaluate.py runs/mnist --num-data 100 --methods elbo iwae_50 is_5000 is_50000 ais_1000
torchrun --nproc-per-node=2 scripts/evaluate.py runs/mnist

The code is in `pyrovae/cli/evaluate.py`.
"""

from pyrovae.cli import evaluate_run, run_script

if __name__ == "__main__":
    run_script(evaluate_run)
