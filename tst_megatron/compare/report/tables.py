"""The tables of a comparison as cells of text, for a terminal and for a page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tst_megatron.compare.report.cells import (
    NATS,
    Cell,
    Column,
    Sheet,
    count,
    decimal,
    each_once,
    estimate,
    named,
)
from tst_megatron.compare.report.words import (
    NOT_RECORDED,
    joined,
    phases,
    scale_of,
    seeds,
    shown,
    significant,
    switches,
)
from tst_megatron.compare.results import ArmSummary, Comparison, Downstream, Pair

IS_BASELINE = "is the baseline"


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return all tables in the order in which they are read; those without rows are left out."""
    found = (
        losses(comparison),
        equal_loss(comparison),
        switch(comparison),
        machine(comparison),
        downstream(comparison),
        runs(comparison),
    )
    return [sheet for sheet in found if sheet.rows]


def losses(comparison: Comparison) -> Sheet:
    """Return the final validation loss of each arm and its gap to the baseline."""
    return Sheet(
        name="losses",
        caption=f"Final validation loss, and gap to {shown(comparison.baseline)}",
        columns=(
            Column(head="arm"),
            Column(head="last common evaluation", unit="step"),
            Column(head="validation loss", unit=NATS),
            Column(head="gap; below 0 is better", unit=NATS),
        ),
        rows=[
            (
                named(arm.name, seeds(arm)),
                count(arm.final_step),
                estimate(arm.final_loss, 4),
                _gap(_pair_of(comparison, arm)),
            )
            for arm in comparison.arms
        ],
        notes=[*_other_steps(comparison), *_methods(comparison), *_noise(comparison)],
    )


def _gap(pair: Pair | None) -> Cell:
    if pair is None:
        return Cell(IS_BASELINE)
    if pair.gap is None:
        return Cell("cannot be compared")
    return estimate(pair.gap, 4, has_sign=True)


def _other_steps(comparison: Comparison) -> list[str]:
    return [
        f"{shown(pair.arm)} at step {ours:,} is compared with {shown(pair.baseline)} at step "
        f"{theirs:,}."
        for pair in comparison.pairs
        for ours, theirs in (pair.compared_at,)
        if ours != theirs
    ]


def _methods(comparison: Comparison) -> list[str]:
    """Say how the intervals were found, once for the arms for which it is the same."""
    arms_of: dict[tuple[str, str], list[str]] = {}
    for arm in comparison.arms:
        arms_of.setdefault(("loss", arm.final_loss.method), []).append(shown(arm.name))
    for pair in comparison.pairs:
        if pair.gap:
            arms_of.setdefault(("gap", pair.gap.method), []).append(shown(pair.arm))
    return [
        f"Interval of the {what} of {joined(arms)}: {shown(method).rstrip('.') or NOT_RECORDED}."
        for (what, method), arms in arms_of.items()
    ]


def _noise(comparison: Comparison) -> list[str]:
    """Say how far runs of one arm lie apart, once for the pairs for which the same is known."""
    arms_of: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        noise = NOT_RECORDED if math.isnan(pair.run_noise) else f"{pair.run_noise:.4f} nats"
        source = f" ({shown(pair.run_noise_source)})" if pair.run_noise_source else ""
        arms_of.setdefault(noise + source, []).append(shown(pair.arm))
    return [
        f"Standard deviation of one run's final loss over seeds, for {joined(arms)}: {said}."
        for said, arms in arms_of.items()
    ]


EQUAL_LOSS = ("steps", "raw tokens", "FLOPs", "hours")


def equal_loss(comparison: Comparison) -> Sheet:
    """Return what the baseline needs to an equal loss, divided by what each arm needs."""
    baseline, pairs = shown(comparison.baseline), comparison.pairs
    return Sheet(
        name="equal-loss",
        caption=f"Cost to equal loss: what {baseline} needs, divided by what the arm needs",
        columns=(Column(head="arm"), *(Column(head=what, unit="times") for what in EQUAL_LOSS)),
        rows=[(named(pair.arm), *(_ratio(pair, what) for what in EQUAL_LOSS)) for pair in pairs],
        notes=each_once("Above 1, the arm is cheaper.", *(p.equal_loss_said for p in pairs)),
    )


def _ratio(pair: Pair, what: str) -> Cell:
    if not pair.equal_loss:
        return Cell("no equal loss")
    found = pair.equal_loss.get(what)
    return Cell(NOT_RECORDED) if found is None else estimate(found, 2)


def switch(comparison: Comparison) -> Sheet:
    """Return where each arm crosses the baseline, and the spike of the loss at its switch."""
    rows = []
    for arm in comparison.arms:
        pair = _pair_of(comparison, arm)
        steps = sorted({step for run in arm.runs for step in switches(run)[-1:]})
        found = (_switch_step(arm, steps), _crossing(pair), *_spike(arm, steps))
        rows.append((named(arm.name), *found))
    return Sheet(
        name="switch",
        caption=f"Switch to single tokens, and crossing of {shown(comparison.baseline)}",
        columns=(
            Column(head="arm"),
            Column(head="switch", unit="step"),
            Column(head="stays below the baseline from", unit="step"),
            Column(head="height of the spike", unit=NATS),
            Column(head="length of the spike", unit="steps"),
        ),
        rows=rows if any(row[1].is_number for row in rows) or comparison.pairs else (),
        notes=(
            "The spike is the next-token training loss of the first step after the switch, above "
            "the level it settles at. Its length is the number of steps until nine tenths of it "
            "are gone.",
        ),
    )


