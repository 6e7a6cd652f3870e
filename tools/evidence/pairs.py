"""Pair every recorded run that has superposition with the ordinary run of the same recipe.

Two runs make a pair if their recipes differ in the ``tst:`` block alone: one text, one seed,
equally many steps of equally many latent positions. All seeds of one recipe are one pair. The
numbers of a pair are those of ``tst-megatron compare``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evidence.plan import PLAN, Branches, read_plan
from evidence.runs import RECIPE, RESULTS
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.results import RecordedRun
from tst_megatron.training.report.recorded_schedule import recorded_schedule

_NOT_OF_THE_TRAINING = {"tst", "phases", "seed", "save-interval"}
_NOT_OF_THE_TRAINING |= {"dist-ckpt-optim-fully-reshardable"}
"""Keys by which the two arms of a pair may differ."""
_PLAIN = {"inputs": "bags", "targets": "bags", "slot-weights": "uniform"}
_PLAIN |= {"reset-embeddings": False, "reset-optimizer": False}
"""Keys of the ``tst:`` block under which a run is the paper's method, without an ablation."""
SLOPE_FROM = 0.4
"""Share of the steps before the decay from which on the slope of a curve is fitted."""

Seeds = dict[int, Path]
"""The records of an arm by seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPair:
    """One point of the map."""

    baselines: Sequence[Path]
    """Records, one for each seed."""
    runs: Sequence[Path]
    """With superposition, of the same seeds."""
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


@cache
def _branches() -> frozenset[str]:
    return frozenset(entry.name for entry in read_plan(PLAN) if isinstance(entry, Branches))


def pairs() -> Iterator[MapPair]:
    """Yield a pair for each recipe of which both arms were recorded, with all common seeds."""
    ordinary: dict[str, Seeds] = {}
    others: dict[tuple[str, str], Seeds] = {}
    for path in records():
        if path.parent.name in _branches():
            # Its recipe does not say that its first steps had another learning rate.
            continue
        schedule, recipe = recorded_schedule(path / "resolved.yaml")
        kept = {key: recipe[key] for key in recipe if key not in _NOT_OF_THE_TRAINING}
        identity = json.dumps(kept, sort_keys=True, default=str)
        sizes = [phase.bag_size for phase in schedule.phases]
        if sizes == [1]:
            ordinary.setdefault(identity, {}).setdefault(int(recipe["seed"]), path)
        elif len(sizes) == 2 and all(recipe["tst"][key] == _PLAIN[key] for key in _PLAIN):
            course = json.dumps(recipe["phases"])
            others.setdefault((identity, course), {}).setdefault(int(recipe["seed"]), path)
    for (identity, _), runs in others.items():
        if seeds := sorted(runs.keys() & ordinary.get(identity, {}).keys()):
            baselines = [ordinary[identity][seed] for seed in seeds]
            yield _pair(baselines, [runs[seed] for seed in seeds])


def _pair(baselines: Sequence[Path], runs: Sequence[Path]) -> MapPair:
    comparison = compare_runs([*baselines, *runs])
    (pair,) = comparison.pairs
    ordinary, arm = comparison.arms
    assert pair.gap is not None and [run.path for run in arm.runs] == list(runs)
    schedule, recipe = recorded_schedule(runs[0] / "resolved.yaml")
    first, steps = schedule.phases[0], schedule.num_steps
    per_step = int(recipe["seq-length"]) * int(recipe["global-batch-size"])
    return MapPair(
        baselines=baselines,
        runs=runs,
        keys=recipe,
        bag_size=first.bag_size,
        fraction=first.num_steps / steps,
        num_parameters=int(arm.numbers["parameters"]),
        positions=steps * per_step,
        raw_tokens=schedule.raw_tokens_before(steps),
        slope=_slope(ordinary.runs, int(recipe["lr-wsd-decay-iters"])),
        baseline_loss=ordinary.final_loss.value,
        loss=arm.final_loss.value,
        gap=pair.gap.value,
        low=pair.gap.low,
        high=pair.gap.high,
        verdict=pair.verdict,
        crossing_step=None if pair.crossing_step is None else pair.crossing_step.value,
    )


def _slope(runs: Sequence[RecordedRun], num_decay_steps: int) -> float:
    """Return by how many nats runs fall for each e-fold of steps before their decay."""
    return float(np.mean([slope(run, num_decay_steps) for run in runs]))


def slope(run: RecordedRun, num_decay_steps: int) -> float:
    """Return by how many nats a run's loss falls for each e-fold of steps before its decay."""
    end = run.num_steps - num_decay_steps
    steps, values = run.validation.steps, run.validation.values
    chosen = (steps >= SLOPE_FROM * end) & (steps <= end)
    if chosen.sum() < 2:
        return math.nan
    return -float(np.polyfit(np.log(steps[chosen]), values[chosen], 1)[0])
