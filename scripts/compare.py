"""Compares estimators on a trained run: bound, signal and noise of the gradients, bias, time and memory.

The same as `pyrovae compare`; the code is in `pyrovae/cli/compare.py`.

python scripts/compare.py runs/mnist --objectives elbo iwae dreg --num-particles 1 8 64
python scripts/compare.py runs/mnist --objectives iwae "miwae(num_batches=4)" --repeats 1000 --max-seconds 600
"""

from pyrovae.cli import compare_objectives, run_script

if __name__ == "__main__":
    run_script(compare_objectives)
