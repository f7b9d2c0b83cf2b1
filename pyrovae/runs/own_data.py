"""Data of one's own in a run: what a model must know of them, their usual settings, whether they are still the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrovae.common import InputError, require, shown
from pyrovae.data import SPLITS, TABLE_FILES, Column, Dataset
from pyrovae.runs.config_fields import ConfigFields
from pyrovae.runs.own_sources import is_function, is_own
from pyrovae.runs.usual_settings import LIKELIHOODS_BY_KIND, require_likelihood, usual_settings
from pyrovae.training import same_data, told_of_dataset

Config = TypeVar("Config", bound=ConfigFields)


@dataclass(frozen=True)
class DataLayout:
    """What a model must know of its data, which the run keeps.

    Args:
        event_shape: the shape of one datum
        kind: that of `Dataset`
        columns: those of a table, with the mean and the standard deviation that standardised them
        num_classes: the number of labels, None if there are none
    """

    event_shape: tuple[int, ...]
    kind: str
    columns: tuple[Column, ...] = ()
    num_classes: int | None = None

    @classmethod
    def of(cls, data: Dataset) -> "DataLayout":
        """Returns the layout of a data set."""
        return cls(data.event_shape, data.kind, tuple(data.columns), _num_classes(data))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataLayout":
        """Returns the layout that `to_dict` made."""
        columns = tuple(Column(**{**one, "categories": tuple(one["categories"])}) for one in values["columns"])
        return cls(tuple(values["event_shape"]), values["kind"], columns, values["num_classes"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the layout as plain values."""
        return asdict(self)


def with_usual_settings(config: Config, data: Dataset) -> Config:
    """Returns a config with the usual values that data of one's own decide, which config.json then holds.

    They are the likelihood, the sizes of the networks, and the kinds of columns that were guessed, so that the file is
    read in the same way when the run is evaluated.

    Raises:
        InputError: the likelihood does not suit the data
    """
    if not is_own(config.dataset):
        return config
    kind, are_images = {"real": "points"}.get(data.kind, data.kind), len(data.event_shape) == 3
    usual = usual_settings(kind, config.network, are_images, has_density=True)
    values: dict[str, Any] = {name: value for name, value in usual.items() if getattr(config, name) is None}
    if not is_function(config.dataset):
        values |= _as_read(config.dataset, data)
    if kind == "mixed":
        _require_real_columns(config.likelihood, data.columns)
    require_likelihood(values.get("likelihood", config.likelihood), kind, has_columns=bool(data.columns))
    return replace(config, **values)


def kinds_for(
    likelihood: str | None, kinds: Mapping[str, str] | str | None, columns: Sequence[Column]
) -> Mapping[str, str] | str | None:
    """Returns the kinds to read the columns of a table with, so that they suit the likelihood that was asked for.

    A whole number is a real number: guessed counts become continuous under a likelihood of real numbers, and so do
    guessed columns of 0 and 1 beside continuous ones. Kinds that were given stay as they are.

    Args:
        likelihood: that of the config, None for the usual one
        kinds: those that were given, as `load` takes them
        columns: those of the table, read with these kinds
    """
    if likelihood not in LIKELIHOODS_BY_KIND["points"] or isinstance(kinds, str):
        return kinds
    given = kinds or {}
    guessed = [column for column in columns if column.name not in given]
    real = [column.name for column in guessed if column.kind == "count"]
    if real or any(column.kind == "continuous" for column in columns):
        real += [column.name for column in guessed if column.kind == "binary" and not column.categories]
    return {**given, **dict.fromkeys(real, "continuous")} if real else kinds


def _require_real_columns(likelihood: str | None, columns: Sequence[Column]) -> None:
    """Raises `InputError` if a table of several kinds has a column that is not for a likelihood of real numbers."""
    others = [column for column in columns if column.kind != "continuous"]
    if likelihood in LIKELIHOODS_BY_KIND["points"] and others:
        name, kind = others[0].name, others[0].kind
        rule = f"likelihood {likelihood} is for continuous columns, and {shown(name)} is of kind {kind}"
        raise InputError(f"{rule}: leave it out with exclude, or take likelihood columns")


def _as_read(dataset: str, data: Dataset) -> dict[str, object]:
    """Returns the fields that say how the columns of a table were read."""
    values: dict[str, object] = {}
    if Path(dataset).suffix.lower() in TABLE_FILES:
        values["columns"], values["exclude"] = tuple(column.name for column in data.columns), ()
    kinds = tuple(dict.fromkeys(column.kind for column in data.columns))
    values["kinds"] = kinds if len(kinds) < 2 else tuple(f"{column.name}={column.kind}" for column in data.columns)
    return values


def nats_of_units(data: Dataset, x: Tensor) -> float | None:
    """Returns how many nats per datum lower log p(x) is in the units of the file; None if nothing is standardised.

    The number is negative where log p(x) is higher, because standard deviations are below 1.

    Args:
        data: the data set
        x: the data that log p(x) is of
    """
    if all(column.sd is None for column in data.columns):
        return None
    return -data.log_px_in_file_units(torch.zeros(len(x), dtype=torch.float64), x).mean().item()


def data_told(data: Dataset) -> dict[str, Any]:
    """Returns what a run keeps of its data beside the texts of `told_of_dataset`, to say how others differ."""
    sizes = {f"number of {split} data": len(getattr(data, f"{split}_x")) for split in SPLITS}
    return {"layout": DataLayout.of(data).to_dict(), "sizes": sizes}


def check_same_layout(dataset: str, told: Mapping[str, Any], data: Dataset) -> None:
    """Raises `InputError` unless data are of the sizes and the layout of those that the run was trained on.

    Otherwise another split could put training data among the test data, and other means would standardise them.

    Args:
        dataset: names the data in the error
        told: what `data_told` returned when the run was trained, or nothing
        data: the data now
    """
    now = data_told(data)
    for name in ("sizes", "layout"):
        for field, was in told.get(name, {}).items():
            found = now[name].get(field)  # None of what the layout does not have
            if field == "columns" and len(was) == len(found):
                field, was, found = _first_difference(was, found)
            require(was == found, f"{_rule(dataset)}: {field[:60]} was {shown(was)}, and is {shown(found)}")


def check_same_values(dataset: str, texts: Mapping[str, str | None], data: Dataset) -> None:
    """Raises `InputError` unless data are those of the texts that `told_of_dataset` returned when a run was trained."""
    for name, now in told_of_dataset(data).items():
        require(same_data(texts.get(name), now), f"{_rule(dataset)}, and holds other {name}")


def _rule(dataset: str) -> str:
    return f"{dataset} must be as it was when the run was trained"


def _first_difference(was: Sequence[dict], now: Sequence[dict]) -> tuple[str, object, object]:
    """Returns what differs first between columns by more than rounding, what it was and what it is."""
    for one, other in zip(was, now, strict=True):
        tiny = 1e-9 * (one["sd"] or 0.0)  # where the mean is 0
        for name, value in one.items():
            found = other[name]
            both_are_numbers = isinstance(value, float) and isinstance(found, float)
            if value != found and not (both_are_numbers and math.isclose(value, found, rel_tol=1e-9, abs_tol=tiny)):
                return f"the {name} of column {one['name']!r}", value, found
    return "columns", None, None


def _num_classes(data: Dataset) -> int | None:
    if data.classes:
        return len(data.classes)
    labels = [data.arguments(split)[1:] for split in SPLITS]
    if any(len(parts) != 1 or parts[0].is_floating_point() or parts[0].dim() != 1 for parts in labels):
        return None
    return 1 + max(int(part.max()) for (part,) in labels if len(part))
