"""Numbers and names as people read them; a number that is not there is said to be missing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tst_megatron.compare.results import ArmSummary, Interval, RecordedRun
from tst_megatron.data.verify.inspect import visible

NOT_RECORDED = "not recorded"
NO_INTERVAL = "interval not known"
UNBOUNDED = "unbounded"

SCALES = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def shown(name: str) -> str:
    """Return a name from a folder or a file as one line in which no character acts."""
    return visible(name).replace("\n", "\u240a")


def shortened(name: str, most: int) -> str:
    """Return a name with its middle left out if it is longer than ``most`` characters."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def number(value: float, digits: int, *, has_sign: bool = False) -> str:
    """Return a number with so many digits after the point, or in a word why there is none."""
    if math.isnan(value):
        return NOT_RECORDED
    if math.isinf(value):
        return UNBOUNDED
    return f"{value:{'+' if has_sign else ''},.{digits}f}"


def significant(value: float) -> str:
    """Return a number of unknown size with three or four digits that count."""
    if not math.isfinite(value):
        return number(value, 0)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".") if size >= 1 or not size else f"{value:.3g}"


def bounds(interval: Interval, digits: int, *, has_sign: bool = False) -> str:
    """Return an interval's ends: between two numbers, above or below one, or not known."""
    low, high = (
        number(end, digits, has_sign=has_sign) if math.isfinite(end) else ""
        for end in (interval.low, interval.high)
    )
    if low and high:
        return f"{low} to {high}"
    if low and not math.isnan(interval.high):
        return f"{low} or more"
    if high and not math.isnan(interval.low):
        return f"{high} or less"
    return NO_INTERVAL


def scale_of(values: Iterable[float]) -> tuple[float, str]:
    """Return the power of a thousand, and its name, in which a column of numbers is read best."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return next(((size, name) for size, name in SCALES if largest >= size), (1.0, ""))


def power_of(values: Iterable[float]) -> tuple[float, str]:
    """Return a power of a thousand for numbers of any size, written as such as ``10¹⁵``."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    exponent = 3 * int(math.log10(largest) // 3) if largest >= 1000 else 0
    return 10.0**exponent, "10" + f"{exponent}".translate(_SUPERSCRIPTS) if exponent else ""


def joined(words: Iterable[str]) -> str:
    """Return words as a list in a sentence, such as ``a, b and c``."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def counted(count: int, noun: str) -> str:
    """Return a number of things, such as ``1 run`` or ``3 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def phases(run: RecordedRun) -> str:
    """Return the phases of a run, such as ``bags of 4 to step 24, then tokens to step 80``."""
    said, step = [], 0
    for bag_size, num_steps in run.phases:
        step += num_steps
        said.append(f"{f'bags of {bag_size}' if bag_size > 1 else 'tokens'} to step {step:,}")
    return ", then ".join(said)


def switches(run: RecordedRun) -> list[int]:
    """Return the steps after which a run's bag size changes."""
    steps, step = [], 0
    for (bag_size, num_steps), (following, _) in zip(run.phases, run.phases[1:], strict=False):
        step += num_steps
        if following != bag_size:
            steps.append(step)
    return steps


def seeds(arm: ArmSummary) -> str:
    """Return the runs of an arm and their seeds, such as ``3 runs, seeds 1, 2, 3``."""
    known = [f"{run.seed}" for run in arm.runs if run.seed is not None]
    noun = "seed" if len(known) == 1 else "seeds"
    listed = f"{noun} {', '.join(known)}" if known else f"seed {NOT_RECORDED}"
    return f"{counted(len(arm.runs), 'run')}, {listed}"
