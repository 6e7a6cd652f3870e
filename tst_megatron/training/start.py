"""Where a start of a run would begin, and everything that stands against it, before any rank runs.

``tst-megatron check --run-folder``, the launcher and the first rank ask the same function.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tst_megatron.check import CheckedRecipe
from tst_megatron.data.corpora import changed_text
from tst_megatron.data.cursor import cursor, differences, stream_facts
from tst_megatron.recipe import RecipeError
from tst_megatron.training import saved_state
from tst_megatron.training.checkpoints import Start, checkpoint_of, step_of
from tst_megatron.training.pretrained import pretrained_problems
from tst_megatron.training.resharding import reshard_notes, reshard_problems
from tst_megatron.training.run_folder import RunFolder


def plan_start(checked: CheckedRecipe, run: RunFolder, *, fresh: bool = False) -> Start:
    """The step that a start of this recipe in this folder goes on from. Changes nothing.

    Args:
        checked: the recipe, for the ranks of this start.
        run: its folder, new or with a run in it.
        fresh: whether the folder must be empty.

    Raises:
        RecipeError: with every problem: the folder is of another run, the text is not what its
            manifest recorded, no checkpoint is whole, the newest was trained on another stream, or
            it does not load into this layout.
    """
    problems = run.problems(checked, fresh=fresh) + changed_text(checked.corpora)
    start = Start(step=0)
    if run.is_prepared() and not fresh:
        try:
            start = run.find_start(checked)
        except RecipeError as error:
            problems += error.problems
    if start.step and not run.is_finished(checked):
        try:
            notes = check_checkpoint(checked, checkpoint_of(run.checkpoints, start.step))
            start = replace(start, notes=(*start.notes, *notes, *run.notes(checked)))
        except RecipeError as error:
            # What the folder says of a key, its checkpoint would say again.
            said = {problem.partition(":")[0] for problem in problems}
            problems += [text for text in error.problems if text.partition(":")[0] not in said]
    if not start.step and checked.arguments.pretrained_checkpoint:
        problems += pretrained_problems(checked.arguments)
        note = f"weights come from {checked.arguments.pretrained_checkpoint}"
        start = replace(start, notes=(*start.notes, note))
    if problems:
        raise RecipeError(problems)
    return start


def check_checkpoint(checked: CheckedRecipe, checkpoint: Path) -> list[str]:
    """Refuse a checkpoint that this start cannot go on from, and say what its owner should know.

    Raises:
        RecipeError: it was trained on another stream, does not load into this layout, or does not
            say.
    """
    # Imports Megatron, which the check of the recipe has done before.
    from tst_megatron.upstream.checkpoint import pending_rerun

    state = saved_state.read(
        checkpoint,
        advice="delete that folder or move it away: the run goes on from the checkpoint before it",
    )
    saved, step = state["args"], step_of(checkpoint)
    problems = _stream_problems(checked, checkpoint, getattr(saved, "tst", {}))
    problems += reshard_problems(
        saved,
        checked.arguments,
        content=state.get("content_metadata") or {},
        rerun=pending_rerun(state),
    )
    if problems:
        raise RecipeError(problems)
    return reshard_notes(saved, checked.arguments, step)


def _stream_problems(checked: CheckedRecipe, checkpoint: Path, saved: dict[str, Any]) -> list[str]:
    if not {"stream", "cursor"} <= set(saved):
        return [
            f"{checkpoint}: holds no cursor of the token stream, so it cannot be shown where "
            "the run goes on reading. Start again in another --run-folder"
        ]
    found = differences(saved["stream"], stream_facts(checked.stream, checked.corpora))
    found = found or differences(saved["cursor"], cursor(checked.stream, step_of(checkpoint)))
    return [f"{problem}. Bring back the old, or use another --run-folder" for problem in found]