def _switch_step(arm: ArmSummary, steps: Sequence[int]) -> Cell:
    if arm.spike:
        return count(arm.spike.switch_step)
    if not steps:
        return Cell("no switch")
    return Cell(", ".join(f"{step:,}" for step in steps), is_number=True)


def _crossing(pair: Pair | None) -> Cell:
    if pair is None:
        return Cell(IS_BASELINE)
    if pair.crossing_step is None:
        return Cell("does not cross")
    return estimate(pair.crossing_step, 0)


def _spike(arm: ArmSummary, steps: Sequence[int]) -> tuple[Cell, Cell]:
    if arm.spike is None:
        missing = Cell(NOT_RECORDED if steps else "no switch")
        return missing, missing
    length = arm.spike.length
    return decimal(arm.spike.height, 3), Cell("not over at the end") if length is None else count(
        length
    )


def machine(comparison: Comparison) -> Sheet:
    """Return throughput, memory and size of each arm, means over its runs."""
    columns, cells = [Column(head="arm")], [[named(arm.name)] for arm in comparison.arms]
    for name, head, unit, divisor in _MACHINE:
        values = [arm.numbers.get(name, math.nan) for arm in comparison.arms]
        size, scale = (divisor, "") if divisor else scale_of(values)
        columns.append(Column(head=head, unit=" ".join(filter(None, (scale, unit))) or "count"))
        for row, value, arm in zip(cells, values, comparison.arms, strict=True):
            active = arm.numbers.get("active parameters", math.nan) / size
            has_active = name == "parameters" and math.isfinite(active)
            detail = f"active: {significant(active)}" if has_active else ""
            row.append(Cell(significant(value / size), detail, is_number=math.isfinite(value)))
    return Sheet(
        name="machine",
        caption="Speed, memory, balance of the experts and size; means over an arm's runs",
        columns=columns,
        rows=cells,
        notes=(
            "MFU is the share of the device's peak that the model's own operations reach. The "
            "load-balancing loss of a router is 1 when all experts get equally much. Active "
            "parameters are those that one token uses. Hours are step time, for a branch without "
            "its trunk's.",
        ),
    )


_MACHINE = (
    ("raw tokens per second", "throughput", "raw tokens/s", None),
    ("TFLOP/s per device", "compute", "TFLOP/s per device", 1.0),
    ("MFU", "MFU", "share, 0-1", 1.0),
    ("peak memory bytes", "peak memory", "GiB", 2.0**30),
    ("load balancing loss", "expert balance", "1 is even", 1.0),
    ("parameters", "parameters", "", None),
    ("own hours", "time", "hours", 1.0),
)
"""Name in ``numbers``, head, unit, and what the value is divided by; None: by its size."""


def downstream(comparison: Comparison) -> Sheet:
    """Return the answers to the tasks of ``evaluate``, paired by question."""
    found = comparison.downstream
    return Sheet(
        name="downstream",
        caption="Downstream tasks, paired by question",
        columns=(
            Column(head="task"),
            Column(head="arm"),
            Column(head="score", unit="share, 0-1"),
            Column(head="baseline's score", unit="share, 0-1"),
            Column(head="difference", unit="share, 0-1"),
            Column(head="asked", unit="questions"),
            Column(head="right alone: arm, baseline", unit="questions"),
            Column(head="p", unit="exact McNemar"),
        ),
        rows=[_answers(each) for each in found],
        notes=each_once(
            *(f"Intervals: {m}." for each in found if (m := each.difference.method)),
            "p is two-sided: how often arms that are equally good would differ as much.",
        ),
    )


def _answers(found: Downstream) -> tuple[Cell, ...]:
    return (
        Cell(shown(found.task), shown(found.metric)),
        named(found.arm),
        decimal(found.arm_score, 4),
        decimal(found.baseline_score, 4),
        estimate(found.difference, 4, has_sign=True),
        count(found.num_questions),
        Cell(f"{found.only_arm_right:,}, {found.only_baseline_right:,}", is_number=True),
        Cell(significant(found.p_value), is_number=math.isfinite(found.p_value)),
    )


def runs(comparison: Comparison) -> Sheet:
    """Return all runs: what they are called here, and what each of them was."""
    rows = []
    for arm in comparison.arms:
        for run in arm.runs:
            trunk = f"from step {run.trunk[1]:,} of {shown(run.trunk[0])}" if run.trunk else ""
            rows.append(
                (
                    Cell(shown(run.name), trunk, arm=arm.name),
                    Cell(shown(arm.name)),
                    Cell(NOT_RECORDED if run.seed is None else f"{run.seed}"),
                    Cell(f"{run.last_step:,}", f"of {run.num_steps:,}", is_number=True),
                    Cell(phases(run) or NOT_RECORDED),
                    Cell(NOT_RECORDED if run.device in ("", "unknown") else shown(run.device)),
                    Cell(run.kind),
                )
            )
    return Sheet(
        name="runs",
        caption="Each run, and the arm that it belongs to",
        columns=(
            Column(head="run"),
            Column(head="arm"),
            Column(head="seed"),
            Column(head="recorded", unit="steps"),
            Column(head="phases"),
            Column(head="device"),
            Column(head="read from"),
        ),
        rows=rows,
    )


def _pair_of(comparison: Comparison, arm: ArmSummary) -> Pair | None:
    return next((pair for pair in comparison.pairs if pair.arm == arm.name), None)
