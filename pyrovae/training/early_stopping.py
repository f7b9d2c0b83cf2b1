"""Early stopping: training ends when the validation ELBO has not improved for some epochs."""

import math
from collections.abc import Sequence

from torch import Tensor

from pyrovae.training.pair_modules import copy_values


class EarlyStopping:
    """Keeps a copy of the tensors at the best validation ELBO so far.

    Args:
        tensors: the parameters and buffers to keep.
        patience: the number of epochs without improvement after which training stops. None trains through all epochs
            and keeps nothing.
    """

    def __init__(self, tensors: Sequence[Tensor], patience: int | None) -> None:
        self.tensors, self.patience = tensors, patience
        self.best_elbo, self.epochs_without_improvement = -math.inf, 0
        self.best_values: list[Tensor] | None = None

    def should_stop(self, elbo: float | None) -> bool:
        """Takes note of the validation ELBO after an epoch, and returns True if training should stop there."""
        if self.patience is None:
            return False
        assert elbo is not None  # patience needs validation data
        if elbo > self.best_elbo:
            self.best_elbo, self.epochs_without_improvement = elbo, 0
            self.best_values = [tensor.detach().clone() for tensor in self.tensors]
        else:
            self.epochs_without_improvement += 1
        return self.epochs_without_improvement >= self.patience

    def restore_best(self) -> None:
        """Puts the tensors back to their values at the best validation ELBO."""
        if self.best_values is not None:
            copy_values(self.tensors, self.best_values)

    def to_dict(self) -> dict[str, object]:
        """Returns the record that a checkpoint holds."""
        return {"elbo": self.best_elbo, "waited": self.epochs_without_improvement, "values": self.best_values}

    def restore(self, saved: dict) -> None:
        """Takes over what `to_dict` returned when the checkpoint was written."""
        self.best_elbo, self.epochs_without_improvement = saved["elbo"], saved["waited"]
        if saved["values"] is not None:
            pairs = zip(self.tensors, saved["values"], strict=True)
            self.best_values = [value.to(tensor.device) for tensor, value in pairs]
