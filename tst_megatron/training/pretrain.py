"""The main job, top to bottom: check, announce, install, build, run, record how it ended."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tst_megatron.checkpoint.folder import step_of, tracked_step, write_tracker
from tst_megatron.checkpoint.resharding import layout_of
from tst_megatron.checkpoint.retention import Keeper, KeepingRule, always_kept, finish_deleting
from tst_megatron.checkpoint.start import Start
from tst_megatron.data.stream.cursor import cursor, stream_facts
from tst_megatron.recipe.check.checked import CheckedRecipe
from tst_megatron.recipe.environment import differences
from tst_megatron.system.exit_status import BAD_INPUT, DO_NOT_RESTART, FAILED, FINISHED, STOPPED
from tst_megatron.system.processes import signals
from tst_megatron.training.run.folder import RunFolder, saves_manifest
from tst_megatron.training.run.identity import identity
from tst_megatron.training.run.start import fall_back
from tst_megatron.training.run.state import ALL_STEPS, STARTED
from tst_megatron.training.run.versions import write_versions

if TYPE_CHECKING:
    # Imports Megatron: the CPU host must be in place before.
    from tst_megatron.training.metrics import Recorder

ASKED_TO_STOP = (
    "asked to stop: a checkpoint is saved at the end of this step. Ctrl-C once more ends without it"
)

_REFUSED_RESULT = (16, 17)
"""Exit statuses of Megatron's rerun state machine."""

_GO_ON = "go on at your own risk with rerun-mode=disabled"

# By the state in which the rerun state machine ended the run. Megatron would ask for one restart
# after the other on the same device (Megatron-LM issue 5281), so the second one is the last.
_MEANING_OF_REFUSAL = {
    "RERUNNING_IN_PLACE": (
        STOPPED,
        "stopped",
        "but not when {node} computed it again: a fault of that node. Restart on another",
    ),
    "WILL_RERUN_FROM_CHECKPOINT": (
        STOPPED,
        "stopped",
        "and again when {node} computed it a second time. Restarting on the same node will not "
        "help: restart on another, to tell a fault of this one from a bug, or " + _GO_ON,
    ),
    "RERUNNING_AGAIN_FROM_CHECKPOINT": (
        DO_NOT_RESTART,
        "failed",
        "and the run was restarted on {node}, where it had been found. Restarting on the same "
        "node will not help: restart on another, or " + _GO_ON,
    ),
    "RERUNNING_FROM_CHECKPOINT": (
        DO_NOT_RESTART,
        "failed",
        "and {node} was the second to compute it: the end of its log says whether the first was "
        "at fault. Restarting will not help: " + _GO_ON,
    ),
}


def pretrain(
    checked: CheckedRecipe, run: RunFolder, *, start: Start | None, console: Console
) -> int:
    """Train as a recipe says, in this process as one rank of the job.

    Args:
        checked: what ``check_recipe`` passed.
        run: its folder, prepared by the first rank or by the launcher.
        start: on the first rank, which step Megatron's tracker file was set to; None on others.
        console: where progress goes; Megatron's own log goes to the run folder.

    Returns:
        The exit status: 0 finished, 75 stopped and to be continued, 93 not to be restarted, 2 no
        checkpoint can be loaded, 1 a failure, whose traceback is in the log.
    """
    is_on_cpu = checked.recipe.profile == "cpu"
    if is_on_cpu:
        from tst_megatron.megatron.cpu import host

        host.install()
    # Megatron is imported from here on: the CPU host must be in place before.
    from torch.distributed.checkpoint import api

    from tst_megatron.megatron.distributed_checkpoint import loading, saving
    from tst_megatron.megatron.repairs import checkpoint_processes

    rank = int(os.environ["RANK"])
    device = "cpu" if is_on_cpu else _device_name()
    if rank == 0:
        note_start(run, device)
    before, sick_node = run.state(), None
    try:
        _train(checked, run, start=start, console=console, device=device)
        status, word, reason = FINISHED, "finished", ALL_STEPS
    except SystemExit as exit_:
        # Megatron ends a graceful stop by sys.exit inside pretrain.
        status, word, reason, sick_node = _meaning_of_exit(exit_.code, rank)
        if status == STOPPED and run.is_finished(checked):
            status, word, reason = FINISHED, "finished", run.reason_of_end(checked)
    except loading.NothingToLoad as error:
        # A person has to bring a checkpoint back, which no traceback helps with.
        print(error, flush=True)
        if rank == 0:
            console.print(f"{error}", style="red", markup=False, soft_wrap=True)
        status, word, reason = BAD_INPUT, "failed", str(error)
    except (Exception, api.CheckpointException) as error:
        # To this rank's log: the caller's own input was checked before, so this is no bad input.
        traceback.print_exc()
        status, word, reason = FAILED, "failed", f"rank {rank}: {saving.reason_of(error)}"
    try:
        # A rank that fails may be the only one that knows: the first is then ended from outside.
        # At once: what waits for this rank fails when it ends, and its own reason comes second.
        if (rank == 0 or status == FAILED) and not run.has_failed_since(before):
            _record(run, word, reason, exit_status=status, device=device, sick_node=sick_node)
        elif status in (STOPPED, DO_NOT_RESTART, BAD_INPUT):
            run.wait_until_ended()
    finally:
        _say_if_failed(status, rank, console, reason, run.log(rank))
        # Also on a full disk: Python waits for them without a limit.
        checkpoint_processes.end_checkpoint_worker()
        signals.end_children()
        finish_deleting()
    return status


