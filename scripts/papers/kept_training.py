"""Trains a VAE once: what scripts of this folder that measure trained models begin with."""

from typing import Any

from torch import Tensor

import pyrovae as pv
from pyrovae.common import Parts


def train_once(vae: pv.VAE, x: Tensor, parts: Parts, key: str, **settings: Any) -> None:
    """Trains a VAE, or gives it the parameters that it had once it was trained before.

    Args:
        vae: The VAE.
        x: The training data.
        parts: What earlier calls of the script finished.
        key: The name of this training among the parts.
        **settings: Those of `pv.fit`.
    """

    def compute() -> dict[str, Any]:
        checkpoints = pv.Checkpoints(parts.folder_of(key), repeated=True)
        pv.fit(vae, x, **settings, checkpoints=checkpoints)
        return {"state": vae.state_dict()}

    vae.load_state_dict(parts.get(key, compute)["state"])
