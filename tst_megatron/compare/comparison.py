"""Compare recorded runs: read them, put them into arms, and find everything that can be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tst_megatron.compare.arms import choose_baseline, with_arms
from tst_megatron.compare.comparability.differences import compare_facts
from tst_megatron.compare.downstream import find_downstream
from tst_megatron.compare.pairs.ends import Runs, final_losses, final_step
from tst_megatron.compare.pairs.pair import compare_pair
from tst_megatron.compare.results import ArmSummary, Comparison, RecordedRun
from tst_megatron.compare.runs.open_runs import open_runs
from tst_megatron.compare.statistics.gap import final_interval
from tst_megatron.compare.statistics.spike import find_spike
from tst_megatron.training.report.metrics_file import LM_LOSS


def compare_runs(
    paths: Sequence[Path], *, baseline: str | None = None, seed: int = 0
) -> Comparison:
    """Compare runs, each with the baseline.

    Args:
        paths: run folders of ours, TensorBoard folders and CSV files; one alone is described.
        baseline: name of an arm or of a run; ``arms.choose_baseline`` says what is taken without.
        seed: of what is drawn at random, so that the same runs give the same intervals.

    Raises:
        RecipeError: runs that cannot be read, a sentence each, or no baseline that is meant.
    """
    runs, notes = open_runs(paths)
    given = with_arms(runs)
    name = choose_baseline(given, baseline)
    arms = {each: _together(given[each], notes) for each in (name, *given) if each in given}
    differences, same = compare_facts(arms)
    pairs = [
        compare_pair(arms, each, name, differences, seed=seed, notes=notes)
        for each in arms
        if each != name
    ]
    return Comparison(
        baseline=name,
        arms=[_summary(each, arms[each], notes) for each in arms],
        differences=differences,
        pairs=pairs,
        downstream=find_downstream(arms, name, notes),
        notes=list(dict.fromkeys(notes)),
        same=same,
    )


def _together(runs: Sequence[RecordedRun], notes: list[str]) -> list[RecordedRun]:
    """Return the runs of an arm that were evaluated at a common step."""
    kept = [runs[0]]
    for run in runs[1:]:
        if final_step([*kept, run]) is not None:
            kept.append(run)
        else:
            notes.append(
                f"{run.path}: is left out of {run.arm}, because it was evaluated at no step at "
                f"which {kept[0].name} was"
            )
    return kept


def _summary(name: str, runs: Runs, notes: list[str]) -> ArmSummary:
    step = final_step(runs)
    assert step is not None, "runs without a common evaluation are not together"
    spikes = (
        find_spike(run.phases, run.training[LM_LOSS]) for run in runs if LM_LOSS in run.training
    )
    return ArmSummary(
        name=name,
        runs=runs,
        final_step=step,
        final_loss=final_interval(final_losses(runs, step, notes)),
        spike=next((spike for spike in spikes if spike is not None), None),
        numbers=_means([run.numbers for run in runs]),
    )


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the runs that have it."""
    names = dict.fromkeys(name for each in numbers for name in each)
    return {
        name: float(np.mean([each[name] for each in numbers if name in each])) for name in names
    }
