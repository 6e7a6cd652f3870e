"""Record every number of a run; the losses of two phases never share a curve.

``metrics.jsonl`` holds one line per optimizer step and one per evaluation, written on the last
rank, where the loss is. TensorBoard and Weights & Biases get the same names. Numbers for comparison
come from here: the second line of Megatron's printed log after a start is a mean of two steps.
``evaluations/`` holds the loss of each held-out sequence, a file for each evaluation, which is
written before its line.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tst_megatron.megatron import loop, names, ranks, writers
from tst_megatron.plan.cost.machine import peak_teraflops
from tst_megatron.schedule import Schedule
from tst_megatron.training.report.block_losses import HeldOutLosses
from tst_megatron.training.report.evaluations import (
    drop_evaluations_after,
    file_of,
    write_blocks,
)
from tst_megatron.training.report.metrics_file import (
    BAG_LOSS,
    DROPPED,
    EVALUATIONS,
    LM_LOSS,
    MFU,
    PEAK_MEMORY,
    SAID,
    TEST_LOSS,
    VALIDATION_LOSS,
    drop_lines_after,
)

FROM_MEGATRON = (
    "learning-rate",
    "grad-norm",
    "load_balancing_loss",
    "seq_load_balancing_loss",
    "global_load_balancing_loss",
    "z_loss",
    "skipped-train-samples",
)
"""Scalars that Megatron writes under these names and that each line repeats."""

OF_A_HEAD = re.compile(r"mtp_\d+ loss")
"""Likewise the loss of each multi-token prediction head, in nats: as many names as heads."""

SECONDS_BETWEEN_LINES = 20.0
"""How often progress is printed where there is no terminal to draw on."""


class Recorder:
    """Writes what training tells of itself: ``metrics.jsonl``, the writers, and progress."""

    def __init__(
        self,
        path: Path,
        schedule: Schedule,
        *,
        console: Console,
        device: str,
        held_out: HeldOutLosses | None = None,
    ) -> None:
        """Write to ``path`` from ``on_load`` on.

        Args:
            path: the run's ``metrics.jsonl``; ``evaluations/`` is beside it.
            schedule: of the run.
            console: where progress goes.
            device: the name of the accelerator.
            held_out: has the losses of the last evaluation.
        """
        self._path = path
        self._evaluations = path.parent / EVALUATIONS
        self._held_out = held_out
        self._has_said_not_kept = False
        self._schedule = schedule
        self._device = device
        self._peak = peak_teraflops(device)
        self._file: TextIO | None = None
        self._last_evaluation = ("", -1)
        self._progress = _Progress(console, schedule.num_steps)

    def on_load(self, step: int) -> None:
        """Continue after the step that was really loaded, or 0; later lines are moved aside."""
        num_damaged = drop_lines_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        if num_damaged:
            self._progress.note(
                f"{self._path}: {num_damaged} lines were torn, damaged or there twice: moved to "
                f"{DROPPED}"
            )
        try:
            drop_evaluations_after(self._evaluations, step)
        except OSError as error:
            self._progress.note(f"evaluations of later steps were not deleted: {error}")
        self._progress.start(step)

    def on_step(self, step: int, seconds: float, scalars: Mapping[str, float]) -> None:
        """Record a completed optimizer step (``upstream.StepObserver``)."""
        schedule = self._schedule
        phase = schedule.phase_at(step - 1)
        raw_tokens = schedule.raw_tokens_per_step(phase)
        teraflops = loop.teraflops_per_device(names.get_args(), seconds)
        latent_positions = schedule.latent_positions_before(1)
        loss_name = BAG_LOSS if phase.is_superposition else LM_LOSS
        ours = {
            "bag size": phase.bag_size,
            "raw tokens": schedule.raw_tokens_before(step),
            "latent positions": schedule.latent_positions_before(step),
            "raw tokens per second": raw_tokens / seconds,
            "latent positions per second": latent_positions / seconds,
            "TFLOP/s per device": teraflops,
            **({} if self._peak is None else {MFU: teraflops / self._peak}),
            "step seconds": seconds,
            PEAK_MEMORY: ranks.peak_memory_bytes(),
        }
        theirs = {name: scalars[name] for name in FROM_MEGATRON if name in scalars}
        theirs |= {name: loss for name, loss in scalars.items() if OF_A_HEAD.fullmatch(name)}
        loss = scalars.get(loss_name)
        row = {"step": step, "phase": phase.name, loss_name: loss, **theirs, **ours}
        self._write({"event": "step", **row, "device": self._device})
        _to_writers(ours, step)
        said = schedule.said_of(phase)
        self._progress.step(step, f"{said}: {SAID[loss_name]} {loss:.3f}" if loss else said)

    def on_evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record an evaluation (``upstream.StepObserver``)."""
        for event, name in (("validation", VALIDATION_LOSS), ("test", TEST_LOSS)):
            # Megatron evaluates once more after the last step, on the same positions.
            if name in scalars and (event, step) != self._last_evaluation:
                self._last_evaluation = (event, step)
                self._keep_blocks(event, step)
                self._write({"event": event, "step": step, name: scalars[name]})
                self._progress.note(f"step {step}: {SAID[name]} {scalars[name]:.4f}")

    def flush(self) -> None:
        """Bring what was recorded to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the file and the progress display."""
        self._progress.close()
        if self._file is not None:
            self._file.close()

    def _keep_blocks(self, event: str, step: int) -> None:
        """Write the losses of the held-out sequences; that they cannot be kept ends no run."""
        if self._held_out is None:
            return
        blocks = self._held_out.result()
        if blocks is None:
            self._say_not_kept("they are not known in this layout")
            return
        try:
            write_blocks(file_of(self._evaluations, event, step), blocks)
        except OSError as error:
            self._say_not_kept(str(error))

    def _say_not_kept(self, why: str) -> None:
        if not self._has_said_not_kept:
            self._has_said_not_kept = True
            self._progress.note(f"the losses of single held-out sequences are not kept: {why}")

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None, "nothing was loaded yet"
        # One write per line, so that a killed run leaves whole lines and a torn one at most.
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def _to_writers(scalars: Mapping[str, float], step: int) -> None:
    tensorboard, wandb = writers.tensorboard_writer(), writers.wandb_writer()
    if tensorboard is not None:
        for name, value in scalars.items():
            tensorboard.add_scalar(name, value, step)
    if wandb is not None:
        wandb.log(dict(scalars), step)


class _Progress:
    """A bar on a terminal; a line now and then in a log."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self._console = console
        self._num_steps = num_steps
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._advance: Callable[[int, str], None] = self._print_line

    def start(self, first_step: int) -> None:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            task = self._bar.add_task("training", total=self._num_steps, completed=first_step)
            self._bar.start()
            bar = self._bar
            self._advance = lambda step, text: bar.update(task, completed=step, description=text)

    def step(self, step: int, text: str) -> None:
        self._advance(step, text)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _print_line(self, step: int, text: str) -> None:
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._last_line = now
            self.note(f"step {step}/{self._num_steps}: {text}")
