"""Says what a run keeps in its checkpoints, besides what its training does."""

from pyrovae.common import rules

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


def content_of_run(has_own_data: bool) -> rules.Rule:
    """Returns the rule of the entries; a run on data of the user's own tells what a model must know of them."""
    own = {"data": _DATA} if has_own_data else {}
    return rules.fields({"event_shape": _SHAPE, "state": rules.table(rules.dense), **own})
