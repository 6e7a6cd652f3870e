"""What a chart of a comparison holds: lines, switches, intervals, and what its axes measure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tst_megatron.compare.report.words import joined, shown, switches
from tst_megatron.compare.results import ArmSummary, Floats, Ints

MOST_POINTS = 400
"""Of a line; more than a chart has columns to show."""

Part = Literal["run", "arm", "trunk"]
"""One of several runs of an arm; an arm, by its only run or the mean; what its trunk trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    arm: str
    part: Part
    x: Floats
    y: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A place on the horizontal axis where arms change their bag size."""

    x: float
    arms: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """An interval at one place."""

    arm: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Intervals at many places, of one arm."""

    arm: str
    x: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One picture."""

    name: str
    """Of its file, and for links."""
    title: str
    subject: Literal["validation", "training"]
    loss: Literal["next token", "bag", "gap"]
    """What the vertical axis measures."""
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    bars: Sequence[Bar] = ()
    bands: Sequence[Band] = ()
    settled: Sequence[Floats] = ()
    """Values of each arm after its last switch, from which the shown range is chosen."""
    missing: Sequence[str] = ()
    """Arms for which nothing is recorded here."""

    @property
    def arms(self) -> list[str]:
        """Arms that have a line, in their order."""
        return list(dict.fromkeys(line.arm for line in self.lines))


Points = tuple[Floats, Floats, Floats]
"""Steps, what the horizontal axis shows, and the loss."""


def finite(steps: Ints | Floats, x: Ints | Floats, y: Floats) -> Points:
    """Return the points of a curve at which both numbers are finite."""
    is_finite = np.isfinite(x) & np.isfinite(y)
    return steps[is_finite].astype(np.float64), x[is_finite].astype(np.float64), y[is_finite]


def lines_of(arm: ArmSummary, found: Sequence[Points]) -> Iterator[Line]:
    """Yield an arm's lines: its only run; or the runs and, where all have been, their mean."""
    trunk = max((run.trunk[1] for run in arm.runs if run.trunk), default=0)
    if len(found) == 1:
        yield from _parts(arm.name, found[0], trunk)
        return
    for _, x, y in found:
        yield Line(arm=arm.name, part="run", x=thinned(x), y=thinned(y))
    common = functools.reduce(np.intersect1d, [steps for steps, _, _ in found])
    if not len(common):
        return
    at = [np.searchsorted(steps, common) for steps, _, _ in found]
    x = np.mean([x[i] for (_, x, _), i in zip(found, at, strict=True)], axis=0)
    y = np.mean([y[i] for (_, _, y), i in zip(found, at, strict=True)], axis=0)
    yield from _parts(arm.name, (common, x, y), trunk)


def _parts(arm: str, points: Points, trunk: int) -> Iterator[Line]:
    """Yield an arm's line in two: what its trunk trained, and from there on its own."""
    steps, x, y = points
    own = int(np.searchsorted(steps, trunk, side="right"))
    if own:
        yield Line(arm=arm, part="trunk", x=thinned(x[:own]), y=thinned(y[:own]))
    first = max(own - 1, 0)
    if first < len(x) - 1 or not own:
        yield Line(arm=arm, part="arm", x=thinned(x[first:]), y=thinned(y[first:]))


def thinned(values: Floats) -> Floats:
    """Return at most 400 of a line's values, evenly spaced, the first and the last among them."""
    if len(values) <= MOST_POINTS:
        return values
    return values[np.linspace(0, len(values) - 1, MOST_POINTS).round().astype(np.int64)]


def after_switch(arm: ArmSummary, steps: Floats, y: Floats) -> Floats:
    """Return an arm's losses after its last switch."""
    switch = max((step for run in arm.runs for step in switches(run)), default=0)
    return y[steps > switch]


def switch_places(arm: ArmSummary, steps: Floats, x: Floats) -> list[tuple[float, str]]:
    """Return where a run's bag size changes on an axis, and its arm."""
    return [
        (float(np.interp(step, steps, x)), arm.name)
        for step in switches(arm.runs[0])
        if steps[0] <= step <= steps[-1]
    ]


def marks(places: Sequence[tuple[float, str]]) -> list[Mark]:
    """Return the marks of an axis; arms that switch at one place share one."""
    arms_at: dict[float, list[str]] = {}
    for x, arm in places:
        arms_at.setdefault(x, []).append(arm)
    return [Mark(x=x, arms=tuple(arms)) for x, arms in sorted(arms_at.items())]


# --- in words ------------------------------------------------------------------------------------


def described(chart: Chart) -> str:
    """Return a chart in words, for those who do not see it."""
    said = [f"{chart.title}. Across: {chart.x_label}. Up: {chart.y_label}."]
    for arm in chart.arms:
        lines = [line for line in chart.lines if line.arm == arm and line.part != "run"]
        if lines:
            first, last = lines[0], lines[-1]
            said.append(
                f"{shown(arm)}: from {first.y[0]:.4f} at {_place(first.x[0])} "
                f"to {last.y[-1]:.4f} at {_place(last.x[-1])}."
            )
    for mark in chart.marks:
        said.append(f"Switch at {_place(mark.x)}: {joined(map(shown, mark.arms))}.")
    return " ".join(said)


def _place(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
