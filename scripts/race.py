"""Trains one VAE with several objectives from the same starts, and says which is better and by how much.

The same as `pyrovae race`; the code is in `pyrovae/cli/race.py`.

python scripts/race.py --dataset mnist --objectives elbo iwae dreg --num-particles 16
python scripts/race.py --objectives elbo "miwae(num_batches=4, num_particles=4)" "renyi(alpha=0.5)" --budget seconds
"""

from pyrovae.cli import race_objectives, run_script

if __name__ == "__main__":
    run_script(race_objectives)
