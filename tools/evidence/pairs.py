"""Pair every recorded run that has superposition with the ordinary run of the same recipe.

Two runs make a pair if their recipes differ in the ``tst:`` block alone: one text, one seed,
equally many steps of equally many latent positions. The numbers of a pair are those of
``tst-megatron compare``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evidence.runs import RECIPE, RESULTS
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.results import RecordedRun
from tst_megatron.training.report.recorded_schedule import recorded_schedule

_OF_THE_METHOD = {"tst", "phases"}
SLOPE_FROM = 0.4
"""Share of the steps before the decay from which on the slope of a curve is fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPair:
    """One point of the map."""

    sweep: str
    run: str
    baseline_run: str
    keys: Mapping[str, Any]
    """Of the recipe: those by which the points of the map differ."""
    bag_size: int
    fraction: float
    """Share of the steps in superposition."""
    num_parameters: int
    positions: int
    """Latent positions of the run: those of its baseline too."""
    raw_tokens: int
    slope: float
    """By which the baseline's validation loss falls for each e-fold of steps, before its decay."""
    baseline_loss: float
    loss: float
    gap: float
    """Below 0, superposition is better."""
    low: float
    high: float
    verdict: str
    crossing_step: float | None

    @property
    def positions_per_parameter(self) -> float:
        """Return latent positions of the whole run for each parameter."""
        return self.positions / self.num_parameters

    @property
    def price(self) -> float:
        """Return what the baseline would lose by the steps of superposition alone, in nats."""
        return self.slope * math.log(1 / (1 - self.fraction))


def records() -> list[Path]:
    """Return the folders of all recorded runs."""
    return sorted(path.parent for path in RESULTS.glob(f"*/*/{RECIPE}"))


def pairs() -> Iterator[MapPair]:
    """Yield all pairs of one seed that were recorded."""
    found = [(path, *recorded_schedule(path / "resolved.yaml")) for path in records()]
    baselines = {}
    for path, schedule, recipe in found:
        if _is_ordinary(schedule):
            baselines.setdefault(_identity(recipe), path)
    for path, schedule, recipe in found:
        baseline = baselines.get(_identity(recipe))
        if _is_ordinary(schedule) or baseline is None:
            continue
        yield _pair(path, baseline, schedule.phases, recipe)


def _is_ordinary(schedule: Any) -> bool:
    return all(phase.bag_size == 1 for phase in schedule.phases)


def _identity(recipe: Mapping[str, Any]) -> str:
    kept = {key: recipe[key] for key in recipe if key not in _OF_THE_METHOD}
    return json.dumps(kept, sort_keys=True, default=str)


def _pair(path: Path, baseline: Path, phases: Any, recipe: Mapping[str, Any]) -> MapPair:
    comparison = compare_runs([baseline, path])
    (pair,) = comparison.pairs
    ordinary, run = (arm.runs[0] for arm in comparison.arms)
    assert pair.gap is not None and run.path == path
    first = phases[0]
    steps = sum(phase.num_steps for phase in phases)
    per_step = int(recipe["seq-length"]) * int(recipe["global-batch-size"])
    return MapPair(
        sweep=path.parent.name,
        run=path.name,
        baseline_run=f"{baseline.parent.name}/{baseline.name}",
        keys=recipe,
        bag_size=first.bag_size,
        fraction=first.num_steps / steps,
        num_parameters=int(run.numbers["parameters"]),
        positions=steps * per_step,
        raw_tokens=sum(phase.num_steps * phase.bag_size for phase in phases) * per_step,
        slope=slope(ordinary, int(recipe["lr-wsd-decay-iters"])),
        baseline_loss=float(ordinary.validation.values[-1]),
        loss=float(run.validation.values[-1]),
        gap=pair.gap.value,
        low=pair.gap.low,
        high=pair.gap.high,
        verdict=pair.verdict,
        crossing_step=None if pair.crossing_step is None else pair.crossing_step.value,
    )


def slope(run: RecordedRun, num_decay_steps: int) -> float:
    """Return by how many nats a run's loss falls for each e-fold of steps before its decay."""
    end = run.num_steps - num_decay_steps
    steps, values = run.validation.steps, run.validation.values
    chosen = (steps >= SLOPE_FROM * end) & (steps <= end)
    if chosen.sum() < 2:
        return math.nan
    return -float(np.polyfit(np.log(steps[chosen]), values[chosen], 1)[0])
