"""The result of one training of a race."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pyrovae.common import InputError, require
from pyrovae.evaluation import Estimate
from pyrovae.training import Checkpoints, check_content, check_fits


@dataclass(frozen=True)
class RaceRun:
    """Holds the result of one training of a race.

    Attributes:
        objective: The name of the objective, or of the model if models are raced.
        seed: The seed of the initial parameters and of the training.
        epochs: The number of epochs.
        log_px: The estimate of log p(x) of the held-out data, in nats per datum.
        share_unreliable: The share of held-out data with Pareto k > 0.7; nan if the draws are too few to tell.
        active_units: The number of active latent dimensions; None if the data share latents.
        seconds: The seconds of training.
        curve: The learning curve. Each point is `(epoch, seconds so far, log p(x), Monte Carlo error)`, with log p(x)
            of the first 500 held-out data (of all, where a part cannot be taken) by 100 draws, a lower bound.
        folder: The folder of the run.

    Example:
        >>> data = pv.load("ring", num_train=40, num_validation=10, num_test=20)
        >>> def make_vae():
        ...     return pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        >>> race = pv.race(make_vae, data, ["elbo"], seeds=(3,), epochs=1, num_samples=10, folder="race")
        >>> (run,) = race.runs
        >>> run.objective, run.seed, run.folder.name
        ('elbo', 3, 'elbo-seed3-1epochs')
        >>> vae = make_vae()
        >>> run.restore(vae)
    """

    objective: str
    seed: int
    epochs: int
    log_px: Estimate
    share_unreliable: float
    active_units: int | None
    seconds: float
    curve: tuple[tuple[int, float, float, float], ...]
    folder: Path

    def restore(self, vae: nn.Module) -> None:
        """Loads the parameters that the run ended with.

        Args:
            vae: A module that `make_vae` has made, which is changed in place.

        Raises:
            InputError: `vae` is no module, or the race kept no folder, or its checkpoint does not fit `vae`, which is
                then as it was.
        """
        require(isinstance(vae, nn.Module), f"vae must be a module, got {type(vae).__name__}")
        state = Checkpoints(self.folder).load()
        if state is None:
            raise InputError(f"{self.folder} holds no checkpoint: a race without a folder keeps none")
        where = f"the checkpoint in {self.folder}"
        check_content(where, state)
        ours, theirs = (
            {name: value for name, value in values.items() if isinstance(value, Tensor)}
            for values in (vae.state_dict(), state["state"])
        )
        check_fits(where, "vae", ours, theirs)
        vae.load_state_dict(state["state"])
