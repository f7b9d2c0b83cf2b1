"""The options of `load`, and which of them are for which source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pyrovae.common import (
    InputError,
    if_given,
    require,
    require_flag,
    require_missing,
    require_number,
    require_path,
    require_seed,
    require_sequence,
    require_size,
    require_text,
    shown,
)

IMAGES, TABLES, OWN, NAMED = "image sets", "tables", "data of one's own", "data sets that load draws or knows by name"
MEANT_FOR = {
    "binarize": IMAGES,
    **dict.fromkeys(("num_train", "num_validation", "num_test"), NAMED),
    "scale": "toy sets",
    "shares": OWN,
    **dict.fromkeys(("columns", "label_column", "split_column", "kinds", "missing", "standardise"), TABLES),
    "header": ".csv and .tsv files",
    "image_size": "folders of images",
}
OF_TABLES = ("columns", "label_column", "split_column", "kinds", "missing", "standardise", "shares")


@dataclass(frozen=True)
class LoadOptions:
    """Holds the options of `load`, which says what they mean."""

    binarize: str | None = None
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    scale: float | None = None
    shares: Sequence[float] | None = None
    columns: Sequence[str] | None = None
    label_column: str | None = None
    split_column: str | None = None
    header: bool | None = None
    kinds: Mapping[str, str] | str | None = None
    missing: str | None = None
    standardise: bool = False
    image_size: int | None = None
    data_root: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require_flag("standardise", self.standardise)
        require_flag("header", self.header, None)
        names = () if self.columns is None else self.columns
        is_list = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str) for n in names)
        require(is_list, f"columns must be a list of names of columns, got {shown(self.columns)}")
        for name in ("label_column", "split_column"):
            if_given(require_text, name, getattr(self, name), "the name of a column")
        require_missing(self.missing)
        if_given(require_size, "image_size", self.image_size)
        if_given(require_sequence, "shares", self.shares, "three numbers")
        known = self.kinds is None or isinstance(self.kinds, str | Mapping)
        require(known, f"kinds must be a kind, or a dict, got {shown(self.kinds)}")
        for name, minimum in (("num_train", 1), ("num_validation", 0), ("num_test", 1)):
            if_given(require_size, name, getattr(self, name), minimum)
        if_given(require_path, "data_root", self.data_root)
        if_given(require_number, "scale", self.scale, 0)

    @property
    def wanted_columns(self) -> list[str] | None:
        """The names of all columns of a table that are needed, or None for all that there are."""
        if self.columns is None:
            return None
        others = (self.label_column, self.split_column)
        return [*self.columns, *(name for name in others if name is not None)]

    def check_only(self, allowed: Sequence[str], source: str, holds: str) -> None:
        """Raises `InputError` if an option was given that this source does not have.

        `data_root` and `seed` may be given with every source, as a configured run does.

        Args:
            allowed: The options of this kind of source.
            source: Its name.
            holds: What it is, for errors: "holds points".
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in MEANT_FOR and field.name not in allowed and value is not field.default:
                rule = f"{field.name} is for {MEANT_FOR[field.name]}, and {source} {holds}"
                raise InputError(f"{rule}; got {shown(value)}")
