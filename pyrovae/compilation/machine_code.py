"""Makes machine code of a traced graph: TorchInductor, and on a GPU one CUDA graph."""

import copy
import functools
import logging
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from pyrovae.common import generator_states, on_one_thread, set_generator_states
from pyrovae.compilation.draws import rewrite_draws
from pyrovae.compilation.matmul import rewrite_products
from pyrovae.compilation.norms import rewrite_norms

INDUCTOR_OPTIONS = {
    "fallback_random": True,  # draws PyTorch's own random numbers
    # By default the splines of a flow become one kernel of 30,000 lines, which takes gcc minutes and runs slower.
    "realize_opcount_threshold": 16,
    "cpp.enable_loop_tail_vec": False,  # masked vectors of two elements cost more than two numbers
    "size_asserts": False,  # `Graph.fits` has looked
    "alignment_asserts": False,
}
# Threads that wait for each other after every loop cost more than they give in a graph of at most so many elements, and
# on a busy machine many times more.
MAX_ELEMENTS_OF_ONE_THREAD = 1_000_000


# What the loader says of a library that ends too early.
DAMAGE = re.compile("file too short|invalid ELF header|cannot read file data")


def compile_graph(module: fx.GraphModule, args: list[Tensor]) -> Callable:
    """Returns a copy of the graph, compiled by TorchInductor.

    A process that is killed while it compiles may leave a damaged file in Inductor's cache, where it would stay for
    ever: such a file is removed, and the graph is compiled once more.
    """
    try:
        return _compiled(copy.deepcopy(module), args)
    except Exception as error:  # Inductor wraps the loader's error in one of its own
        damaged = _damaged_files(str(error))
        if not damaged:
            raise
        for file in damaged:
            file.unlink(missing_ok=True)
    return _compiled(copy.deepcopy(module), args)


def _damaged_files(message: str) -> list[Path]:
    """Returns the libraries in Inductor's cache of which an error says that they are damaged."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if not DAMAGE.search(message):
        return []
    named = {Path(name) for name in re.findall(re.escape(cache_dir()) + r"/[\w./-]+\.so\b", message)}
    return [file for file in named if ".." not in file.parts and file.is_file()]


def _compiled(module: fx.GraphModule, args: list[Tensor]) -> Callable:
    with _errors_only("torch.utils.cpp_extension"):  # its logger reports that CUDA is missing
        from torch._inductor import compile as inductor  # seconds of imports

    options: dict[str, object] = dict(INDUCTOR_OPTIONS)
    if args[0].device.type == "cpu":
        if _num_elements(module) <= MAX_ELEMENTS_OF_ONE_THREAD:
            options["cpp.threads"] = 1
        rewrite_draws(module)
        rewrite_products(module)
        rewrite_norms(module)
    for node in module.graph.nodes:
        node.meta.clear()  # Inductor makes fake tensors of its own
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        _errors_only("torch.utils.cpp_extension"),
        _errors_only("torch._inductor.codecache"),  # it reports a damaged file, and compiles
        _key_of(options, args[0].device),
    ):
        warnings.simplefilter("ignore")
        compiled = inductor(module, _fakes_of(args), options=options)
    if options.get("cpp.threads") == 1:  # torch's libraries would give a product all threads
        return lambda *args: on_one_thread(compiled, *args)
    return lambda *args: compiled(*args)


def _fakes_of(args: list[Tensor]) -> list[Any]:
    """Returns fake tensors of the same layouts, with a `ShapeEnv`, without which Inductor keeps no graph on the disk.

    An equal graph is then loaded in 0.1 s, where a compilation takes more than a second.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # half a second of imports

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    return [mode.from_tensor(arg, static_shapes=True) for arg in args]


@contextmanager
def _key_of(options: dict[str, object], device: torch.device) -> Iterator[None]:
    """Within the block, Inductor's key of a graph also names what the loops of a CPU's code are written for.

    These are the vector instructions that the processor has, or is told to have (`ATEN_CPU_CAPABILITY`), and in some
    versions of torch the number of threads and the default dtype. Without the first, a graph that is loaded where they
    are others steps over elements, and its numbers are wrong.
    """
    config = torch.compiler.config
    parts: list[object] = [torch.get_default_dtype()]
    if device.type == "cpu":
        from torch._inductor.cpu_vec_isa import pick_vec_isa  # seconds of imports

        parts += [pick_vec_isa(), options.get("cpp.threads", torch.get_num_threads())]
    if not hasattr(config, "cache_key_tag"):  # of an old torch, which then keeps no graph
        options["fx_graph_cache"] = False
        yield
        return
    tag = " ".join(map(str, (config.cache_key_tag, *parts)))
    with config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]  # torch adds it
        yield


def _num_elements(module: fx.GraphModule) -> float:
    """Returns the number of elements that a graph's operations write; 16 multiply-adds of a product count as one."""
    total = 0.0
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            total += value.numel()
            if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                total += value.numel() * cast(fx.Node, node.args[-1]).meta["val"].shape[0] / 16
    return total


def capture_cuda_graph(run: Callable, args: Sequence[Tensor], outside: list[Tensor], num_moved: int) -> Callable:
    """Returns `run` as one CUDA graph, which needs one launch per call whatever the number of its kernels."""
    inputs, states = [arg.clone() for arg in args], generator_states()
    kept = [tensor.detach().clone() for tensor in outside]  # the warm-up moves buffers
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(3):
                run(*inputs, *outside)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(*inputs, *outside)
        for tensor, value in zip(outside, kept, strict=True):
            tensor.copy_(value)
    set_generator_states(states)

    def replay(*values: Tensor) -> tuple[Tensor | None, ...]:
        for place, value in zip(inputs, values, strict=False):  # tensors outside stay where they are
            place.copy_(value)
        graph.replay()
        for place, value in list(zip(inputs, values, strict=False))[len(inputs) - num_moved :]:
            value.copy_(place)
        return tuple(None if output is None else output.clone() for output in outputs)

    return replay


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Within the block the logger of this name reports errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def cpp_compiler() -> str | None:
    """Returns name and version of the C++ compiler that Inductor finds, or None if it finds none that starts."""
    with _errors_only("torch.utils.cpp_extension"):
        from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return _version_of(get_cpp_compiler())
    except Exception:  # Inductor raises its own error if it finds none; one that is found may not start
        return None


@functools.cache
def _version_of(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], check=True, capture_output=True)
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()
