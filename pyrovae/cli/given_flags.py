"""Checks the words of a command line against the signature of its program, and says what is wrong in one line.

tyro reads the words afterwards. Its own errors are boxes of many lines, which name the flags of other commands, too.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from pyrovae.common import InputError, did_you_mean, is_there, require, require_choice, shown
from pyrovae.runs import DATASETS

_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}
_FOR_FILES = ("--data", "--dataset")  # which a file without a flag may be meant for


@dataclass(frozen=True)
class _Flag:
    """Holds what may follow a flag: words of a kind, one or many, or None.

    A place has no flag, but is given before or between them. A switch has no words: it is there or not.
    """

    name: str
    kind: Any
    is_many: bool
    takes_none: bool
    is_place: bool
    is_required: bool

    @property
    def text(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        return self.kind is bool and not self.takes_none

    def check(self, word: str) -> None:
        """Raises `InputError` unless the word is of the kind."""
        require(not self.is_switch, f"{self.name} takes no value, got {shown(word)}: {self.text} or {self.negated}")
        if self.takes_none and word == "None":
            return
        if get_origin(self.kind) is Literal:
            require_choice(self.name, word, get_args(self.kind))
        if self.kind in _NUMBERS:
            try:
                self.kind(word)
            except ValueError:
                raise InputError(f"{self.name} must be {_NUMBERS[self.kind]}, got {shown(word)}") from None

    @property
    def negated(self) -> str:
        return self.text.replace("--", "--no-", 1)


def check_flags(main: Callable[..., None], words: Sequence[str], program: str) -> None:
    """Raises `InputError` unless the words after a program's name are flags that it has, with values that they take."""
    if any(word in ("-h", "--help") or word.startswith("--tyro-") for word in words):
        return
    all_flags = list(_flags_of(main))
    places = [flag for flag in all_flags if flag.is_place]
    required = [flag for flag in all_flags if flag.is_required]
    words_of = [flag.name.upper() if flag.is_place else f"{flag.text} {flag.name.upper()}" for flag in required]
    usage = " ".join([program, *words_of])
    flags = {flag.text: flag for flag in all_flags if not flag.is_place}
    negated = {flag.negated: flag for flag in flags.values() if flag.kind is bool}
    given: list[_Flag] = []
    needs_word = takes_words = False
    for index, word in enumerate((*words, "--")):  # the last of which ends the values before it
        if not _is_flag(word):
            if not takes_words and places:
                given.append(places.pop(0))
            elif not takes_words:
                last = given[-1] if given else None
                if last is not None and last.is_switch:
                    last.check(word)
                raise InputError(f"{program} takes no {shown(word)} without a flag{_flag_for(word, flags)}")
            given[-1].check(word)
            needs_word, takes_words = False, given[-1].is_many
            continue
        require(not needs_word, f"{given[-1].name if given else ''} must have a value, got none")
        if index == len(words):
            break
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        flag = flags.get(name) or negated.get(name)
        if flag is None:
            near = did_you_mean(name[2:], [text[2:] for text in flags]).replace("mean ", "mean --")
            hint = near or (f": call it as {usage}" if places else "; --help lists those that it has")
            raise InputError(f"{program} has no flag {shown(name)[1:-1]}{hint}")
        given.append(flag)
        if equals:
            flag.check(value)
        needs_word = not (equals or flag.is_switch or flag.is_many)
        takes_words = needs_word or flag.is_many
    missing = [flag.name if flag.is_place else flag.text for flag in required if flag not in given]
    require(not missing, f"{' and '.join(missing)} must be given: {usage}")


def _is_flag(word: str) -> bool:
    """Returns whether a word is read as a flag: it begins with a dash, and is no negative number."""
    try:
        float(word)
    except ValueError:
        return word.startswith("-") and word != "-"
    return False


def _flag_for(word: str, flags: Mapping[str, _Flag]) -> str:
    """Returns the end of an error about a word without a flag: the flag that it is for, if it names data."""
    flag = next((flag for flag in _FOR_FILES if flag in flags), None)
    names_data = word in DATASETS or ":" in word or Path(word).suffix or is_there(Path(word))
    return f": did you mean {flag} {word}?" if flag is not None and names_data else ""


def _flags_of(owner: Any) -> Iterator[_Flag]:
    """Yields the flags of a function, or of a group of them."""
    hints = get_type_hints(owner, include_extras=True)
    for name, parameter in inspect.signature(owner).parameters.items():
        hint, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if is_dataclass(hint):
            yield from _flags_of(hint)
            continue
        is_union = type(None) in get_args(hint)
        one = next(kind for kind in get_args(hint) if kind is not type(None)) if is_union else hint
        is_many = get_origin(one) is tuple
        kind, is_place = get_args(one)[0] if is_many else one, tyro.conf.Positional in marks
        yield _Flag(name, kind, is_many, is_union, is_place, parameter.default is parameter.empty)
