"""Say what a run had cost at each evaluation: raw tokens, floating-point operations, hours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tst_megatron.compare.results import Curve, Floats, Ints
from tst_megatron.plan.cost.machine import peak_teraflops

SLOWEST = 5.0
"""Times the median: what a slower step counts as where it stands for the steps beside it too."""


def curve_of(rows: Iterable[Mapping[str, Any]], name: str) -> Curve:
    """Return a number of some rows over their steps; only finite numbers count.

    Args:
        rows: in the order of their steps.
        name: of the number in the rows.
    """
    found = [
        (row["step"], float(row[name]))
        for row in rows
        # `math.isfinite` refuses an integer that no float can hold.
        if type(row.get(name)) in (int, float) and abs(row[name]) <= 1e300
    ]
    return Curve(
        steps=np.array([step for step, _ in found], dtype=np.int64),
        values=np.array([value for _, value in found], dtype=np.float64),
    )


def seconds_at(steps: Ints, seconds: Curve, *, is_whole: bool) -> Floats | None:
    """Return the time that all steps up to some took together.

    Args:
        steps: [n] steps completed.
        seconds: of single steps.
        is_whole: every step is there. Otherwise a recorded step stands for those before it too, up
            to the one recorded before, and counts as no more than ``SLOWEST`` times the median:
            one that waited for a node is rare.

    Returns:
        [n] seconds; None where no step has a time.
    """
    values = np.where(seconds.values > 0, seconds.values, 0.0)
    if not values.any():
        return None
    if not is_whole:
        values = np.minimum(values, SLOWEST * float(np.median(values[values > 0])))
    total = np.cumsum(values * np.diff(seconds.steps, prepend=0))
    return np.interp(steps, np.r_[0, seconds.steps], np.r_[0.0, total])


def flops_per_step(teraflops: Curve, seconds: Curve, num_devices: float | None) -> float | None:
    """Return the floating-point operations of a step on all devices; every step has as many.

    Args:
        teraflops: TFLOP/s of a device in single steps.
        seconds: of the same steps.
        num_devices: that worked together.
    """
    if num_devices is None or not len(teraflops.steps):
        return None
    _, at, there = np.intersect1d(teraflops.steps, seconds.steps, return_indices=True)
    products = teraflops.values[at] * seconds.values[there]
    products = products[products > 0]
    return float(np.median(products)) * 1e12 * num_devices if len(products) else None


def numbers_of_rows(curves: Mapping[str, Curve], device: str) -> dict[str, float]:
    """Return what ``RecordedRun.numbers`` says of throughput, memory and the balance of experts.

    Args:
        curves: as ``curve_of`` makes them, under the names of ``metrics.jsonl``.
        device: the name of the accelerator.
    """
    numbers = {}
    rate = _median(curves.get("TFLOP/s per device"))
    if rate is not None:
        numbers["TFLOP/s per device"] = rate
        if (peak := peak_teraflops(device)) is not None:
            numbers["MFU"] = rate / peak
    memory = curves.get("peak memory bytes")
    if memory is not None and len(memory.values):
        numbers["peak memory bytes"] = float(memory.values.max())
    for name in ("load_balancing_loss", "seq_load_balancing_loss", "global_load_balancing_loss"):
        balance = curves.get(name)
        if balance is not None and len(balance.values):
            last = max(1, len(balance.values) // 10)
            numbers["load balancing loss"] = float(balance.values[-last:].mean())
            break
    return numbers


def _median(curve: Curve | None) -> float | None:
    if curve is None or not (curve.values > 0).any():
        return None
    return float(np.median(curve.values[curve.values > 0]))
