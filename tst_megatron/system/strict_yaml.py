"""Read YAML that people wrote: a plain word means what they expect, and no key may stand twice.

PyYAML reads version 1.1, in which ``010`` is 8, ``1:30`` is 90, ``on`` is true, ``1e-1`` is text
and the last of two equal keys wins. Here a plain word is a number if it looks like one
(``100``, ``0.1``, ``1e-4``, ``.inf``), true or false if it says so, nothing if it is empty, and
otherwise text. That is the core schema of version 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema) without its other spellings of whole numbers: these
are text, which is refused where a number is wanted. Anchors, aliases and tags are refused too. A
recipe shares values by its base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

MOST_CHARACTERS = 1_000_000
MOST_DEPTH = 20

_EMPTY = re.compile(r"(?:~|null|Null|NULL)?")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_MOST_DIGITS = 1000
"""Of a number: Python converts no more than some thousands."""


class NotYAML(ValueError):
    """A text cannot be read; the message has the line."""


def read_yaml(text: str, repeated: Callable[[str], None]) -> Any:
    """Return the value that a text spells; a block becomes a dictionary.

    Args:
        text: of one document.
        repeated: told in a sentence of each key that stands twice in a block; the first holds.

    Raises:
        NotYAML: it cannot be read.
    """
    if len(text) > MOST_CHARACTERS:
        raise NotYAML(f"it has {len(text):,} characters, and {MOST_CHARACTERS:,} are the most")
    try:
        return _Document(yaml.parse(text, Loader=yaml.SafeLoader), repeated).value()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise NotYAML(f"{_at(mark)}: {words}" if mark else words) from error
    except yaml.YAMLError as error:
        raise NotYAML(" ".join(str(error).split())) from error


class _Document:
    """Makes values of the events of PyYAML's parser."""

    def __init__(self, events: Iterator[Any], repeated: Callable[[str], None]) -> None:
        self._events, self._repeated = events, repeated

    def value(self) -> Any:
        """Return the value of the only document; None if there is none."""
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        found = self._node(next(self._events), ())
        next(self._events)
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise NotYAML(f"{_at(event.start_mark)}: a second document starts. Keep one")
        return found

    def _node(self, event: Any, path: tuple[str, ...]) -> Any:
        where = _at(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise NotYAML(f"{where}: an anchor or alias. Write the value, or use `base:`")
        if event.tag is not None:
            raise NotYAML(f"{where}: a tag ({event.tag}). Write the value alone")
        if isinstance(event, yaml.ScalarEvent):
            return plain_value(event.value) if event.implicit[0] else event.value
        if len(path) >= MOST_DEPTH:
            raise NotYAML(f"{where}: nested more than {MOST_DEPTH} deep")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        return self._block(path)

    def _list(self, path: tuple[str, ...]) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._node(event, (*path, str(len(found) + 1))))
        return found

    def _block(self, path: tuple[str, ...]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self._node(event, path)
            if isinstance(key, dict | list):
                raise NotYAML(f"line {line}: a block or a list where a key is wanted")
            value = self._node(next(self._events), (*path, str(key)))
            if key in found:
                name = ".".join((*path, str(key)))
                where = f"stands on line {lines[key]} and again on line {line}"
                self._repeated(f"{name}: {where}. Keep one of them")
            found.setdefault(key, value)
            lines.setdefault(key, line)
        return found


def plain_value(word: str) -> Any:
    """Return the value of a word without quotes."""
    if _EMPTY.fullmatch(word):
        return None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if len(word) > _MOST_DIGITS:
        return word
    if _WHOLE.fullmatch(word):
        return int(word)
    if _NUMBER.fullmatch(word):
        # `.inf` and `.nan` are Python's without the point.
        return float(re.sub(r"\.(?=[a-zA-Z])", "", word.lower()))
    return word


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
