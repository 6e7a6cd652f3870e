"""Build what Megatron's training loop needs from the plan of a run, and run that loop.

Importing this module imports Megatron, so the CPU host must be in place before (``pretrain.py``).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from tst_megatron.checkpoint.folder import tracked_step, write_tracker
from tst_megatron.checkpoint.known_saves import note_save
from tst_megatron.checkpoint.resharding import layout_of
from tst_megatron.checkpoint.retention import Keeper, KeepingRule, always_kept
from tst_megatron.checkpoint.run_files import steps_of_trunk
from tst_megatron.checkpoint.start import Start
from tst_megatron.data.stream.cursor import cursor, stream_facts
from tst_megatron.megatron import arguments, initial_weights, loop, writers
from tst_megatron.megatron.distributed_checkpoint import loading, saving
from tst_megatron.megatron.repairs import apply
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.recipe.environment import differences
from tst_megatron.schedule import Schedule
from tst_megatron.system.processes import signals
from tst_megatron.training.dataset import held_out_positions, make_dataset_provider
from tst_megatron.training.report.block_losses import HeldOutLosses
from tst_megatron.training.report.facts import FACTS, write_facts
from tst_megatron.training.report.facts_of_run import facts_of_run, plan_of_facts
from tst_megatron.training.report.metrics_file import LOSS_NAMES, newest_step
from tst_megatron.training.report.plan_file import PLAN, write_plan
from tst_megatron.training.report.recorder import Recorder
from tst_megatron.training.report.versions import write_versions
from tst_megatron.training.report.wandb_run import start_wandb
from tst_megatron.training.resets import Resets
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import RunPlan
from tst_megatron.training.run.start import fall_back
from tst_megatron.training.run.tokenizer import kept_tokenizer
from tst_megatron.training.step import make_forward_step

ASKED_TO_STOP = (
    "asked to stop: a checkpoint is saved at the end of this step. Ctrl-C once more ends without it"
)


def build_and_run(
    plan: RunPlan, run: RunFolder, *, start: Start | None, console: Console, device: str
) -> None:
    """Tell Megatron what the plan says, and run its training loop.

    Args:
        plan: of the run.
        run: its folder.
        start: on the first rank, the step that it begins after; None on others.
        console: where progress goes.
        device: the name of the accelerator.
    """
    # Install what Megatron lacks.
    apply.repair_wheel()
    writers.hold_wandb_back()
    initial_weights.draw_by_place()

    # Megatron's arguments, and what every checkpoint keeps beside them.
    args = arguments.parse_arguments([*plan.flags, *_run_flags(run, plan)])
    facts = stream_facts(plan.stream, plan.corpora)
    args.tst = {**plan.tst.as_keys(), "phases": facts["phases"], "stream": facts}
    # Decides whether a start is of this run if its folder's own copy is damaged.
    args.tst["run"] = plan.identity
    if start is not None:
        _record_start(run, args, device, start)

    # What is watched: numbers, the switch, saves, loads and stop signals.
    observer, held_out = None, _held_out_losses(plan)
    if args.rank == args.world_size - 1:
        observer = Recorder(
            run.metrics, plan.schedule, console=console, device=device, held_out=held_out
        )
    say = _teller(console, start)
    if args.rank == 0:
        for difference in differences(plan.environment, os.environ):
            say(f"warning: {difference}")
    resets = _resets(plan, seed=args.seed, say=say if args.rank == 0 else print)
    before_step = _recording_facts(plan, run, args, device, then=resets, say=say)
    loop.observe_training(
        observer, loss_names=LOSS_NAMES, before_step=before_step, evaluations=held_out
    )
    flush = observer.flush if observer else None
    keeper = _keep_checkpoints(plan, run, args, say=say, flush=flush)
    _follow_loading(plan, run, args, start, observer, keeper, device=device, say=say)
    signals.pass_on_to(loop.request_stop)
    if args.rank == 0:
        signals.pass_on_to(_once(lambda: say(ASKED_TO_STOP)))

    # Build and run.
    try:
        loop.run_pretraining(
            args,
            model_config=TSTGPTModelConfig.from_arguments(args, plan.tst),
            datasets=make_dataset_provider(plan.stream, plan.corpora),
            forward_step=make_forward_step(plan.schedule, held_out),
        )
    finally:
        if observer is not None:
            observer.close()


def _held_out_losses(plan: RunPlan) -> HeldOutLosses:
    return HeldOutLosses(
        partial(held_out_positions, plan.stream, plan.corpora),
        num_latent_positions=plan.schedule.num_latent_positions,
    )


def _recording_facts(
    plan: RunPlan,
    run: RunFolder,
    args: argparse.Namespace,
    device: str,
    *,
    then: Callable[[int, Sequence[Any], Any], None],
    say: Callable[[str], None],
) -> Callable[[int, Sequence[Any], Any], None]:
    """Return what goes before each step: before the first one, the facts of the run are written."""
    is_recorded = False

    def before_step(step: int, models: Sequence[Any], optimizer: Any) -> None:
        nonlocal is_recorded
        if not is_recorded:
            is_recorded = True
            stream = args.tst["stream"]
            facts = facts_of_run(plan.corpora, models, stream=stream, device=device)
            if args.rank == 0:
                _keep_facts(run, facts, plan.schedule, is_moe=bool(args.num_experts), say=say)
        then(step, models, optimizer)

    return before_step


def _keep_facts(
    run: RunFolder,
    facts: Mapping[str, Any],
    schedule: Schedule,
    *,
    is_moe: bool,
    say: Callable[[str], None],
) -> None:
    """Write the facts of a run, and a plan made of them where there is none."""
    try:
        write_facts(run.path / FACTS, facts)
        planned = None if run.plan.exists() else plan_of_facts(schedule, facts, is_moe=is_moe)
        if planned is not None:
            write_plan(run.plan, planned)
    except OSError as error:
        say(f"{run.path}: {FACTS} and {PLAN} were not all written: {error}")


def _resets(plan: RunPlan, *, seed: int, say: Callable[[str], None]) -> Resets:
    return Resets(
        step=plan.schedule.switch_step,
        embeddings=plan.tst.reset_embeddings,
        optimizer=plan.tst.reset_optimizer,
        seed=seed,
        say=say,
    )


def _follow_loading(
    plan: RunPlan,
    run: RunFolder,
    args: argparse.Namespace,
    start: Start | None,
    observer: Recorder | None,
    keeper: Keeper,
    *,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Take an older checkpoint if the newest is damaged, and continue the curves after it."""
    for step in start.unreadable if start else ():
        keeper.distrust(step)

    def older(step: int, damage: str) -> int | None:
        found = fall_back(plan, run, step, damage, say=say, distrust=keeper.distrust)
        if found is not None:
            _write_versions(run, args, device, found)
        return found

    def on_load(step: int) -> None:
        assert observer is not None
        writers.drop_tensorboard_after(step)
        # Before the rows that say what was dropped are moved away.
        newest = newest_step(run.metrics, last_step=plan.schedule.num_steps)
        start_wandb(run.path, args, step=step, newest=newest, say=say)
        observer.on_load(step)

    loading.observe_loading(
        start.step if start else None,
        on_load if observer else None,
        older,
        steps_of_trunk=steps_of_trunk(run.path),
    )


