"""Plan a start: where it would begin, and everything that stands against it.

``tst-megatron check --run-folder``, the launcher and the first rank ask the same function, before
any rank runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.folder import checkpoint_of, step_of, write_tracker
from tst_megatron.checkpoint.resharding import reshard_notes, reshard_problems
from tst_megatron.checkpoint.run_files import BRANCH, Branch, read_branch
from tst_megatron.checkpoint.start import Start
from tst_megatron.checkpoint.whole import newest_whole, whole_before
from tst_megatron.data.stream.corpora import changed_text
from tst_megatron.data.stream.cursor import cursor, differences, stream_facts
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.schedule import phases_until
from tst_megatron.system.machine.errors import raise_passing
from tst_megatron.system.records import Damaged
from tst_megatron.training.run import identity, saves
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import RunPlan, run_plan
from tst_megatron.training.run.prepare import is_half_prepared, not_a_run
from tst_megatron.training.run.pretrained import pretrained_problems
from tst_megatron.training.run.records import damage_of, read_resolved

if TYPE_CHECKING:
    from tst_megatron.recipe.check.checked import CheckedRecipe


def plan_start(checked: CheckedRecipe, run: RunFolder, *, fresh: bool = False) -> Start:
    """Return the step that a start of this recipe in this folder begins after. Changes nothing.

    Args:
        checked: the recipe, for the ranks of this start.
        run: its folder, new or with a run in it.
        fresh: whether the folder must be empty.

    Raises:
        RecipeError: with every problem: the folder is of another run, the text is not what its
            manifest recorded, no checkpoint is complete, the newest was trained on another stream,
            or it does not load into this layout.
    """
    plan, branch = run_plan(checked), branch_of(run)
    copy, notes_of_copy = (None, []) if fresh else _copy_of_identity(run)
    problems = folder_problems(run, checked, fresh=fresh, copy=copy)
    problems += changed_text(plan.corpora)
    start = Start(step=0)
    if run.is_prepared() and not fresh:
        try:
            start = saves.find_start(run, plan)
            start = replace(start, notes=(*notes_of_copy, *start.notes))
        except RecipeError as error:
            problems += error.problems
    if branch is not None:
        of_trunk = f"{branch.words()}: the steps up to that one are of the run in {branch.trunk}"
        start = replace(start, notes=(of_trunk, *start.notes))
    if start.step and not saves.is_finished(run, plan):
        try:
            start = _readable(plan, run, start)
            start = replace(start, notes=(*start.notes, *_notes(run, checked)))
        except RecipeError as error:
            # What the folder says of a key, its checkpoint would say again.
            said = {problem.partition(":")[0] for problem in problems}
            problems += [text for text in error.problems if text.partition(":")[0] not in said]
    if not start.step and plan.arguments.pretrained_checkpoint:
        problems += pretrained_problems(plan.arguments)
        note = f"weights come from {plan.arguments.pretrained_checkpoint}"
        start = replace(start, notes=(*start.notes, note))
    if problems:
        raise RecipeError(problems)
    return start


def folder_problems(
    run: RunFolder,
    checked: CheckedRecipe,
    *,
    fresh: bool,
    copy: dict[str, Any] | None = None,
) -> list[str]:
    """List why a recipe cannot use a folder: nothing, if it is new or holds the same run.

    Args:
        run: the folder.
        checked: the recipe of the start.
        fresh: the folder must be empty.
        copy: the run's identity as the newest checkpoint says it, if ``resolved.yaml`` is damaged.
    """
    if problems := run.place_problems():
        return problems
    ours = {run.slurm, run.plan, run.stop_file, *run.locks}
    if not run.path.exists() or not set(run.path.iterdir()) - ours:
        return []
    if fresh:
        return [f"--fresh: {run.path} is not empty. Name another folder, or delete it"]
    if not run.is_prepared():
        if is_half_prepared(run):
            return []
        return [not_a_run(run)]
    try:
        before = copy or read_resolved(run.resolved)
    except Damaged as error:
        raise_passing(error)
        return [
            f"{run.resolved}: {error}, and it decides whether this is the same run. Bring it "
            "back, from a backup or from another run folder of the same recipe, where it is "
            "the same"
        ]
    return identity.differences(before, checked)


def check_run(run: RunFolder, checked: CheckedRecipe, *, fresh: bool) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        RecipeError: with what differs.
    """
    if problems := folder_problems(run, checked, fresh=fresh):
        raise RecipeError(problems)


def _notes(run: RunFolder, checked: CheckedRecipe) -> list[str]:
    """Return what the owner should know of a recipe that changes what may change in a run."""
    if not run.is_prepared() or damage_of(run.resolved, read_resolved):
        return []
    return identity.notes(read_resolved(run.resolved), checked)


def _readable(plan: RunPlan, run: RunFolder, start: Start) -> Start:
    """Return a start after the newest checkpoint that can be read and fits this run.

    Begin with the checkpoint of the given start, and take older ones where that is unreadable.

    Raises:
        RecipeError: none can be read, with what is wrong with the newest; or that one does not fit.
    """
    try:
        notes = check_checkpoint(
            plan, checkpoint_of(run.checkpoints, start.step), steps_of_trunk=_steps_of_trunk(run)
        )
        return replace(start, notes=(*start.notes, *notes))
    except saved_state.UnreadableError as error:
        damage = error.problems[0]
        for checkpoint in whole_before(run.checkpoints, start.step, plan.saves_manifest):
            older = replace(
                start,
                step=step_of(checkpoint),
                notes=(*start.notes, f"{damage}; skipped"),
                unreadable=start.unreadable | {start.step},
            )
            with contextlib.suppress(saved_state.UnreadableError):
                return _readable(plan, run, older)
        raise


