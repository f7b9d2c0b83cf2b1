"""Where data of one's own come from, in a config: a file, a folder of images, or a function."""

from pathlib import Path

from pyrovae.common import (
    did_you_mean,
    if_given,
    is_there,
    require,
    require_choice,
    require_flag,
    require_size,
    require_there,
    shown,
)
from pyrovae.runs.choices import BINARIZE, DATASETS, KINDS
from pyrovae.runs.config_fields import ConfigFields
from pyrovae.runs.usual_settings import LIKELIHOODS

SOURCES = f"{', '.join(DATASETS)}, or a file, a folder of images or module:function"
TABLE_FIELDS = ("columns", "exclude", "label_column", "split_column", "header", "kinds", "missing", "standardise")


def is_own(dataset: str) -> bool:
    """Returns whether a data set is one of the user's own, and not one that is known by its name."""
    return dataset not in DATASETS


def is_function(dataset: str) -> bool:
    """Returns whether data of one's own are what a function returns, `module:function`, and no file."""
    return ":" in dataset and not is_there(Path(dataset))


def short_name(dataset: str) -> str:
    """Returns the name of a data set for folders and titles: that of its file without the ending."""
    return Path(dataset).stem.replace(":", "-")


def check_own(config: ConfigFields) -> None:
    """Checks the fields of a config for data of one's own, whose path it makes absolute.

    So the run finds its data again from any folder. That they are there is seen when they are read.
    """
    dataset = config.dataset
    is_known = bool(dataset) and (_is_path(dataset) or is_function(dataset))
    require(is_known, f"dataset must be one of {SOURCES}; got {shown(dataset)}{did_you_mean(dataset, DATASETS)}")
    if not is_function(dataset):
        object.__setattr__(config, "dataset", str(Path(dataset).absolute()))
    _check_types(config)
    if config.binarize is not None:
        require_choice("binarize", config.binarize, BINARIZE)
    if config.likelihood is not None:
        require_choice("likelihood", config.likelihood, LIKELIHOODS)
    if config.missing is not None:
        require_choice("missing", config.missing, ("mask",))
    kinds_of(config)


def _check_types(config: ConfigFields) -> None:
    for name in ("columns", "exclude", "kinds"):
        value = getattr(config, name)
        texts = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        require(texts, f"{name} must be a list of texts, got {shown(value)}")
        object.__setattr__(config, name, tuple(value))
    for name in ("label_column", "split_column"):
        value = getattr(config, name)
        require(value is None or isinstance(value, str), f"{name} must be a string, got {shown(value)}")
    require_flag("standardise", config.standardise)
    require_flag("header", config.header, None)
    if_given(require_size, "image_size", config.image_size)


def require_source(dataset: str) -> None:
    """Raises `InputError` if data of one's own are in a file or a folder that is not there."""
    if is_own(dataset) and _is_path(dataset) and not is_function(dataset):
        require_there(Path(dataset))


def kinds_of(config: ConfigFields) -> dict[str, str] | str | None:
    """Returns the kinds of columns as `load` takes them: by column, one for all, or None if all are guessed."""
    if not config.kinds:
        return None
    if len(config.kinds) == 1 and "=" not in config.kinds[0]:
        require_choice("kinds", config.kinds[0], KINDS)
        return config.kinds[0]
    found = {}
    for text in config.kinds:
        name, equals, kind = text.rpartition("=")
        require(bool(equals), f"kinds must be column=kind, or one kind for all columns, got {shown(text)}")
        require_choice("kinds", kind, KINDS)
        found[name] = kind
    return found


def require_nothing_of_own(config: ConfigFields) -> None:
    """Raises `InputError` if a field is given that is for data of one's own alone."""
    usual = ConfigFields()
    for name in (*TABLE_FIELDS, "image_size"):
        value = getattr(config, name)
        if isinstance(value, list) and not value and getattr(usual, name) == ():  # as JSON holds it
            object.__setattr__(config, name, ())
            continue
        is_usual = type(value) is type(getattr(usual, name)) and value == getattr(usual, name)
        require(is_usual, f"{name} is for data of your own, and {config.dataset} is built in; got {shown(value)}")


def _is_path(dataset: str) -> bool:
    return "/" in dataset or "\\" in dataset or Path(dataset).suffix != "" or is_there(Path(dataset))