def note_start(run: RunFolder, device: str) -> None:
    """Say that a start has begun: stands if it is killed before it can say how it ended."""
    _record(run, "failed", STARTED, exit_status=FAILED, device=device)


def _device_name() -> str:
    from tst_megatron.megatron import ranks

    try:
        return ranks.device_name()
    except Exception:
        # What ends the run is told by its first use of a device, which every rank makes.
        traceback.print_exc()
        return "unknown"


def _say_if_failed(status: int, rank: int, console: Console, reason: str, log: Path) -> None:
    # That it must not be started again is found by all ranks together.
    if status == FAILED or (status == DO_NOT_RESTART and rank == 0):
        say_failure(console, reason, log)


def say_failure(console: Console, reason: str, log: Path) -> None:
    """Say on the console, in one line, why this rank ends and where its log is."""
    line = f"failed: {reason} (log: {log})"
    # Who has closed the terminal hears nothing, and the rank ends as it would have.
    with contextlib.suppress(OSError):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)


def _once(do: Callable[[], None]) -> Callable[[], None]:
    """Do something at the first call; one stop may come as several signals."""
    left = [do]

    def called() -> None:
        if left:
            left.pop()()

    return called


def _meaning_of_exit(code: object, rank: int) -> tuple[int, str, str, str | None]:
    """What an exit status of Megatron's means, or the text that Python takes instead of one.

    Returns:
        Our status, the word for ``state.json``, the reason, and the node that a restart must not
        be on, if there is one.
    """
    if code == 0:
        return STOPPED, "stopped", "asked to stop; a checkpoint was saved", None
    if code not in _REFUSED_RESULT:
        traceback.print_exc()
        said = code if isinstance(code, str) else f"exit status {code}"
        return FAILED, "failed", f"rank {rank}: {said}", None
    from tst_megatron.megatron import loop

    what, node, state = loop.refused_result()
    status, word, verdict = _MEANING_OF_REFUSAL[state]
    reason = f"{what}, {verdict.format(node=node or 'one of the nodes')}"
    return status, word, reason, node if status == STOPPED else None


def _train(
    checked: CheckedRecipe, run: RunFolder, *, start: Start | None, console: Console, device: str
) -> None:
    """Announce to Megatron what the recipe says, and run its training loop."""
    from tst_megatron.megatron import arguments, initial_weights, loop, writers
    from tst_megatron.megatron.repairs.apply import repair_wheel
    from tst_megatron.model.gpt import TSTGPTModelConfig
    from tst_megatron.training.dataset import make_dataset_provider
    from tst_megatron.training.metrics import Recorder
    from tst_megatron.training.record import LOSS_NAMES
    from tst_megatron.training.resets import Resets
    from tst_megatron.training.step import make_forward_step

    repair_wheel()
    writers.hold_wandb_back()
    initial_weights.draw_by_place()
    args = arguments.parse_arguments([*checked.flags, *_run_flags(run, checked)])
    # Into every checkpoint, with Megatron's own arguments.
    facts = stream_facts(checked.stream, checked.corpora)
    args.tst = {**checked.recipe.resolved()["tst"], "phases": facts["phases"], "stream": facts}
    # Decides whether a start is of this run where its folder's own copy is damaged.
    args.tst["run"] = identity(checked)
    if start is not None:
        _record_start(run, args, device, start)
    observer = None
    if args.rank == args.world_size - 1:
        observer = Recorder(run.metrics, checked.schedule, console=console, device=device)
    say = _teller(console, start)
    if args.rank == 0:
        for difference in differences(checked.environment, os.environ):
            say(f"warning: {difference}")
    loop.observe_training(
        observer,
        loss_names=LOSS_NAMES,
        before_step=Resets(
            step=checked.schedule.switch_step,
            embeddings=checked.recipe.tst.reset_embeddings,
            optimizer=checked.recipe.tst.reset_optimizer,
            seed=args.seed,
            say=say if args.rank == 0 else print,
        ),
    )
    keeper = _keep_checkpoints(
        checked, run, args, say=say, flush=observer.flush if observer else None
    )
    _follow_loading(checked, run, args, start, observer, keeper, device=device, say=say)
    signals.pass_on_to(loop.request_stop)
    if args.rank == 0:
        signals.pass_on_to(_once(lambda: say(ASKED_TO_STOP)))
    try:
        loop.run_pretraining(
            args,
            model_config=TSTGPTModelConfig.from_arguments(args, checked.recipe.tst),
            datasets=make_dataset_provider(checked.stream, checked.corpora),
            forward_step=make_forward_step(checked.schedule),
        )
    finally:
        if observer is not None:
            observer.close()


