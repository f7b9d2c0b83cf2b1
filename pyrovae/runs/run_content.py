"""Says what a run keeps in its checkpoints, besides what its training does."""

from collections.abc import Mapping
from typing import Any

from pyrovae.common import rules
from pyrovae.runs.own_sources import is_own

_SHAPE = rules.each(rules.whole(1))
_NUMBER = rules.nothing_or(rules.number())
_COLUMN = rules.fields(
    {"name": rules.text, "kind": rules.text, "mean": _NUMBER, "sd": _NUMBER, "categories": rules.each(rules.text)}
)
_LAYOUT = rules.fields(
    {
        "event_shape": _SHAPE,
        "kind": rules.text,
        "columns": rules.each(_COLUMN),
        "num_classes": rules.nothing_or(rules.whole(1)),
    }
)
_DATA = rules.fields(
    {"layout": _LAYOUT, "sizes": rules.table(rules.whole())},
    optional={"digest": rules.text, "rounded": rules.table(rules.number())},
)


def content_of_run(saved: Mapping[str, Any]) -> rules.Rule:
    """Returns the rule of the entries; a run on data of the user's own tells what a model must know of them."""
    config = saved.get("config")
    own = {"data": _DATA} if isinstance(config, dict) and is_own(str(config.get("dataset"))) else {}
    return rules.fields({"event_shape": _SHAPE, "state": rules.table(rules.dense), **own})