def _keep_checkpoints(
    plan: RunPlan,
    run: RunFolder,
    args: argparse.Namespace,
    *,
    say: Callable[[str], None],
    flush: Callable[[], None] | None,
) -> Keeper:
    """Save where the recipe's phases need it, and delete by rule after each save."""

    def before(step: int) -> None:
        args.tst.update(cursor=cursor(plan.stream, step))
        if flush is not None:
            # A run that is resumed here must have the numbers of all steps before.
            flush()

    rule = KeepingRule(
        keep_last=plan.tst.keep_last_checkpoints,
        keep_every=saving.take_retention(args),
        always=frozenset(always_kept(args, switch_step=plan.schedule.switch_step)),
    )
    keeper = Keeper(run.checkpoints, rule, say=say, has_manifest=plan.saves_manifest)

    def after(step: int) -> None:
        try:
            note_save(run.path, step)
        except OSError as error:
            # The next save tries again: a full disk is no reason to end a run.
            say(f"{run.saves}: was not written: {error}")
        keeper.after_save(step)

    saving.observe_saving(
        before=before,
        clear=keeper.clear,
        after=after,
        forced=rule.always,
        tracked_step=lambda: tracked_step(run.checkpoints),
    )
    return keeper


def _record_start(run: RunFolder, args: argparse.Namespace, device: str, start: Start) -> None:
    """Record what this start is made with, and name the checkpoint that Megatron loads."""
    _write_versions(run, args, device, start.step)
    if start.unreadable:
        # The newest complete checkpoint could not be read: name the one that can.
        write_tracker(run.checkpoints, start.step)


def _write_versions(run: RunFolder, args: argparse.Namespace, device: str, step: int) -> None:
    layout = {key: value for key, value in layout_of(args).items() if value}
    write_versions(
        run.versions, device=device, world_size=args.world_size, layout=layout, step=step
    )


def _teller(console: Console, start: Start | None) -> Callable[[str], None]:
    """Return a function that says a line on the console and in this rank's log.

    The notes of the start are said at once.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        print(line, flush=True)

    for note in start.notes if start else ():
        say(note)
    return say


def _run_flags(run: RunFolder, plan: RunPlan) -> list[str]:
    flags = ["--save", str(run.checkpoints), "--tensorboard-dir", str(run.tensorboard)]
    flags += ["--tokenizer-model", str(kept_tokenizer(run.checkpoints, plan.manifest))]
    # Also for a new run: the tracker file decides whether there is anything to load, and other
    # ranks must not read it before the first has set it.
    return [*flags, "--load", str(run.checkpoints)]


def _once(do: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does something at its first call: one stop may be several signals."""
    left = [do]

    def called() -> None:
        if left:
            left.pop()()

    return called
