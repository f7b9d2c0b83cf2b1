"""Batches that come once: a generator, or another iterator that cannot begin again."""

from collections.abc import Iterator

from pyrovae.common import InputError, require


def is_one_time(source: object) -> bool:
    """Returns True for an iterator, which would go on where the last loop over it stopped."""
    return isinstance(source, Iterator) and iter(source) is source


class OneTime:
    """Yields the batches of an iterator, and the first of them again to each check that comes before the training.

    Args:
        iterator: yields as many batches as the training has steps, or more.
    """

    def __init__(self, iterator: Iterator) -> None:
        self.iterator, self.first = iterator, None

    def __iter__(self) -> Iterator:
        if self.first is None:
            self.first = next(self.iterator, None)
            require(self.first is not None, "data must yield at least one batch, got none")
        yield self.first
        count = 1
        for batch in self.iterator:  # `yield from` would close the caller's iterator together with this one
            count += 1
            yield batch
        rule = f"data ended after {count} batches, too few for the training"
        raise InputError(f"{rule}: give a list or a DataLoader, which begin again")
