"""Predict from a baseline alone who wins a pair, by two rules.

The first was made on the first 25 pairs. It knows no bag size, and was wrong of K=8. The second was
made when six of its predictions were known. ``predictions.yaml`` has what each said of pairs before
their runs with superposition were trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evidence.pairs import MapPair, slope
from evidence.runs import record_of
from tst_megatron.compare.comparison import compare_runs
from tst_megatron.training.report.recorded_schedule import recorded_schedule

PREDICTIONS = Path(__file__).with_name("predictions.yaml")

MOST_PRICE = 0.25
"""Nats that the steps of superposition may cost: slope x ln(1 / (1 - r)). At 0.18 it still won."""
STEEPEST = 0.45
"""Nats for each e-fold of steps. At 0.41 it won; two earlier pilots with about 0.5 lost."""
HIGHEST_RATE, FEWEST_POSITIONS = 0.002, 30.0
"""A higher learning rate needs so many positions for each parameter. At 19 it lost, at 77 won."""

STEPS_PER_SLOT = 500
"""The second rule: steps for each slot of a bag at a learning rate of 2e-3, and in proportion to
the rate. At 2e-3, 250 lost, 500 were about even, and 1,000 won; at 4e-3, 500 lost and 1,000 won."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What the rules look at."""

    num_steps: int
    slope: float
    fraction: float
    learning_rate: float
    positions_per_parameter: float

    @property
    def price(self) -> float:
        """Return what the baseline loses without the steps of superposition, in nats."""
        return self.slope * math.log(1 / (1 - self.fraction))

    @property
    def wins(self) -> bool:
        """Tell whether superposition is predicted to end lower."""
        is_gentle = self.learning_rate <= HIGHEST_RATE
        is_long = self.positions_per_parameter >= FEWEST_POSITIONS
        return self.price < MOST_PRICE and self.slope < STEEPEST and (is_gentle or is_long)

    def wins_by_steps(self, bag_size: int) -> bool:
        """Tell what the second rule says of bags of a size."""
        needed = STEPS_PER_SLOT * bag_size * self.learning_rate / HIGHEST_RATE
        return self.price < MOST_PRICE and self.num_steps >= needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What was said of a pair before it was trained."""

    run: str
    """``SWEEP/RUN`` of the run with superposition."""
    baseline: str
    bag_size: int
    fraction: float
    wins: bool
    wins_by_steps: bool | None = None
    """None: it was trained before there was a second rule."""

    def outcome(self, found: Sequence[MapPair]) -> MapPair | None:
        """Return the pair that the run became; None while it is not recorded."""
        record = record_of(self.run)
        return next((pair for pair in found if record in pair.runs), None)


def signs_of(pair: MapPair) -> Signs:
    """Return what the rule looks at, of a recorded pair."""
    return Signs(
        num_steps=int(pair.keys["train-iters"]),
        slope=pair.slope,
        fraction=pair.fraction,
        learning_rate=float(pair.keys["lr"]),
        positions_per_parameter=pair.positions_per_parameter,
    )


def signs_before(baseline: str, fraction: float) -> Signs:
    """Return what the rule looks at, of a recorded baseline alone."""
    path = record_of(baseline)
    schedule, recipe = recorded_schedule(path / "resolved.yaml")
    (arm,) = compare_runs([path]).arms
    positions = schedule.latent_positions_before(schedule.num_steps)
    return Signs(
        num_steps=schedule.num_steps,
        slope=slope(arm.runs[0], int(recipe["lr-wsd-decay-iters"])),
        fraction=fraction,
        learning_rate=float(recipe["lr"]),
        positions_per_parameter=positions / arm.numbers["parameters"],
    )


def predictions() -> list[Prediction]:
    """Read what was predicted."""
    text = PREDICTIONS.read_text(encoding="utf-8")
    return [Prediction(**entry) for entry in yaml.safe_load(text)]
