"""Run a comparison from its first case to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from tst_megatron.bench.results import Case, Result
from tst_megatron.bench.timing import Contender, Timing, measure
from tst_megatron.megatron.cpu.meter import Meter

Notes = dict[str, float | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Length and device of a comparison."""

    device: torch.device
    """The host must be in place."""
    rounds: int = 30
    seed: int = 1
    """Seed of the inputs and of the order within rounds."""
    on_case: Callable[[str], object] = lambda title: None
    """Called with the title of each case before it is measured."""

    def meter(self) -> Meter:
        """Return the meter of the device."""
        return Meter(self.device)


def compare_cases(
    which: str,
    question: str,
    baseline: str,
    cases: Iterable[tuple[str, Sequence[Contender]]],
    settings: Settings,
    *,
    notes_on: Callable[[Sequence[Timing]], Notes] = lambda timings: {},
) -> Result:
    """Measure one case after the other; each is made when the one before is done.

    Args:
        which: the result's name.
        question: what it answers.
        baseline: the contender whose time is 1.
        cases: a title and contenders each.
        settings: how long, and on what.
        notes_on: numbers of a case that belong to no contender alone.
    """
    meter = settings.meter()
    found = []
    for title, contenders in cases:
        settings.on_case(title)
        timings = measure(
            contenders,
            meter,
            rounds=settings.rounds,
            seed=settings.seed,
            baseline=baseline,
        )
        found.append(Case(title=title, timings=timings, notes=notes_on(timings)))
        del contenders
        meter.free()
    return Result(
        which=which,
        question=question,
        baseline=baseline,
        device=meter.facts(),
        rounds=settings.rounds,
        seed=settings.seed,
        cases=found,
    )
