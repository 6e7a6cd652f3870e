"""Would a start get as far as its first step? A process of its own builds all that it builds."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import signal
import sys
import time
import warnings

from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.tst_config import TSTConfig

SECONDS = 120.0
"""After that it is not known what building comes to; very many experts take longer."""
MOST_MEMORY = 16 * 2**30
"""Bytes of address space beyond what the process has: objects of a model, no values."""


def rehearse_start(
    args: argparse.Namespace, tst: TSTConfig, *, is_exact: bool
) -> tuple[list[str], list[str]]:
    """What a start of this job would end on before its first step.

    Model, data parallelism, optimizer and schedule are built on torch's meta device in a forked
    process, so that nothing of it stays in this one, and a hang or a full memory is an answer too.

    Args:
        args: validated for the job.
        tst: the recipe's block.
        is_exact: whether this is the very model of the job, as on the CPU host. Of a recipe for
            GPUs a plain form is built, so that what is raised may be of that form alone.

    Returns:
        (problems, notes): what no start survives; what could not be found out here.
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
    if kind == _REFUSED or (kind == _RAISED and is_exact):
        return [what if kind == _REFUSED else f"{WHERE}: {what}"], []
    if kind == _FINE:
        return [], []
    if kind == _RAISED:
        what = f"a plain form, without what needs a GPU, ends here in: {what}"
    what = what or "the process that built it was killed, perhaps for want of memory"
    return [], [f"{NOT_KNOWN}: {what}"]


_FINE, _REFUSED, _RAISED, _MISSING = "fine", "refused", "raised", "missing"
"""First word of what the child says."""

WHERE = "a start would end in building the model, its optimizer or its schedule"
NOT_KNOWN = "not known whether model, optimizer and schedule of the job can be built"


def _read_until_closed(pipe: int) -> str | None:
    """What the child says before it ends; None if that takes too long."""
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
        said = _build(args, tst)
    except BaseException as error:
        said = f"{_RAISED} {reason_of(error)}"
    finally:
        with contextlib.suppress(OSError):
            os.write(pipe, said.encode(errors="replace")[:60_000])
        os._exit(0)


def _stage_problem(layers: list[int], num_layers: int) -> str | None:
    """Pipeline stages that do not share out the layers of the model."""
    shares = "+".join(map(str, layers))
    if not layers or (sum(layers) == num_layers and min(layers) >= 0):
        return None
    return (
        f"pipeline-model-parallel-size: the {len(layers)} stages would get {shares} layers, and "
        f"num-layers is {num_layers}. Change the layers of the first or the last stage, or the "
        "layout"
    )


def _build(args: argparse.Namespace, tst: TSTConfig) -> str:
    import torch

    from tst_megatron.megatron import setup_without_values
    from tst_megatron.megatron.cpu import host
    from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
    from tst_megatron.model.gpt import TSTGPTModelConfig

    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    host.install_without_values()
    plain = setup_without_values.plain_arguments(args)
    with transformer_engine_of_the_job():
        model_config = TSTGPTModelConfig.from_arguments(plain, tst)
    if problem := _stage_problem(setup_without_values.layers_of_stages(args), args.num_layers):
        return f"{_REFUSED} {problem}"
    try:
        setup_without_values.set_up(plain, model_config, of=args)
    except ImportError as error:
        # The job's environment may be another; what is missing here is said by rules/packages.py.
        return f"{_MISSING} {reason_of(error)}"
    return _FINE
