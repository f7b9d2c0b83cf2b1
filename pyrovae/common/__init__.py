"""Serves every other room: errors, random numbers, files, devices, worker processes, and the state of programs."""

from typing import TYPE_CHECKING

from pyrovae.common.lazy_names import lazy_names

if TYPE_CHECKING:  # the same names once more, as type checkers and editors read them
    from pyrovae.common import rules, workers
    from pyrovae.common.call_texts import parse_call
    from pyrovae.common.captured_state import CapturedState, modules_within
    from pyrovae.common.checked_files import checksum, read_checked, sealed, unsealed, write_checked
    from pyrovae.common.checkpoint_files import CURRENT, FORMAT, LOCK, PREVIOUS
    from pyrovae.common.checks import (
        did_you_mean,
        if_given,
        plain_number,
        require_callable,
        require_choice,
        require_compile,
        require_count,
        require_flag,
        require_missing,
        require_number,
        require_path,
        require_seed,
        require_seeds,
        require_sequence,
        require_shape,
        require_size,
        require_sizes,
        require_text,
    )
    from pyrovae.common.devices import choose_device, device_of, device_of_worker, on_device_of
    from pyrovae.common.errors import (
        InputError,
        first_line,
        one_line,
        require,
        shortened,
        shown,
        warn,
    )
    from pyrovae.common.file_sets import written_together
    from pyrovae.common.files import (
        append_text,
        check_folder,
        check_link,
        existing_part,
        flush_renames,
        is_there,
        open_plain,
        read_text,
        require_there,
        write_atomically,
        write_figure,
        write_json,
        write_text,
    )
    from pyrovae.common.inputs import (
        as_arguments,
        as_codes,
        as_data,
        as_dtype,
        as_tensor,
        has_numbers,
        is_array,
        parts_of,
        remedy_for,
        takes_data,
        unmasked,
    )
    from pyrovae.common.lines import progress_in_lines
    from pyrovae.common.locks import FolderInUse, exclusive_lock
    from pyrovae.common.modes import evaluates, evaluation_mode
    from pyrovae.common.param_store import RegisteredModule, register, unique_name
    from pyrovae.common.parts import OtherSettings, Parts, check_for_parts, kept_parts
    from pyrovae.common.program_search import is_library
    from pyrovae.common.progress import progress_bar
    from pyrovae.common.rng import (
        all_generator_states,
        derived_seed,
        fixed_generators,
        generator_states,
        generator_states_for,
        kept_generators,
        local_seed,
        set_all_generator_states,
        set_generator_states,
    )
    from pyrovae.common.size_limit import SizeLimit
    from pyrovae.common.spelling import setting, settings_as_flags
    from pyrovae.common.tables import counted, data_frame, right_aligned, with_lines_below, without_markup
    from pyrovae.common.tensor_checks import (
        is_asked,
        is_out_of_memory,
        is_validation_error,
        require_batch,
        require_finite,
        require_finite_data,
        require_finite_input,
        require_plain,
        scale_hint,
        takes_missing,
    )
    from pyrovae.common.tensor_files import disk_errors, load_tensors, save_tensors
    from pyrovae.common.threads import on_one_thread
    from pyrovae.common.waiting_threads import spin_briefly
    from pyrovae.common.weak_by_identity import WeakByIdentity
    from pyrovae.common.workers import Workers, alone, current_job, process_group
else:  # most of these modules import torch, for which a command line does not wait before it is read
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "call_texts": ("parse_call",),
            "captured_state": ("CapturedState", "modules_within"),
            "checked_files": ("checksum", "read_checked", "sealed", "unsealed", "write_checked"),
            "checkpoint_files": ("CURRENT", "FORMAT", "LOCK", "PREVIOUS"),
            "checks": (
                "did_you_mean",
                "if_given",
                "plain_number",
                "require_callable",
                "require_choice",
                "require_compile",
                "require_count",
                "require_flag",
                "require_missing",
                "require_number",
                "require_path",
                "require_seed",
                "require_seeds",
                "require_sequence",
                "require_shape",
                "require_size",
                "require_sizes",
                "require_text",
            ),
            "devices": ("choose_device", "device_of", "device_of_worker", "on_device_of"),
            "errors": (
                "InputError",
                "first_line",
                "one_line",
                "require",
                "shortened",
                "shown",
                "warn",
            ),
            "file_sets": ("written_together",),
            "files": (
                "append_text",
                "check_folder",
                "check_link",
                "existing_part",
                "flush_renames",
                "is_there",
                "open_plain",
                "read_text",
                "require_there",
                "write_atomically",
                "write_figure",
                "write_json",
                "write_text",
            ),
            "inputs": (
                "as_arguments",
                "as_codes",
                "as_data",
                "as_dtype",
                "as_tensor",
                "has_numbers",
                "is_array",
                "parts_of",
                "remedy_for",
                "takes_data",
                "unmasked",
            ),
            "lines": ("progress_in_lines",),
            "locks": ("FolderInUse", "exclusive_lock"),
            "modes": ("evaluates", "evaluation_mode"),
            "param_store": ("RegisteredModule", "register", "unique_name"),
            "parts": ("OtherSettings", "Parts", "check_for_parts", "kept_parts"),
            "program_search": ("is_library",),
            "progress": ("progress_bar",),
            "rng": (
                "all_generator_states",
                "derived_seed",
                "fixed_generators",
                "generator_states",
                "generator_states_for",
                "kept_generators",
                "local_seed",
                "set_all_generator_states",
                "set_generator_states",
            ),
            "rules": (),
            "size_limit": ("SizeLimit",),
            "spelling": ("setting", "settings_as_flags"),
            "tables": ("counted", "data_frame", "right_aligned", "with_lines_below", "without_markup"),
            "tensor_checks": (
                "is_asked",
                "is_out_of_memory",
                "is_validation_error",
                "require_batch",
                "require_finite",
                "require_finite_input",
                "require_finite_data",
                "require_plain",
                "scale_hint",
                "takes_missing",
            ),
            "tensor_files": ("disk_errors", "load_tensors", "save_tensors"),
            "threads": ("on_one_thread",),
            "waiting_threads": ("spin_briefly",),
            "weak_by_identity": ("WeakByIdentity",),
            "workers": ("Workers", "alone", "current_job", "process_group"),
        },
    )
