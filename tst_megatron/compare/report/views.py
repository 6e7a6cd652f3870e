"""Choose the charts of a comparison: validation losses on four axes, the gap, training losses.

A bag loss is measured against several tokens at once. It has a chart of its own, and no other loss
is in that.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from tst_megatron.compare.pairs.ends import final_losses, loss_at
from tst_megatron.compare.report.lines import (
    Band,
    Bar,
    Chart,
    Line,
    Points,
    after_switch,
    finite,
    lines_of,
    marks,
    switch_places,
    thinned,
)
from tst_megatron.compare.report.words import power_of, scale_of, shown, switches
from tst_megatron.compare.results import ArmSummary, Comparison, Curve, Floats, Pair, RecordedRun
from tst_megatron.compare.statistics.gap import FinalLoss, find_gap
from tst_megatron.training.report.losses import SMOOTHED_SHARE, smoothed
from tst_megatron.training.report.metrics_file import BAG_LOSS, LM_LOSS

GAP = "gap-over-steps"
"""Name of the chart of the gaps."""


def charts(comparison: Comparison) -> list[Chart]:
    """Return all charts in the order in which they are read; some may have no line."""
    return [*views(comparison), gap(comparison), *training(comparison)]


# --- validation losses ---------------------------------------------------------------------------


def views(comparison: Comparison) -> Iterator[Chart]:
    """Yield the next-token validation loss over steps, raw tokens, FLOPs and hours."""
    for name, title, label, values_of, unit_of in _VIEWS:
        recorded = [
            values
            for arm in comparison.arms
            for run in arm.runs
            if (values := values_of(run)) is not None
        ]
        divisor, unit = unit_of(itertools.chain.from_iterable(recorded))
        yield _view(
            comparison,
            name=f"validation-over-{name}",
            title=f"Validation loss over {title}",
            x_label=f"{label}{f' ({unit})' if unit else ''}",
            x_of=functools.partial(_divided, values_of, divisor),
        )


def _unchanged(values: object) -> tuple[float, str]:
    return 1.0, ""


def _steps(run: RecordedRun) -> Floats | None:
    return run.validation.steps.astype(np.float64)


def _raw_tokens(run: RecordedRun) -> Floats | None:
    return run.raw_tokens


def _flops(run: RecordedRun) -> Floats | None:
    return run.flops


def _hours(run: RecordedRun) -> Floats | None:
    return run.hours


_VIEWS: tuple[
    tuple[str, str, str, Callable[[RecordedRun], Floats | None], Callable[..., tuple[float, str]]],
    ...,
] = (
    ("steps", "optimizer steps", "optimizer step", _steps, _unchanged),
    ("raw-tokens", "raw tokens", "raw tokens read", _raw_tokens, scale_of),
    ("flops", "FLOPs", "floating-point operations", _flops, power_of),
    ("hours", "hours of step time", "hours of step time", _hours, _unchanged),
)
"""Name, title, label of the axis, a run's values for it, and their unit."""


def _divided(
    values_of: Callable[[RecordedRun], Floats | None], divisor: float, run: RecordedRun
) -> Floats | None:
    values = values_of(run)
    return None if values is None else values / divisor


def _view(
    comparison: Comparison,
    *,
    name: str,
    title: str,
    x_label: str,
    x_of: Callable[[RecordedRun], Floats | None],
) -> Chart:
    lines: list[Line] = []
    settled, missing, places = [], [], []
    for arm in comparison.arms:
        known = [(run, x) for run in arm.runs if (x := x_of(run)) is not None]
        found = [finite(run.validation.steps, x, run.validation.values) for run, x in known]
        found = [points for points in found if len(points[0])]
        if not found:
            missing.append(arm.name)
            continue
        lines += lines_of(arm, found)
        settled += [after_switch(arm, steps, y) for steps, _, y in found]
        steps, x, _ = found[0]
        places += switch_places(arm, steps, x)
    return Chart(
        name=name,
        title=title,
        subject="validation",
        loss="next token",
        x_label=x_label,
        y_label="validation loss (nats per token)",
        lines=lines,
        marks=marks(places),
        settled=settled,
        missing=missing,
    )


# --- the gap -------------------------------------------------------------------------------------


