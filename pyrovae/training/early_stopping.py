"""Early stopping: training ends when the validation ELBO has not improved for some epochs."""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from pyrovae.common import rules
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
        self.last_values: list[Tensor] | None = None
        """The values that `restore_best` replaced, from which a longer training goes on."""

    @property
    def has_run_out(self) -> bool:
        """True if the validation ELBO has not improved for `patience` epochs."""
        return self.patience is not None and self.epochs_without_improvement >= self.patience

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
        return self.has_run_out

    def restore_best(self) -> None:
        """Puts the tensors back to their values at the best validation ELBO."""
        if self.best_values is not None:
            self.last_values = self.last_values or [tensor.detach().clone() for tensor in self.tensors]
            copy_values(self.tensors, self.best_values)

    def restore_last(self) -> None:
        """Undoes `restore_best`, so that the training goes on from where it was."""
        if self.last_values is not None:
            copy_values(self.tensors, self.last_values)
            self.last_values = None

    def to_dict(self) -> dict[str, object]:
        """Returns the record that a checkpoint holds."""
        return {
            "elbo": self.best_elbo,
            "waited": self.epochs_without_improvement,
            "values": self.best_values,
            "last": self.last_values,
        }

    def restore(self, saved: dict) -> None:
        """Takes over what `to_dict` returned when the checkpoint was written. Raises `InputError` on other tensors."""
        self.best_values, self.last_values = (
            self._here("values", saved["values"]),
            self._here("last", saved.get("last")),
        )
        self.best_elbo, self.epochs_without_improvement = saved["elbo"], saved["waited"]

    @staticmethod
    def standing(elbos: Iterable[float]) -> tuple[float, int]:
        """Returns the best of the ELBOs of all epochs, and the number of epochs since; NaN is never the best."""
        best, waited = -math.inf, 0
        for elbo in elbos:
            best, waited = (elbo, 0) if elbo > best else (best, waited + 1)
        return best, waited

    def _here(self, name: str, values: list[Tensor] | None) -> list[Tensor] | None:
        if values is None:
            return None
        rules.items(*map(rules.like, self.tensors))(f"best.{name}", values)
        return [value.to(tensor.device) for tensor, value in zip(self.tensors, values, strict=True)]
