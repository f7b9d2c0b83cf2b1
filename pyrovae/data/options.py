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
_OTHERS = ("label_column", "split_column")  # the columns of a table that are not in x
MEANT_FOR = {
    "binarize": IMAGES,
    **dict.fromkeys(("num_train", "num_validation", "num_test"), NAMED),
    "scale": "toy sets",
    "shares": OWN,
    **dict.fromkeys(("columns", "exclude", *_OTHERS, "kinds", "missing", "standardise"), TABLES),
    "header": ".csv and .tsv files",
    "image_size": "folders of images",
}
OF_TABLES = ("columns", "exclude", *_OTHERS, "kinds", "missing", "standardise", "shares")


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
    exclude: Sequence[str] | None = None
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
        for field in ("columns", "exclude"):
            names = () if getattr(self, field) is None else getattr(self, field)
            are_names = isinstance(names, Sequence) and all(isinstance(one, str) for one in names)
            is_list = are_names and not isinstance(names, str)
            require(is_list, f"{field} must be a list of names of columns, got {shown(getattr(self, field))}")
        for name in _OTHERS:
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

    def needs(self, column: str) -> bool:
        """Returns True if the column of a table with this name is needed: other columns may hold anything."""
        is_chosen = self.columns is None or column in (*self.columns, self.label_column, self.split_column)
        return is_chosen and column not in (self.exclude or ())

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
