"""How flags that take a number are read: what is none is refused in words, and not by the names of Python's types."""

from typing import Any, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

NUMBERS = ConstructorRegistry()
_OPTIONAL = {int: {int, type(None)}, float: {float, type(None)}}
_WORDS: dict[type, str] = {int: "a whole number", float: "a number"}


@NUMBERS.primitive_rule
def _number_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Returns how an `int | None` or a `float | None` is read, and None for all other types."""
    kind = next((kind for kind, types in _OPTIONAL.items() if set(get_args(info.type)) == types), None)
    if kind is None:
        return None

    def read(words: list[str]) -> Any:
        try:
            return None if words == ["None"] else kind(words[0])
        except ValueError:
            raise ValueError(f"must be {_WORDS[kind]}, got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{kind.__name__.upper()}",
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )
