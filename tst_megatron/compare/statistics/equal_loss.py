"""What the baseline needs for a loss, divided by what an arm needs for the same loss.

If the baseline comes down to the arm's final loss, that loss is matched. Otherwise the arm comes
down to the baseline's final loss, and that one is matched. So one of the two runs is always taken
at its end, where its learning rate has decayed, and the other may be taken inside its schedule.
Where baselines of several lengths exist, their final losses are taken instead of one's curve.

Shapes: R drawings of the held-out text (1 for the curves as recorded), E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.compare.results import Floats, Interval
from tst_megatron.compare.statistics.curves import stays_below_after
from tst_megatron.compare.statistics.student import CONFIDENCE, mean_interval

STEPS = "steps"
METHOD_SEEDS = "t over {number} pairs of seeds, of the ratio's logarithm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a run had cost at some of its steps."""

    steps: Floats
    """[E] rising."""
    of: Mapping[str, Floats]
    """``raw tokens``, ``FLOPs``, ``hours`` -> [E], as far as they are known."""

    def at(self, name: str, steps: Floats) -> Floats:
        """Return a cost at any steps, on a straight line between those where it is known."""
        if name == STEPS:
            return steps
        return np.interp(steps, np.r_[0.0, self.steps], np.r_[0.0, self.of[name]])


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurves:
    """The validation losses of one run."""

    steps: Floats
    """[E] rising."""
    losses: Floats
    """[R, E] nats."""
    costs: Costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Baselines that differ in their length alone, each trained to its end."""

    steps: Floats
    """[M] rising, two or more."""
    losses: Floats
    """[R, M] final losses."""
    costs: Costs
    """At those ends."""


def ratios(
    arm: LossCurves, baseline: LossCurves, lengths: Lengths | None, names: Sequence[str]
) -> dict[str, Floats]:
    """Return for each cost [R] what the baseline needs, divided by what the arm needs.

    A ratio is NaN where the losses do not meet.

    Args:
        arm: its curve, to its end.
        baseline: likewise.
        lengths: baselines of several lengths, if there are any.
        names: of the costs.
    """
    arm_end, arm_loss = arm.steps[-1], arm.losses[:, -1]
    of_baseline = baseline_steps(baseline, lengths, arm_loss)
    reached = np.isfinite(of_baseline)
    end_steps, end_losses, end_costs = _end(baseline, lengths)
    of_arm = stays_below_after(arm.steps, arm.losses - end_losses[:, None], or_equal=True)
    found = {}
    for name in names:
        costs = end_costs if lengths is None else lengths.costs
        needs = np.where(reached, of_baseline, end_steps)
        arm_needs = np.where(reached, arm_end, of_arm)
        with np.errstate(invalid="ignore"):
            ratio = _cost(costs, name, needs) / _cost(arm.costs, name, arm_needs)
        found[name] = np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)
    return found


def baseline_steps(baseline: LossCurves, lengths: Lengths | None, losses: Floats) -> Floats:
    """Return [R] the steps in which the baseline comes down to a loss; infinite where it does not.

    Args:
        baseline: its curve; used where there is only one length, or the shortest ends below.
        lengths: whose final losses are taken on a straight line over the logarithm of the steps.
        losses: [R].
    """
    on_curve = stays_below_after(baseline.steps, baseline.losses - losses[:, None], or_equal=True)
    if lengths is None:
        return on_curve
    log_steps = np.log(lengths.steps)
    between = np.exp(stays_below_after(log_steps, lengths.losses - losses[:, None], or_equal=True))
    is_below_all = (lengths.losses <= losses[:, None]).all(axis=1)
    return np.where(is_below_all, np.minimum(on_curve, lengths.steps[0]), between)


def _end(baseline: LossCurves, lengths: Lengths | None) -> tuple[float, Floats, Costs]:
    if lengths is None:
        return float(baseline.steps[-1]), baseline.losses[:, -1], baseline.costs
    return float(lengths.steps[-1]), lengths.losses[:, -1], lengths.costs


def _cost(costs: Costs, name: str, steps: Floats) -> Floats:
    finite = np.where(np.isfinite(steps), steps, np.nan)
    return costs.at(name, finite)


# --- intervals -----------------------------------------------------------------------------------


def over_seeds(of_pairs: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Return the mean ratio over pairs of seeds, on a logarithmic scale.

    Args:
        of_pairs: the ratios of each pair, two or more pairs.
    """
    found = {}
    method = METHOD_SEEDS.format(number=len(of_pairs))
    for name in of_pairs[0]:
        logs = [math.log(each[name]) for each in of_pairs if each[name] > 0]
        if len(logs) == len(of_pairs):
            interval = mean_interval(logs, method)
            low, value, high = map(_exp, (interval.low, interval.value, interval.high))
            found[name] = Interval(value=value, low=low, high=high, method=method)
    return found


def _exp(value: float) -> float:
    # An interval over two seeds may be wider than a float.
    return math.exp(value) if value < 700 else math.inf


def percentiles(value: float, drawings: Floats | None, method: str) -> Interval:
    """Return a value with the middle 95% of its drawings; infinite ones count as large.

    Args:
        value: of the curves as they are recorded.
        drawings: [R], or None where there are none.
        method: in words.
    """
    drawn = np.array([]) if drawings is None else np.sort(drawings[~np.isnan(drawings)])
    if len(drawn) < 100:
        return Interval(value=value, low=math.nan, high=math.nan, method=method)
    outside = (1 - CONFIDENCE) / 2
    low = float(drawn[int(outside * (len(drawn) - 1))])
    high = float(drawn[math.ceil((1 - outside) * (len(drawn) - 1))])
    return Interval(value=value, low=min(low, value), high=max(high, value), method=method)
