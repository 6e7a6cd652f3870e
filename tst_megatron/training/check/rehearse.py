"""Find out if a start would get to its first step: a process of its own builds what it builds."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import time
import warnings

from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.training.check.words import FINE, RAISED, REFUSED

SECONDS = 120.0
"""After that it is not known what building comes to; very many experts take longer."""


def rehearse_start(
    args: argparse.Namespace, tst: TSTConfig, *, is_exact: bool
) -> tuple[list[str], list[str]]:
    """Return what a start of this job would end on before its first step.

    Model, data parallelism, optimizer and schedule are built on torch's meta device in a forked
    process, so that nothing of it stays in this one, and a hang or a full memory is an answer too.

    Args:
        args: validated for the job.
        tst: the recipe's block.
        is_exact: this is the very model of the job, as on the CPU host. For a recipe for GPUs a
            plain form is built, so that what is raised may be of that form alone.

    Returns:
        (problems, notes): what ends every start; what could not be found out here.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Of threads in this process: the child uses none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _be_the_child(args, tst, writing)
    os.close(writing)
    try:
        found = _read_until_closed(reading)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if found is None:
        return [], [f"{NOT_KNOWN}: building it takes longer than {SECONDS:.0f} s here"]
    kind, _, what = found.partition(" ")
    if kind == REFUSED or (kind == RAISED and is_exact):
        return [what if kind == REFUSED else f"{WHERE}: {what}"], []
    if kind == FINE:
        return [], []
    if kind == RAISED:
        what = f"a plain form, without what needs a GPU, ends here in: {what}"
    what = what or "the process that built it was killed, perhaps for want of memory"
    return [], [f"{NOT_KNOWN}: {what}"]


WHERE = "a start would end in building the model, its optimizer or its schedule"
NOT_KNOWN = "not known whether model, optimizer and schedule of the job can be built"


def _read_until_closed(pipe: int) -> str | None:
    """Return what the child says before it ends; None if that takes too long."""
    said, deadline = b"", time.monotonic() + SECONDS
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(pipe, 65536)
        if not part:
            return said.decode(errors="replace")
        said += part
    return None


def _be_the_child(args: argparse.Namespace, tst: TSTConfig, pipe: int) -> None:
    """Build, say what came of it, and end without running anything of the parent's."""
    said = ""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        # A thread of the parent's may have held the locks of those that were there.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        # In the child alone: the parent must not keep what this imports, nor fail with it.
        from tst_megatron.training.check.child import build

        said = build(args, tst)
    except BaseException as error:
        said = f"{RAISED} {reason_of(error)}"
    finally:
        with contextlib.suppress(OSError):
            os.write(pipe, said.encode(errors="replace")[:60_000])
        os._exit(0)
