"""What decides the last bits of a training's numbers, besides its settings and its data."""

import functools
import platform
from pathlib import Path

import pyro
import torch

from pyrovae.common import read_text, shown, warn

Versions = dict[str, str | int]


def versions(device: torch.device, computed_by: str) -> Versions:
    """Returns the versions and settings on which the last bits of a training's numbers depend.

    Args:
        device: the device of the parameters.
        computed_by: what computes the steps: PyTorch's operations, or machine code of which compiler.
    """
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "processor model": _processor_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "matmul precision": torch.get_float32_matmul_precision(),
        "steps": computed_by,
    }


@functools.cache
def _processor_model() -> str:
    """Returns the processor's model, by which libraries choose their code, too."""
    try:
        lines = read_text(Path("/proc/cpuinfo")).splitlines()
    except (OSError, ValueError):  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def check_versions(saved: object, now: Versions) -> None:
    """Warns if a training resumes under other versions than those `saved` with it. Old checkpoints tell fewer."""
    then = {name: shown(value).strip("'\"") for name, value in saved.items()} if isinstance(saved, dict) else {}
    changed = [
        f"{name} {then[name]} then and {value} now"
        for name, value in now.items()
        if then.get(name, str(value)) != str(value)
    ]
    if changed:
        warn(f"the run resumes under other versions, so its last digits may differ: {', '.join(changed)}")
