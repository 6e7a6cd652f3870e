"""The looks of arms and of paper: colours, dashes and markers that do without each other.

The hues are those of Okabe and Ito, which survive the usual kinds of colour blindness. Those that
are too pale for a line on white paper are darker here, and each arm has dashes and a marker too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAPER, INK, MUTED, GRID = "#fefefe", "#1c2024", "#5c6670", "#dfe3e8"
"""Of a picture on white paper. A page replaces them, so none is used for anything else."""

PAPER_VARIABLES = {PAPER: "paper", INK: "ink", MUTED: "muted", GRID: "grid"}
"""The page's variable for each."""

BASELINE = ("#1d1f21", "#e8eaed")
"""Of the baseline's lines, on white and on dark paper."""

ARMS = (
    ("#0072b2", "#56b4e9"),  # blue
    ("#d55e00", "#ff8a3d"),  # vermilion
    ("#6b5b4b", "#c9b8a5"),  # brown, for Okabe and Ito's yellow, which no white paper shows
    ("#b0548c", "#e79ac5"),  # reddish purple
    ("#008a66", "#2fce9f"),  # bluish green
    ("#2f8fc4", "#a5d8ff"),  # sky blue
    ("#9a7200", "#f0c230"),  # orange, then yellow
)
"""Of the other arms' lines, on white and on dark paper: those first that are told apart best."""

DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2))
"""Lengths of line and gap in widths of a line."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How the lines of an arm are drawn."""

    colour: str
    """On white paper."""
    dark: str
    """On dark paper."""
    variable: str
    """The page's name of both."""
    dashes: tuple[float, ...]
    marker: str
    """As Matplotlib names it."""

    @property
    def marker_points(self) -> float:
        """Its size; shapes with arms need more, so that they can be told apart."""
        return 7 if self.marker in "PX*" else 5


def looks(arms: Sequence[str], baseline: str) -> dict[str, Look]:
    """Return a look for each arm; the baseline is as dark as ink.

    Neighbours differ in colour, dashes and marker. Up to 28 arms beside the baseline, no two have
    the same colour with the same dashes.
    """
    found, number = {}, 0
    for arm in arms:
        if arm == baseline:
            found[arm] = _look(*BASELINE, "baseline", (), MARKERS[0])
            continue
        at, dashes = number % len(ARMS), DASHES[number % len(DASHES)]
        found[arm] = _look(*ARMS[at], f"arm-{at + 1}", dashes, MARKERS[(number + 1) % 8])
        number += 1
    return found


def _look(light: str, dark: str, variable: str, dashes: tuple[float, ...], marker: str) -> Look:
    return Look(colour=light, dark=dark, variable=variable, dashes=dashes, marker=marker)
