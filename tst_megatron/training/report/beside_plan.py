"""Set beside a plan what its run does, and name the assumption that was off.

A step takes (FLOPs of a step) / (GPUs x peak x MFU). So where a step takes longer or shorter than
planned, one of these four was off, and which one is arithmetic. Memory has one assumption more:
a plan counts parameters, gradients and optimizer state, and it estimates activations.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tst_megatron.plan.amounts import dollars, num_bytes, short
from tst_megatron.schedule import Schedule
from tst_megatron.training.console import duration
from tst_megatron.training.report.metrics_file import MFU, PEAK_MEMORY

CLOSE = 1.1
"""A number within this factor of the planned one is as planned."""

Unit = Literal["share", "seconds", "per second", "bytes", "dollars"]
Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A number of a run beside the same of its plan."""

    name: str
    unit: Unit
    actual: float | None
    """None where the run has not said it."""
    planned: float
    planned_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A run beside its plan."""

    rows: tuple[Row, ...]
    verdict: str
    """In a sentence: as planned, or what was off."""


def beside_plan(
    plan: Facts, schedule: Schedule, *, steps: Sequence[Facts], facts: Facts | None
) -> Beside | None:
    """Set a run beside its plan.

    Args:
        plan: as ``read_plan`` gives it.
        schedule: of the run.
        steps: rows of steps of its ``metrics.jsonl``, at least the newest.
        facts: its ``facts.json``.

    Returns:
        None while the run has made no step.
    """
    if not steps:
        return None
    cost = plan["cost"]
    arm = _arm(cost, schedule)
    if arm is None:
        return Beside(
            rows=(), verdict="the plan is of other steps or bags than this run's: make it again"
        )
    actual = {name: _median(steps, name) for name in (MFU, "step seconds", "TFLOP/s per device")}
    rows = _rows(cost, arm, schedule, actual, newest=steps[-1])
    memory = _memory(plan, steps[-1])
    off = [*_reasons(cost, arm, actual, facts or {}), *([] if memory is None else _of(memory))]
    verdict = "; ".join([_speed(rows[1]), *off])
    return Beside(rows=(*rows, *([] if memory is None else [memory])), verdict=verdict)


def _arm(cost: Facts, schedule: Schedule) -> Facts | None:
    """Return the planned run that has the phases of this one."""
    ours = [
        (phase.bag_size, phase.num_steps, schedule.raw_tokens_per_step(phase) * phase.num_steps)
        for phase in schedule.phases
    ]
    for arm in cost["arms"]:
        phases = arm["raw tokens by phase"]
        if [(each["bag size"], each["steps"], each["raw tokens"]) for each in phases] == ours:
            return dict(arm)
    return None


def _rows(
    cost: Facts,
    arm: Facts,
    schedule: Schedule,
    actual: Mapping[str, float | None],
    *,
    newest: Facts,
) -> list[Row]:
    seconds, num_steps = actual["step seconds"], schedule.num_steps
    planned = _planned_seconds(cost, arm)
    low, high = sorted(cost["mfu range"])
    # More FLOP/s are fewer seconds.
    seconds_range = (planned * cost["mfu"] / high, planned * cost["mfu"] / low)
    tokens = schedule.raw_tokens_per_step(schedule.phase_at(max(0, int(newest["step"]) - 1)))
    price = cost["gpus"] * cost["dollars per gpu hour"] / 3600
    return [
        Row(name="MFU", unit="share", actual=actual[MFU], planned=cost["mfu"],
            planned_range=(low, high)),
        Row(name="step time", unit="seconds", actual=seconds, planned=planned,
            planned_range=seconds_range),
        Row(name="raw tokens/s", unit="per second", actual=seconds and tokens / seconds,
            planned=tokens / planned),
        Row(name="time of all steps", unit="seconds", actual=seconds and seconds * num_steps,
            planned=planned * num_steps),
        Row(name="price of all steps", unit="dollars",
            actual=seconds and seconds * num_steps * price, planned=planned * num_steps * price),
    ]  # fmt: skip


def _planned_seconds(cost: Facts, arm: Facts) -> float:
    return float(arm["gpu hours"] * 3600 / cost["gpus"] / arm["steps"])


def _memory(plan: Facts, newest: Facts) -> Row | None:
    """Return the last rank's memory, which is what a run records; a CPU's is of the whole process.

    A plan has the fullest rank of each stage, and the last rank is of the last stage.
    """
    memory = plan.get("memory")
    if not isinstance(memory, dict) or newest.get("device") == "cpu":
        return None
    stages = memory.get("bytes of stages")
    if not isinstance(stages, list) or not stages or _number(stages[-1]) is None:
        return None
    return Row(
        name="peak memory",
        unit="bytes",
        actual=_number(newest.get(PEAK_MEMORY)),
        planned=float(stages[-1]),
    )


def _of(memory: Row) -> list[str]:
    if memory.actual is None or _is_close(memory.actual / memory.planned):
        return []
    share = memory.actual / memory.planned - 1
    return [
        f"peak memory is {_percent(share)} the plan: activations and routed copies are what a plan "
        "estimates, and the rest it counts"
    ]


def _speed(row: Row) -> str:
    if not row.actual:
        return "no step has a time yet"
    ratio = row.actual / row.planned
    if _is_close(ratio):
        return f"as planned, within {CLOSE - 1:.0%}"
    return f"a step takes {ratio:.3g} times as long as planned"


def _reasons(
    cost: Facts, arm: Facts, actual: Mapping[str, float | None], facts: Facts
) -> list[str]:
    """Name the factors of a step's time that were off, the largest first."""
    found: list[tuple[float, str]] = []
    flops, planned = _number(facts.get("FLOPs per step")), arm["flops"] / arm["steps"]
    if flops:
        said = f"a step has {flops / planned:.3g} times the FLOPs that were planned"
        found.append((flops / planned, said))
    num_gpus = _number(facts.get("world size"))
    if num_gpus:
        said = f"it runs on {num_gpus:g} GPUs, and {cost['gpus']} were planned"
        found.append((cost["gpus"] / num_gpus, said))
    found += _of_gpus(cost, actual, facts)
    off = [(ratio, said) for ratio, said in found if not _is_close(ratio)]
    return [said for _, said in sorted(off, key=lambda each: -abs(math.log(each[0])))]


