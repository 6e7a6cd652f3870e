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

from tst_megatron.schedule import Schedule
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
    plan: Facts,
    schedule: Schedule,
    *,
    steps: Sequence[Facts],
    facts: Facts | None,
    first_step: int = 0,
) -> Beside | None:
    """Set a run beside its plan.

    Args:
        plan: as ``read_plan`` gives it.
        schedule: of the run.
        steps: rows of steps of its ``metrics.jsonl``, at least the newest, in their order.
        facts: its ``facts.json``, which is of the newest start.
        first_step: the step after which that start's ranks and layout came; rows of earlier steps
            are of others.

    Returns:
        None while the run has made no step.
    """
    steps = [row for row in steps if row["step"] > first_step]
    # Nor are rows of another device.
    steps = [row for row in steps if row.get("device") == steps[-1].get("device")]
    if not steps:
        return None
    cost = plan["cost"]
    arm = cost["this run"]
    if not _is_of(arm, schedule):
        return Beside(
            rows=(),
            verdict="the plan has other steps, bags, batch or sequences: make it again",
        )
    actual = {name: _median(steps, name) for name in (MFU, "step seconds", "TFLOP/s per device")}
    rows = _rows(cost, arm, schedule, actual, steps=steps, facts=facts or {})
    memory = _memory(plan, steps[-1], facts or {})
    is_off = not _is_close(_ratio(rows[1]))
    off = _reasons(cost, arm, actual, facts or {}, is_one_needed=is_off)
    off += [] if memory is None else _of(memory)
    verdict = "; ".join([_speed(rows[1]), *off])
    return Beside(rows=(*rows, *([] if memory is None else [memory])), verdict=verdict)


def _is_of(arm: Facts, schedule: Schedule) -> bool:
    """Tell whether what was planned has the phases of this run."""
    ours = [
        (phase.bag_size, phase.num_steps, schedule.raw_tokens_per_step(phase) * phase.num_steps)
        for phase in schedule.phases
    ]
    phases = arm["raw tokens by phase"]
    return [(each["bag size"], each["steps"], each["raw tokens"]) for each in phases] == ours


def _rows(
    cost: Facts,
    arm: Facts,
    schedule: Schedule,
    actual: Mapping[str, float | None],
    *,
    steps: Sequence[Facts],
    facts: Facts,
) -> list[Row]:
    seconds, num_steps = actual["step seconds"], schedule.num_steps
    planned = _planned_seconds(cost, arm)
    low, high = sorted(cost["mfu range"])
    # More FLOP/s are fewer seconds.
    seconds_range = (planned * cost["mfu"] / high, planned * cost["mfu"] / low)
    phase = schedule.phase_at(max(0, int(steps[-1]["step"]) - 1))
    tokens = schedule.raw_tokens_per_step(phase)
    total = _seconds_of_all(steps, num_steps)
    price = _price(cost, facts)
    return [
        Row(name="MFU", unit="share", actual=actual[MFU], planned=cost["mfu"],
            planned_range=(low, high)),
        Row(name="step time", unit="seconds", actual=seconds, planned=planned,
            planned_range=seconds_range),
        Row(name="raw tokens/s", unit="per second", actual=seconds and tokens / seconds,
            planned=tokens / planned),
        Row(name="time of all steps", unit="seconds", actual=total, planned=planned * num_steps),
        Row(name="price of all steps", unit="dollars",
            actual=None if total is None or price is None else total * price,
            planned=arm["gpu hours"] * cost["dollars per gpu hour"]),
    ]  # fmt: skip


def _seconds_of_all(steps: Sequence[Facts], num_steps: int) -> float | None:
    """Return the time of all steps: of those that are here, and of the others at their median."""
    found = [value for row in steps if (value := _number(row.get("step seconds")))]
    if not found:
        return None
    return sum(found) + max(0, num_steps - len(found)) * statistics.median(found)


def _price(cost: Facts, facts: Facts) -> float | None:
    """Return dollars per second of the GPUs that the run has; None for GPUs of another kind."""
    num_gpus, peak = _number(facts.get("world size")), facts.get("peak TFLOP/s per device")
    if num_gpus is None or peak is None or not _is_close(cost["peak flops per gpu"] / peak / 1e12):
        return None
    return float(num_gpus * cost["dollars per gpu hour"] / 3600)


def _planned_seconds(cost: Facts, arm: Facts) -> float:
    return float(arm["gpu hours"] * 3600 / cost["gpus"] / arm["steps"])


def _memory(plan: Facts, newest: Facts, facts: Facts) -> Row | None:
    """Return the last rank's memory, which is what a run records; a CPU's is of the whole process.

    A plan has the fullest rank of each stage, and the last rank is of the last stage. On another
    number of GPUs the optimizer's state is cut differently.
    """
    memory = plan.get("memory")
    is_comparable = facts.get("world size") == plan["cost"]["gpus"]
    if not isinstance(memory, dict) or newest.get("device") == "cpu" or not is_comparable:
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
    if memory.actual is None or _is_close(_ratio(memory)):
        return []
    share = _ratio(memory) - 1
    return [
        f"peak memory is {_percent(share)} the plan: if micro-batch, recomputation and layout are "
        "those of the plan, its estimate of activations and routed copies was off"
    ]


def _speed(row: Row) -> str:
    if not row.actual:
        return "no step has a time yet"
    if _is_close(_ratio(row)):
        return f"as planned, within {CLOSE - 1:.0%}"
    return f"a step takes {_ratio(row):.3g} times as long as planned"


def _ratio(row: Row) -> float:
    return row.actual / row.planned if row.actual else 1.0


def _reasons(
    cost: Facts,
    arm: Facts,
    actual: Mapping[str, float | None],
    facts: Facts,
    *,
    is_one_needed: bool,
) -> list[str]:
    """Name the factors of a step's time that were off, the largest first.

    Args:
        cost: of the plan.
        arm: of the plan, this run's.
        actual: medians of the run.
        facts: of the run.
        is_one_needed: several small ones may make a large one; then the largest of them is named.
    """
    found: list[tuple[float, str]] = []
    flops, planned = _number(facts.get("FLOPs per step")), arm["flops"] / arm["steps"]
    if flops:
        said = f"a step has {flops / planned:.3g} times the FLOPs that were planned"
        found.append((flops / planned, said))
    num_gpus = _number(facts.get("world size"))
    if num_gpus:
        said = f"it has {_gpus(int(num_gpus))}, and the plan {_gpus(cost['gpus'])}"
        found.append((cost["gpus"] / num_gpus, said))
    found += _of_gpus(cost, actual, facts)
    found.sort(key=lambda each: -abs(math.log(each[0])))
    off = [said for ratio, said in found if not _is_close(ratio)]
    return off or [said for _, said in found[: int(is_one_needed)]]


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


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
        said = f"its device does {teraflops:.3g} TFLOP/s, and "
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
