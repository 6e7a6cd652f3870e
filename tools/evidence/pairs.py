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
from tst_megatron.training.report.metrics_file import LM_LOSS, read_metrics
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
    num_rates: int
    """Learning rates at which this baseline was recorded."""
    rank_of_rate: int
    """Of this one among them; 1 is the best."""
    baseline_loss: float
    recovery_loss: float | None
    """Of a baseline that had only the steps of recovery, where that was recorded."""
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
    def crossing_share(self) -> float | None:
        """Return where the arms cross for the last time, counted from the switch.

        1 is where the learning rate begins to decay, so above 1 they cross in the decay.
        """
        if self.crossing_step is None:
            return None
        steps = int(self.keys["train-iters"])
        switch = round(self.fraction * steps)
        undecayed = steps - int(self.keys["lr-wsd-decay-iters"]) - switch
        return math.inf if undecayed <= 0 else (self.crossing_step - switch) / undecayed

    @property
    def price(self) -> float:
        """Return what the baseline loses without the steps of superposition, in nats.

        It is measured where a baseline of the recovery's length was recorded; else the slope says.
        """
        if self.recovery_loss is not None:
            return self.recovery_loss - self.baseline_loss
        return self.slope * math.log(1 / (1 - self.fraction))

    @property
    def taught(self) -> float | None:
        """Return what superposition changed beside its steps, in nats; below 0, it helped."""
        return None if self.recovery_loss is None else self.loss - self.recovery_loss


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
        identity = _identity(recipe)
        sizes = [phase.bag_size for phase in schedule.phases]
        if sizes == [1]:
            ordinary.setdefault(identity, {}).setdefault(int(recipe["seed"]), path)
        elif len(sizes) == 2 and all(recipe["tst"][key] == _PLAIN[key] for key in _PLAIN):
            course = json.dumps(recipe["phases"])
            others.setdefault((identity, course), {}).setdefault(int(recipe["seed"]), path)
    for (identity, _), runs in others.items():
        if seeds := sorted(runs.keys() & ordinary.get(identity, {}).keys()):
            yield _pair(ordinary, identity, [runs[seed] for seed in seeds], seeds)


def _identity(recipe: Mapping[str, Any], **changes: Any) -> str:
    """Return a text that is the same for the two arms of a pair."""
    kept = {key: recipe[key] for key in recipe if key not in _NOT_OF_THE_TRAINING}
    return json.dumps(kept | changes, sort_keys=True, default=str)


def _pair(
    ordinary_runs: Mapping[str, Seeds], identity: str, runs: Sequence[Path], seeds: Sequence[int]
) -> MapPair:
    baselines = [ordinary_runs[identity][seed] for seed in seeds]
    comparison = compare_runs([*baselines, *runs])
    (pair,) = comparison.pairs
    ordinary, arm = comparison.arms
    assert pair.gap is not None and [run.path for run in arm.runs] == list(runs)
    schedule, recipe = recorded_schedule(runs[0] / "resolved.yaml")
    first, steps = schedule.phases[0], schedule.num_steps
    shorter = ordinary_runs.get(_identity(recipe, **{"train-iters": steps - first.num_steps}), {})
    recovery = [shorter[seed] for seed in seeds if seed in shorter]
    rates = _losses_by_rate(ordinary_runs, recipe)
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
        num_rates=len(rates),
        rank_of_rate=sorted(rates.values()).index(rates[float(recipe["lr"])]) + 1,
        baseline_loss=ordinary.final_loss.value,
        recovery_loss=_mean_loss(recovery) if len(recovery) == len(seeds) else None,
        loss=arm.final_loss.value,
        gap=pair.gap.value,
        low=pair.gap.low,
        high=pair.gap.high,
        verdict=pair.verdict,
        crossing_step=None if pair.crossing_step is None else pair.crossing_step.value,
    )


def _losses_by_rate(
    ordinary_runs: Mapping[str, Seeds], recipe: Mapping[str, Any]
) -> dict[float, float]:
    """Return the losses of a baseline at all learning rates that were recorded, one seed each."""
    rates = {}
    for identity, runs in ordinary_runs.items():
        keys = json.loads(identity)
        if _identity(keys, lr=None) == _identity(recipe, lr=None):
            rates[float(keys["lr"])] = _mean_loss([runs[min(runs)]])
    return rates


def _mean_loss(paths: Sequence[Path]) -> float:
    """Return the mean validation loss of records at their ends."""
    ends = [read_metrics(path / "metrics.jsonl", event="validation")[-1] for path in paths]
    return float(np.mean([end[f"{LM_LOSS} validation"] for end in ends]))


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
