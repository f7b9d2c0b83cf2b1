"""Draws the picture of the README: a VAE's samples and reconstructions, and what five estimators' gradients are worth.

python scripts/train.py --dataset mnist --epochs 10 --out runs/mnist
python scripts/papers/front_picture.py runs/mnist --out docs/front.png

On the right is the signal-to-noise ratio of the guide's gradient, |mean| / standard deviation over repeats, against the
number of draws K, at the parameters of the trained run.
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import local_seed, require, require_count, require_seed, write_figure

ESTIMATORS = ("elbo", "sticking_the_landing", "iwae", "dreg", "score_function")
SIZES = (1, 4, 16, 64)
ROWS, COLUMNS = 8, 10


def main(
    run: Annotated[Path, tyro.conf.Positional],
    num_data: int = 32,
    repeats: int = 40,
    seed: int = 0,
    out: str = "front.png",
) -> None:
    """Draw samples, reconstructions and signal-to-noise ratios of a run on images.

    Args:
        run: its folder
        num_data: the first so many test images are the batch whose gradients are taken
        repeats: gradients of each estimator at each K
        seed: fixes the draws
        out: file of the picture
    """
    require_count("num_data", num_data)
    require_count("repeats", repeats, 2)
    require_seed(seed)
    is_png = out.endswith(".png") and Path(out).parent.is_dir()
    require(is_png, f"out must be a .png in a folder that exists, got {out}")
    trained = pv.load_run(run)
    require(len(trained.data.event_shape) == 3, f"run must be one on images, and {run} is on {trained.config.dataset}")
    vae, x = trained.vae, trained.data.test_x
    num_rows = min(ROWS // 2, len(x) // COLUMNS)
    require(num_rows > 0, f"run must have {COLUMNS} test images to draw, got {len(x)}")
    figure = Figure(figsize=(13.5, 4.5), layout="constrained")
    samples, again, ratios = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    with torch.no_grad(), local_seed(seed):
        pv.plots.image_grid(vae.sample(ROWS * COLUMNS, mean=True), COLUMNS, "samples", samples)
        shown = x[: num_rows * COLUMNS].unflatten(0, (-1, COLUMNS))
        pairs = torch.stack((shown, vae.reconstruct(shown.flatten(0, 1)).view_as(shown)), 1)
        pv.plots.image_grid(pairs.flatten(0, 2), COLUMNS, "test images, each row above its reconstruction", again)
    settings: dict[str, Any] = {"repeats": repeats, "compile": False, "seed": seed}
    found = pv.compare(vae.model, vae.guide, x[:num_data], objectives=ESTIMATORS, num_particles=SIZES, **settings)
    print(found)
    pv.plots.against_size(found.curves("guide", "snr"), ylabel="SNR of the guide's gradient", axes=ratios)
    write_figure(Path(out), figure)
    print(f"picture: {out}")


if __name__ == "__main__":
    run_script(main)
