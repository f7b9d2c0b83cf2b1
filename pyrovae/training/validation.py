"""Validation: the ELBO of held-out data after each epoch, from the same draws every time."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyrovae.common import InputError, Workers, first_line, fixed_generators, is_validation_error, local_seed
from pyrovae.data import Batch, Batches, scale_hint_of
from pyrovae.programs import ProgramPair, Reading, run_pair
from pyrovae.training.pair_modules import in_mode, modules_of

VALIDATION_CHUNK = 1_024
VALIDATION_SEED = 0
GLOBAL_DRAWS = 8  # of the latents that all data share, whose error many data do not average out


class Validation:
    """Estimates the ELBO of the held-out data, at beta = 1 and with one draw of z per datum.

        E_q(theta)[sum_n L_n(theta)] / N

    L_n holds what belongs to datum n: its likelihood and the KL of its own latents. The KL of latents theta that all
    data share is that of the training data, and has no part in it. The draws are the same after every epoch, and they
    leave the training's stream of random numbers alone.

    Args:
        vae: the pair.
        held_out: the batches to validate on; None where there are none.
        source: the training data, which an error message may have to call too large.
        generators: the generators from which the training data draw.
        device: the device on which processes add up their sums.
        reading: how the first objective reads the pair.
        in_chunks: whether a batch may be cut into chunks of its rows.
        several_draws: whether the guide draws latents that all data share, which are then drawn several times.
    """

    def __init__(
        self,
        vae: ProgramPair,
        held_out: Batches | None,
        source: object,
        generators: Sequence[torch.Generator],
        device: torch.device,
        reading: Reading,
        in_chunks: bool,
        several_draws: bool,
    ) -> None:
        self.vae, self.held_out, self.source, self.generators, self.device = vae, held_out, source, generators, device
        self.reading, self.in_chunks, self.several_draws = reading, in_chunks, several_draws
        self.modules, self.workers = modules_of(vae), Workers()

    @torch.no_grad()
    def terms(self, epoch: int) -> dict[str, float | None]:
        """Returns `elbo`, `reconstruction` and `kl` in nats per datum; each is None without held-out data."""
        if self.held_out is None:
            return {"elbo": None, "reconstruction": None, "kl": None}
        sums = torch.zeros(3, dtype=torch.float64)
        # Held-out batches may come from generators that the training data use, too; training must not notice.
        with in_mode(False, self.modules), fixed_generators(VALIDATION_SEED, self.generators):
            for index, chunk in enumerate(self._chunks(self.held_out)):
                if self.workers.owns(index):
                    sums += self._sums(index, chunk, epoch)
        reconstruction, kl, count = self.workers.total(sums.to(self.device)).tolist()
        reconstruction, kl = reconstruction / count, kl / count
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def _sums(self, index: int, chunk: Batch, epoch: int) -> Tensor:
        """Returns the sums of reconstruction and KL over the chunk, and its number of data."""
        try:
            with local_seed(VALIDATION_SEED + index):
                pair = run_pair(self.vae.model, self.vae.guide, *chunk, reading=self.reading)
                terms = pair.terms()
        except ValueError as error:
            if isinstance(error, InputError) or not is_validation_error(error):
                raise
            message = f"training diverged in epoch {epoch} ({first_line(error)})"
            raise FloatingPointError(f"{scale_hint_of(self.vae, self.source, chunk, error)}{message}") from error
        kl = terms.log_posterior - terms.log_prior
        return torch.tensor([terms.log_likelihood.sum().item(), kl.sum().item(), pair.batch], dtype=torch.float64)

    def _chunks(self, batches: Batches) -> Iterator[Batch]:
        """Yields what is run at a time; where theta is drawn several times, each of few chunks comes more than once."""
        epoch = batches()
        for batch in epoch:
            chunks = self._rows(batch)
            wanted = GLOBAL_DRAWS if self.several_draws else 1
            for _ in range(math.ceil(wanted / (len(chunks) * (epoch.num_batches or 1)))):
                yield from chunks

    def _rows(self, batch: Batch) -> list[Batch]:
        if not (self.in_chunks and all(isinstance(part, Tensor) for part in batch)):
            return [batch]
        return list(zip(*(part.split(VALIDATION_CHUNK) for part in batch), strict=True))
