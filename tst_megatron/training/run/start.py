"""Where a start of a run would begin, and everything that stands against it, before any rank runs.

``tst-megatron check --run-folder``, the launcher and the first rank ask the same function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.folder import checkpoint_of, step_of, write_tracker
from tst_megatron.checkpoint.resharding import reshard_notes, reshard_problems
from tst_megatron.checkpoint.start import Start
from tst_megatron.checkpoint.whole import newest_whole, whole_before
from tst_megatron.data.stream.corpora import changed_text
from tst_megatron.data.stream.cursor import cursor, differences, stream_facts
from tst_megatron.recipe.check.checked import CheckedRecipe
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.run.folder import RunFolder, saves_manifest
from tst_megatron.training.run.pretrained import pretrained_problems
from tst_megatron.training.run.records import damage_of, read_resolved


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
    copy, notes_of_copy = (None, []) if fresh else _copy_of_identity(run)
    problems = run.problems(checked, fresh=fresh, copy=copy) + changed_text(checked.corpora)
    start = Start(step=0)
    if run.is_prepared() and not fresh:
        try:
            start = run.find_start(checked)
            start = replace(start, notes=(*notes_of_copy, *start.notes))
        except RecipeError as error:
            problems += error.problems
    if start.step and not run.is_finished(checked):
        try:
            start = _readable(checked, run, start)
            start = replace(start, notes=(*start.notes, *run.notes(checked)))
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


def _readable(checked: CheckedRecipe, run: RunFolder, start: Start) -> Start:
    """The newest checkpoint from a start on that can be read and fits this run.

    Raises:
        RecipeError: none can be read, with what is wrong with the newest; or that one does not fit.
    """
    try:
        notes = check_checkpoint(checked, checkpoint_of(run.checkpoints, start.step))
        return replace(start, notes=(*start.notes, *notes))
    except saved_state.UnreadableError as error:
        damage = error.problems[0]
        for checkpoint in whole_before(run.checkpoints, start.step, saves_manifest(checked)):
            older = replace(
                start,
                step=step_of(checkpoint),
                notes=(*start.notes, f"{damage}; skipped"),
                unreadable=start.unreadable | {start.step},
            )
            with contextlib.suppress(saved_state.UnreadableError):
                return _readable(checked, run, older)
        raise


def fall_back(
    checked: CheckedRecipe,
    run: RunFolder,
    step: int,
    damage: str,
    *,
    say: Callable[[str], None],
    distrust: Callable[[int], None],
) -> int | None:
    """Point Megatron's tracker at the newest checkpoint before one that could not be loaded.

    The damaged one stays where it is, for its owner to look at, until its step is saved again.

    Args:
        checked: the recipe.
        run: its folder.
        step: of the damaged one.
        damage: what is wrong with it.
        say: told what is done.
        distrust: told each step whose checkpoint is not gone on from.

    Returns:
        The step of the older one, or None if there is none that this run can go on from.
    """
    say(f"{checkpoint_of(run.checkpoints, step).name}: cannot be loaded: {damage}")
    distrust(step)
    for checkpoint in whole_before(run.checkpoints, step, saves_manifest(checked)):
        try:
            check_checkpoint(checked, checkpoint)
        except RecipeError as error:
            say(f"{error.problems[0]}; skipped")
            distrust(step_of(checkpoint))
            continue
        older = step_of(checkpoint)
        write_tracker(run.checkpoints, older)
        say(f"going on from {checkpoint.name}: {step - older} steps are made again")
        return older
    return None


def _copy_of_identity(run: RunFolder) -> tuple[dict[str, Any] | None, list[str]]:
    """What the newest checkpoint says that the run is, where the folder's own file is damaged."""
    what = damage_of(run.resolved, read_resolved) if run.is_prepared() else None
    newest, _ = newest_whole(run.checkpoints) if what else (None, [])
    if newest is None:
        return None, []
    try:
        state = saved_state.read(newest, advice="bring the file back from a backup")
    except RecipeError:
        return None, []
    copy = getattr(state["args"], "tst", {}).get("run")
    if not copy:
        return None, []
    return copy, [f"{run.resolved} {what}: compared with the copy in {newest.name} instead"]


def check_checkpoint(checked: CheckedRecipe, checkpoint: Path) -> list[str]:
    """Refuse a checkpoint that this start cannot go on from, and say what its owner should know.

    Raises:
        UnreadableError: its bytes are damaged.
        RecipeError: it was trained on another stream, does not load into this layout, or does not
            say.
    """
    # Imports Megatron, which the check of the recipe has done before.
    from tst_megatron.megatron.distributed_checkpoint.model import pending_rerun

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
