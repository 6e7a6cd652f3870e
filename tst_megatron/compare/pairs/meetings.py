"""Where an arm's curve crosses the baseline's, and what both need to the same loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.compare.pairs.drawn_curves import Drawn, draw, evaluations_near
from tst_megatron.compare.pairs.ends import Runs, loss_at
from tst_megatron.compare.pairs.lengths import mean_at_end
from tst_megatron.compare.results import Floats, Interval, RecordedRun
from tst_megatron.compare.statistics.curves import on_common_steps, stays_below_after
from tst_megatron.compare.statistics.equal_loss import (
    STEPS,
    Costs,
    Lengths,
    LossCurves,
    baseline_steps,
    over_seeds,
    percentiles,
    ratios,
)
from tst_megatron.compare.statistics.student import mean_interval

BY_BLOCKS = "{number:,} drawings of held-out blocks, and assumed run-to-run noise; one seed"
NO_BLOCKS = "one seed, and no losses of the same held-out blocks are recorded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Meetings:
    """What ``results.Pair`` says of the two curves."""

    crossing_step: Interval | None
    equal_loss: Mapping[str, Interval]
    equal_loss_said: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """The runs that are compared: arm, baseline, and baselines of other lengths."""

    arm: Runs
    baseline: Runs
    at: tuple[int, int]
    """Steps of the arm and of the baseline."""
    lengths: Sequence[Runs]
    """Shortest first, the baseline among them; empty if there is one length."""


def find_meetings(ends: Ends, *, seed: int, notes: list[str]) -> Meetings:
    """Return the crossing and the ratios at equal loss, with their intervals.

    With two seeds or more in both arms, intervals are over pairs of runs. With one seed, the text
    is drawn anew from groups of neighbouring held-out sequences, the same for all runs.

    Args:
        ends: the runs.
        seed: of the drawings.
        notes: is told in a sentence of files that cannot be used.
    """
    pairs = pairs_of_runs(ends.arm, ends.baseline)
    if len(pairs) >= 2:
        return _over_pairs(ends, pairs)
    arm, baseline = ends.arm[0], ends.baseline[0]
    recorded = _recorded(ends, arm, baseline, number=0)
    names = _names(recorded)
    values = {name: float(each[0]) for name, each in ratios(*recorded, names).items()}
    common = _common(ends, arm, baseline)
    crossing = _crossing(common)
    drawn = _drawn(ends, [crossing, *_places(recorded)], seed, notes)
    method = NO_BLOCKS if drawn is None else BY_BLOCKS.format(number=len(drawn[0].losses))
    of_crossing, of_ratios = None, dict[str, Floats]()
    if drawn is not None:
        of_crossing = stays_below_after(*_difference(drawn[0], drawn[1]))
        of_ratios = ratios(*_as_curves(ends, recorded, drawn), names)
    return Meetings(
        crossing_step=percentiles(crossing, of_crossing, method)
        if math.isfinite(crossing)
        else None,
        equal_loss={
            name: percentiles(value, of_ratios.get(name), method)
            for name, value in values.items()
            if math.isfinite(value)
        },
        equal_loss_said=_said(recorded, ends),
    )


def pairs_of_runs(arm: Runs, baseline: Runs) -> list[tuple[RecordedRun, RecordedRun]]:
    """Pair runs: by their seeds if both arms have the same ones, otherwise in their order."""
    if {run.seed for run in arm} == {run.seed for run in baseline}:
        others = {run.seed: run for run in baseline}
        return [(run, others[run.seed]) for run in arm]
    return list(zip(arm, baseline, strict=False))


def _over_pairs(ends: Ends, pairs: Sequence[tuple[RecordedRun, RecordedRun]]) -> Meetings:
    of_pairs, crossings = [], []
    for number, (arm, baseline) in enumerate(pairs):
        recorded = _recorded(ends, arm, baseline, number=number)
        found = ratios(*recorded, _names(recorded))
        of_pairs.append({name: float(each[0]) for name, each in found.items()})
        crossings.append(_crossing(_common(ends, arm, baseline)))
    names = set.intersection(*(set(each) for each in of_pairs))
    finite = [step for step in crossings if math.isfinite(step)]
    crossing = None
    if len(finite) == len(crossings):
        crossing = mean_interval(crossings, f"t over {len(pairs)} pairs of seeds")
    elif 2 * len(finite) > len(crossings):
        method = f"{len(finite)} of {len(pairs)} pairs of seeds cross"
        crossing = Interval(
            value=float(np.mean(finite)), low=min(finite), high=math.inf, method=method
        )
    first = _recorded(ends, *pairs[0], number=0)
    return Meetings(
        crossing_step=crossing,
        equal_loss=over_seeds([{name: each[name] for name in sorted(names)} for each in of_pairs]),
        equal_loss_said=_said(first, ends),
    )


# --- curves as they are recorded ------------------------------------------------------------------

_Recorded = tuple[LossCurves, LossCurves, Lengths | None]


def _recorded(ends: Ends, arm: RecordedRun, baseline: RecordedRun, *, number: int) -> _Recorded:
    lengths = None
    if ends.lengths:
        of_ends = [_end_of(runs, number) for runs in ends.lengths]
        lengths = Lengths(
            steps=np.array([step for step, _, _ in of_ends], np.float64),
            losses=np.array([[loss for _, loss, _ in of_ends]]),
            costs=_joined([(run, step) for step, _, run in of_ends]),
        )
    return _curve(arm, ends.at[0]), _curve(baseline, ends.at[1]), lengths


def _end_of(runs: Runs, number: int) -> tuple[int, float, RecordedRun]:
    """Return step, loss and run of an arm's end, for one pair; the mean if it has fewer runs."""
    step, mean = mean_at_end(runs)
    if number < len(runs) > 1:
        return step, loss_at(runs[number], step), runs[number]
    return step, mean, runs[0]