def gap(comparison: Comparison) -> Chart:
    """Return each arm's validation loss less the baseline's over steps, with its interval."""
    arm_of = {arm.name: arm for arm in comparison.arms}
    baseline = _mean(arm_of[comparison.baseline])
    lines, settled, places, missing, bands = [], [], [], [], []
    pairs = [pair for pair in comparison.pairs if pair.gap is not None]
    for pair in pairs:
        arm = arm_of[pair.arm]
        steps, values = _difference(_mean(arm), baseline)
        if not len(steps):
            missing.append(arm.name)
            continue
        lines.append(Line(arm=arm.name, part="arm", x=thinned(steps), y=thinned(values)))
        settled.append(after_switch(arm, steps, values))
        places += switch_places(arm, steps, steps)
        if len(pairs) <= MOST_BANDS:
            bands.append(_band(arm, arm_of[comparison.baseline], after_switch(arm, steps, steps)))
    return Chart(
        name=GAP,
        title=f"Gap to {shown(comparison.baseline)} over optimizer steps",
        subject="validation",
        loss="gap",
        x_label="optimizer step",
        y_label="gap (nats per token); below 0 is better",
        lines=lines,
        marks=marks(places),
        bars=[bar for pair in pairs if (bar := _bar(pair)) is not None],
        bands=[band for band in bands if len(band.x)],
        settled=settled,
        missing=missing,
    )


def _mean(arm: ArmSummary) -> tuple[Floats, Floats]:
    """Return the steps that all runs of an arm have, and the mean loss at each."""
    curves = [run.validation for run in arm.runs]
    found = [finite(curve.steps, curve.steps, curve.values) for curve in curves]
    common = functools.reduce(np.intersect1d, [steps for steps, _, _ in found])
    at = [y[np.searchsorted(steps, common)] for steps, _, y in found]
    return common, np.mean(at, axis=0)


def _difference(
    ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    steps, i, j = np.intersect1d(ours[0], theirs[0], return_indices=True)
    return steps, ours[1][i] - theirs[1][j]


MOST_BANDS = 3
"""Arms; bands of more would hide each other, and leave the intervals at the ends."""
PLACES_OF_A_BAND = 25
"""Evaluations, since each may need the files of its losses by sequence."""


def _band(arm: ArmSummary, baseline: ArmSummary, steps: Floats) -> Band:
    """Return the gap's interval at evaluations after the switch, found as the final one is."""
    have_seeds = max(len(arm.runs), len(baseline.runs)) > 1
    at = np.linspace(0, len(steps) - 1, min(len(steps), PLACES_OF_A_BAND)).round()
    places, lows, highs = [], [], []
    for step in steps[at.astype(np.int64)].astype(int).tolist():
        sides = [
            # Over seeds, the mean of each run is all that counts.
            [FinalLoss(seed=run.seed, loss=loss_at(run, step), blocks=None) for run in each.runs]
            if have_seeds
            else final_losses(each.runs, step, [])
            for each in (arm, baseline)
        ]
        interval = find_gap(*sides).interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            places.append(step)
            lows.append(interval.low)
            highs.append(interval.high)
    x, low, high = (np.asarray(each, dtype=np.float64) for each in (places, lows, highs))
    return Band(arm=arm.name, x=x, low=low, high=high)


def _bar(pair: Pair) -> Bar | None:
    """Return the interval of a gap, if both losses are of the same step, as the line's are."""
    if pair.gap is None or pair.compared_at[0] != pair.compared_at[1]:
        return None
    ends = (pair.gap.value, pair.gap.low, pair.gap.high)
    if not all(map(math.isfinite, ends)):
        return None
    y, low, high = ends
    return Bar(arm=pair.arm, x=float(pair.compared_at[0]), y=y, low=low, high=high)


# --- training losses -----------------------------------------------------------------------------


def training(comparison: Comparison) -> Iterator[Chart]:
    """Yield the training losses: the next-token loss alone, and the bag loss alone."""
    yield _training(
        comparison,
        record=LM_LOSS,
        name="training-next-token-loss",
        title="Training loss, next token",
        loss="next token",
        y_label="training loss (nats per token)",
    )
    yield _training(
        comparison,
        record=BAG_LOSS,
        name="training-bag-loss",
        title="Training loss of bags",
        loss="bag",
        y_label="bag loss (nats)",
    )


def _training(
    comparison: Comparison,
    *,
    record: str,
    name: str,
    title: str,
    loss: Literal["next token", "bag"],
    y_label: str,
) -> Chart:
    lines: list[Line] = []
    settled, places = [], []
    for arm in comparison.arms:
        curves = [curve for run in arm.runs if (curve := run.training.get(record))]
        found = [points for curve in curves if len((points := _smooth(curve))[0])]
        if not found:
            continue
        lines += lines_of(arm, found)
        settled += [y for _, _, y in found]
        # A bag loss ends at the last switch, which needs no mark.
        end = max(steps[-1] for steps, _, _ in found)
        places += [(float(step), arm.name) for step in switches(arm.runs[0]) if step < end]
    return Chart(
        name=name,
        title=title,
        subject="training",
        loss=loss,
        x_label="optimizer step",
        y_label=y_label,
        lines=lines,
        marks=marks(places),
        settled=settled,
    )


def _smooth(curve: Curve) -> Points:
    steps, x, y = finite(curve.steps, curve.steps, curve.values)
    width = int(len(y) * SMOOTHED_SHARE) | 1
    return steps, x, np.asarray(smoothed(y.tolist(), width))
