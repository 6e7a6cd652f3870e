"""Collect the numbers and the words that the picture of a plan shows.

All are those of the plan's sections, and nothing is estimated anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tst_megatron.plan.amounts import dollars, nats, rounded, short

if TYPE_CHECKING:
    # It imports all that a plan is made with, and the place of a picture is checked before that.
    from tst_megatron.plan.make_plan import Plan

_GIGA = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A run on the panel of cost against loss."""

    name: str
    label: str
    x: float
    """Dollars, or GPU hours where these cost nothing."""
    y: float
    """Its loss minus that of the ordinary run of as many steps, in nats."""
    x_range: tuple[float, float | None] | None = None
    """None for its high end: it has no end."""
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The ends of ordinary runs of many lengths, the cheapest first."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    published: tuple[float, ...]
    """The same by the law as it was published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """The memory of one rank of each pipeline stage, in GB."""

    stages: tuple[str, ...]
    parts: Mapping[str, tuple[float, ...]]
    """Part -> its size in each stage."""
    of_fullest: Mapping[str, float]
    """Part -> its size in the fullest rank, without those that it lacks."""
    largest: float
    """All parts of the fullest rank."""
    capacity: float | None
    """Of the GPU; None where it is not known."""
    room: float | None
    """What of that is left to tensors."""


def _values(plan: Plan, name: str) -> Mapping[str, Any]:
    return next(section.values for section in plan.sections if section.name == name)


# --- cost against loss ----------------------------------------------------------------------------


def unit_of(plan: Plan) -> str:
    """Return what the cost is in: ``dollars``, or ``gpu hours`` where these cost nothing."""
    return "dollars" if _values(plan, "cost")["dollars per gpu hour"] else "gpu hours"


def said_cost(cost: float, unit: str) -> str:
    """Write a cost in its unit."""
    return dollars(cost) if unit == "dollars" else f"{short(cost)} GPU hours"


def marks_of(plan: Plan) -> list[Mark]:
    """Return the runs of a plan's comparisons."""
    views, unit = _values(plan, "views"), unit_of(plan)
    runs = views["ordinary runs"]
    reads_no_more = views["raw tokens over positions"] == 1
    here = _ordinary(
        "equal flops",
        "ordinary run of as many steps" + (" and as much text" if reads_no_more else ""),
        runs["equal flops"],
        unit,
    )
    marks = [here, _tst(views, here, unit)]
    if factor := views["equal loss step factor"]:
        low, high = factor["low"], factor["high"]
        times = f"{low:.1f} times TST's steps to no end"
        if high is not None:
            times = f"{low:.1f} to {high:.1f} times TST's steps"
        marks.append(
            _ordinary(
                *("equal loss", "ordinary run of equal loss", runs["equal loss"], unit),
                more=f" ({times})",
                x_range=(here.x * low, None if high is None else here.x * high),
            )
        )
    if not reads_no_more:
        label = "ordinary run on equal data"
        marks.append(_ordinary("equal data", label, runs["equal data"], unit))
    if "baseline" in runs:
        marks.append(_ordinary("baseline", "ordinary run of --baseline", runs["baseline"], unit))
    return marks


def _ordinary(
    name: str,
    label: str,
    run: Mapping[str, Any],
    unit: str,
    *,
    more: str = "",
    x_range: tuple[float, float | None] | None = None,
) -> Mark:
    gap = f", {nats(run['gap nats'])} nats" if run["gap nats"] else ""
    label = f"{label}: {run['steps']:,} steps, {said_cost(run[unit], unit)}{gap}{more}"
    return Mark(name=name, label=label, x=run[unit], y=run["gap nats"], x_range=x_range)


