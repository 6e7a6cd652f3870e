"""Start the commands of a run, each a process of its own that ends with the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tst_megatron.sweep.keys import words_of
from tst_megatron.sweep.plan import PlannedRun, SweepPlan
from tst_megatron.system.machine.cores import num_cores
from tst_megatron.system.machine.nvidia_smi import ask
from tst_megatron.system.processes import signals

COMMAND = (sys.executable, "-m", "tst_megatron")


def commands_of(
    plan: SweepPlan, run: PlannedRun, *, nproc: int | None, command: Sequence[str] = COMMAND
) -> list[list[str]]:
    """List what starts or resumes a run: a branch is made first, where there is none yet.

    Args:
        plan: of the sweep.
        run: one of its runs.
        nproc: ranks of the run; None trains it in one process.
        command: the words that stand for ``tst-megatron``.

    Raises:
        RecipeError: a recipe of the sweep cannot be read.
    """
    folder = plan.run(run.name)
    ranks = [] if nproc is None else ["--nproc", str(nproc)]
    # Also of a branch: a start refuses a folder that holds another run than the recipe says.
    recipe = plan.recipe(run.name)
    train = [*command, "train", str(recipe), "--run-folder", str(folder), *ranks]
    if run.trunk is None or folder.exists():
        # A branch appears whole.
        return [train]
    words = words_of(plan.branch_keys(run))
    trunk = str(plan.run(run.trunk.name))
    step = ["--step", str(run.trunk.step), "--output", str(folder)]
    return [[*command, "branch", trunk, *words, *step], train]


class Job[R]:
    """The commands of one run, one after the other."""

    def __init__(
        self,
        run: R,
        commands: Sequence[Sequence[str]],
        *,
        log: Path,
        slot: int,
        environment: Mapping[str, str],
    ) -> None:
        """Start the first command.

        Args:
            run: that the commands are for.
            commands: each with its words; one begins when the one before it has ended with 0.
            log: gets what they print, behind what is there.
            slot: the place among those that run at the same time.
            environment: of the commands.
        """
        self.run = run
        self.slot = slot
        self.begun = time.monotonic()
        self._left = [list(command) for command in commands]
        self._log, self._environment = log, environment
        self._is_stopping = False
        self._process = self._start()

    def poll(self) -> int | None:
        """Return the status that ended the commands; None while one runs."""
        status = self._process.poll()
        if status == 0 and self._left and not self._is_stopping:
            self._process = self._start()
            return None
        return status

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the command that runs to save and end; or end it at once with SIGKILL."""
        self._is_stopping = True
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _start(self) -> subprocess.Popen[bytes]:
        words = self._left.pop(0)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # A Ctrl-C in the terminal comes to the sweep alone, which passes it on once.
                process_group=0,
                # If the sweep is killed, the run saves and ends.
                preexec_fn=partial(signals.end_with, os.getpid(), signal.SIGTERM),
            )


def environments(*, at_once: int, nproc: int | None, is_on_cpu: bool) -> list[dict[str, str]]:
    """Return the environment of each of the runs that train at the same time: their shares.

    Args:
        at_once: runs that train at the same time.
        nproc: ranks of each.
        is_on_cpu: the runs need no GPU.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    num_ranks = nproc or 1
    shared = dict(os.environ)
    if not os.environ.get("OMP_NUM_THREADS"):
        shared["OMP_NUM_THREADS"] = str(max(1, num_cores() // (at_once * num_ranks)))
    if is_on_cpu or at_once == 1:
        return [dict(shared) for _ in range(at_once)]
    gpus = _gpus()
    if len(gpus) < at_once * num_ranks:
        raise ValueError(
            f"--at-once {at_once}: as many runs of {num_ranks} ranks need {at_once * num_ranks} "
            f"GPUs, and this machine shows {len(gpus)}. Lower one of the two"
        )
    shares = [gpus[slot * num_ranks : (slot + 1) * num_ranks] for slot in range(at_once)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [index for (index,) in ask("gpu", ("index",)).rows]
