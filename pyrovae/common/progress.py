"""The progress bar of everything that takes long."""

from tqdm.auto import tqdm

from pyrovae.common.workers import Workers


def progress_bar(progress: bool | None, total: int, desc: str | None = None, unit: str = "it") -> tqdm:
    """Returns a bar that counts to `total` and is cleared at its end.

    Args:
        progress: True shows the bar, False hides it, and None shows it on a terminal only. If several processes work
            together, the first alone shows one.
        total: The number of units of work.
        desc: The text before the bar.
        unit: The name of one unit of work.
    """
    return tqdm(total=total, unit=unit, desc=desc, disable=hides_progress(progress), leave=False)


def hides_progress(progress: bool | None) -> bool | None:
    """Returns tqdm's `disable`, which with None shows a bar on a terminal only (see `progress_bar`)."""
    if not Workers().is_first:
        return True
    return None if progress is None else not progress
