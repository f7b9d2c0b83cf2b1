"""Serves every other room: errors, random numbers, files, devices, worker processes, and the state of programs."""

from pyrovae.common import workers
from pyrovae.common.captured_state import CapturedState
from pyrovae.common.devices import choose_device, device_of, device_of_worker, on_device_of
from pyrovae.common.errors import (
    InputError,
    first_line,
    is_out_of_memory,
    is_validation_error,
    require,
    require_batch,
    require_choice,
    require_compile,
    require_count,
    require_finite,
    require_finite_data,
    require_number,
    require_seed,
    require_seeds,
    scale_hint,
    shown,
    warn,
)
from pyrovae.common.files import (
    FolderInUse,
    check_folder,
    check_unwritten,
    exclusive_lock,
    existing_part,
    flush_renames,
    write_atomically,
    write_text,
)
from pyrovae.common.modes import evaluates, evaluation_mode
from pyrovae.common.progress import progress_bar
from pyrovae.common.rng import (
    all_generator_states,
    derived_seed,
    fixed_generators,
    generator_states,
    kept_generators,
    local_seed,
    set_all_generator_states,
    set_generator_states,
)
from pyrovae.common.tables import right_aligned
from pyrovae.common.weak_by_identity import WeakByIdentity
from pyrovae.common.workers import Workers, alone, process_group

__all__ = [
    "require_compile",
    "right_aligned",
    "CapturedState",
    "FolderInUse",
    "InputError",
    "WeakByIdentity",
    "Workers",
    "all_generator_states",
    "alone",
    "check_folder",
    "check_unwritten",
    "choose_device",
    "derived_seed",
    "device_of",
    "device_of_worker",
    "evaluates",
    "evaluation_mode",
    "exclusive_lock",
    "existing_part",
    "first_line",
    "fixed_generators",
    "flush_renames",
    "generator_states",
    "is_out_of_memory",
    "is_validation_error",
    "kept_generators",
    "local_seed",
    "process_group",
    "on_device_of",
    "progress_bar",
    "require",
    "require_batch",
    "require_choice",
    "require_count",
    "require_finite",
    "require_finite_data",
    "require_number",
    "require_seed",
    "require_seeds",
    "scale_hint",
    "set_all_generator_states",
    "set_generator_states",
    "shown",
    "warn",
    "workers",
    "write_atomically",
    "write_text",
]
