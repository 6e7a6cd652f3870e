"""Say what a pilot's curve tells while it runs: where the arms crossed, and how the pairs ended."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.pairs import MapPair
from evidence.report.tables import signed, table

HEAD = ("the arms cross for the last time", "pairs", "won", "lost", "gaps at the end")
BEFORE = "in the first half of the recovery before the decay"
LATER = "in its second half"
IN_DECAY = "in the decay"
NEVER = "not at all"


def when(pair: MapPair) -> str:
    """Return the part of the recovery in which a pair's arms cross for the last time."""
    share = pair.crossing_share
    if share is None:
        return NEVER
    return BEFORE if share <= 0.5 else LATER if share <= 1 else IN_DECAY


def crossings_table(pairs: Sequence[MapPair]) -> str:
    """Return a row for each part of the recovery: a pair has won or lost by its whole interval."""
    rows = []
    for part in (BEFORE, LATER, IN_DECAY, NEVER):
        found = [pair for pair in pairs if when(pair) == part]
        gaps = [pair.gap for pair in found]
        won, lost = sum(pair.high < 0 for pair in found), sum(pair.low > 0 for pair in found)
        ends = f"{signed(min(gaps))} to {signed(max(gaps))}" if found else ""
        rows.append([part, str(len(found)), str(won), str(lost), ends])
    return table(HEAD, rows)
