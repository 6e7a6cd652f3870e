"""Keep lists of problems short enough to read."""

from __future__ import annotations

MOST = 5
"""Problems of one kind that are shown."""


def shortened(found: list[str]) -> list[str]:
    """Return the first few of many problems, and how many more there are."""
    if len(found) <= MOST:
        return found
    return [*found[:MOST], f"{len(found) - MOST} more of this kind"]
