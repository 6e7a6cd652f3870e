"""Where loss curves cross, and where one reaches a loss; many curves at once.

Shapes: R drawings of the held-out text (1 for the curves as recorded), E evaluations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tst_megatron.compare.results import Floats, Ints

FEWEST_FOR_SCATTER = 8
"""Evaluations in the second half of a run, below which their scatter is not estimated."""


def scatter(steps: Ints, losses: Floats) -> float:
    """Return how far late evaluations of a run lie from a line through their neighbours, in nats.

    The standard deviation of independent deviations from a smooth curve, estimated from second
    differences by their median, which a kink such as the start of a decay does not move.

    Args:
        steps: [E] of the evaluations, rising.
        losses: [E].

    Returns:
        0 if the second half of the run has too few evaluations.
    """
    late = losses[steps > steps[-1] / 2] if len(steps) else losses
    if len(late) < FEWEST_FOR_SCATTER:
        return 0.0
    # Of a normal distribution: the median of the size is 0.6745 deviations, and a second
    # difference has six times the variance of one deviation.
    return float(np.median(np.abs(np.diff(late, 2))) / 0.6745 / np.sqrt(6))


def stays_below_after(steps: npt.ArrayLike, above: Floats, *, or_equal: bool = False) -> Floats:
    """Return the step after which a curve stays below zero until its end.

    That is where it changes its sign for the last time, on a straight line between evaluations.

    Args:
        steps: [E] rising.
        above: [R, E] a curve less what it is measured against.
        or_equal: zero counts as below.

    Returns:
        [R] steps: the first of all where the curve is below from there on, infinite where its end
        is not below.
    """
    places = np.asarray(steps, dtype=np.float64)
    is_above = above > 0 if or_equal else above >= 0
    last = len(places) - 1 - np.argmax(is_above[:, ::-1], axis=1)
    never = ~is_above.any(axis=1)
    before = np.minimum(last, len(places) - 2) if len(places) > 1 else np.zeros_like(last)
    after = np.minimum(before + 1, len(places) - 1)
    rows = np.arange(len(above))
    high, low = above[rows, before], above[rows, after]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = high / (high - low)
        crossing = places[before] + share * (places[after] - places[before])
    crossing = np.where(is_above[:, -1], np.inf, crossing)
    return np.where(never, places[0], crossing)


def on_common_steps(
    one: tuple[Ints, Floats], other: tuple[Ints, Floats]
) -> tuple[Ints, Floats, Floats]:
    """Return the losses of two runs at the same steps.

    These are the steps at which both have an evaluation. Where those are fewer than half of either
    run's, all steps of both that lie inside the other's range count, and the other is taken to be
    straight between its evaluations.

    Args:
        one: steps [E] and losses [E].
        other: likewise.

    Returns:
        Steps [C], and both losses [C]; C is 0 for runs without overlap.
    """
    common = np.intersect1d(one[0], other[0])
    inside = [
        (run[0] >= max(one[0][0], other[0][0])) & (run[0] <= min(one[0][-1], other[0][-1]))
        for run in (one, other)
    ]
    if 2 * len(common) < min(int(inside[0].sum()), int(inside[1].sum())):
        common = np.union1d(one[0][inside[0]], other[0][inside[1]])
    return common, np.interp(common, *one), np.interp(common, *other)
