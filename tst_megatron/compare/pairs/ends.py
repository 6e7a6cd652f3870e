"""Find the evaluations at which two arms are compared, and their losses there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tst_megatron.compare.results import BlockLosses, RecordedRun
from tst_megatron.compare.runs.finite import DIVERGED_AT
from tst_megatron.compare.statistics.curves import scatter
from tst_megatron.compare.statistics.gap import FinalLoss
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.evaluations import read_blocks

AS_LOGGED = 1e-4
"""Nats by which the mean of kept losses may differ from the loss that the run has logged."""

Runs = Sequence[RecordedRun]


def knows_its_end(run: RecordedRun) -> bool:
    """Tell whether a run's records say how many steps it has in all."""
    recipe = run.facts.get("recipe", {})
    return run.kind == "run folder" or "train-iters" in recipe


def is_finished(run: RecordedRun) -> bool:
    """Tell whether a run has been evaluated at its end; one that knows no end counts as finished.

    An evaluation counts as that of the end if no other could follow at the run's usual distance.
    """
    if DIVERGED_AT in run.facts:
        return False
    steps = run.validation.steps
    distance = int(steps[-1] - steps[-2]) if len(steps) > 1 else 1
    return run.last_step >= run.num_steps and int(steps[-1]) > run.num_steps - distance


def final_step(runs: Runs) -> int | None:
    """Return the last step at which all runs of an arm were evaluated, or None."""
    common = runs[0].validation.steps
    for run in runs[1:]:
        common = np.intersect1d(common, run.validation.steps)
    return int(common[-1]) if len(common) else None


def compared_at(arm: Runs, baseline: Runs) -> tuple[int, int] | None:
    """Return the steps at which an arm and the baseline are compared; None without overlap.

    Arms that are finished and know their length are each taken at their end. Otherwise it is the
    last step at which both were evaluated, or without one, each one's last evaluation up to where
    the shorter one ends.
    """
    every = (*arm, *baseline)
    if all(knows_its_end(run) and is_finished(run) for run in every):
        ends = final_step(arm), final_step(baseline)
        if ends[0] is not None and ends[1] is not None:
            return ends[0], ends[1]
    together = final_step(every)
    if together is not None:
        return together, together
    end = min(int(run.validation.steps[-1]) for run in every)
    places = []
    for runs in (arm, baseline):
        common = [run.validation.steps[run.validation.steps <= end] for run in runs]
        steps = [set(each.tolist()) for each in common]
        shared = set.intersection(*steps)
        if not shared:
            return None
        places.append(max(shared))
    first = max(int(run.validation.steps[0]) for run in every)
    return (places[0], places[1]) if first <= end else None


def loss_at(run: RecordedRun, step: int) -> float:
    """Return a run's validation loss at a step at which it was evaluated."""
    return float(run.validation.values[np.searchsorted(run.validation.steps, step)])


def final_losses(runs: Runs, step: int, notes: list[str]) -> list[FinalLoss]:
    """Return the losses of an arm's runs at a step, with those of the held-out sequences."""
    return [
        FinalLoss(
            seed=run.seed,
            loss=loss_at(run, step),
            blocks=blocks_at(run, step, notes),
            scatter=scatter(run.validation.steps, run.validation.values),
        )
        for run in runs
    ]


def blocks_at(run: RecordedRun, step: int, notes: list[str]) -> BlockLosses | None:
    """Read the losses of an evaluation by sequence, if they are kept and are of the logged loss.

    Args:
        run: whose.
        step: of the evaluation.
        notes: is told in a sentence, once, of a file that cannot be used.
    """
    file = run.block_files.get(step)
    if file is None:
        return None
    problem = None
    try:
        kept = read_blocks(file, with_parts=False)
    except (Damaged, OSError) as error:
        problem = f"{file}: {error}; the evaluation is taken as its mean alone"
    else:
        mean = float(kept.loss_sum.sum()) / max(1, int(kept.num_positions.sum()))
        if abs(mean - loss_at(run, step)) <= AS_LOGGED:
            return BlockLosses(loss_sum=kept.loss_sum, num_positions=kept.num_positions)
        problem = (
            f"{file}: has a mean of {mean:.5f} nats, and the run has logged "
            f"{loss_at(run, step):.5f}, so it is not used"
        )
    if problem not in notes:
        notes.append(problem)
    return None
