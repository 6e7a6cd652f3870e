"""Train as one rank of a job: install, build, run, and record how it ended.

``train.py`` has checked the run before, and prepared its folder. ``build.py`` wires what is ours
into Megatron's loop. Where a function here imports
Megatron, it says so: the CPU host must be in place before.
"""

from __future__ import annotations

import os
import traceback

from rich.console import Console

from tst_megatron.checkpoint.retention import finish_deleting
from tst_megatron.checkpoint.start import Start
from tst_megatron.system.exit_status import BAD_INPUT, DO_NOT_RESTART, FAILED, STOPPED
from tst_megatron.system.processes import signals
from tst_megatron.training.run import endings, saves
from tst_megatron.training.run.endings import Ending
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import RunPlan


def pretrain(plan: RunPlan, run: RunFolder, *, start: Start | None, console: Console) -> int:
    """Train as a plan says, in this process as one rank of the job.

    Args:
        plan: of the run.
        run: its folder, prepared by the first rank or by the launcher.
        start: on the first rank, the checkpoint that the run resumes from; None on others.
        console: where progress goes; Megatron's own log goes to the run folder.

    Returns:
        The exit status: 0 finished, 75 stopped and to be continued, 93 not to be restarted, 2 no
        checkpoint can be loaded, 1 a failure, whose traceback is in the log.
    """
    _install_host(plan)
    # Megatron is imported from here on: the CPU host must be in place before.
    from tst_megatron.megatron.repairs import checkpoint_processes

    rank = int(os.environ["RANK"])
    device = "cpu" if plan.is_on_cpu else _device_name()
    if rank == 0:
        endings.note_start(run, device)
    before = run.state()
    ending = _run(plan, run, rank, start=start, console=console, device=device)
    try:
        # Write the failure before exiting: srun kills rank 0 when any rank fails, and ranks that
        # wait for us report a misleading error. Only the first failure is of use.
        tells = rank == 0 or ending.status == FAILED
        if tells and not endings.has_failed_since(run, before):
            endings.record(run, ending, device=device)
        elif ending.status in (STOPPED, DO_NOT_RESTART, BAD_INPUT):
            endings.wait_until_ended(run)
    finally:
        # All ranks find together that a run must not be started again, so one says it.
        if ending.status == FAILED or (ending.status == DO_NOT_RESTART and rank == 0):
            endings.say_failure(console, ending.reason, run.log(rank))
        # Also on a full disk: Python waits for these processes without a limit.
        checkpoint_processes.end_checkpoint_worker()
        signals.end_children()
        finish_deleting()
    return ending.status


def _install_host(plan: RunPlan) -> None:
    if plan.is_on_cpu:
        # In a job on GPUs nothing may stand in for them.
        from tst_megatron.megatron.cpu import host

        host.install()


def _device_name() -> str:
    # Imports Megatron: the CPU host must be in place before.
    from tst_megatron.megatron import ranks

    try:
        return ranks.device_name()
    except Exception:
        # Every rank soon uses the device, and that failure is what ends the run with a reason.
        traceback.print_exc()
        return "unknown"


def _run(
    plan: RunPlan,
    run: RunFolder,
    rank: int,
    *,
    start: Start | None,
    console: Console,
    device: str,
) -> Ending:
    """Train, and return how that ended, whatever it raised."""
    from torch.distributed.checkpoint import api

    # Imports Megatron: the CPU host must be in place before.
    from tst_megatron.megatron.distributed_checkpoint import loading, saving

    try:
        _train(plan, run, start=start, console=console, device=device)
        return endings.ALL_DONE
    except SystemExit as exit_:
        # Megatron ends a graceful stop by sys.exit inside pretrain.
        ending = endings.ending_of_exit(exit_.code, rank)
        is_finished = ending.status == STOPPED and saves.is_finished(run, plan)
        return endings.finished(run, plan) if is_finished else ending
    except loading.NothingToLoad as error:
        # A person has to bring a checkpoint back, which no traceback helps with.
        print(error, flush=True)
        if rank == 0:
            console.print(f"{error}", style="red", markup=False, soft_wrap=True)
        return Ending(BAD_INPUT, "failed", str(error))
    except (Exception, api.CheckpointException) as error:
        # To this rank's log: the recipe was checked before, so this is no bad input.
        traceback.print_exc()
        return Ending(FAILED, "failed", f"rank {rank}: {saving.reason_of(error)}")


def _train(
    plan: RunPlan, run: RunFolder, *, start: Start | None, console: Console, device: str
) -> None:
    # Imports Megatron: the CPU host must be in place before.
    from tst_megatron.training.build import build_and_run

    build_and_run(plan, run, start=start, console=console, device=device)
