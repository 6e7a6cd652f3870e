"""Say in one sentence whether an arm is better than the baseline, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tst_megatron.compare.results import Interval
from tst_megatron.compare.statistics.gap import Gap

Verdict = Literal["better", "worse", "no difference found", "says nothing"]

WIDEST = 0.05
"""Nats: an interval that includes no gap and is wider hides gaps that people train for."""
FEWEST_BLOCKS = 20
"""Held-out sequences: with fewer, chance decides what text they hold."""
FEWEST_RECOVERY_STEPS = 1000
"""After the switch, in which an arm that is still behind may yet cross."""
NOISE_OF_SINGLE_RUNS = 3 * math.sqrt(2)
"""Times one run's noise: a smaller gap between two single runs may be chance."""
EQUAL = 0.005
"""Share by which costs may differ that are called equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a verdict rests on."""

    arm: str
    baseline: str
    gap: Gap | None
    """None without overlap, or where losses must not be compared."""
    why_no_gap: str = ""
    """Likewise, as the end of a sentence."""
    num_seeds: tuple[int, int]
    """Of the arm and of the baseline."""
    at: tuple[int, int] = (0, 0)
    """Steps at which they are compared."""
    is_at_end: bool
    """Both are finished, and compared at their ends."""
    unfinished: Sequence[str] = ()
    """Why they are not, as sentences without a full stop."""
    num_positions: int | None = None
    """Held-out tokens of an evaluation."""
    num_blocks: int | None = None
    """Held-out sequences."""
    recovery_steps: int | None = None
    """Steps of the arm after its switch; None without superposition."""
    crosses: bool = False
    caveats: Sequence[str] = ()
    """What weakens the conclusion, as ends of the sentence, such as "they differ in lr too"."""
    costs: Sequence[tuple[str, float]] = ()
    """Cost -> that of the arm divided by that of the baseline, where they are compared."""


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """Return the verdict, and the sentence that gives it."""
    gap = evidence.gap
    if gap is None:
        pair = f"{evidence.arm} and {evidence.baseline}"
        return "says nothing", f"This says nothing: {pair} {evidence.why_no_gap}."
    said = _statement(evidence, gap)
    reasons = _reasons(evidence, gap)
    if reasons:
        return "says nothing", f"This says nothing yet, because {' and '.join(reasons)}: {said}."
    if gap.interval.high < 0:
        return "better", f"{said}."
    if gap.interval.low > 0:
        return "worse", f"{said}."
    return "no difference found", f"No difference was found: {said}."


def _reasons(evidence: Evidence, gap: Gap) -> list[str]:
    found = list(evidence.unfinished)
    interval = gap.interval
    if evidence.num_blocks is not None and evidence.num_blocks < FEWEST_BLOCKS:
        found.append(f"an evaluation reads only {evidence.num_blocks} held-out sequences")
    is_unclear = interval.low <= 0 <= interval.high
    if is_unclear and interval.high - interval.low > WIDEST:
        found.append(f"the interval is wider than {WIDEST} nats")
    smallest = NOISE_OF_SINGLE_RUNS * gap.noise
    if max(evidence.num_seeds) == 1 and abs(interval.value) < smallest:
        found.append(f"with one seed a gap below {smallest:.3f} nats may be noise between runs")
    steps = evidence.recovery_steps
    is_behind = interval.value > 0 and not evidence.crosses
    if steps is not None and steps <= 0:
        found.append(f"{evidence.arm} is still in superposition")
    elif steps is not None and steps < FEWEST_RECOVERY_STEPS and is_behind:
        found.append(f"{evidence.arm} has only {steps:,} steps after its switch to cross")
    return found


def _statement(evidence: Evidence, gap: Gap) -> str:
    interval = gap.interval
    digits = _digits(interval)
    where = "ends" if evidence.is_at_end else f"is at step {evidence.at[0]:,}"
    if f"{abs(interval.value):.{digits}f}" == f"{0:.{digits}f}":
        how, sign = "level with", 1.0
    else:
        is_lower = interval.value < 0
        sign = -1.0 if is_lower else 1.0
        word = "lower" if is_lower else "higher"
        how = f"{abs(interval.value):.{digits}f} nats {word} than"
    low, high = sorted((sign * interval.low, sign * interval.high))
    basis = " from assumed run-to-run noise alone" if gap.basis == "noise alone" else ""
    held_out = (
        "held-out tokens not recorded"
        if evidence.num_positions is None
        else f"{evidence.num_positions:,} held-out tokens"
    )
    certainty = (
        f"95% interval {low:z.{digits}f} to {high:z.{digits}f}{basis}; "
        f"{_seeds(evidence.num_seeds)}, {held_out}"
    )
    costs = _costs(evidence.costs)
    caveats = "".join(f"; {caveat}" for caveat in evidence.caveats)
    return f"{evidence.arm} {where} {how} {evidence.baseline} ({certainty}){costs}{caveats}"


def _digits(interval: Interval) -> int:
    half = (interval.high - interval.low) / 2
    return 2 if not half > 0 else min(4, max(2, -math.floor(math.log10(half))))


def _seeds(numbers: tuple[int, int]) -> str:
    if numbers[0] != numbers[1]:
        return f"{numbers[0]} and {numbers[1]} seeds"
    return "one seed each" if numbers[0] == 1 else f"{numbers[0]} seeds each"


def _costs(costs: Sequence[tuple[str, float]]) -> str:
    equal = [name for name, ratio in costs if abs(ratio - 1) <= EQUAL]
    said = [f"{_times(ratio)} times the {name}" for name, ratio in costs if name not in equal]
    if equal:
        said.append(f"equal {' and '.join(equal)}")
    return f", at {' and '.join(said)}" if said else ""


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2g}"
