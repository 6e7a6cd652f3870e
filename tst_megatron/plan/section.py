"""Define a section of a plan: what every part of it makes, and all that a view needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One table of a plan, with the sentences below it and the same as plain values."""

    name: str
    """Its key in JSON."""
    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    """For JSON: numbers in units that their names end with."""
    sources: tuple[str, ...] = ()
    """Keys of the sources that it names by number."""
