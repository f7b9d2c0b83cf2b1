"""The configuration of a run: one frozen dataclass that checks itself and is saved beside the results."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pyrovae.common import (
    FORMAT,
    InputError,
    did_you_mean,
    plain_number,
    read_text,
    require,
    require_count,
    shown,
    write_json,
)
from pyrovae.runs.config_checks import check_config
from pyrovae.runs.config_fields import ConfigFields


@dataclass(frozen=True)
class RunConfig(ConfigFields):
    """Holds every setting that decides what a training run computes.

    The flags of `pyrovae train` are these fields, and config.json in a run's folder holds them. None stands for the
    usual value for the data set, which the field holds once the config is made.

    Args:
        dataset, data_root, binarize, ...: the fields, each explained in `config_fields.py` and by
            `pyrovae train --help`

    Raises:
        InputError: a field has a wrong type or value, or two fields do not go together

    Example:
        >>> config = pv.RunConfig(dataset="mnist", objective="iwae", num_particles=5)
        >>> config.hidden, config.latent_dim, config.likelihood
        ((400,), 20, 'bernoulli')
        >>> pv.RunConfig.from_dict(config.to_dict()) == config
        True
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            value = type(value)(map(plain_number, value)) if type(value) in (list, tuple) else plain_number(value)
            object.__setattr__(self, field.name, value)
        check_config(self)

    @classmethod
    def from_dict(cls, values: object, where: str = "config") -> "RunConfig":
        """Returns the config whose fields have these values, and the others their defaults.

        Args:
            values: the fields by name; the number of the format may be with them, as in the file
            where: names the table in errors about its format

        Raises:
            InputError: `values` is no dict, is of a later format, names an unknown field, or holds a value that the
                field refuses
        """
        if not isinstance(values, dict):
            raise InputError(f"a config must be a table of fields, got {type(values).__name__}")
        values = dict(values)
        found = values.pop("format", 1)
        require_count(f"format in {where}", found)
        require(found <= FORMAT, f"{where} is of format {found}, and this pyrovae reads up to {FORMAT}")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:  # looking for the closest name takes longer than all else here
                hint = f"; pyrovae train --help names them{did_you_mean(name, known)}"
                raise InputError(f"config has an unknown field {shown(name)}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as JSON holds them, with lists in place of tuples."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: Path) -> None:
        """Writes the number of the format and the fields to `path` as JSON."""
        write_json(path, {"format": FORMAT, **self.to_dict()})

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        """Reads the config that `save` wrote.

        Raises:
            InputError: the file is missing or is not JSON, is of a later version, or `from_dict` refuses its content
        """
        try:
            values = json.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a readable config ({str(error).splitlines()[0]})") from error
        return cls.from_dict(values, str(path))
