"""Let a forked process build a part of a job, and say in words why it could not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.processes.forked import answer_of_fork


def built(work: Callable[[], str], *, failed: str, doing: str, seconds: float) -> str:
    """Return what a function says that builds models in a forked process.

    Args:
        work: runs in the child.
        failed: what did not happen, for errors.
        doing: what was done for it, for errors.
        seconds: the longest that it may take.

    Raises:
        RecipeError: it raised an error, was killed or took too long.
    """
    said = answer_of_fork(
        lambda: _with_any_attention(work),
        of_error=lambda error: json.dumps({"error": reason_of(error)}),
        seconds=seconds,
    )
    if not said:
        how = f"took longer than {seconds:.0f} s" if said is None else "was killed"
        raise RecipeError([f"memory: {failed} here: {doing} {how}"])
    if said.startswith('{"error"'):
        raise RecipeError([f"memory: {failed}: {json.loads(said)['error']}"])
    return said


def _with_any_attention(work: Callable[[], str]) -> str:
    """Work after Megatron's note of another model's attention is taken away.

    Megatron notes the choice of the first model in the environment, and refuses all others.
    """
    for kind in ("FLASH", "FUSED", "UNFUSED"):
        os.environ.pop(f"NVTE_{kind}_ATTN", None)
    return work()
