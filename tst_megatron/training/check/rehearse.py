"""Find out if a start would get to its first step: a process of its own builds what it builds."""

from __future__ import annotations

import argparse

from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.system.processes.forked import answer_of_fork
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
    found = answer_of_fork(
        lambda: _build(args, tst),
        of_error=lambda error: f"{RAISED} {reason_of(error)}",
        seconds=SECONDS,
    )
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


def _build(args: argparse.Namespace, tst: TSTConfig) -> str:
    # In the child alone: the parent must not keep what this imports, nor fail with it.
    from tst_megatron.training.check.child import build

    return build(args, tst)