def _tst(views: Mapping[str, Any], here: Mark, unit: str) -> Mark:
    gap = views["equal flops gap nats"]
    low, middle, high = gap["low"], gap["middle"], gap["high"]
    k, r = rounded(views["bag size"]), rounded(views["superposition fraction"])
    how = "extrapolated" if views["is extrapolated"] else "interpolated"
    return Mark(
        name="TST",
        label=(
            f"TST with K = {k:g}, r = {r:g}, {how}: {said_cost(here.x, unit)}, {nats(middle)} nats "
            f"({nats(low)} to {nats(high)})"
        ),
        x=here.x,
        y=middle,
        y_range=(low, high),
    )


def curve_of(plan: Plan) -> Curve:
    """Return the curve of ordinary runs."""
    runs, unit = _values(plan, "views")["ordinary curve"], unit_of(plan)
    return Curve(
        x=tuple(run[unit] for run in runs),
        y=tuple(run["gap nats"] for run in runs),
        published=tuple(run["gap nats by the law as published"] for run in runs),
    )


def losses_title(plan: Plan) -> str:
    """Return the title of the panel, which says where its estimates are from."""
    views = _values(plan, "views")
    how = "EXTRAPOLATED from" if views["is extrapolated"] else "interpolated in"
    lacks = "" if views["equal loss step factor"] else "\nNo ordinary run ends as low by this law"
    return f"Cost against loss, with text to spare: TST {how} the paper's grids{lacks}"


def cost_label(plan: Plan) -> str:
    """Return what is on the axis of the costs."""
    cost = _values(plan, "cost")
    at = f"MFU {cost['mfu']:.1%}"
    if unit_of(plan) == "gpu hours":
        return f"{cost['gpu']} hours ({at})"
    return f"price (${cost['dollars per gpu hour']:g} a GPU hour, {at})"


def dollars_per_hour(plan: Plan) -> float:
    """Return the price of a GPU hour."""
    return float(_values(plan, "cost")["dollars per gpu hour"])


def gpu_of(plan: Plan) -> str:
    """Return the kind of GPU."""
    return str(_values(plan, "cost")["gpu"])


# --- memory by part -------------------------------------------------------------------------------


def bars_of(plan: Plan) -> Bars | None:
    """Return the memory of one rank of each pipeline stage; None if the plan does not tell it."""
    if all(section.name != "memory" for section in plan.sections):
        return None
    memory = _values(plan, "memory")
    stages = [
        {name: size / _GIGA for name, size in stage["bytes by part"].items()}
        for stage in memory["stages"]
    ]
    names = dict.fromkeys(name for stage in stages for name in stage)
    # What backward needs differs from stage to stage; the order is the same in all.
    names = dict.fromkeys(sorted(names, key=_place_of_part))
    capacity, room = memory["gpu bytes"], memory["gpu bytes without reserve"]
    return Bars(
        stages=tuple(
            (f"stage {stage['stage']}, " if len(stages) > 1 else "") + f"rank {stage['rank']}"
            for stage in memory["stages"]
        ),
        parts={name: tuple(stage.get(name, 0.0) for stage in stages) for name in names},
        of_fullest={name: size / _GIGA for name, size in memory["bytes by part"].items()},
        largest=memory["total bytes"] / _GIGA,
        capacity=None if capacity is None else capacity / _GIGA,
        room=None if room is None else room / _GIGA,
    )


def _place_of_part(name: str) -> int:
    """Return 0 for what is held between steps, 1 for what is kept, 2 for what is at work."""
    return 1 if name.startswith("kept") else 2 if name.startswith("at work") else 0


def memory_title(plan: Plan) -> str:
    """Return the title of the panel, which says whether the fullest rank fits."""
    memory, cost = _values(plan, "memory"), _values(plan, "cost")
    total = f"{memory['total bytes'] / _GIGA:,.1f} GB"
    who = f"Memory by part: rank {memory['rank']}, the fullest of {cost['gpus']:,}, needs {total}"
    if memory["fits"] is None:
        return f"{who}; the memory of {cost['gpu']} is not known here"
    verb = "fits" if memory["fits"] else "DOES NOT FIT"
    return f"{who} and {verb} into the {memory['gpu bytes'] / _GIGA:g} GB of {cost['gpu']}"
