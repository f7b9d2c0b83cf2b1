"""Trains a VAE and keeps the run in a folder: config.json, metrics.jsonl, checkpoint.pt. The same as `pyrovae train`.

python scripts/train.py --dataset mnist --epochs 10 --out runs/mnist
python scripts/train.py --out runs/mnist --resume
python scripts/train.py --out runs/mnist --resume --epochs 20
torchrun --nproc-per-node=2 scripts/train.py --dataset mnist --out runs/mnist

The code is in `pyrovae/cli/train.py`.
"""

from pyrovae.cli import default_flags, run_script, train_vae

if __name__ == "__main__":
    run_script(train_vae, default_flags)
