"""Open a checkpoint: find it, check it, and read what it says of itself.

One CPU process is enough. What is read here is small: the saved arguments, the step, and how the
checkpoint is laid out. Its weights are read by ``weights.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint import saved_state
from tst_megatron.checkpoint.folder import find_checkpoint
from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.checkpoint.whole import problems


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One checkpoint, opened: what it says of itself, none of its weights."""

    folder: Path
    """The ``iter_`` folder, or ``release``."""
    args: argparse.Namespace
    """Megatron's arguments as the checkpoint saved them, the run's parallel sizes included."""
    iteration: int
    """Optimizer steps behind the weights."""
    content_metadata: dict[str, Any] | None
    """The checkpoint's own description of its layout."""


def open_checkpoint(checkpoint: Path, *, iteration: int | None = None) -> Checkpoint:
    """Find a checkpoint and read what it says of itself.

    The tracker is read once: a run that is training may move it while this reads.

    Args:
        checkpoint: a run folder, a folder of checkpoints with Megatron's tracker file, or one
            ``iter_`` folder.
        iteration: which checkpoint of the folder, in optimizer steps; the tracker's when not given.

    Raises:
        ValueError: there is no such checkpoint, it is incomplete, or it holds no arguments.
        RuntimeError: this process already uses a GPU, or is one rank of a larger job.
    """
    folder = find_checkpoint(checkpoint, iteration)
    if found := problems(folder):
        raise ValueError(
            f"{folder}: not a whole torch_dist checkpoint ({'; '.join(found)}). If its save was "
            "cut off, name another with --iteration; checkpoints in another format than "
            "`ckpt-format: torch_dist` are not read."
        )
    in_one_process()
    state = saved_state.read(folder, advice="export another iteration")
    if "iteration" not in state:
        raise ValueError(
            f"{folder}: holds no arguments, so the model's shapes are unknown. "
            "Give a checkpoint saved by Megatron's training loop."
        )
    return Checkpoint(
        folder=folder,
        args=state["args"],
        iteration=int(state["iteration"]),
        content_metadata=state.get("content_metadata"),
    )
