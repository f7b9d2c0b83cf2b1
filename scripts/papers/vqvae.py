"""Trains a VQ-VAE on MNIST; prints its bound, its reconstruction error and how its codebook is used.

python scripts/papers/vqvae.py
python scripts/papers/vqvae.py --network conv --hidden 32 64 --num-tokens 12
"""

from pyrovae.cli import answer_flags

if __name__ == "__main__":
    answer_flags(__file__)  # before the imports that take seconds

from pathlib import Path
from typing import Any, Literal, cast

import torch
from matplotlib.figure import Figure
from writing import write_results

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.common import check_for_parts, kept_parts, local_seed, require_seed, write_figure
from pyrovae.training import digest

NUM_IMAGES_FOR_RESTARTS = 1_000  # their tokens replace unused codes


def main(
    data_root: str | None = None,
    num_train: int | None = None,
    num_tokens: int = 8,
    num_codes: int = 64,
    code_dim: int = 4,
    network: Literal["mlp", "conv"] = "mlp",
    hidden: tuple[int, ...] = (400,),
    commitment: float = 0.25,
    epochs: int = 15,
    batch_size: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    out: str = "runs/vq",
) -> None:
    """Train on binarised MNIST and measure on its test images.

    Args:
        data_root: folder of the image sets (default: $PYROVAE_DATA, else ./data)
        num_train: the first so many training images (default: 55,000)
        num_tokens: codes per image
        num_codes: size of the codebook
        code_dim: dimensions of a code
        network: mlp or conv, encoder and decoder
        hidden: units, or with conv channels, of the encoder's layers
        commitment: weight of the encoder's pull to its codes
        lr: of Adam, decayed to 0 over the epochs
        seed: fixes the initial parameters and the training
        out: folder of the run; an interrupted one goes on, and a finished one is not run again
    """
    require_seed(seed)
    folder = Path(out)
    check_for_parts(folder)
    data = pv.load("mnist", data_root=data_root, num_train=num_train)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"num_tokens": num_tokens, "num_codes": num_codes, "code_dim": code_dim, "hidden": hidden}
    vae = pv.VQVAE(data.event_shape, **sizes, network=network, commitment=commitment, likelihood=pv.Bernoulli())

    def on_epoch(record: dict[str, float | None]) -> None:
        use, restarted = vae.codebook_use(data.validation_x), 0
        if cast(int, record["epoch"]) <= epochs / 2:  # the decoder needs the other half to learn the new codes
            restarted = vae.restart_unused(data.train_x[:NUM_IMAGES_FOR_RESTARTS])
        print(
            f"epoch {record['epoch']}: validation bound {record['elbo']:.2f} nats, perplexity {use.perplexity:.1f}, "
            f"{restarted} codes restarted",
            flush=True,
        )

    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    told = {"seed": seed, **sizes, "network": network, "commitment": commitment, **settings}

    def train(checkpoints: Path) -> dict[str, Any]:
        vae.restart_unused(data.train_x[:NUM_IMAGES_FOR_RESTARTS])
        kept = pv.Checkpoints(checkpoints, repeated=True)
        fit = {**settings, "schedule": "cosine", "seed": seed, "progress": False}
        history = pv.fit(vae, data, **fit, checkpoints=kept, on_epoch=on_epoch)
        found = {**measure(vae, data.test_x), "seconds": sum(history.seconds)}
        return {"found": found, "state": vae.state_dict()}

    with kept_parts(folder, {**told, "data": digest((data.train_x, data.train_grey, data.test_x))}) as parts:
        trained = parts.get("training", lambda: train(parts.folder_of("training")))
        found = trained["found"]
        vae.load_state_dict(trained["state"])
        px_given_z, rate = found["bound"] + found["rate"], found["rate"]
        text = "\n".join((
            f"bound on log p(x): {found['bound']:.2f} nats, standard error over images {found['bound_data_error']:.2f} "
            f"(log p(x|z) {px_given_z:.2f}, {num_tokens} tokens of {num_codes} codes {rate:.2f})",
            f"squared error of a pixel: {found['squared_error']:.4f}, of the mean image {found['of_mean_image']:.4f}",
            f"codes used: {found['share']:.0%}, perplexity {found['perplexity']:.1f} of {num_codes}",
        ))  # fmt: skip
        print(f"\n{len(data.test_x):,} test images, {found['seconds']:.0f} s of training\n{text}")
        write_results(folder, {**told, **found})
        with local_seed(seed):
            write_figure(folder / "reconstructions.png", draw(vae, data.test_x[:16]))
        print(f"figure: {folder / 'reconstructions.png'}")


@torch.no_grad()
def measure(vae: pv.VQVAE, x: torch.Tensor) -> dict[str, float]:
    """Returns the bound and its rate in nats per image, the squared error per pixel, and the use of the codes."""
    bound = pv.importance_bound(vae.model, vae.guide, x, num_particles=1)  # the guide is deterministic: no noise
    use = vae.codebook_use(x)
    return {
        "bound": bound.mean,
        "bound_data_error": bound.data_error,
        "rate": -vae.prior.log_prob(vae.prior.sample()).item(),
        "squared_error": (vae.reconstruct(x) - x).square().mean().item(),
        "of_mean_image": x.var(0, correction=0).mean().item(),
        "share": use.share,
        "perplexity": use.perplexity,
    }


def draw(vae: pv.VQVAE, x: torch.Tensor) -> Figure:
    """Draws images above their reconstructions, and images decoded from codes drawn at random."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(2, 1))
    pv.plots.reconstructions(x, vae.reconstruct(x), axes=above)
    pv.plots.image_grid(vae.sample(len(x), mean=True), len(x), "codes drawn from the uniform prior", below)
    return figure


if __name__ == "__main__":
    run_script(main)
