"""Time several ways to compute the same thing, in turns.

Machines are noisy and drift, so ways are compared round by round: each round runs every one once,
in an order of its own, and the ratio of two is the median over rounds of their ratio within a
round.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Times(Protocol):
    """Meter of a run, such as ``megatron.cpu.meter.Meter``."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds that a run takes."""

    def peak_bytes(self, run: Callable[[], object]) -> tuple[int, int] | None:
        """Most memory during a run, in all and above what was there before."""

    def free(self) -> None:
        """Give back what a failed run has left."""


NOT_COMPILED = "the CPU host compiles nothing"
"""Reason why a compiled way cannot be timed on the CPU host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to compute something."""

    name: str
    version: str
    """Package that computes it with its version, such as ``torch 2.11.0``."""
    run: Callable[[], object] | None
    """Function that is timed; None where it cannot run."""
    absent: str = "not installed"
    """Reason why it cannot be timed."""
    before: Callable[[], object] | None = None
    """Called before each run and not timed: restores an input that the run overwrites."""
    num_bytes: int | None = None
    """Bytes that must move at least, for an effective bandwidth."""
    error: Callable[[], float] | None = None
    """Relative error of a run's result against double precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median, and 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], p20=values[0], p80=values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(median=statistics.median(values), p20=fifths[0], p80=fifths[-1])


@dataclass(kw_only=True, slots=True)
class Timing:
    """Measurements of a contender."""

    name: str
    version: str
    failure: str | None = None
    """Reason why it was not measured."""
    seconds: list[float] = field(default_factory=list)
    """Time of every round."""
    spread: Spread | None = None
    ratio: Spread | None = None
    """Its seconds by those of the baseline, within each round."""
    gigabytes_per_second: float | None = None
    peak_bytes: int | None = None
    """Most memory that was allocated on the device while it ran."""
    extra_bytes: int | None = None
    """The same above what was there before."""
    error: float | None = None


def measure(
    contenders: Sequence[Contender],
    meter: Times,
    *,
    rounds: int = 30,
    seed: int = 1,
    warm_up: int = 3,
    baseline: str | None = None,
    on_round: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Run contenders in turns.

    Args:
        contenders: with names of their own.
        meter: measures on a device.
        rounds: how often each is run.
        seed: of the order within each round.
        warm_up: runs before the first round, in which kernels are compiled.
        baseline: the contender whose time is 1; the first by default.
        on_round: called after each round.

    Returns:
        A timing for each, in their order; one that fails says why and does not end the others.
    """
    timings = {each.name: Timing(name=each.name, version=each.version) for each in contenders}
    assert len(timings) == len(contenders), "two contenders of one name"
    ready = [each for each in contenders if _warm_up(each, timings[each.name], meter, warm_up)]
    order = random.Random(seed)
    for _ in range(rounds):
        for each in order.sample(ready, len(ready)):
            if each.before is not None:
                each.before()
            assert each.run is not None
            timings[each.name].seconds.append(meter.seconds(each.run))
        on_round()
    reference = timings[baseline or contenders[0].name].seconds
    for each in ready:
        timing = timings[each.name]
        timing.spread = Spread.of(timing.seconds)
        if each.num_bytes is not None:
            timing.gigabytes_per_second = each.num_bytes / timing.spread.median / 1e9
        if reference:
            pairs = zip(timing.seconds, reference, strict=True)
            timing.ratio = Spread.of([own / theirs for own, theirs in pairs])
    return list(timings.values())


def _warm_up(contender: Contender, timing: Timing, meter: Times, number: int) -> bool:
    """Run a contender a few times and take its memory and error; False if it cannot run."""
    if contender.run is None:
        timing.failure = contender.absent
        return False
    try:
        for _ in range(number):
            if contender.before is not None:
                contender.before()
            contender.run()
        if contender.error is not None:
            timing.error = contender.error()
        if contender.before is not None:
            contender.before()
        if (peak := meter.peak_bytes(contender.run)) is not None:
            timing.peak_bytes, timing.extra_bytes = peak
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        # Out of memory, mostly: the naive ways need it, which is itself a result.
        timing.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        meter.free()
        return False
    return True