def _of_gpus(
    cost: Facts, actual: Mapping[str, float | None], facts: Facts
) -> list[tuple[float, str]]:
    """Return what is off of a GPU: its kind, and the share of its peak that is reached."""
    peak = _number(facts.get("peak TFLOP/s per device"))
    if not peak:
        # Without the peak, the two are one: what a GPU does.
        teraflops, wanted = actual["TFLOP/s per device"], cost["peak flops per gpu"] * cost["mfu"]
        if not teraflops:
            return []
        said = f"{facts.get('device', 'its device')} does {teraflops:.3g} TFLOP/s, and "
        said += f"{wanted / 1e12:.3g} of one {cost['gpu']} were planned"
        return [(wanted / teraflops / 1e12, said)]
    said = f"it runs on {facts.get('device')}, and {cost['gpu']} was planned"
    found = [(cost["peak flops per gpu"] / peak / 1e12, said)]
    if mfu := actual[MFU]:
        low, high = sorted(cost["mfu range"])
        band = f" ({low:.1%} to {high:.1%})" if low != high else ""
        said = f"MFU is {mfu:.1%}, and {cost['mfu']:.1%}{band} was assumed"
        found.append((cost["mfu"] / mfu, said))
    return found


def _is_close(ratio: float) -> bool:
    return 1 / CLOSE <= ratio <= CLOSE


def _percent(share: float) -> str:
    return f"{abs(share):.0%} {'above' if share > 0 else 'below'}"


def _median(steps: Sequence[Facts], name: str) -> float | None:
    values = [value for row in steps if (value := _number(row.get(name)))]
    return statistics.median(values) if values else None


def _number(value: Any) -> float | None:
    """Return a number above 0 that a file says; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < sys.float_info.max else None


# --- in words -------------------------------------------------------------------------------------


def lines_of(beside: Beside) -> list[tuple[str, str]]:
    """Return names and texts: the verdict first, then a line for each number."""
    return [("plan", beside.verdict), *((row.name, _said(row)) for row in beside.rows)]


def _said(row: Row) -> str:
    actual = "unknown" if row.actual is None else _write(row, row.actual)
    band = ""
    if row.planned_range is not None and row.planned_range[0] != row.planned_range[1]:
        low, high = (_write(row, each) for each in row.planned_range)
        band = f" ({low} to {high})"
    return f"{actual}; planned {_write(row, row.planned)}{band}"


def _write(row: Row, value: float) -> str:
    if row.unit == "share":
        return f"{value:.1%}" if value >= 0.001 else f"{100 * value:.2g}%"
    if row.unit == "dollars":
        return dollars(value)
    if row.unit == "bytes":
        return num_bytes(value)
    if row.unit == "per second":
        return short(value)
    return duration(value) if value >= 100 else f"{value:.3g} s"
