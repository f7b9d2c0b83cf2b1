"""Validation: the ELBO of held-out data after each epoch, from the same draws every time."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyrovae.common import InputError, Workers, first_line, fixed_generators, is_validation_error, local_seed
from pyrovae.data import VALIDATION_CHUNK, Batch, Batches, scale_hint_of
from pyrovae.programs import ProgramPair, run_pair
from pyrovae.training.pair_modules import in_mode, modules_of

VALIDATION_SEED = 0


class Validation:
    """Estimates the ELBO of the held-out data, at beta = 1 and with one draw of z per datum.

    The draws are the same after every epoch, and they leave the training's stream of random numbers alone.

    Args:
        vae: the pair.
        held_out: the batches to validate on; None where there are none.
        source: the training data, which an error message may have to call too large.
        generators: the generators from which the training data draw.
        device: the device on which processes add up their sums.
    """

    def __init__(
        self,
        vae: ProgramPair,
        held_out: Batches | None,
        source: object,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.vae, self.held_out, self.source, self.generators, self.device = vae, held_out, source, generators, device
        self.modules, self.workers = modules_of(vae), Workers()

    @torch.no_grad()
    def terms(self, epoch: int) -> dict[str, float | None]:
        """Returns `elbo`, `reconstruction` and `kl` in nats per datum; each is None without held-out data."""
        if self.held_out is None:
            return {"elbo": None, "reconstruction": None, "kl": None}
        sums = torch.zeros(3, dtype=torch.float64)
        # Held-out batches may come from generators that the training data use, too; training must not notice.
        with in_mode(False, self.modules), fixed_generators(VALIDATION_SEED, self.generators):
            for index, chunk in enumerate(_chunks(self.held_out)):
                if self.workers.owns(index):
                    sums += self._sums(index, chunk, epoch)
        reconstruction, kl, count = self.workers.total(sums.to(self.device)).tolist()
        reconstruction, kl = reconstruction / count, kl / count
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def _sums(self, index: int, chunk: Batch, epoch: int) -> Tensor:
        """Returns the sums of reconstruction and KL over the chunk, and its number of data."""
        try:
            with local_seed(VALIDATION_SEED + index):
                terms = run_pair(self.vae.model, self.vae.guide, *chunk).terms()
        except ValueError as error:
            if isinstance(error, InputError) or not is_validation_error(error):
                raise
            message = f"training diverged in epoch {epoch} ({first_line(error)})"
            raise FloatingPointError(f"{scale_hint_of(self.source, chunk)}{message}") from error
        kl = terms.log_posterior - terms.log_prior
        return torch.tensor([terms.log_likelihood.sum().item(), kl.sum().item(), len(chunk[0])], dtype=torch.float64)


def _chunks(batches: Batches) -> Iterable[Batch]:
    for batch in batches():
        yield from zip(*(part.split(VALIDATION_CHUNK) for part in batch), strict=True)
