"""Compare one arm with the baseline: gap, crossing, equal loss, verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tst_megatron.compare.arms import has_superposition
from tst_megatron.compare.comparability.differences import UNKNOWN, forbidding
from tst_megatron.compare.comparability.subjects import held_out_size
from tst_megatron.compare.pairs.ends import (
    Runs,
    compared_at,
    final_losses,
    is_finished,
)
from tst_megatron.compare.pairs.lengths import other_lengths
from tst_megatron.compare.pairs.meetings import Ends, find_meetings
from tst_megatron.compare.pairs.verdict import Evidence, judge
from tst_megatron.compare.results import Difference, Pair, RecordedRun
from tst_megatron.compare.runs.finite import DIVERGED_AT
from tst_megatron.compare.statistics.gap import (
    ASSUMED_NOISE,
    ASSUMED_SOURCE,
    FinalLoss,
    Gap,
    find_gap,
)


def compare_pair(
    arms: Mapping[str, Runs],
    name: str,
    baseline: str,
    differences: Sequence[Difference],
    *,
    seed: int,
    notes: list[str],
) -> Pair:
    """Return everything that is found of an arm and the baseline.

    Args:
        arms: all arms, name -> runs.
        name: of the arm.
        baseline: name of the baseline.
        differences: of all arms.
        seed: of what is drawn at random.
        notes: is told in a sentence of records that cannot be used.
    """
    runs, others = arms[name], arms[baseline]
    at = compared_at(runs, others)
    forbids = forbidding(differences, name, baseline)
    if forbids is not None:
        why = f"differ in the {forbids.what}, so their losses cannot be compared"
        return _without_gap(arms, name, baseline, at, why)
    if at is None:
        why = f"have no overlap, {_range(runs)} against {_range(others)}"
        return _without_gap(arms, name, baseline, at, why)
    losses = final_losses(runs, at[0], notes), final_losses(others, at[1], notes)
    gap = find_gap(*losses)
    lengths = [arms[each] for each in other_lengths(arms, baseline)]
    meetings = find_meetings(
        Ends(arm=runs, baseline=others, at=at, lengths=lengths), seed=seed, notes=notes
    )
    evidence = _evidence(runs, others, at, losses, gap)
    verdict, sentence = judge(
        dataclasses.replace(
            evidence,
            crosses=meetings.crossing_step is not None,
            caveats=_caveats(name, baseline, differences),
        )
    )
    return Pair(
        arm=name,
        baseline=baseline,
        compared_at=at,
        gap=gap.interval,
        run_noise=gap.noise,
        run_noise_source=gap.noise_source,
        crossing_step=meetings.crossing_step,
        equal_loss=meetings.equal_loss,
        equal_loss_said=meetings.equal_loss_said,
        verdict=verdict,
        sentence=sentence,
    )


def _evidence(
    runs: Runs,
    others: Runs,
    at: tuple[int, int],
    losses: tuple[Sequence[FinalLoss], Sequence[FinalLoss]],
    gap: Gap,
) -> Evidence:
    unfinished = _unfinished(runs, others) or _before_the_end(runs, others, at)
    num_positions, num_blocks = _held_out(losses, (runs[0], others[0]))
    return Evidence(
        arm=runs[0].arm,
        baseline=others[0].arm,
        gap=gap,
        num_seeds=(len(runs), len(others)),
        at=at,
        is_at_end=not unfinished,
        unfinished=unfinished,
        num_positions=num_positions,
        num_blocks=num_blocks,
        recovery_steps=_recovery_steps(runs[0], at[0]),
        costs=_costs(runs[0], others[0], at),
    )


def _caveats(name: str, baseline: str, differences: Sequence[Difference]) -> list[str]:
    """Say what else two arms differ in, and what is not shown to be the same."""
    matter = [
        each
        for each in differences
        if each.gravity == "matters" and {name, baseline} <= each.values.keys()
    ]
    differ, unknown = [], []
    for each in matter:
        values = each.values[name], each.values[baseline]
        if UNKNOWN in values:
            unknown.append(each.what.removeprefix("all "))
        elif values[0] != values[1]:
            # Otherwise a third arm differs from both.
            differ.append(each.what)
    return [
        *([f"they differ in {', '.join(differ)} too"] if differ else []),
        *([f"nothing shows that they have the same {', '.join(unknown)}"] if unknown else []),
    ]


def _before_the_end(runs: Runs, others: Runs, at: tuple[int, int]) -> list[str]:
    """Say of each arm that is compared before its own last evaluation.

    There its learning rate is not decayed yet, while that of the other may be.
    """
    return [
        f"{each[0].arm} is compared at step {step:,} of {each[0].last_step:,}"
        for each, step in zip((runs, others), at, strict=True)
        if all(is_finished(run) for run in each)
        and step < min(int(run.validation.steps[-1]) for run in each)
    ]


def _without_gap(
    arms: Mapping[str, Runs], name: str, baseline: str, at: tuple[int, int] | None, why: str
) -> Pair:
    runs, others = arms[name], arms[baseline]
    evidence = Evidence(
        arm=name,
        baseline=baseline,
        gap=None,
        why_no_gap=why,
        num_seeds=(len(runs), len(others)),
        is_at_end=False,
    )
    verdict, sentence = judge(evidence)
    ends = int(runs[0].validation.steps[-1]), int(others[0].validation.steps[-1])
    return Pair(
        arm=name,
        baseline=baseline,
        compared_at=at or ends,
        gap=None,
        run_noise=ASSUMED_NOISE,
        run_noise_source=ASSUMED_SOURCE,
        crossing_step=None,
        equal_loss={},
        equal_loss_said=f"No losses are matched: {name} and {baseline} {why}.",
        verdict=verdict,
        sentence=sentence,
    )


def _range(runs: Runs) -> str:
    first = min(int(run.validation.steps[0]) for run in runs)
    last = max(int(run.validation.steps[-1]) for run in runs)
    return f"evaluations at steps {first:,} to {last:,}"


def _unfinished(*arms: Runs) -> list[str]:
    """Say of each run that is not at its end how it stands."""
    found = []
    for run in (run for runs in arms for run in runs):
        if DIVERGED_AT in run.facts:
            found.append(
                f"the losses of {run.name} are no numbers from step {run.facts[DIVERGED_AT]:,} on"
            )
        elif not is_finished(run):
            found.append(
                f"{run.name} is not finished (step {run.last_step:,} of {run.num_steps:,})"
            )
    return found


def _held_out(
    losses: Sequence[Sequence[FinalLoss]], runs: Sequence[RecordedRun]
) -> tuple[int | None, int | None]:
    """Return the held-out tokens and sequences of an evaluation, as kept or as the recipe says."""
    for each in (each for arm in losses for each in arm if each.blocks is not None):
        counts = each.blocks.num_positions if each.blocks else np.zeros(0, np.int64)
        return int(counts.sum()), len(counts)
    for run in runs:
        size = held_out_size(run)
        if size is not None:
            return size[0] * size[1], size[0]
    return None, None


def _recovery_steps(run: RecordedRun, step: int) -> int | None:
    if not has_superposition(run):
        return None
    return step - sum(steps for _, steps in run.phases[:-1])


def _costs(run: RecordedRun, other: RecordedRun, at: tuple[int, int]) -> list[tuple[str, float]]:
    found = []
    for name, one, two in (
        ("raw tokens", run.raw_tokens, other.raw_tokens),
        ("FLOPs", run.flops, other.flops),
    ):
        if one is not None and two is not None:
            costs = [
                float(np.interp(step, each.validation.steps, values))
                for step, each, values in ((at[0], run, one), (at[1], other, two))
            ]
            if costs[1] > 0:
                found.append((name, costs[0] / costs[1]))
    return found