def _follow_loading(
    checked: CheckedRecipe,
    run: RunFolder,
    args: argparse.Namespace,
    start: Start | None,
    observer: Recorder | None,
    keeper: Keeper,
    *,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Go back to an older checkpoint where one is damaged, and go on with the curves after it."""
    from tst_megatron.megatron import writers
    from tst_megatron.megatron.distributed_checkpoint import loading
    from tst_megatron.training.record import newest_step
    from tst_megatron.training.wandb_run import start_wandb

    for step in start.unreadable if start else ():
        keeper.distrust(step)

    def older(step: int, damage: str) -> int | None:
        found = fall_back(checked, run, step, damage, say=say, distrust=keeper.distrust)
        if found is not None:
            _write_versions(run, args, device, found)
        return found

    def on_load(step: int) -> None:
        assert observer is not None
        writers.drop_tensorboard_after(step)
        # Before the rows that say what was dropped are moved away.
        newest = newest_step(run.metrics, last_step=checked.schedule.num_steps)
        start_wandb(run.path, args, step=step, newest=newest, say=say)
        observer.on_load(step)

    loading.observe_loading(start.step if start else None, on_load if observer else None, older)


def _keep_checkpoints(
    checked: CheckedRecipe,
    run: RunFolder,
    args: argparse.Namespace,
    *,
    say: Callable[[str], None],
    flush: Callable[[], None] | None,
) -> Keeper:
    """Save where the recipe's phases need it, and delete by rule after each save."""
    from tst_megatron.megatron.distributed_checkpoint import saving

    def before(step: int) -> None:
        args.tst.update(cursor=cursor(checked.stream, step))
        if flush is not None:
            # A run that goes on from this checkpoint has the numbers of all steps before it.
            flush()

    rule = KeepingRule(
        keep_last=checked.recipe.tst.keep_last_checkpoints,
        keep_every=saving.take_retention(args),
        always=frozenset(always_kept(args, switch_step=checked.schedule.switch_step)),
    )
    keeper = Keeper(run.checkpoints, rule, say=say, has_manifest=saves_manifest(checked))

    def after(step: int) -> None:
        try:
            run.note_save(step)
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
    """On the first rank: what this start is made with, and the checkpoint that Megatron loads."""
    _write_versions(run, args, device, start.step)
    if start.unreadable:
        # The newest whose files are whole is not the one that can be read.
        write_tracker(run.checkpoints, start.step)


def _write_versions(run: RunFolder, args: argparse.Namespace, device: str, step: int) -> None:
    layout = {key: value for key, value in layout_of(args).items() if value}
    write_versions(
        run.versions, device=device, world_size=args.world_size, layout=layout, step=step
    )


def _teller(console: Console, start: Start | None) -> Callable[[str], None]:
    """A way to say something on the console and in this rank's log; says what the start has to."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        print(line, flush=True)

    for note in start.notes if start else ():
        say(note)
    return say


def _run_flags(run: RunFolder, checked: CheckedRecipe) -> list[str]:
    flags = ["--save", str(run.checkpoints), "--tensorboard-dir", str(run.tensorboard)]
    flags += ["--tokenizer-model", str(run.tokenizer_of(checked))]
    # Also for a new run: whether there is anything to load is decided by the tracker file, and
    # other ranks must not read it before the first has set it.
    return [*flags, "--load", str(run.checkpoints)]


def _record(
    run: RunFolder,
    word: str,
    reason: str,
    *,
    exit_status: int,
    device: str,
    sick_node: str | None = None,
) -> None:
    checkpoint = run.last_checkpoint()
    step = step_of(checkpoint) if checkpoint else 0
    run.write_state(
        word,
        reason=reason,
        step=step,
        device=device,
        exit_status=exit_status,
        sick_node=sick_node,
    )


class RankConsole(Console):
    """A console that falls silent when nobody reads it any more.

    The class of rich ends the process then, and throws away what it writes to its log.
    """

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


def redirect_output_to(path: str) -> Console:
    """Send everything this process prints to a file, and keep a console on what was there before.

    Megatron, NCCL and C++ print from anywhere, so the file descriptors themselves are exchanged.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return RankConsole(file=terminal)
