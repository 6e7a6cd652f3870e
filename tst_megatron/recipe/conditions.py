"""Describe when a profile gives a setting: conditions on what other keys come to.

A condition is built from the keys that it asks. Example: ``all_of(is_on("num-experts"),
equals("bf16", True))`` holds for a mixture of experts in BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Values = Callable[[str], Any]
"""Returns what a key comes to in the run that is asked about."""
Condition = Callable[[Values], bool]


def is_on(key: str) -> Condition:
    """Hold if a key is set to something other than false and 0."""
    return lambda value: bool(value(key))


def is_off(key: str) -> Condition:
    """Hold if a key is not set, or set to false or 0."""
    return lambda value: not value(key)


def equals(key: str, wanted: Any) -> Condition:
    """Hold if a key has a value."""
    return lambda value: bool(value(key) == wanted)


def differs(key: str, unwanted: Any) -> Condition:
    """Hold if a key has another value, or none."""
    return lambda value: bool(value(key) != unwanted)


def is_split_by(key: str) -> Condition:
    """Hold if a parallel size is given and is not 1."""
    return lambda value: value(key) not in (None, 1)


def all_of(*conditions: Condition) -> Condition:
    """Hold if every condition holds."""
    return lambda value: all(condition(value) for condition in conditions)


def any_of(*conditions: Condition) -> Condition:
    """Hold if one of the conditions holds."""
    return lambda value: any(condition(value) for condition in conditions)


@dataclass(frozen=True, slots=True)
class Need:
    """A condition with the words that describe it in `docs/profiles.md`."""

    text: str
    holds: Condition


def needs(key: str) -> Need:
    """Return the need that a flag is on, in the words of its key."""
    return Need(f"`{key}`", is_on(key))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One flag of a profile, or one environment variable that goes with it."""

    key: str
    value: Any
    why: str
    needs: tuple[Need, ...] = ()
    """The setting is given if all of them hold."""

    def is_wanted(self, value: Values) -> bool:
        """Tell whether a run needs it.

        Args:
            value: returns what a key of that run comes to.
        """
        return all(need.holds(value) for need in self.needs)
