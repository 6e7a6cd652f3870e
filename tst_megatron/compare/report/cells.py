"""What tables consist of: columns with their unit, and cells of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tst_megatron.compare.report.words import NO_INTERVAL, bounds, number, shown
from tst_megatron.compare.results import Interval

NATS = "nats per token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """The head of a column."""

    head: str
    unit: str = ""
    """Of its numbers; empty for a column of words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    detail: str = ""
    """A second, smaller line, such as an interval."""
    is_number: bool = False
    arm: str = ""
    """The arm whose colour stands beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """One table."""

    name: str
    """For links and tests, such as ``losses``."""
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    """Sentences below it."""


def each_once(*sentences: str) -> list[str]:
    """Return sentences that may hold names, each once; empty ones are left out."""
    return [shown(sentence) for sentence in dict.fromkeys(sentences) if sentence]


def named(arm: str, detail: str = "") -> Cell:
    """Return an arm with its colour."""
    return Cell(shown(arm), detail, arm=arm)


def count(step: int) -> Cell:
    """Return a count."""
    return Cell(f"{step:,}", is_number=True)


def decimal(value: float, digits: int) -> Cell:
    """Return a number with so many digits after the point."""
    return Cell(number(value, digits), is_number=math.isfinite(value))


def estimate(interval: Interval, digits: int, *, has_sign: bool = False) -> Cell:
    """Return an estimate with its interval below it."""
    text = number(interval.value, digits, has_sign=has_sign)
    ends = bounds(interval, digits, has_sign=has_sign)
    if math.isnan(interval.value) and ends == NO_INTERVAL:
        return Cell(text)
    return Cell(text, ends, is_number=math.isfinite(interval.value))