def fall_back(
    plan: RunPlan,
    run: RunFolder,
    step: int,
    damage: str,
    *,
    say: Callable[[str], None],
    distrust: Callable[[int], None],
) -> int | None:
    """Point Megatron's tracker at the newest checkpoint before one that could not be loaded.

    The damaged one stays in its place, for its owner to look at, until its step is saved again.

    Args:
        plan: of the run.
        run: its folder.
        step: of the damaged one.
        damage: what is wrong with it.
        say: takes a line for each thing that is done.
        distrust: takes each step whose checkpoint cannot be used.

    Returns:
        The step of the older one, or None if the run can resume after none of them.
    """
    say(f"{checkpoint_of(run.checkpoints, step).name}: cannot be loaded: {damage}")
    distrust(step)
    for checkpoint in whole_before(run.checkpoints, step, plan.saves_manifest):
        try:
            check_checkpoint(plan, checkpoint, steps_of_trunk=_steps_of_trunk(run))
        except RecipeError as error:
            say(f"{error.problems[0]}; skipped")
            distrust(step_of(checkpoint))
            continue
        older = step_of(checkpoint)
        write_tracker(run.checkpoints, older)
        say(f"going on from {checkpoint.name}: {step - older} steps are made again")
        return older
    return None


def branch_of(run: RunFolder) -> Branch | None:
    """Return what a branch knows of its trunk; None where the run is no branch.

    Raises:
        RecipeError: it has known it, and its record is damaged.
    """
    try:
        return read_branch(run.path)
    except Damaged as error:
        raise_passing(error)
        raise RecipeError(
            [
                f"{run.path / BRANCH}: {error}, and it says up to which step this run is another's."
                " Bring it back from a backup, or make the branch again"
            ]
        ) from error


def _steps_of_trunk(run: RunFolder) -> int:
    branch = branch_of(run)
    return branch.step if branch else 0


def _copy_of_identity(run: RunFolder) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the identity in the newest checkpoint, if the folder's own file is damaged."""
    what = damage_of(run.resolved, read_resolved) if run.is_prepared() else None
    newest, _ = newest_whole(run.checkpoints) if what else (None, [])
    if newest is None or step_of(newest) <= _steps_of_trunk(run):
        # The trunk's says what the trunk is.
        return None, []
    try:
        state = saved_state.read(newest, advice="bring the file back from a backup")
    except RecipeError:
        return None, []
    copy = getattr(state["args"], "tst", {}).get("run")
    if not copy:
        return None, []
    return copy, [f"{run.resolved} {what}: compared with the copy in {newest.name} instead"]


def check_checkpoint(plan: RunPlan, checkpoint: Path, *, steps_of_trunk: int = 0) -> list[str]:
    """Refuse a checkpoint that this start cannot resume from, and return notes for its owner.

    Args:
        plan: of the run.
        checkpoint: one of its own, or of its trunk.
        steps_of_trunk: up to this step it is the trunk's, whose later phases may be others.

    Raises:
        UnreadableError: its bytes are damaged.
        RecipeError: it was trained on another stream, it does not load into this layout, or it
            does not say on which stream it was trained.
    """
    # Imports Megatron, which the check of the recipe has done before.
    from tst_megatron.megatron.distributed_checkpoint.model import pending_rerun

    state = saved_state.read(
        checkpoint,
        advice="delete that folder or move it away: the run goes on from the checkpoint before it",
    )
    saved, step = state["args"], step_of(checkpoint)
    is_of_trunk = step <= steps_of_trunk
    problems = _stream_problems(plan, checkpoint, getattr(saved, "tst", {}), is_of_trunk)
    problems += reshard_problems(
        saved,
        plan.arguments,
        content=state.get("content_metadata") or {},
        rerun=pending_rerun(state),
    )
    if problems:
        raise RecipeError(problems)
    return reshard_notes(saved, plan.arguments, step)


def _stream_problems(
    plan: RunPlan, checkpoint: Path, saved: dict[str, Any], is_of_trunk: bool
) -> list[str]:
    if not {"stream", "cursor"} <= set(saved):
        fix = "Nothing can go on from it" if is_of_trunk else "Start again in another --run-folder"
        return [
            f"{checkpoint}: holds no cursor of the token stream, so it cannot be shown where "
            f"the run goes on reading. {fix}"
        ]
    step, facts = step_of(checkpoint), stream_facts(plan.stream, plan.corpora)
    now = cursor(plan.stream, step)
    if is_of_trunk:
        # What the trunk has read is the same, and what it would have read next need not be.
        saved = {"stream": _until(saved["stream"], step), "cursor": saved["cursor"]}
        facts, now = _until(facts, step), {**now, "phase": saved["cursor"].get("phase")}
    found = differences(saved["stream"], facts) or differences(saved["cursor"], now)
    fix = ". Bring back the old" + ("" if is_of_trunk else ", or use another --run-folder")
    # Another version of the order cannot be brought back, and says what to do itself.
    return [problem + ("" if problem.startswith("order version") else fix) for problem in found]


def _until(facts: dict[str, Any], step: int) -> dict[str, Any]:
    return {**facts, "phases": phases_until(facts["phases"], step)}