def _curve(run: RecordedRun, end: int) -> LossCurves:
    inside = run.validation.steps <= end
    steps = run.validation.steps[inside].astype(np.float64)
    return LossCurves(steps=steps, losses=run.validation.values[inside][None, :], costs=_costs(run))


def _costs(run: RecordedRun) -> Costs:
    known = {"raw tokens": run.raw_tokens, "FLOPs": run.flops, "hours": run.hours}
    return Costs(
        steps=run.validation.steps.astype(np.float64),
        of={name: values for name, values in known.items() if values is not None},
    )


def _joined(ends: Sequence[tuple[RecordedRun, int]]) -> Costs:
    """Return the costs of several runs at their ends, as one run of several lengths."""
    each = [(_costs(run), np.array([float(step)])) for run, step in ends]
    names = set.intersection(*(set(costs.of) for costs, _ in each))
    return Costs(
        steps=np.array([step[0] for _, step in each]),
        of={name: np.array([costs.at(name, step)[0] for costs, step in each]) for name in names},
    )


def _names(recorded: _Recorded) -> list[str]:
    """Return the costs that are known of all runs."""
    arm, baseline, lengths = recorded
    known = [arm.costs, baseline.costs if lengths is None else lengths.costs]
    shared = [name for name in ("raw tokens", "FLOPs", "hours") if all(name in c.of for c in known)]
    return [STEPS, *shared]


def _common(ends: Ends, arm: RecordedRun, baseline: RecordedRun) -> tuple[Floats, Floats]:
    """Return the steps at which both runs have a loss, and the arm's less the baseline's."""
    cut = [(run.validation.steps <= end) for run, end in zip((arm, baseline), ends.at, strict=True)]
    steps, one, other = on_common_steps(
        (arm.validation.steps[cut[0]], arm.validation.values[cut[0]]),
        (baseline.validation.steps[cut[1]], baseline.validation.values[cut[1]]),
    )
    return steps.astype(np.float64), one - other


def _crossing(common: tuple[Floats, Floats]) -> float:
    steps, difference = common
    return float(stays_below_after(steps, difference[None, :])[0]) if len(steps) else math.inf


def _places(recorded: _Recorded) -> list[float]:
    """Return the steps at which the curves come down to each other's final losses."""
    arm, baseline, _ = recorded
    return [
        float(baseline_steps(one, None, other.losses[:, -1])[0])
        for one, other in ((arm, baseline), (baseline, arm))
    ]


# --- curves on drawn text -------------------------------------------------------------------------


def _drawn(ends: Ends, places: Sequence[float], seed: int, notes: list[str]) -> list[Drawn] | None:
    wanted = []
    for runs, end in zip((ends.arm, ends.baseline), ends.at, strict=True):
        run = runs[0]
        steps = [step for step in run.validation.steps.tolist() if step <= end]
        chosen = evaluations_near(steps, places, run.block_files)
        wanted.append((run, chosen if chosen and chosen[-1] == end else [end]))
    for runs in ends.lengths:
        wanted.append((runs[0], [mean_at_end(runs)[0]]))
    return draw(wanted, seed=seed, notes=notes)


def _difference(arm: Drawn, baseline: Drawn) -> tuple[Floats, Floats]:
    common, at, there = np.intersect1d(arm.steps, baseline.steps, return_indices=True)
    if len(common):
        return common, arm.losses[:, at] - baseline.losses[:, there]
    # Of evaluations at other steps, the baseline is taken between its own.
    between = np.array([np.interp(arm.steps, baseline.steps, row) for row in baseline.losses])
    return arm.steps, arm.losses - between


def _as_curves(ends: Ends, recorded: _Recorded, drawn: Sequence[Drawn]) -> _Recorded:
    curves = [
        LossCurves(steps=each.steps, losses=each.losses, costs=of.costs)
        for each, of in zip(drawn, recorded[:2], strict=False)
    ]
    lengths = recorded[2]
    if lengths is not None:
        losses = np.concatenate([each.losses[:, -1:] for each in drawn[2:]], axis=1)
        lengths = Lengths(steps=lengths.steps, losses=losses, costs=lengths.costs)
    return curves[0], curves[1], lengths


# --- words ---------------------------------------------------------------------------------------


def _said(recorded: _Recorded, ends: Ends) -> str:
    arm, baseline, lengths = recorded
    name, other = ends.arm[0].arm, ends.baseline[0].arm
    steps = float(baseline_steps(baseline, lengths, arm.losses[:, -1])[0])
    inside = (
        "inside one learning-rate schedule: a run that was made for that length would have decayed "
        "there, and be lower"
    )
    if lengths is not None and lengths.steps[0] <= steps < math.inf:
        listed = ", ".join(f"{length:,.0f}" for length in lengths.steps)
        return (
            f"The final loss of {name} is matched with the final losses of baselines of {listed} "
            "steps, on a straight line over the logarithm of the steps."
        )
    if math.isfinite(steps):
        shortest = "" if lengths is None else "is above that of the shortest baseline, and "
        return f"The final loss of {name} {shortest}is matched with the curve of {other}, {inside}."
    longest = other
    if lengths is not None:
        longest = f"the longest baseline ({lengths.steps[-1]:,.0f} steps)"
    return (
        f"No baseline comes down to the final loss of {name}, so the final loss of {longest} is "
        f"matched with the curve of {name}, {inside}."
    )
