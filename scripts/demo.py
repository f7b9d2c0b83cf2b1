"""Trains one VAE on the ring of Gaussians with the ELBO and with IWAE-50, and measures both against the truth.

make demo, or: python scripts/demo.py --seed 1. The same as `pyrovae demo`; the code is in `pyrovae/cli/demo.py`.
"""

from pyrovae.cli import ring_demo, run_script

if __name__ == "__main__":
    run_script(ring_demo)
