"""Says why an encoder gives no q(z|x): what it sees of the data is not finite, or they are far from scaled."""

from torch import Tensor

from pyrovae.common import InputError, first_line, is_asked, is_validation_error, scale_hint, takes_missing


def refuse_seen(vae: object, error: ValueError, seen: Tensor, x: Tensor, *y: Tensor) -> None:
    """Raises `InputError` if what the encoder sees of x is why it failed by `error`, and always if a user asked for it.

    In a program any other failure may be a training that diverged, also at x that are drawn and not finite.
    """
    is_known = x.isfinite() | x.isnan() if takes_missing(vae) else x.isfinite()
    if not is_validation_error(error) or not is_known.all():
        return
    infinite = ~seen.isfinite()
    if infinite.any():
        index = tuple(infinite.nonzero()[0].tolist())
        name = type(getattr(vae, "likelihood", None)).__name__
        found = f"{seen[index].item():g} at index {index}"
        found += f", where x is {x[index].item():g}" if seen.shape == x.shape else ""
        raise InputError(f"encoder_input of likelihood {name} must return finite numbers, got {found}") from None
    if is_asked():
        raise InputError(f"{scale_hint(vae, error, x, *y)}q(z|x) does not exist: {first_line(error)}") from error
