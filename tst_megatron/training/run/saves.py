"""The checkpoints of a run as a start finds them: finished or not, and where to resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tst_megatron.checkpoint.folder import checkpoint_of, list_checkpoints
from tst_megatron.checkpoint.known_saves import known_saves
from tst_megatron.checkpoint.retention import delete, remove_leftovers
from tst_megatron.checkpoint.start import Start, repair_tracker
from tst_megatron.checkpoint.start import find_start as find_start_in
from tst_megatron.checkpoint.whole import problems
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.run.folder import RunFolder

if TYPE_CHECKING:
    from tst_megatron.training.run.plan import RunPlan


def is_finished(run: RunFolder, plan: RunPlan) -> bool:
    """Tell whether the checkpoint of the last step is complete; every rank finds the same."""
    last = checkpoint_of(run.checkpoints, plan.schedule.num_steps)
    try:
        return last.is_dir() and not problems(last, has_manifest=plan.saves_manifest)
    except OSError:
        # The first rank is taking it away (``repair``), which it does with damaged ones alone;
        # or it cannot be read now, which a start is told by what it reads next.
        return False


def find_start(run: RunFolder, plan: RunPlan) -> Start:
    """Return the step that the run resumes after. Changes nothing.

    Raises:
        RecipeError: something was saved, and none of it is complete.
        OSError: that cannot be known now.
    """
    start = find_start_in(run.checkpoints, has_manifest=plan.saves_manifest)
    _refuse_to_start_over(run, start)
    return start


def repair(run: RunFolder, plan: RunPlan) -> Start:
    """Put the checkpoints in order for a start; the first rank does this, before the others.

    Raises:
        RecipeError: something was saved, and none of it is complete.
    """
    start = repair_tracker(run.checkpoints, has_manifest=plan.saves_manifest)
    _refuse_to_start_over(run, start)
    remove_leftovers(run.checkpoints)
    if start.step == 0:
        for unfinished in list_checkpoints(run.checkpoints):
            if not unfinished.is_symlink():
                delete(unfinished)
    return start


def _refuse_to_start_over(run: RunFolder, start: Start) -> None:
    """Refuse step 0 to a run that has saved before: missing checkpoints do not make a run new.

    Raises:
        RecipeError: it would start from step 0.
    """
    # A link to nowhere is said in other words, with where it leads.
    if start.step or run.place_problems() or not (known := known_saves(run.path)):
        return
    are_there = list_checkpoints(run.checkpoints)
    what = "holds no completed save" if are_there else "holds no checkpoint"
    raise RecipeError(
        [
            f"{run.checkpoints}: {what if run.checkpoints.exists() else 'is missing'}, and "
            f"this run has saved some before ({'; '.join(known)}). Bring them back, or mount "
            "what they are on, to go on; or use another --run-folder to start over"
        ]
    )
