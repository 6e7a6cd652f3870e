"""Compare two models by drawing clusters of the same items anew, with the noise of a training.

Shapes: C clusters, F sums, R drawings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.audit.items import Floats, Statistic
from tst_megatron.compare.statistics.student import degrees, t_cdf

NUM_DRAWINGS = 1000
FEWEST_CLUSTERS = 8
_CHUNK = 100
"""Drawings at a time, so that many clusters need little memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model on one probe."""

    value: float
    error: float
    """Standard error over clusters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A model against the baseline on one probe."""

    one: Measured
    baseline: Measured
    difference: float
    """Of the model less that of the baseline."""
    item_variance: float
    """Of the difference, over drawings of clusters."""
    run_variance: float
    """Of the difference, from one training to another."""
    freedom: float
    """Degrees of freedom of both variances together."""
    num_clusters: int

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return math.sqrt(self.item_variance + self.run_variance)

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference."""
        if self.difference == 0 or math.isnan(self.difference):
            return 1.0
        if self.error == 0:
            return 0.0
        return 2 * t_cdf(-abs(self.difference) / self.error, self.freedom)


def drawings(
    sums: Sequence[Floats], statistic: Statistic, *, seed: int, number: int = NUM_DRAWINGS
) -> Floats:
    """Return the numbers of all models on the same drawings of clusters.

    Args:
        sums: of M models [C, F].
        statistic: makes a number of totals.
        seed: of the drawings.
        number: R.

    Returns:
        [M, R].
    """
    generator = np.random.default_rng(seed)
    num_clusters = len(sums[0])
    shares = np.full(num_clusters, 1 / num_clusters)
    found: list[list[Floats]] = [[] for _ in sums]
    for start in range(0, number, _CHUNK):
        size = min(_CHUNK, number - start)
        weights = generator.multinomial(num_clusters, shares, size=size).astype(np.float64)
        for each, of in zip(sums, found, strict=True):
            of.append(statistic(weights @ each))
    return np.array([np.concatenate(of) for of in found])


def whole(sums: Floats, statistic: Statistic) -> float:
    """Return a model's number over all clusters."""
    return float(statistic(sums.sum(axis=0, keepdims=True))[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunNoise:
    """How far two trainings that differ in their seed alone are apart on one probe."""

    deviation: float
    """Standard deviation of one training."""
    freedom: float
    """Degrees of freedom; infinite where it is assumed."""


def compare(
    one: Floats,
    baselines: Sequence[Floats],
    statistic: Statistic,
    *,
    seed: int,
    assumed_noise: float,
) -> Compared:
    """Compare a model with a baseline, or with the mean of several seeds of it.

    Args:
        one: [C, F] of the model.
        baselines: [C, F] of each seed of the baseline.
        statistic: makes a number of totals.
        seed: of the drawings.
        assumed_noise: standard deviation from seed to seed where there is one seed alone.
    """
    values = np.array([whole(each, statistic) for each in baselines])
    drawn = drawings([one, *baselines], statistic, seed=seed)
    ours, theirs = drawn[0], drawn[1:].mean(axis=0)
    num_clusters = len(one)
    # A drawing of few clusters varies less than the sample it stands for.
    stretch = num_clusters / max(num_clusters - 1, 1)
    noise = run_noise(values, assumed_noise)
    # The same weights twice are one training.
    is_same = all(np.array_equal(one, each) for each in baselines)
    runs = 0.0 if is_same else noise.deviation**2 * (1 + 1 / len(baselines))
    items = _variance(ours - theirs) * stretch
    return Compared(
        one=Measured(value=whole(one, statistic), error=math.sqrt(_variance(ours) * stretch)),
        baseline=Measured(value=float(values.mean()), error=math.sqrt(_variance(theirs) * stretch)),
        difference=whole(one, statistic) - float(values.mean()),
        item_variance=items,
        run_variance=runs,
        freedom=degrees([items, runs], [max(num_clusters - 1, 1), noise.freedom]),
        num_clusters=num_clusters,
    )


def run_noise(values: Floats, assumed: float) -> RunNoise:
    """Return the noise of a training, measured over seeds of the baseline or assumed.

    Args:
        values: a probe's number of each seed.
        assumed: taken for one seed alone.
    """
    if len(values) < 2:
        return RunNoise(deviation=assumed, freedom=math.inf)
    return RunNoise(deviation=float(np.std(values, ddof=1)), freedom=len(values) - 1)


def _variance(values: Floats) -> float:
    kept = values[np.isfinite(values)]
    return float(np.var(kept)) if len(kept) > 1 else math.nan
