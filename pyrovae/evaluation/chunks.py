"""Data cut into chunks that fit into memory: checks of the data, sizes of chunks, checks of the pair on each chunk."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from pyrovae.common import device_of, is_out_of_memory, local_seed, require, require_count, require_finite
from pyrovae.programs import Pair, gate

DATA_PER_CHUNK = 128
PAIRS_PER_CHUNK = 8_192  # pairs of a particle and a datum
OUTPUTS_PER_CHUNK = PAIRS_PER_CHUNK * 784  # numbers that a decoder returns: 26 MB
COMPILE_PAIRS = 5_000_000  # pairs, from which on a compiled graph pays for its compilation


def check_args(args: tuple[Tensor, ...]) -> None:
    """Raises `InputError` unless `args` are finite tensors of one length, the data first."""
    require(len(args) > 0, "model and guide must be given tensors, the data first, got none")
    for index, arg in enumerate(args):
        name = "x" if index == 0 else "y"
        require(isinstance(arg, Tensor), f"{name} must be a tensor, got {type(arg).__name__}")
        require(arg.dim() > 0, f"{name} must have a dimension of data, got shape ()")
        if arg.is_floating_point():
            require_finite(name, arg)
    require(len({len(arg) for arg in args}) == 1, f"arguments must have one length, got {[len(arg) for arg in args]}")
    require(len(args[0]) > 0, "x must hold at least one datum, got 0")


def in_chunks(args: tuple[Tensor, ...], size: int) -> Iterable[tuple[Tensor, ...]]:
    """Cuts `args` into chunks of `size` data, of which the last may be smaller."""
    return zip(*(arg.split(size) for arg in args), strict=True)


def pairs_at_a_time(model: Callable, guide: Callable, args: tuple[Tensor, ...], chunk_size: int | None) -> int:
    """Returns `chunk_size`, or for None as many pairs of a particle and a datum as a decoder's memory allows."""
    if chunk_size is not None:
        require_count("chunk_size", chunk_size)
        return chunk_size
    device, outputs = device_of(model, args), []
    few = [arg[:DATA_PER_CHUNK].to(device) for arg in args]
    check_in_parts(model, guide, few, None, lambda pair: outputs.append(pair.outputs))
    return max(1, min(PAIRS_PER_CHUNK, OUTPUTS_PER_CHUNK // outputs[0]))


def check_in_parts(
    model: Callable,
    guide: Callable,
    data: Sequence[Tensor],
    needs: gate.Needs | None,
    inspect: Callable[[Pair], object] = lambda pair: None,
) -> None:
    """Checks that the pair gives what `needs` asks for on these data, and passes the pair that was run to `inspect`.

    The data are halved, again and again, if memory does not suffice for all of them at once.
    """
    try:
        with local_seed(0):
            inspect(gate.check(model, guide, needs, *data))
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(data[0]) == 1:
            raise
    half = len(data[0]) // 2
    check_in_parts(model, guide, [part[:half] for part in data], needs, inspect)
    check_in_parts(model, guide, [part[half:] for part in data], needs, inspect)
